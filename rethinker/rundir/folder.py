"""The folder of a run: may it be written, where does it go on, how does it stand. Needs no model and no torch.

A run that goes on with the settings that it was made with is, bit for bit, the run that was never stopped. Settings
that decide only where it runs, who watches and what fits into memory (``FREE``) may change: the run is then the same up
to rounding, as sums are taken in other groups; and rounding can turn a sampled token into another one. The values of
every start are in ``provenance.json``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rethinker.config import RunConfig, load_config, to_dict
from rethinker.rundir import locks
from rethinker.rundir.paths import BEST, LAST, RunDir

FREE: dict[str, tuple[str, ...]] = {  # section: settings that may change when a run goes on; (): all of them
    "launch": (),
    "tracking": (),
    "model": ("gradient_checkpointing",),
    "rollout": ("batch_size", "gpu_memory_utilization", "tensor_parallel_size"),
    "optim": ("micro_batch_tokens",),
}


class RunMoved(RuntimeError):
    """The run's folder was moved or removed while it was written."""


class RunExists(ValueError):
    """The run's folder holds another run, or this one and nobody asked to go on."""


def check_folder(config: RunConfig, *, resume: bool) -> Path | None:
    """The checkpoint to go on from, None to start from the beginning.

    With ``resume`` the last stage of a run that is not finished may get more episodes; and a run of which nothing has
    been trained yet, as one that ran out of memory at once, may get any settings.

    Raises RunExists where the folder holds a run and ``resume`` is False, or one with other settings.
    """
    folder = RunDir(config.folder)
    last = folder.checkpoint(LAST)
    if not folder.config.exists():
        return None
    if not resume:
        raise RunExists(f"{folder} exists already: go on with it (--resume) or choose another name=...")
    state = run_state(folder)
    begun = last.exists() or folder.all_rollouts()
    if begun or state in ("stopped", "finished"):
        check_settings(folder, folder.config, config, longer=state != "finished")
    return last.resolve() if last.exists() else None


def check_settings(folder: str | os.PathLike[str], file: Path, config: RunConfig, *, longer: bool = False) -> None:
    """Raises RunExists, which names them, where settings of ``config`` differ from those of ``file``, the folder's.

    ``longer``: the last stage may have more episodes than it had.
    """
    before, now = (_what_matters(some) for some in (load_config(file), config))
    last, new = before["stages"][-1], now["stages"][-1]
    if longer and last["episodes"] < new["episodes"]:
        last["episodes"] = new["episodes"]
    if before != now:
        raise RunExists(f"{folder} was made with other settings ({differences(before, now)}): choose another name=...")


def best_model(run: Path) -> Path:
    """The model folder of a run's best checkpoint, of its last one where there was no validation.

    Raises FileNotFoundError where the run has no checkpoint yet.
    """
    for name in (BEST, LAST):
        path = RunDir(run).model(name)
        if path.is_dir():
            return path
    raise FileNotFoundError(f"{run} has no checkpoint yet; model.path=... names another model")


def run_state(folder: str | os.PathLike[str]) -> str | None:
    """ "starting", "running", "stopped" or "finished" as was last said of it; None if it never started.

    A run that was killed stands as it stood: ``rethinker.lab.jobs`` knows whether it lives.
    """
    path = RunDir(folder).status
    return json.loads(path.read_text(encoding="utf-8"))["state"] if path.exists() else None


def free_settings(config: RunConfig) -> dict[str, Any]:
    """The settings of ``FREE`` by section, as ``config`` has them; but not who watches."""
    everything = to_dict(config)
    return {
        section: {key: everything[section][key] for key in keys or everything[section]}
        for section, keys in FREE.items()
        if section != "tracking"
    }


def _what_matters(config: RunConfig) -> dict[str, Any]:
    """The settings that a run has to keep when it goes on; of stages too."""
    kept = _without_free(to_dict(config))
    del kept["runs_dir"], kept["relative_to"]
    for stage in kept["stages"]:
        stage["overrides"] = _without_free(stage["overrides"])
    return kept


def _without_free(sections: dict[str, Any]) -> dict[str, Any]:
    kept = dict(sections)
    for section, keys in FREE.items():
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
def sole_writer(folder: str | os.PathLike[str]) -> Iterator[int | None]:
    """While this process, if it is the main one, writes the run, no other does: not even where its launcher was killed
    and somebody starts the run anew. Yields what ``check_writer`` asks for: the lock's descriptor; None for the other
    processes of the run. Raises RunExists where another process writes it."""
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
    """Raises RunMoved where ``lock``, of ``sole_writer``, is no longer that of ``folder``: whoever starts a run of this
    name would find nobody's lock there, and two would write one folder."""
    if lock is not None and not locks.is_lock_of(lock, RunDir(folder).writer_lock):
        raise RunMoved(f"{folder} was removed or moved while this run wrote it: the run ends here")
