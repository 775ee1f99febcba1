"""What the files of a run say of its job: does it live, how far is it, and its last words. Nothing is written."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import psutil
import yaml

from rethinker.rundir import locks
from rethinker.rundir.paths import RunDir

LOG_BYTES = 1 << 20  # of a log that are read
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


def read_object(file: Path) -> dict[str, Any]:
    """The object of a JSON file; {} where it is missing."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def last_line(file: Path) -> dict[str, Any]:
    """The last whole line of metrics.jsonl; {} before the first."""
    if not file.exists():
        return {}
    with file.open("rb") as opened:
        opened.seek(max(0, opened.seek(0, os.SEEK_END) - LINE_BYTES))
        lines = opened.read().split(b"\n")
    return json.loads(lines[-2]) if len(lines) > 1 else {}


def redirected() -> tuple[str | None, int]:
    """The file that this process's stderr goes to (`> log 2>&1`, a scheduler's), and its size now; None: it goes to a
    terminal, or to what else cannot be read again."""
    files = (file.path for file in psutil.Process().open_files() if file.fd == 2)
    return next(((path, os.fstat(2).st_size) for path in files), (None, 0))


@contextmanager
def open_log(folder: Path, record: dict[str, Any]) -> Iterator[tuple[BinaryIO, bytes]]:
    """The log that a run's record names (``ownership.write_record``), open where what it holds ends; and what it
    holds of the last start, its last megabyte at most. Empty where the output went to a terminal or the log is gone."""
    log = folder / record["log"] if record.get("log") else None
    with log.open("rb") if log and log.exists() else BytesIO() as file:
        file.seek(max(record.get("log_from", 0), file.seek(0, os.SEEK_END) - LOG_BYTES))
        yield file, file.read()


_NAMES = "Error|Exception|Exists|Busy|Moved|Locks|Interrupt|Exit"  # what the names of exceptions end with
_EXCEPTION = re.compile(rf"^(?:\[rank\d+\]:\s*)?((?:\w+\.)*\w*(?:{_NAMES})\b.*)")


def last_words(log: str, n: int = 3) -> tuple[str, ...]:
    """What went wrong: the last exceptions of a log, without torchrun's own; where it has none, its last lines."""
    lines = [line.rstrip() for line in log.splitlines() if line.strip()]
    found = [match[1] for line in lines if (match := _EXCEPTION.match(line)) and ".elastic." not in line]
    return tuple(dict.fromkeys(found[-2 * n :]))[-n:] or tuple(lines[-n:])
