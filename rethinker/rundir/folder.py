"""May a run be started, resumed or written in a folder, and in which state is it? Needs no model and no torch.

A run that is resumed with its own settings equals the run that was never stopped, bit for bit on CPUs of one kind with
the transformers engine, the same versions of the libraries and equally many processes and threads (tested so). On GPUs
the same is to be expected with ``launch.deterministic`` only (not run by us), and without it equality up to rounding.
Settings that decide only where it runs, who watches and what fits into memory (``CHANGEABLE_ON_RESUME``) may change:
the run is then the same up to rounding too, as sums are grouped differently; and rounding can turn a sampled token into
another one. The values of every start are in ``provenance.json``.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rethinker.config import RunConfig, load_config, to_dict
from rethinker.rundir import locks, pointers
from rethinker.rundir.atomic import read_json
from rethinker.rundir.paths import BEST, LAST, RunDir

CHANGEABLE_ON_RESUME: dict[str, tuple[str, ...]] = {  # section: settings; (): all of them
    "launch": (),
    "tracking": (),
    "model": ("gradient_checkpointing", "sharding", "offload"),
    "rollout": (
        "batch_size",
        "canary",
        "gpu_memory_utilization",
        "tensor_parallel_size",
        "servers",
        "weight_transfer",
        "server_timeout",
        "server_patience",
    ),
    "optim": ("micro_batch_tokens",),
}


OLD_OPTIMIZER = "optimizer.safetensors"  # of a checkpoint without checksums


class RunMoved(RuntimeError):
    """The run's folder was moved or removed while the run wrote it."""


class RunExists(ValueError):
    """The folder holds another run, or this one and it was not to be resumed."""


def check_folder(config: RunConfig, *, resume: bool) -> Path | None:
    """The checkpoint to resume from, None to start from the beginning.

    With ``resume`` the last stage of an unfinished run may get more episodes; and a run that has trained nothing yet,
    e.g. because it ran out of memory, may get any settings.

    Raises RunExists if the folder holds a run and ``resume`` is False, or one with other settings, or an unfinished
    one whose last checkpoint was lost.
    """
    folder = RunDir(config.folder)
    state, last = run_state(folder), pointers.find(folder.checkpoints, LAST)
    if not folder.config.exists():
        if last:
            raise RunExists(f"{folder} has checkpoints but no config.yaml: copy it again, or choose another name=...")
        return None
    if not resume:
        raise RunExists(f"{folder} exists already: resume it (--resume) or choose another name=...")
    if last or folder.all_rollouts() or state in ("stopped", "finished"):
        check_settings(folder, folder.config, config, longer=state != "finished")
    if state != "finished":  # who only looks at a finished run needs no checkpoint
        check_not_lost(folder)
    return last


def check_not_lost(folder: RunDir) -> None:
    """Raises RunExists if the run has saved checkpoints and the last one is missing, as in a copy that left it out, or
    incomplete and no other one whole: it would start from zero, and overwrite what there is. (An incomplete one that
    has one before it is left to ``fallback``.)"""
    checkpoints, file = folder.checkpoints, folder.checkpoints / pointers.FILE
    last = pointers.find(checkpoints, LAST)
    whole = pointers.whole(checkpoints)
    if last and (last / OLD_OPTIMIZER).exists():
        raise RunExists(
            f"{last} is from a version of rethinker that saved {OLD_OPTIMIZER}: resume the run with that version, or "
            f"start a new one from its weights (model.path={last / 'model'})"
        )
    if last and (whole or pointers.is_whole(last)):
        return
    saved = (
        os.path.lexists(checkpoints / LAST)
        or LAST in read_json(file)
        or (any(checkpoints.glob("step-*")) and not file.exists())
        or read_json(folder.status).get("progress", {}).get("episode", 0) > 0
    )
    if not saved:
        return
    state = "incomplete" if last else "missing"
    found = f"{folder} cannot be resumed: its last checkpoint is {state} ({checkpoints}). Nothing was changed."
    if whole:
        names = json.dumps(read_json(file) | {LAST: whole[-1]})
        raise RunExists(
            f"{found} There are {', '.join(whole)}: to resume from one of them, say which "
            f"is the last, e.g. echo {shlex.quote(names)} > {shlex.quote(str(file))}"
        )
    raise RunExists(f"{found} No other is there: copy them again, or choose another name=...")


def check_settings(folder: str | os.PathLike[str], file: Path, config: RunConfig, *, longer: bool = False) -> None:
    """Raises RunExists if ``config`` differs from ``file``, a config of the folder; the message names the settings.

    ``longer``: the last stage may have more episodes than it had.
    """
    before, now = _fixed_settings(load_config(file)), _fixed_settings(config)
    last, new = before["stages"][-1], now["stages"][-1]
    if longer and last["episodes"] < new["episodes"]:
        last["episodes"] = new["episodes"]
    if before != now:
        raise RunExists(f"{folder} was made with other settings ({differences(before, now)}): choose another name=...")


def best_model(run: Path) -> Path:
    """The model folder of a run's best checkpoint; of its last one where there was no validation.

    Raises FileNotFoundError if the run has no checkpoint yet.
    """
    for name in (BEST, LAST):
        folder = pointers.find(RunDir(run).checkpoints, name)
        if folder and (folder / "model").is_dir():
            return folder / "model"
    raise FileNotFoundError(f"{run} has no checkpoint yet; model.path=... names another model")


def run_state(folder: str | os.PathLike[str]) -> str | None:
    """ "starting", "running", "stopped" or "finished", as the run last said; None before its first start.

    A run that was killed cannot say so: ``rethinker.lab.jobs`` knows whether its processes live.
    """
    return read_json(RunDir(folder).status).get("state")


def changeable_settings(config: RunConfig) -> dict[str, Any]:
    """The values of ``CHANGEABLE_ON_RESUME`` by section, without ``tracking``."""
    everything = to_dict(config)
    return {
        section: {key: everything[section][key] for key in keys or everything[section]}
        for section, keys in CHANGEABLE_ON_RESUME.items()
        if section != "tracking"
    }


def _fixed_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that a resume has to keep, those of stages too."""
    kept = _without_changeable(to_dict(config))
    del kept["runs_dir"], kept["relative_to"]
    for stage in kept["stages"]:
        stage["overrides"] = _without_changeable(stage["overrides"])
    return kept


def _without_changeable(sections: dict[str, Any]) -> dict[str, Any]:
    kept = dict(sections)
    for section, keys in CHANGEABLE_ON_RESUME.items():
        left = {key: value for key, value in kept.pop(section, {}).items() if keys and key not in keys}
        if left:
            kept[section] = left
    return kept


def differences(before: Any, after: Any, where: str = "") -> str:
    """The settings that differ, as "key: old -> new"; the first three."""
    if isinstance(before, dict) and isinstance(after, dict):
        parts = [
            differences(before.get(key), after.get(key), f"{where}.{key}".strip("."))
            for key in sorted(before.keys() | after.keys())
            if before.get(key) != after.get(key)
        ]
        return ", ".join(parts[:3])
    return f"{where}: {before} -> {after}"


@contextmanager
def exclusive_writer(folder: str | os.PathLike[str]) -> Iterator[int | None]:
    """Hold the run's writer lock in its main process, so that no other process writes the run: not even where its
    launcher was killed and the run is started again. Yields the lock's descriptor for ``check_writer``; None in the
    other ranks. Raises RunExists if another process holds it."""
    if int(os.environ.get("RANK", "0")):
        yield None
        return
    lock = locks.take(RunDir(folder).writer_lock)
    if lock is None:
        raise RunExists(f"{folder} is being written by another process")
    os.ftruncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())
    try:
        yield lock
    finally:
        os.close(lock)


def check_writer(folder: str | os.PathLike[str], lock: int | None) -> None:
    """Raises RunMoved if ``lock``, of ``exclusive_writer``, is no longer that of ``folder``: a run of the same name
    that is started now would find no lock there, and two runs would write one folder."""
    if lock is not None and not locks.is_lock_of(lock, RunDir(folder).writer_lock):
        raise RunMoved(f"{folder} was removed or moved while this run wrote it: the run ends here")
