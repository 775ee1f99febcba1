"""What the files of a run say of its job: does it live, how far is it. Nothing is written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml

from rethinker.rundir import locks
from rethinker.rundir.paths import RunDir

LINE_BYTES = 1 << 16  # of metrics.jsonl that its last line is looked for in; an episode's has some 4,000


def is_run(folder: Path) -> bool:
    """Whether it is the folder of a run, begun or only started."""
    return config_file(folder).exists()


def is_alive(folder: Path) -> bool:
    """Whether processes of a run of ``folder`` live. Cheap: no file is read."""
    return locks.is_held(RunDir(folder).job_lock) or locks.is_held(RunDir(folder).writer_lock)


def config_file(folder: Path) -> Path:
    """The config of the last start; of a run that was started otherwise, its own."""
    files = RunDir(folder)
    return files.job_config if files.job_config.exists() else files.config


def planned_episodes(file: Path) -> int:
    """Episodes of all stages. Not by ``load_config``: a run of an older version, with other keys, can be seen too."""
    stages = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("stages")
    return sum(stage.get("episodes", 1) for stage in stages) if stages else 1


def last_line(file: Path) -> dict[str, Any]:
    """The last whole line of metrics.jsonl; {} before the first."""
    if not file.exists():
        return {}
    with file.open("rb") as opened:
        opened.seek(max(0, opened.seek(0, os.SEEK_END) - LINE_BYTES))
        lines = opened.read().split(b"\n")
    return json.loads(lines[-2]) if len(lines) > 1 else {}
