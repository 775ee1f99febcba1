"""The folder of a run: may it be written, where does it go on, how does it stand. Needs no model and no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rethinker import locks
from rethinker.config import RunConfig, load_config, to_dict

BEST = "best"  # the link to the checkpoint with the best validation accuracy
LAST = "last"  # the link to the newest checkpoint
STOP_FILE = "STOP"  # its presence in the run's folder asks the run to save and stop after the episode
STATUS_FILE = "status.json"  # {"state": "starting" | "running" | "stopped" | "finished"}
WRITER_LOCK = "job/writer"  # locked by the process that writes the run, which leaves its id in it


class RunExists(ValueError):
    """The run's folder holds another run, or this one and nobody asked to go on."""


def check_folder(config: RunConfig, *, resume: bool) -> Path | None:
    """The checkpoint to go on from, None to start from the beginning.

    Raises RunExists where the folder holds a run and ``resume`` is False, or one with other settings.
    """
    folder, last = config.folder, config.folder / "checkpoints" / LAST
    if not (folder / "config.yaml").exists():
        return None
    if not resume:
        raise RunExists(f"{folder} exists already: go on with it (--resume) or choose another name=...")
    check_settings(folder, folder / "config.yaml", config)
    return last.resolve() if last.exists() else None


def check_settings(folder: Path, file: Path, config: RunConfig) -> None:
    """Raises RunExists, which names them, where settings of ``config`` differ from those of ``file``, the folder's."""
    before, now = (_what_matters(some) for some in (load_config(file), config))
    if before != now:
        raise RunExists(f"{folder} was made with other settings ({differences(before, now)}): choose another name=...")


def best_model(run: Path) -> Path:
    """The model folder of a run's best checkpoint, of its last one where there was no validation.

    Raises FileNotFoundError where the run has no checkpoint yet.
    """
    for name in (BEST, LAST):
        path = run / "checkpoints" / name / "model"
        if path.is_dir():
            return path
    raise FileNotFoundError(f"{run} has no checkpoint yet; model.path=... names another model")


def run_state(folder: Path) -> str | None:
    """ "starting", "running", "stopped" or "finished" as was last said of it; None if it never started.

    A run that was killed stands as it stood: ``rethinker.launch`` knows whether it lives.
    """
    path = folder / STATUS_FILE
    return json.loads(path.read_text(encoding="utf-8"))["state"] if path.exists() else None


def _what_matters(config: RunConfig) -> dict[str, Any]:
    """The settings that a run has to keep when it goes on; where it runs and who watches may change."""
    return {key: value for key, value in to_dict(config).items() if key not in ("launch", "tracking", "runs_dir")}


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
def sole_writer(folder: Path) -> Iterator[None]:
    """While this process, if it is the main one, writes the run, no other does: not even where its launcher was killed
    and somebody starts the run anew. Raises RunExists where another process writes it."""
    if int(os.environ.get("RANK", "0")):
        yield
        return
    lock = locks.take(folder / WRITER_LOCK)
    if lock is None:
        raise RunExists(f"{folder} is being written by another process")
    os.ftruncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())
    try:
        yield
    finally:
        os.close(lock)
