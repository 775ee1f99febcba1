"""Locks that the operating system frees when their holder dies, however it dies: ``flock`` on a file that stays.

A lock belongs to an open file, so a process hands it down by handing down the descriptor, and it is held until the
last process that has the descriptor is gone. It holds among the processes of one machine where the file is on a local
disk; on a network file system among those of all machines as far as that supports ``flock`` (NFS does since Linux
2.6.12, if its mount option ``local_lock`` is left alone; Lustre with ``flock``, not with ``localflock``). Not from the
paper.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

PATIENCE = 0.5  # seconds: ``is_held`` holds a lock for some microseconds while it looks


class NoLocks(ValueError):
    """The file system has no locks, so it cannot be known who writes a run."""


def take(path: Path, patience: float = PATIENCE) -> int | None:
    """The descriptor that holds the lock of ``path`` (made, with its folder, where missing); None: another holds it.

    ``patience``: seconds to try for. ``os.close`` of the descriptor, or the end of the process, frees the lock. Raises
    NoLocks if the file system has none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    deadline, taken = time.monotonic() + patience, False
    try:
        while not (taken := _try(path, descriptor, fcntl.LOCK_EX)) and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        if not taken:
            os.close(descriptor)
    return descriptor if taken else None


def is_held(path: Path) -> bool:
    """Whether a process holds the lock of ``path``. Needs the right to read it; a file that is missing is not held.
    Raises NoLocks as ``take`` does."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not _try(path, descriptor, fcntl.LOCK_SH)  # shared: two that look do not disturb each other
    finally:
        os.close(descriptor)


def is_lock_of(descriptor: int, path: Path) -> bool:
    """Whether ``descriptor`` is open on the file that ``path`` names now: one that was handed down may be another's,
    and one that was kept may be of a file that has been moved or removed."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


def _try(path: Path, descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise NoLocks(
            f"{path} cannot be locked ({error.strerror}): its file system has no locks for files; "
            "keep the runs on a local disk (runs_dir=...)"
        ) from error
    return True
