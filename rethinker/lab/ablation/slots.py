"""Runs side by side in a fixed number of slots, each slot with its share of the GPUs.

Every run is a job of its own (``rethinker.lab.jobs``), which outlives whoever started it. Which run is in which slot is
kept on disk, and whether it still lives is the lock of its folder; so the next call, behind a kernel's restart or a
kill, waits for a run that goes on and puts no other one onto its GPUs. One process at a time looks after a grid.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rethinker.config import RunConfig
from rethinker.lab.jobs.claim import RunBusy, is_alive
from rethinker.lab.jobs.files import is_run, read_object
from rethinker.lab.jobs.handle import Job, start
from rethinker.rundir import locks
from rethinker.rundir.atomic import atomic_write_text
from rethinker.rundir.folder import run_state

POLL_SECONDS = 0.1
LOCK = "lock"  # in the grid's folder: held by who looks after its runs
FILE = "slots.json"  # in the grid's folder: {"slots": how many, "runs": {slot: {"run": name, "process": its word}}}


class GridBusy(ValueError):
    """Another process looks after the runs of the grid."""


@dataclass(frozen=True)
class Ending:
    """How a run ended."""

    state: str  # finished, stopped, failed, or killed by the second interrupt
    why: str = ""  # of a failure, in a few words
    log: tuple[str, ...] = ()  # of a failure: the end of the log


def run_in_slots(
    configs: Sequence[RunConfig],
    environments: Sequence[dict[str, str]],
    folder: Path,
    *,
    on_start: Callable[[str], None],
    on_wait: Callable[[str, bool], None],
    on_end: Callable[[str, Ending], None],
) -> bool:
    """Run what is left of every run, at most one a slot, in order; True if no interrupt came, which leaves runs undone.

    A run that fails does not stop the others. SIGINT (Ctrl-C, a notebook's stop button) and SIGTERM (a scheduler) start
    nothing more, and the runs in the slots save and stop after their episode; the second one kills them. To be called
    in the main thread.

    A run that an earlier call left in a slot keeps that slot. One that lives outside the slots (started by hand, or
    under another number of slots) may be on any GPU: nothing is started until it has ended. Both go on here if they end
    unfinished. An interrupt stops the former and leaves the latter alone. To be called by who holds ``sole``.

    Args:
        configs: all runs of the grid that are not known to be finished.
        environments: of each slot, see ``slot_environments``.
        folder: the grid's, beside the runs.
        on_start: told the name of a run that was started.
        on_wait: told the name of a run that lives already, and whether it is in a slot.
        on_end: told the name of a run, started or waited for, and how it ended.
    """
    waiting = {config.name: config for config in configs}  # neither started here nor ended
    waited: set[str] = set()
    with _counted_interrupts() as interrupts:
        slots = _Slots(folder, len(environments))
        for job in slots.jobs.values():
            on_wait(job.name, True)

        def start_what_fits() -> None:
            alive = {name for name, config in waiting.items() if is_alive(config.folder)}
            for name in [name for name in waiting if name not in alive]:
                if run_state(waiting[name].folder) == "finished":  # by whomever
                    del waiting[name]
                    on_end(name, Ending("finished"))
            strangers = (alive - slots.names) | {job.name for job in slots.elsewhere if job.alive}
            for name in sorted(strangers - waited):
                on_wait(name, False)
            waited.update(strangers)
            while not strangers and (slot := slots.free()) is not None:
                config = next((config for name, config in waiting.items() if name not in alive), None)
                if config is None:
                    return
                try:
                    job = start(config, resume=True, environment=environments[slot])
                except RunBusy:  # somebody was faster: the next look sees it
                    return
                except ValueError as error:
                    on_end(config.name, Ending("failed", str(error)))
                else:
                    slots.put(slot, job)
                    on_start(config.name)
                del waiting[config.name]

        asked = 0
        while slots.jobs or (waiting and not interrupts):
            for job in slots.take_ended():
                if job.name not in waiting or interrupts:
                    on_end(job.name, _ending(job, killed=asked > 1))
            while asked < len(interrupts):
                asked += 1
                _end(list(slots.jobs.values()), kill=asked > 1)
            if not interrupts and slots.free() is not None:
                start_what_fits()
            time.sleep(POLL_SECONDS if slots.jobs or waiting else 0)
        return not interrupts


class _Slots:
    """Which run is in which slot, also on disk."""

    def __init__(self, folder: Path, count: int) -> None:
        self.file = folder / FILE
        self.count = count
        self.jobs: dict[int, Job] = {}
        self.elsewhere: list[Job] = []  # in the slots of a call that had more or fewer of them
        before = read_object(self.file)
        for slot, entry in before.get("runs", {}).items():
            run = folder.parent / entry["run"]
            # Alive, and not since started anew by somebody else.
            if is_run(run) and (job := Job(run)).alive and job.record.get("process") == entry["process"]:
                if before["slots"] == count:
                    self.jobs[int(slot)] = job
                else:
                    self.elsewhere.append(job)

    @property
    def names(self) -> set[str]:
        return {job.name for job in self.jobs.values()}

    def free(self) -> int | None:
        """The first slot without a run."""
        return next((slot for slot in range(self.count) if slot not in self.jobs), None)

    def put(self, slot: int, job: Job) -> None:
        self.jobs[slot] = job
        runs = {at: {"run": one.name, "process": one.record.get("process")} for at, one in self.jobs.items()}
        atomic_write_text(self.file, json.dumps({"slots": self.count, "runs": runs}, indent=1))

    def take_ended(self) -> list[Job]:
        """The runs that have ended since the last look; their slots are free."""
        ended = [slot for slot, job in self.jobs.items() if not job.alive]
        return [self.jobs.pop(slot) for slot in ended]


def _ending(job: Job, *, killed: bool) -> Ending:
    status = job.status()
    if status.state != "failed":
        return Ending(status.state)
    code = status.exit_code
    return Ending("killed" if killed else "failed", "" if code is None else f"exit code {code}", tuple(job.tail(12)))


def _end(jobs: Sequence[Job], *, kill: bool) -> None:
    if not kill:
        for job in jobs:
            job.stop()
    elif jobs:
        with ThreadPoolExecutor(len(jobs)) as pool:  # each takes as long as its processes take to die
            list(pool.map(Job.kill, jobs))


@contextmanager
def sole(folder: Path) -> Iterator[None]:
    """While this process looks after the runs of the grid in ``folder``, no other does: GridBusy says who does. The
    runs do not inherit the lock: it is free when their keeper is gone."""
    lock = locks.take(folder / LOCK)
    if lock is None:
        who = (folder / LOCK).read_text(encoding="utf-8").strip()
        raise GridBusy(f"{who} looks after the runs of {folder}: wait for it, or stop it and call this again")
    try:
        os.ftruncate(lock, 0)
        os.write(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        os.close(lock)


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
