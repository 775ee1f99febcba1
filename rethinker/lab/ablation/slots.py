"""Runs side by side in a fixed number of slots, each slot with its share of the GPUs.

Every run is a job of its own (``rethinker.lab.jobs``), which outlives whoever started it. Its record says which GPUs it
was given, and whether it still lives is the lock of its folder; so the next call, after a kernel's restart or a kill,
finds it in its slot again and puts no other one onto its GPUs. One process at a time looks after a grid.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rethinker.config import RunConfig
from rethinker.lab.jobs import Job, RunBusy, start
from rethinker.lab.jobs.files import is_alive, is_run
from rethinker.lab.jobs.processes import POLL, counted_interrupts
from rethinker.rundir import locks
from rethinker.rundir.folder import run_state

LOCK = "lock"  # in the grid's folder: held by who looks after its runs


class GridBusy(ValueError):
    """Another process looks after the runs of the grid."""


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended."""

    state: str  # finished, stopped, failed, or killed by the second interrupt
    reason: str = ""  # of a failure, in a few words
    log: tuple[str, ...] = ()  # of a failure: the end of the log


def run_in_slots(
    configs: Sequence[RunConfig],
    gpus: Sequence[str],
    folder: Path,
    *,
    on_start: Callable[[str], None],
    on_wait: Callable[[str, bool], None],
    on_end: Callable[[str, RunOutcome], None],
) -> bool:
    """Run what is left of every run, at most one a slot, in order; True if no interrupt came, which leaves runs undone.

    A run that fails does not stop the others. SIGINT (Ctrl-C, a notebook's stop button) and SIGTERM (a scheduler) start
    nothing more, and the runs in the slots save and stop after their episode; the second one kills them. To be called
    in the main thread, by who holds ``exclusive``.

    A run that an earlier call left in a slot keeps that slot. One that lives outside the slots (started by hand, or
    under another number of slots) may be on any GPU: nothing is started until it has ended. Both are resumed here if
    they end unfinished. An interrupt stops the former and leaves the latter alone.

    Args:
        configs: all runs of the grid that are not known to be finished.
        gpus: of each slot, see ``slot_gpus``.
        folder: the grid's, beside the runs.
        on_start: told the name of a run that was started.
        on_wait: told the name of a run that lives already, and whether it is in a slot.
        on_end: told the name of a run, started or waited for, and how it ended.
    """
    waiting = {config.name: config for config in configs}  # neither started here nor ended
    slots: dict[int, Job] = {}
    told: set[str] = set()

    def free(share: str | None = None) -> int | None:
        return next((slot for slot in range(len(gpus)) if slot not in slots and share in (None, gpus[slot])), None)

    def living() -> list[Job]:
        return [job for job in _living(folder, waiting) if job not in slots.values()]

    def start_what_fits() -> None:
        strangers = living()
        busy = {job.name for job in (*strangers, *slots.values())}
        for name in [name for name in waiting if name not in busy]:
            if run_state(waiting[name].folder) == "finished":  # by whomever
                del waiting[name]
                on_end(name, RunOutcome("finished"))
        for name in [job.name for job in strangers if job.name not in told]:
            told.add(name)
            on_wait(name, False)
        left = [name for name in waiting if name not in busy]
        while left and not strangers and (slot := free()) is not None:
            name = left.pop(0)
            try:
                slots[slot] = start(waiting[name], resume=True, gpus=gpus[slot])
            except RunBusy:  # somebody was faster: the next look sees it
                return
            except ValueError as error:
                on_end(name, RunOutcome("failed", str(error)))
            else:
                on_start(name)
            del waiting[name]

    with counted_interrupts() as interrupts:
        for job in living():
            share = job.record.get("gpus")
            if share is not None and (slot := free(share)) is not None:
                slots[slot] = job
                on_wait(job.name, True)
        asked = 0
        while slots or (waiting and not interrupts):
            for slot, job in list(slots.items()):
                if not job.alive:
                    del slots[slot]
                    if job.name not in waiting or interrupts:
                        on_end(job.name, _outcome(job, killed=asked > 1))
            while asked < len(interrupts):
                asked += 1
                for job in slots.values():
                    job.stop() if asked == 1 else job.kill()
            if waiting and not interrupts and free() is not None:
                start_what_fits()
            time.sleep(POLL if slots or waiting else 0)
        return not interrupts


def _living(folder: Path, names: Collection[str]) -> list[Job]:
    """The living runs of the grid in ``folder``: those of ``names``, and those that its file no longer names."""
    runs = sorted(folder.parent.glob(f"{folder.name}-*"))
    jobs = [Job(run) for run in runs if is_alive(run) and is_run(run)]
    return [job for job in jobs if job.name in names or job.config.tracking.wandb_group == folder.name]


def _outcome(job: Job, *, killed: bool) -> RunOutcome:
    status = job.status()
    if status.state != "failed":
        return RunOutcome(status.state)
    reason = "" if status.exit_code is None else f"exit code {status.exit_code}"
    return RunOutcome("killed" if killed else "failed", reason, tuple(job.tail(12)))


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
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
