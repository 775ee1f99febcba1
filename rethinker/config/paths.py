"""Where the relative paths of a config start, and which names may stand for something on the Hugging Face hub.

A file says so, by ``relative_to``: the shipped configs start in the repository, wherever the command is typed;
all others in the working directory. A path that is typed on the command line starts in the working directory always. In
memory a ``RunConfig`` holds paths that can be opened from the working directory; in files (``portable``) those inside
the repository are written relative to it, so that a run of a shipped config resumes in a moved checkout and on another
machine.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rethinker.config.repository import find_repository

PATHS = ("model.path", "data.train", "data.validation", "data.test", "launch.accelerate")  # settings that are paths
_SPLIT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILES = (".parquet", ".jsonl", ".json", ".yaml", ".yml")


def data_source(text: str) -> tuple[str, str | None]:
    """Path (or name on the hub) and split of an entry of ``data``: "owner/name:train" has both, "a.parquet" none."""
    path, colon, split = text.rpartition(":")
    if not (path and colon and _SPLIT.fullmatch(split)) or Path(text).exists():
        return text, None
    return path, split


def is_hub_id(name: str) -> bool:
    """Whether ``name`` has the form owner/name. A folder of that name in the working directory comes first."""
    return bool(_HUB_ID.fullmatch(name)) and not name.endswith(_FILES)


def start_at(folder: Path, path: str) -> str:
    """``path``, which may end in ``:split``, with ``folder`` in front where it is relative and no name on the hub."""
    there = os.path.join(folder, path)
    source, _ = data_source(there)
    if is_hub_id(data_source(path)[0]) and not Path(source).exists():
        return path
    return there


def placed(sections: dict[str, dict[str, Any]], typed: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The sections of a config that is relative to the repository, with paths that can be opened from here.

    ``typed``: settings that were typed on the command line; their paths start in the working directory.
    """
    root, here = find_repository(), Path.cwd()
    if root is None or root == here:
        return sections
    typed = set(typed)
    return _each_path(sections, lambda key, path: start_at(here if key in typed else root, path))


def portable(sections: dict[str, Any]) -> dict[str, Any]:
    """The opposite of ``placed``: paths inside the repository relative to it, others as they are."""
    root = find_repository()
    if root is None:
        return sections
    return _each_path(sections, lambda _, path: path.removeprefix(f"{root}{os.sep}"))


def _each_path(sections: dict[str, Any], change: Any) -> dict[str, Any]:
    changed = dict(sections)
    for key in PATHS:
        section, _, name = key.partition(".")
        path = changed[section][name]
        if path is not None:
            changed[section] = {**changed[section], name: change(key, path)}
    return changed
