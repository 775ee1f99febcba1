"""``checksums.json`` of a checkpoint: the size and SHA-256 of every file in it, written when all others are there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rethinker.rundir.atomic import atomic_write_text

FILE = "checksums.json"


def files(folder: Path) -> list[str]:
    """The files of a checkpoint but this one, as paths in it."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if name != FILE)


def measure(folder: Path, name: str) -> dict[str, Any]:
    """What is written of a file."""
    path = folder / name
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def write(folder: Path, facts: Mapping[str, dict[str, Any]] | None = None) -> None:
    """Write the file; ``facts``: those of all files, where they are known."""
    facts = facts or {name: measure(folder, name) for name in files(folder)}
    atomic_write_text(folder / FILE, json.dumps({"files": dict(sorted(facts.items()))}, indent=1))


def damage(folder: Path, part: slice | None = None) -> str | None:
    """What is wrong with a checkpoint; None if it is whole.

    Reads sizes only, and the content of the files in ``part`` (of the sorted names).
    """
    if not (folder / FILE).is_file():
        return f"{FILE} is missing"
    try:
        listed = json.loads((folder / FILE).read_text(encoding="utf-8"))["files"]
        for name in sorted(listed):
            if not (folder / name).is_file():
                return f"{name} is missing"
            size = (folder / name).stat().st_size
            if size != listed[name]["bytes"]:
                return f"{name} has {size:,} bytes instead of {listed[name]['bytes']:,}"
        for name in sorted(listed)[part] if part else ():
            if measure(folder, name) != listed[name]:
                return f"the content of {name} is not what was written"
    except (ValueError, KeyError, TypeError):
        return f"{FILE} cannot be read"
    except OSError as error:
        return f"{error.filename or folder}: {error.strerror or error}"
    return None
