"""Writing the files of a run so that a crash leaves either the old content or the new one, never half of it."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def atomic_write_bytes(path: str | Path, data: bytes) -> Path:
    """Write ``data`` to a temporary name beside ``path``, fsync, rename over ``path``. Folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return path


def atomic_write_text(path: str | Path, text: str) -> Path:
    """``atomic_write_bytes`` of UTF-8 text."""
    return atomic_write_bytes(path, text.encode("utf-8"))


def append_json_line(path: str | Path, record: dict[str, Any]) -> None:
    """Add ``record`` as one line of JSON and fsync. A last line that a crash cut short is removed first.

    Numpy scalars and arrays are written as numbers and lists. Raises ValueError for NaN and infinity, which JSON has
    no word for: a metric without a value is None.
    """
    try:
        line = json.dumps(record, allow_nan=False, default=_plain, ensure_ascii=False) + "\n"
    except ValueError as error:
        raise ValueError(f"{path}: {error}: {record}") from error
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        _drop_partial_line(file)
        file.write(line.encode("utf-8"))
        file.flush()
        os.fsync(file.fileno())


def _plain(value: Any) -> Any:
    if type(value).__module__ == "numpy":
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _drop_partial_line(file: Any) -> None:
    end = file.seek(0, os.SEEK_END)
    start = end
    while start > 0:  # walk back to the last newline; a whole file normally ends with one
        step = min(4096, start)
        file.seek(start - step)
        found = file.read(step).rfind(b"\n")
        if found >= 0:
            start = start - step + found + 1
            break
        start -= step
    if start < end:
        file.truncate(start)
        file.seek(start)


def sync_folder(folder: Path) -> None:
    """fsync of the folder itself: its names are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
