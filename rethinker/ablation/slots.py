"""Commands side by side in a fixed number of slots: each with its log, all stopped in good order by one Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Job:
    """A command and the file that its output is appended to."""

    name: str
    command: tuple[str, ...]
    log: Path


@dataclass(frozen=True)
class Ending:
    """How a job ended."""

    code: int  # its exit code; negative: the signal that killed it
    seconds: float
    asked: bool  # it was told to stop


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    started: float
    asked: int = 0  # times that it was told to stop


def run_in_slots(
    jobs: Sequence[Job],
    slots: int,
    *,
    on_start: Callable[[Job], None],
    on_end: Callable[[Job, Ending], None],
) -> bool:
    """Run every job, at most ``slots`` at once, started in order; True if no interrupt came, which leaves jobs undone.

    A job that fails does not stop the others. SIGINT (Ctrl-C, a notebook's stop
    button) and SIGTERM (a scheduler) start nothing more, send every job SIGTERM and wait for it: `rethinker train` then
    saves and stops after its episode. The second one is passed on too: it kills. To be called in the main thread.
    """
    if slots < 1:
        raise ValueError(f"slots={slots}: needs at least 1")
    environments = [slot_environment(slot, slots) for slot in range(slots)]
    waiting = deque(jobs)
    running: dict[int, _Running] = {}
    with _counted_interrupts() as interrupts:
        while running or (waiting and not interrupts):
            for slot in range(slots):
                if slot not in running and waiting and not interrupts:
                    job = waiting.popleft()
                    running[slot] = _Running(job, _start(job, environments[slot]), time.monotonic())
                    on_start(job)
            for one in running.values():
                while one.asked < len(interrupts):
                    one.asked += 1
                    one.process.terminate()
            for slot, one in list(running.items()):
                code = one.process.poll()
                if code is not None:
                    del running[slot]
                    on_end(one.job, Ending(code, time.monotonic() - one.started, one.asked > 0))
            time.sleep(POLL_SECONDS if running else 0)
        return not interrupts


def _start(job: Job, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("ab") as log:
        # A session of its own: the terminal's Ctrl-C is ours to pass on, once.
        return subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            start_new_session=True,
        )


@contextmanager
def _counted_interrupts() -> Iterator[list[int]]:
    """SIGINT and SIGTERM are noted instead of raised, so that none can come between a start and its record."""
    seen: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda received, _: seen.append(received)) for number in numbers}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def slot_environment(slot: int, slots: int) -> dict[str, str]:
    """Each of several slots gets GPUs of its own: equal, disjoint parts of those that are visible here.

    Raises ValueError where there are GPUs, but fewer than slots: two runs in one GPU's memory end one another.
    """
    if slots == 1:
        return {}
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = [item for item in named.split(",") if item] if named is not None else _gpus()
    if not devices:
        return {}
    share = len(devices) // slots
    if not share:
        raise ValueError(f"slots={slots}, but {len(devices)} GPUs are visible: at most one slot a GPU")
    return {"CUDA_VISIBLE_DEVICES": ",".join(devices[slot * share : (slot + 1) * share])}


def _gpus() -> list[str]:
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def log_end(path: Path, lines: int = 12) -> str:
    """The last ``lines`` lines of a log."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return "\n".join(text.splitlines()[-lines:])
