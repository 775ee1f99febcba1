"""Runs side by side in a fixed number of slots, each slot with its share of the GPUs.

Every run is a job of its own (``rethinker.lab.jobs``), which outlives the process that started it. Its record says
which GPUs it was given, and the lock of its folder whether it lives; so the next call, after a kernel's restart or a
kill, finds it in its slot again and puts no other run onto its GPUs. One process at a time looks after a grid.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rethinker.config import RunConfig
from rethinker.lab.jobs import Job, RunBusy, start
from rethinker.lab.jobs.files import is_alive, is_run
from rethinker.lab.jobs.processes import POLL, counted_interrupts
from rethinker.rundir import locks
from rethinker.rundir.folder import run_state
from rethinker.rundir.paths import RunDir

LOCK = "lock"  # in the grid's folder: held by the process that looks after its runs


class GridBusy(ValueError):
    """Another process looks after the runs of the grid."""


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended."""

    state: str  # finished, stopped, failed, or killed by the second interrupt
    reason: str = ""  # of a failure, in a few words
    log: tuple[str, ...] = ()  # of a failure: the end of the log


class Slots:
    """Runs what is left of every run, at most one a slot, in order.

    A run that fails does not stop the others. A run that an earlier call left in a slot keeps that slot. One that lives
    outside the slots (started by hand, or under another number of slots) may be on any GPU: nothing is started until it
    has ended. Both are resumed here if they end unfinished.
    """

    def __init__(
        self, configs: Sequence[RunConfig], gpus: Sequence[str], folder: Path, say: Callable[[str], None]
    ) -> None:
        """``configs``: the runs that are not known to be finished. ``gpus``: of each slot, see ``slot_gpus``.
        ``folder``: the grid's, beside the runs. ``say``: told what happens, in lines."""
        self.waiting = {config.name: config for config in configs}  # neither started here nor ended
        self.gpus, self.folder, self.say = gpus, folder, say
        self.jobs: dict[int, Job] = {}  # slot -> the run in it
        self.outcomes: dict[str, RunOutcome] = {}
        self.titles = {name: f"[{number}/{len(configs)}] {name}" for number, name in enumerate(self.waiting, start=1)}
        self.started: dict[str, float] = {}
        self.strangers: set[str] = set()  # that were told of

    def run(self) -> bool:
        """True if no interrupt came, which leaves runs undone: SIGINT (Ctrl-C, a notebook's stop button) and SIGTERM (a
        scheduler) start nothing more, and the runs in the slots save and stop after their episode; the second one kills
        them. Call in the main thread, by the holder of ``exclusive``."""
        with counted_interrupts() as interrupts:
            for job in self._living():
                gpus = job.record.get("gpus")
                if gpus is not None and (slot := self._free(gpus)) is not None:
                    self.jobs[slot] = job
                    self._tell(job.name, "is running already; it keeps its slot")
            answered = 0
            while self.jobs or (self.waiting and not interrupts):
                for slot, job in list(self.jobs.items()):
                    if not job.alive:
                        del self.jobs[slot]
                        if job.name not in self.waiting or interrupts:
                            self._end(job.name, outcome(job, killed=answered > 1))
                while answered < len(interrupts):
                    answered += 1
                    for job in self.jobs.values():
                        job.stop() if answered == 1 else job.kill()
                if self.waiting and not interrupts and self._free() is not None:
                    self._start_what_fits()
                time.sleep(POLL if self.jobs or self.waiting else 0)
            return not interrupts

    def _start_what_fits(self) -> None:
        strangers = {job.name for job in self._living()}
        busy = strangers | {job.name for job in self.jobs.values()}
        for name in [name for name in self.waiting if name not in busy]:
            if run_state(self.waiting[name].folder) == "finished":  # by another job, meanwhile
                del self.waiting[name]
                self._end(name, RunOutcome("finished"))
        for name in sorted(strangers - self.strangers):
            self._tell(name, "is running already; it may be on any GPU, so nothing is started before it has ended")
        self.strangers |= strangers
        for name in [name for name in self.waiting if name not in busy]:
            if strangers or (slot := self._free()) is None:
                return
            config = self.waiting[name]
            try:
                self.jobs[slot] = start(config, resume=True, gpus=self.gpus[slot])
            except RunBusy:  # another job was faster: the next look sees it
                return
            except ValueError as error:
                del self.waiting[name]
                self._end(name, RunOutcome("failed", str(error)))
            else:
                del self.waiting[name]
                self.started[name] = time.monotonic()
                self._tell(name, f"started, log {RunDir(config.folder).log}")

    def _free(self, gpus: str | None = None) -> int | None:
        """The first slot without a run (of those with these GPUs)."""
        slots = (slot for slot, its in enumerate(self.gpus) if slot not in self.jobs and gpus in (None, its))
        return next(slots, None)

    def _living(self) -> list[Job]:
        """The runs of the grid that live outside the slots, also those that its file no longer names."""
        runs = sorted(self.folder.parent.glob(f"{self.folder.name}-*"))
        jobs = [Job(run) for run in runs if is_alive(run) and is_run(run)]
        grid = [job for job in jobs if job.name in self.waiting or job.config.tracking.wandb_group == self.folder.name]
        return [job for job in grid if job not in self.jobs.values()]

    def _end(self, name: str, outcome: RunOutcome) -> None:
        self.outcomes[name] = outcome
        why = f" ({outcome.reason})" if outcome.reason else ""
        after = f" after {(time.monotonic() - self.started[name]) / 60:.1f} minutes" if name in self.started else ""
        self._tell(name, f"{outcome.state}{why}{after}")

    def _tell(self, name: str, text: str) -> None:
        self.say(f"{self.titles.get(name, name)}: {text}")


def outcome(job: Job, *, killed: bool) -> RunOutcome:
    """How a job has ended; ``killed``: by the second interrupt."""
    status = job.status()
    if status.state != "failed":
        return RunOutcome(status.state)
    reason = "" if status.exit_code is None else f"exit code {status.exit_code}"
    return RunOutcome("killed" if killed else "failed", reason, tuple(job.tail(12)))


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """While this process looks after the runs of the grid in ``folder``, no other does: GridBusy says which one does.
    The runs do not inherit the lock: it is free when their keeper is gone."""
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
