"""From what a row has under ``image`` to paths: files, members of a zip archive beside the data, stored bytes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from rethinker.datasets.checks import image_fault
from rethinker.datasets.columns import Row
from rethinker.datasets.rows import stored_image
from rethinker.policy.archive import Archive, open_archive


class RowError(ValueError):
    """A row cannot be used: ``reason`` is the kind of fault, the message says what exactly."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class ImageFinder:
    """Finds the images of rows. ``root``: where relative paths start; its zip archives are looked into for what is no
    file there. ``read``: whether images are checked too, each once, or only have to be there."""

    def __init__(self, root: Path, read: bool = True) -> None:
        self.root = root
        self.read = read
        self.faults: dict[Path, tuple[str, str] | None] = {}  # of the images seen so far

    @cached_property
    def archives(self) -> list[Archive]:
        """Those in ``root``, by name. Raises ValueError for one that cannot be read."""
        return [open_archive(path) for path in sorted(self.root.glob("*.zip"))]

    def stored(self, row: Row) -> Row:
        """The row with paths where it holds pictures as bytes, which become files: rows are kept for a while."""
        value = row.get("image")
        items = value if isinstance(value, list | tuple) else [value]
        if not any(isinstance(item, Mapping) and item.get("bytes") for item in items):
            return row
        return {**row, "image": [_stored(item) for item in items]}

    def paths(self, value: Any) -> tuple[str, ...]:
        """The images of a row: None, a path, also as Hugging Face's data sets have it, or a list of these. Raises
        RowError for one that cannot be used."""
        if value is None:
            return ()
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(str(self._checked(self._path(item))) for item in items)

    def _path(self, item: Any) -> Path:
        name = item.get("path") if isinstance(item, Mapping) else item
        if not isinstance(name, str) or not name:
            raise RowError("malformed image", f"image is {str(item)[:80]!r}, not a path")
        path = self.root / name
        if path in self.faults or path.is_file():
            return path
        for archive in self.archives:
            if member := archive.find(name):
                return member
        beside = f", nor in {', '.join(path.name for path in self.root.glob('*.zip'))}" if self.archives else ""
        raise RowError("missing image", f"{path}{beside}")

    def _checked(self, path: Path) -> Path:
        if path not in self.faults:
            self.faults[path] = image_fault(path) if self.read else None
        if fault := self.faults[path]:
            raise RowError(*fault)
        return path


def _stored(item: Any) -> Any:
    return {"path": str(stored_image(item["bytes"]))} if isinstance(item, Mapping) and item.get("bytes") else item
