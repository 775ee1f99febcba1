"""Images in a zip archive as paths: ViRL39K's 39,000 come as one ``images.zip``, which need not be unpacked.

A member has the path that it would have in the cache, ``archives/<content>/<name in the archive>``: it can be named
before anything is read, is the same wherever the archive lies, and another archive's content has another one.
The file itself is written when it is first needed (``present``), so that what a rollout or a report names can be opened
by anything. Checks read the member without writing it (``opened``).
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import threading
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

_POINTER = "archive.json"  # beside the members: where their archive is


def cache_folder() -> Path:
    """Where Rethinker keeps what it can make again: ``$XDG_CACHE_HOME/rethinker``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rethinker"


@dataclass(frozen=True)
class Archive:
    """A zip file: ``folder`` of its members in the cache, and the name in the archive of each file that it holds."""

    folder: Path
    names: Mapping[str, str]  # by the path in a row: "images/1.png", also where the archive is images.zip with 1.png

    def find(self, name: str) -> Path | None:
        """The path of what a row calls ``name``."""
        member = self.names.get(os.path.normpath(name))
        return None if member is None else self.folder / member


def open_archive(path: Path) -> Archive:
    """The archive at ``path``. Raises ValueError where it cannot be read."""
    path = path.resolve()
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"{path}: cannot read the archive ({error}); was the download cut short?") from error
    members = [info for info in members if _is_inside(info.filename)]
    lines = sorted(f"{info.filename}\t{info.CRC:08x}\t{info.file_size}" for info in members)
    folder = cache_folder() / "archives" / hashlib.sha256("\n".join(lines).encode()).hexdigest()[:20]
    _write(folder / _POINTER, json.dumps({"archive": str(path)}).encode())
    names = {f"{path.stem}/{info.filename}": info.filename for info in members}
    return Archive(folder, names | {info.filename: info.filename for info in members})


def present(path: str | Path) -> Path:
    """``path`` as a file: a member that nothing has asked for yet is taken out of its archive.

    Raises OSError where the archive is missing or the member is damaged (its checksum is compared).
    """
    path = Path(path)
    if not path.exists() and (member := _member(path)):
        _write(path, _read(*member))
    return path


def opened(path: str | Path) -> BinaryIO:
    """The file at ``path``, or the member of an archive that would be there. Raises OSError as ``present`` does."""
    path = Path(path)
    if not path.exists() and (member := _member(path)):
        return io.BytesIO(_read(*member))
    return path.open("rb")


def file_size(path: str | Path) -> int:
    """Bytes of the file at ``path``, or of the member of an archive that would be there, which is not read."""
    path = Path(path)
    if not path.exists() and (member := _member(path)):
        archive, name = member
        return _zip_file(archive, os.getpid()).getinfo(name).file_size
    return path.stat().st_size


def _member(path: Path) -> tuple[str, str] | None:
    """The archive and the name in it of a path that ``Archive.find`` made."""
    archives = cache_folder() / "archives"
    if not path.is_relative_to(archives):
        return None
    content, *name = path.relative_to(archives).parts
    pointer = archives / content / _POINTER
    if not name or not pointer.is_file():
        return None
    return str(json.loads(pointer.read_text(encoding="utf-8"))["archive"]), str(PurePosixPath(*name))


def _read(archive: str, name: str) -> bytes:
    try:
        return _zip_file(archive, os.getpid()).read(name)
    except (zipfile.BadZipFile, KeyError, ValueError, RuntimeError, NotImplementedError, EOFError) as error:
        raise OSError(f"{name} in {archive}: {error}") from error


@functools.lru_cache(maxsize=8)
def _zip_file(archive: str, process: int) -> zipfile.ZipFile:
    """Kept open: to list the members takes longer than to read one. ``process``: a forked one must not share the file's
    position."""
    return zipfile.ZipFile(archive)


def _is_inside(name: str) -> bool:
    """Whether a member's path, as it is, stays in the folder that it is unpacked to."""
    path = PurePosixPath(name)
    return str(path) == name and not path.is_absolute() and ".." not in path.parts


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)
