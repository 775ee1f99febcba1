"""Which checkpoint is ``last``, ``previous``, ``best`` or the end of a stage: ``checkpoints/pointers.json``.

The file counts: it is written atomically, so that ``last`` and ``best`` change together, and it survives copies and
file systems without symbolic links. For people and typed paths (``checkpoints/last/model``) links of the same names
stand beside it, where the file system has links; they are made from the file and read only where it lacks a name: in
runs of older versions, also where a copy (``cp -rL``, zip) has made folders of their links.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from rethinker.rundir import checksums
from rethinker.rundir.atomic import atomic_write_text, read_json, sync_folder
from rethinker.rundir.paths import BEST, LAST, PREVIOUS

FILE = "pointers.json"


def find(checkpoints: Path, name: str) -> Path | None:
    """The folder of the checkpoint ``name``; None if there is none."""
    written = read_json(checkpoints / FILE).get(name)
    if written and (checkpoints / written).is_dir():
        return checkpoints / written
    path = checkpoints / name
    if not path.is_dir():
        return None
    return path.resolve() if path.is_symlink() else path


def point(checkpoints: Path, names: Iterable[str], folder: Path) -> None:
    """Make ``names`` name ``folder``, all in one step; links follow."""
    _write(checkpoints, read_json(checkpoints / FILE) | dict.fromkeys(names, folder.name))
    _link(checkpoints)


def names_after_save(checkpoints: Path, folder: Path, *, best: bool, keep_last: int) -> dict[str, str]:
    """The names when ``folder`` has been saved: it is ``last``, with ``best`` that too, and the ones before it are
    ``previous``, ``previous-2`` and so on, ``keep_last`` in all."""
    chain = [find(checkpoints, name) for name in _newest(keep_last)]
    newest = [folder, *(old for old in chain if old and old.parent.resolve() == checkpoints.resolve())]
    names = {name: old for name, old in read_json(checkpoints / FILE).items() if not name.startswith(PREVIOUS)}
    names |= {name: old.name for name, old in zip(_newest(keep_last), newest, strict=False)}
    return names | ({BEST: folder.name} if best else {})


def set_names(checkpoints: Path, names: dict[str, str]) -> None:
    """Make these, and no others, the names; all in one step, links follow."""
    for name in read_json(checkpoints / FILE).keys() - names.keys():
        if (checkpoints / name).is_symlink():
            (checkpoints / name).unlink()
    _write(checkpoints, names)
    _link(checkpoints)


def _newest(count: int) -> list[str]:
    return [LAST, *(PREVIOUS if number == 1 else f"{PREVIOUS}-{number}" for number in range(1, count))]


def repair(checkpoints: Path, names: Iterable[str]) -> None:
    """Make the links of ``names``, and of those in the file, agree with the file again, as before a run is resumed from
    a copy or after a kill.

    A folder in the place of a link becomes a step folder like others: that of its name, or of none where the file
    names another. A kill at any moment leaves a state that this function repairs.
    """
    others = [path.name for path in checkpoints.glob(f"{PREVIOUS}*")]
    for name in dict.fromkeys([*names, *read_json(checkpoints / FILE), *others]):
        path = checkpoints / name
        if path.is_dir() and not path.is_symlink():
            folder = free_name(checkpoints, f"step-copy-of-{name}")
            if find(checkpoints, name) == path:
                _write(checkpoints, read_json(checkpoints / FILE) | {name: folder.name})
            path.rename(folder)
    _link(checkpoints)


def start_file(checkpoints: Path) -> None:
    """Make the file where it is missing, before the first checkpoint gets its name: step folders without the file are
    then never those of a run that was killed while it saved for the first time (see ``folder.check_not_lost``)."""
    if not (checkpoints / FILE).exists():
        _write(checkpoints, {})


def prune(checkpoints: Path) -> None:
    """Remove the step folders that have no name, and what a crash left half written."""
    named = {(checkpoints / folder).resolve() for folder in read_json(checkpoints / FILE).values()}
    named |= {path.resolve() for path in checkpoints.iterdir() if path.is_symlink()}
    for folder in checkpoints.glob("step-*"):
        if folder.resolve() not in named:
            shutil.rmtree(folder)
    for path in checkpoints.glob(".*.tmp"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def whole(checkpoints: Path) -> list[str]:
    """The names of the folders from which a run can be resumed, as far as the sizes of their files tell."""
    return sorted(path.name for path in checkpoints.glob("[!.]*") if not path.is_symlink() and is_whole(path))


def is_whole(folder: Path) -> bool:
    """Whether all files of a checkpoint are there, in their sizes."""
    return folder.is_dir() and checksums.damage(folder) is None


def free_name(folder: Path, name: str) -> Path:
    """``folder/name``, with ".1", ".2" ... behind it where that is taken."""
    names = (name if number == 0 else f"{name}.{number}" for number in itertools.count())
    return next(folder / name for name in names if not os.path.lexists(folder / name))


def _write(checkpoints: Path, names: dict[str, str]) -> None:
    atomic_write_text(checkpoints / FILE, json.dumps(names, indent=1))


def _link(checkpoints: Path) -> None:
    """Links for all names of the file; none where the file system has no links."""
    for name, folder in read_json(checkpoints / FILE).items():
        path, temporary = checkpoints / name, checkpoints / f".{name}.tmp"
        if not (checkpoints / folder).is_dir() or (path.is_symlink() and os.readlink(path) == folder):
            continue
        temporary.unlink(missing_ok=True)
        try:
            temporary.symlink_to(folder)
        except OSError:  # no symbolic links: EPERM, EOPNOTSUPP, ENOSYS, by file system
            return
        os.replace(temporary, path)
    sync_folder(checkpoints)
