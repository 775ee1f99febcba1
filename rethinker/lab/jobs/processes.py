"""The processes of a run: found by a variable that they all inherit, and killed. Nothing here is from the paper.

A process id may be another process's by now, and who is whose parent is lost when a parent is killed. A variable of the
environment is neither: every start of a run has its own mark, which all its processes carry, whoever started them and
whatever of it still lives.
"""

from __future__ import annotations

import os
import signal
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from rethinker.lab.jobs.files import is_alive
from rethinker.rundir import locks
from rethinker.rundir.atomic import read_json
from rethinker.rundir.paths import RunDir

MARK = "RETHINKER_JOB"  # the variable: "<word of this start>:<descriptor of the lock that is handed down>"
PATIENCE = 45.0  # seconds to find and kill all: a run that imports torch has no processes yet
POLL = 0.1  # seconds between looks


def new_mark(lock: int) -> str:
    """The mark of a start that hands down the descriptor ``lock``; -1: it hands down none."""
    return f"{uuid.uuid4().hex}:{lock}"


def kill_marked(mark: str) -> None:
    """SIGKILL for the processes of a start, but this one. A process that has ended meanwhile is left alone, also where
    another one has its number."""
    for process in psutil.process_iter(["environ"]):  # environ: None if it may not be read
        if (process.info["environ"] or {}).get(MARK) == mark and process.pid != os.getpid():
            with suppress(psutil.NoSuchProcess):
                process.kill()


def kill(folder: Path) -> None:
    """Kill the run in ``folder``, without a checkpoint, and wait until it has ended.

    Raises RuntimeError if it runs on another machine, or does not die.
    """
    files, deadline = RunDir(folder), time.monotonic() + PATIENCE
    while is_alive(folder):
        record = read_json(files.job_record)
        if record.get("host", socket.gethostname()) != socket.gethostname():
            raise RuntimeError(f"{folder.name} runs on {record['host']}: kill it there, or stop() it from here")
        if time.monotonic() > deadline:
            raise RuntimeError(f"{folder.name} could not be killed: end the processes of {folder} by hand")
        if "mark" in record:
            kill_marked(record["mark"])
        if locks.is_held(files.writer_lock):  # accelerate was started by hand: the other ranks die with this one
            with suppress(ProcessLookupError, ValueError):  # it has just ended, or not yet written its number
                os.kill(int(files.writer_lock.read_text()), signal.SIGKILL)
        time.sleep(POLL)


@contextmanager
def counted_interrupts() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM (what a scheduler sends) are noted, by number, instead of raised, so that none can come
    between a start and its record. A Ctrl-C that a shell has switched off stays off. Call in the main thread."""
    seen: list[int] = []
    numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, lambda received, _: seen.append(received)) for number in numbers}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
