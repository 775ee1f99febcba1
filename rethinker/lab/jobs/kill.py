"""Ending a run at once, by whomever it was started and whatever of it still lives. Nothing here is from the paper."""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path

from rethinker.lab.jobs.claim import is_alive, is_same
from rethinker.lab.jobs.files import read_object
from rethinker.lab.jobs.foreground import KILL_SIGNAL, hang_up
from rethinker.rundir import locks
from rethinker.rundir.paths import RunDir

PATIENCE = 45.0  # seconds: torchrun gives its workers 30
LAST_PATIENCE = 10.0  # seconds for SIGKILL, after that
POLL = 0.1  # seconds between looks at the locks


def kill(folder: Path) -> None:
    """End the processes of the run in ``folder``, and wait until they have ended.

    Raises RuntimeError where it runs on another machine, or does not die.
    """
    deadline = time.monotonic() + PATIENCE
    asked = False
    while is_alive(folder):
        late = time.monotonic() > deadline
        if late or not asked:
            asked = _tell(folder, late)
        if time.monotonic() > deadline + LAST_PATIENCE:
            raise RuntimeError(f"{folder.name} does not die: end the processes of {folder} by hand")
        time.sleep(POLL)


def _tell(folder: Path, late: bool) -> bool:
    """Tell the run to end (``late``: without asking); False where nobody is known who could be told: it has just been
    started, and its record is not written yet."""
    record, launcher = read_object(RunDir(folder).job_record), read_object(RunDir(folder).job_launcher)
    if record and record["host"] != socket.gethostname():
        raise RuntimeError(f"{folder.name} runs on {record['host']}: kill it there, or stop() it from here")
    if is_same(record):
        with suppress(ProcessLookupError):
            os.kill(record["pid"], signal.SIGKILL if late else KILL_SIGNAL)
    elif is_same(launcher):
        hang_up(launcher["pid"], signal.SIGKILL if late else signal.SIGHUP)
    elif locks.is_held(RunDir(folder).writer_lock):  # its launcher is gone; the other ranks die with it
        with suppress(ProcessLookupError):
            os.kill(int(RunDir(folder).writer_lock.read_text()), signal.SIGKILL)
    else:
        return False
    return True
