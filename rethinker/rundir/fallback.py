"""The newest whole checkpoint of a run: the one before a damaged one, if that is the last."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rethinker.rundir import checksums, pointers
from rethinker.rundir.atomic import read_json
from rethinker.rundir.folder import RunExists
from rethinker.rundir.paths import LAST, RunDir
from rethinker.rundir.together import on_all, on_main, rank, ranks


def whole_checkpoint(run: RunDir) -> tuple[Path, str | None]:
    """The checkpoint to resume from, and a warning if it is not the one that was ``last``. Collective: every rank reads
    a part of the files.

    Where ``last`` is damaged, the newest whole one before it becomes ``last``, and every other name is what it was when
    that one was saved. The damaged folder stays until the next checkpoint is saved. Raises RunExists if there is none.
    """
    last, *before = on_main(lambda: _candidates(run.checkpoints))
    found: dict[str, str] = {}
    for folder in (last, *before):
        wrong = _damage(folder)
        if wrong is None:
            break
        found[folder.name] = wrong
    else:
        raise RunExists(_none_whole(run, found))
    if folder == last:
        return last, None
    on_main(lambda: _go_back(run.checkpoints, folder))
    damaged = "; ".join(f"{name}: {wrong}" for name, wrong in found.items())
    done, newest = _episode(folder), read_json(run.status).get("progress", {}).get("episode", 0)
    lost = f"episodes {done + 1} to {newest}" if newest > done + 1 else f"episode {done + 1}"
    return folder, (
        f"damaged checkpoint ({damaged}). The run is resumed from {folder.name}, after episode {done}; lost, and "
        f"trained again: {lost}. The damaged files stay until the next checkpoint is saved"
    )


def _none_whole(run: RunDir, damages: dict[str, str]) -> str:
    """The error where no checkpoint is left; ``damages``: what is wrong, by folder."""
    found = "; ".join(f"{name}: {wrong}" for name, wrong in damages.items())
    return (
        f"{run} cannot be resumed: no checkpoint in {run.checkpoints} is whole ({found}). Nothing was changed. Copy "
        "one of them again, or choose another name=..."
    )


def _damage(folder: Path) -> str | None:
    """``checksums.damage``, every rank reading a part of the files. Collective."""
    part = slice(rank(), None, ranks())
    return next((damage for damage in on_all(lambda: checksums.damage(folder, part)) if damage), None)


def _candidates(checkpoints: Path) -> list[Path]:
    """The folder named ``last``, and the others that have a name, the newest first."""
    last = pointers.find(checkpoints, LAST)
    assert last, "check_folder asks"
    others = {checkpoints / name for name in read_json(checkpoints / pointers.FILE).values()} - {last}
    there = [path for path in others if path.is_dir()]
    return [last, *sorted(there, key=lambda path: (_episode(path), path.name), reverse=True)]


def _go_back(checkpoints: Path, folder: Path) -> None:
    names = _saved(folder)["names"]
    there = {name: place for name, place in names.items() if (checkpoints / place).is_dir()}
    pointers.set_names(checkpoints, there | {LAST: folder.name})


def _episode(folder: Path) -> int:
    """The episode after which a checkpoint was saved; -1 where it cannot be read."""
    try:
        return int(_saved(folder)["trainer"]["progress"]["episode"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1


def _saved(folder: Path) -> dict[str, Any]:
    saved: dict[str, Any] = json.loads((folder / "trainer.json").read_text(encoding="utf-8"))
    return saved
