"""When, where and with what something was measured."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rethinker.rundir.provenance import git_state

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "numpy", "trl")


def facts_of_run() -> dict[str, Any]:
    """Date, machine, versions and commit."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "platform": platform.platform(),
            "processor": processor_name(),
            "cores": os.cpu_count(),
            "load_average_1min": os.getloadavg()[0],
        },
        "versions": {"python": platform.python_version()} | {package: installed(package) for package in PACKAGES},
        "git": git_state(Path(__file__).parent),
    }


def installed(package: str) -> str:
    """Its version, or "none"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def processor_name() -> str:
    """The CPU's name, as far as the system says."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
