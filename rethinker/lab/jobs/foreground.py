"""Start training and wait for it: ``accelerate launch`` in a process group of its own, stopped in an orderly way.

``rethinker train`` is little more than ``train``, and ``job.start`` runs that command in the background. Both leave the
same files in ``runs/<name>/job/``, so a run can be found again whoever started it. Nothing here is from the paper.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from rethinker.config import RunConfig, to_yaml
from rethinker.lab.jobs.accelerate import Machine, launch_command, this_machine
from rethinker.lab.jobs.failures import ERRORS_VARIABLE, TRACEBACK_VARIABLE
from rethinker.lab.jobs.ownership import owned
from rethinker.lab.jobs.processes import MARK, POLL, counted_interrupts, kill_marked, new_mark
from rethinker.rundir import locks
from rethinker.rundir.atomic import atomic_write_text, read_json
from rethinker.rundir.folder import run_state
from rethinker.rundir.paths import RunDir

INTERRUPTED = 130  # exit code of a run that Ctrl-C has ended without a checkpoint
REQUEUE = 75  # exit code of an unfinished run that SIGTERM has ended: to be started again (EX_TEMPFAIL of sysexits.h)


def train(config: RunConfig, *, resume: bool = False, tracebacks: bool = False) -> int:
    """Run ``config`` to its end; returns the exit code. Raises what ``claim`` does, and ConfigError as ``this_machine``
    does. Call in the main thread, on every machine of the run; machine 0 owns its folder, the others join.

    ``failures.first_failure`` tells why it failed. ``tracebacks``: those of its processes go to the terminal too, not
    only to the run's ``errors.log``.

    The first Ctrl-C saves and stops after the episode, the second one kills. SIGTERM (what a scheduler sends before it
    kills) does the same with a limit: an episode that has not ended after ``launch.grace_seconds`` is abandoned, the
    last checkpoint stays, and the exit code of an unfinished run is REQUEUE. Before the run trains there is nothing to
    save: the first one ends it.
    """
    machine = this_machine(config)
    if machine.rank:
        return _run(config, machine, None, new_mark(-1), resume=resume, tracebacks=tracebacks)
    with owned(config, resume=resume) as (lock, mark):
        return _run(config, machine, lock, mark, resume=resume, tracebacks=tracebacks)


def _run(config: RunConfig, machine: Machine, lock: int | None, mark: str, *, resume: bool, tracebacks: bool) -> int:
    files = RunDir(config.folder)
    environment = os.environ | {
        MARK: mark,
        "OMP_NUM_THREADS": str(config.launch.threads),
        "OMP_WAIT_POLICY": "passive",  # idle threads would spin and take the other process's core
        "TOKENIZERS_PARALLELISM": "false",
        ERRORS_VARIABLE: os.path.abspath(files.errors),
    }
    if tracebacks:
        environment[TRACEBACK_VARIABLE] = "1"
    if machine.rank:
        atomic_write_text(files.machine_config(machine.rank), to_yaml(config))
    else:
        files.errors.unlink(missing_ok=True)
    command = launch_command(config, files.machine_config(machine.rank), machine, resume=resume)
    with counted_interrupts() as signals:
        # A session of its own, or the terminal's Ctrl-C would end the processes before they could save.
        process = subprocess.Popen(
            command, env=environment, start_new_session=True, pass_fds=() if lock is None else (lock,)
        )
        ending = _Ending(files, config.launch.grace_seconds)
        while process.poll() is None:
            ending.answer(signals)
            if ending.killed:
                kill_marked(mark)
            with suppress(subprocess.TimeoutExpired):
                process.wait(POLL)
    code = process.returncode
    if signal.SIGTERM in signals and run_state(config.folder) != "finished":
        code = REQUEUE
    elif ending.killed and code:
        code = INTERRUPTED
    if lock is not None:
        _note_end(files, lock, code, abandoned=ending.abandoned)
    return code


def _note_end(files: RunDir, lock: int, code: int, *, abandoned: bool) -> None:
    """Write down how the processes ended, unless the folder was moved or taken by another run."""
    if files.errors.exists() and not files.errors.stat().st_size:  # it was ready, and nothing went wrong
        files.errors.unlink()
    if not locks.is_lock_of(lock, files.job_lock):
        return
    status = read_json(files.status)
    if abandoned and status.get("progress", {}).get("episode", 0):  # there is a checkpoint
        atomic_write_text(files.status, json.dumps(status | {"state": "stopped"}))
    atomic_write_text(files.job_exit_code, f"{code}\n")


class _Ending:
    """What signals make of a run: a request to stop after the episode, or its end."""

    def __init__(self, files: RunDir, grace: float) -> None:
        self.files, self.grace = files, grace
        self.answered = 0
        self.deadline: float | None = None  # of the episode, after SIGTERM
        self.abandoned = False  # the deadline has passed
        self.killed = False

    def answer(self, signals: Sequence[int]) -> None:
        """Answer the signals that came since the last call; call again and again."""
        for number in signals[self.answered :]:
            self.answered += 1
            if number == signal.SIGTERM:  # another one changes nothing
                if self.deadline is None:
                    self.deadline = time.monotonic() + self.grace
                    self._request(f"the episode is abandoned if it does not end in {self.grace:g} seconds")
            elif self.answered > 1:
                self._kill("killed; the last checkpoint is unchanged")
            else:
                self._request("Ctrl-C again: immediately, without one")
        if self.deadline is not None and not self.killed and time.monotonic() >= self.deadline:
            self.abandoned = True
            self._kill("the episode is abandoned; the last checkpoint is unchanged")

    def _request(self, otherwise: str) -> None:
        if run_state(self.files.folder) == "starting":
            self._kill("stopped before training began; nothing to save")
            return
        with suppress(FileNotFoundError):  # the folder was moved: it ends by itself
            self.files.stop_request.touch()
        print(f"stopping after this episode, with a checkpoint ({otherwise})", file=sys.stderr)

    def _kill(self, words: str) -> None:
        if not self.killed:
            print(words, file=sys.stderr)
        self.killed = True
