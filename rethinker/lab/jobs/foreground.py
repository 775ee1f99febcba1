"""Start training and wait for it: ``accelerate launch`` in a process group of its own, stopped in an orderly way.

``rethinker train`` is little more than ``train``, and ``job.start`` runs that command in the background. Both leave the
same files in ``runs/<name>/job/``, so a run can be found again whoever started it. Nothing here is from the paper.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress

from rethinker.config import RunConfig
from rethinker.lab.jobs.accelerate import launch_command
from rethinker.lab.jobs.failures import ERRORS_VARIABLE, TRACEBACK_VARIABLE
from rethinker.lab.jobs.ownership import owned
from rethinker.lab.jobs.processes import MARK, POLL, counted_interrupts, kill_marked
from rethinker.rundir import locks
from rethinker.rundir.atomic import atomic_write_text
from rethinker.rundir.folder import run_state
from rethinker.rundir.paths import RunDir

INTERRUPTED = 130  # exit code of a run that an interrupt has ended without a checkpoint


def train(config: RunConfig, *, resume: bool = False, tracebacks: bool = False) -> int:
    """Run ``config`` to its end; returns the exit code. Raises what ``claim`` does. Call in the main thread.

    ``failures.first_failure`` tells why it failed. ``tracebacks``: those of its processes go to the terminal too, not
    only to the run's ``errors.log``.

    The first Ctrl-C or SIGTERM (what a scheduler sends) saves and stops after the episode, the second one kills.
    Before the run trains there is nothing to save: the first one ends it (INTERRUPTED).
    """
    with owned(config, resume=resume) as (lock, mark):
        return _run(config, lock, mark, resume=resume, tracebacks=tracebacks)


def _run(config: RunConfig, lock: int, mark: str, *, resume: bool, tracebacks: bool) -> int:
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
    files.errors.unlink(missing_ok=True)
    command = launch_command(config, files.job_config, resume=resume)
    answered, killed = 0, False
    with counted_interrupts() as interrupts:
        # A session of its own, or the terminal's Ctrl-C would end the processes before they could save.
        process = subprocess.Popen(command, env=environment, start_new_session=True, pass_fds=(lock,))
        while process.poll() is None:
            if answered < len(interrupts):
                answered += 1
                killed = _kills(files, answered)
            if killed:
                kill_marked(mark)
            with suppress(subprocess.TimeoutExpired):
                process.wait(POLL)
    if files.errors.exists() and not files.errors.stat().st_size:  # it was ready, and nothing went wrong
        files.errors.unlink()
    code = INTERRUPTED if killed and process.returncode else process.returncode
    if locks.is_lock_of(lock, files.job_lock):  # the folder has not been moved, or taken by another run
        atomic_write_text(files.job_exit_code, f"{code}\n")
    return code


def _kills(files: RunDir, interrupts: int) -> bool:
    """Answer an interrupt; True if it ends the run without a checkpoint."""
    if interrupts > 1:
        print("killed; the last checkpoint is unchanged", file=sys.stderr)
        return True
    if run_state(files.folder) == "starting":
        print("stopped before training began; nothing to save", file=sys.stderr)
        return True
    with suppress(FileNotFoundError):  # the folder was moved: it ends by itself
        files.stop_request.touch()
    print("stopping after this episode, with a checkpoint (Ctrl-C again: immediately, without one)", file=sys.stderr)
    return False
