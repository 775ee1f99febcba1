"""What the files of a run say of its job: how it was started, how far it is, and its last words. Nothing is written."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import yaml

from rethinker.jobs.claim import CONFIG_FILE

LINE_BYTES = 1 << 16  # of metrics.jsonl that its last line is looked for in; an episode's has some 4,000


def is_run(folder: Path) -> bool:
    """Whether it is the folder of a run, begun or only started."""
    return (folder / CONFIG_FILE).exists() or (folder / "config.yaml").exists()


def config_file(folder: Path) -> Path:
    """The config of the last start; of a run that was started otherwise, its own."""
    file = folder / CONFIG_FILE
    return file if file.exists() else folder / "config.yaml"


def planned_episodes(file: Path) -> int:
    """Episodes of all stages. Not by ``load_config``: a run of an older version, with other keys, can be seen too."""
    stages = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("stages")
    return sum(stage.get("episodes", 1) for stage in stages) if stages else 1


def read_object(file: Path) -> dict[str, Any]:
    """The object of a JSON file; {} where it is missing."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


def last_line(file: Path) -> dict[str, Any]:
    """The last whole line of metrics.jsonl; {} before the first."""
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, opened.seek(0, os.SEEK_END) - LINE_BYTES))
            lines = opened.read().split(b"\n")
    except FileNotFoundError:
        return {}
    return json.loads(lines[-2]) if len(lines) > 1 else {}


_EXCEPTION = re.compile(r"^(?:\[rank\d+\]:\s*)?((?:\w+\.)*\w*(?:Error|Exception|Exists|Busy|Interrupt|Exit)\b.*)")


def last_words(log: str, n: int = 3) -> tuple[str, ...]:
    """What went wrong: the last exceptions of a log, without torchrun's own; where it has none, its last lines."""
    lines = [line.rstrip() for line in log.splitlines() if line.strip()]
    found = [match[1] for line in lines if (match := _EXCEPTION.match(line)) and ".elastic." not in line]
    return tuple(dict.fromkeys(found[-2 * n :]))[-n:] or tuple(lines[-n:])
