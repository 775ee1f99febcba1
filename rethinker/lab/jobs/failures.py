"""How the processes of a run fail: tracebacks go to the run's ``errors.log``, one line to the terminal.

A rank writes the exception that ends it, accelerate's launcher the signal that has killed a rank; who waits for them
(``foreground.train``) reads what came first. Nothing here is from the paper.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType

from rethinker.rundir.paths import RunDir

ERRORS_VARIABLE = "RETHINKER_ERRORS"  # the path of ``errors.log``, for the processes of a run
TRACEBACK_VARIABLE = "RETHINKER_TRACEBACK"  # set: tracebacks go to the terminal too
LONGEST = 600  # characters of an error that the terminal shows
_HEAD, _KILLED = "== ", " was killed by "  # the first line of an entry, and what it says of a signal
_CAUSES = {
    "SIGKILL": "usually the kernel's, when memory runs out (see dmesg): lower launch.processes, "
    "optim.micro_batch_tokens or rollout.batch_size",
    "SIGBUS": "usually because /dev/shm or the disk is full",
}


def rank_name(rank: int | str) -> str:
    """A rank as errors name it: with its machine, where processes run on several."""
    several = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) < int(os.environ.get("WORLD_SIZE", "1"))
    return f"rank {rank} on {socket.gethostname()}" if several else f"rank {rank}"


def first_failure(folder: Path) -> str | None:
    """What ended the run's processes, in one line: a signal that killed one, else the first exception; None where
    nothing is known of either."""
    try:
        lines = RunDir(folder).errors.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return None
    found = [line.removeprefix(_HEAD).partition(" ")[2] for line in lines if line.startswith(_HEAD)]
    return next((line for line in found if _KILLED in line), found[0] if found else None)


def note_exceptions(who: str) -> None:
    """From now on an exception that ends this process is written to the file; onto the terminal only where that is
    wanted (TRACEBACK_VARIABLE), or the file cannot be written, or found any more by who waits for this process."""
    opened = _open()  # now: the file of a folder that is moved goes with it

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        words = " ".join("".join(traceback.format_exception_only(error)).split())
        shown = words if len(words) <= LONGEST else f"{words[:LONGEST]} ..."
        text = "".join(traceback.format_exception(kind, error, trace))
        if opened is not None:
            _note(opened, f"{who}: {shown}", text)
        if opened is None or not _in_place(opened) or TRACEBACK_VARIABLE in os.environ:
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = hook


def note_signal(who: str, number: int) -> None:
    """Write that signal ``number`` has killed a process."""
    name = signal.Signals(number).name
    cause = _CAUSES.get(name)
    if (opened := _open()) is not None:
        _note(opened, f"{who}{_KILLED}{name}{f' ({cause})' if cause else ''}")
        os.close(opened)


def _open() -> int | None:
    """The file, open for additions; None if no file is named, or its folder is gone."""
    try:
        return os.open(os.environ[ERRORS_VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    except (KeyError, OSError):
        return None


def _in_place(opened: int) -> bool:
    """Whether the file is still found by its name."""
    with suppress(OSError):
        return os.path.samestat(os.fstat(opened), os.stat(os.environ[ERRORS_VARIABLE]))
    return False


def _note(opened: int, words: str, text: str = "") -> None:
    """Add an entry to the file, in one write."""
    entry = f"{_HEAD}{datetime.now():%Y-%m-%dT%H:%M:%S} {words}\n{text}"
    with open(opened, "wb", closefd=False) as file:
        file.write(entry.encode("utf-8", errors="replace"))
