"""Start training and wait for it: ``accelerate launch`` in a process group of its own, stopped in good order.

``rethinker train`` is little more than ``train``, and ``handle.start`` runs that command in the background. Both leave
the same files in ``runs/<name>/job/``, so a run can be found again whoever started it. Nothing here is from the paper.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rethinker.config import RunConfig
from rethinker.lab.jobs.claim import (
    LOCK_VARIABLE,
    claim,
    process_started,
    write_record,
)
from rethinker.lab.jobs.failures import ERRORS_VARIABLE, TRACEBACK_VARIABLE
from rethinker.rundir import locks
from rethinker.rundir.atomic import atomic_write_text
from rethinker.rundir.folder import run_state
from rethinker.rundir.paths import RunDir

KILL_SIGNAL = signal.SIGUSR1  # tells who waits for a run to kill it, without a checkpoint
INTERRUPTED = 130  # exit code of a run that an interrupt has ended without a checkpoint


def launch_command(config: RunConfig, config_file: Path, *, resume: bool) -> list[str]:
    """The command that starts the processes of a run."""
    import torch  # here: who only starts a job in the background (a notebook's kernel) has no use for it

    command = [sys.executable, "-m", "rethinker.lab.jobs", "launch"]
    if config.launch.accelerate:
        command += ["--config_file", config.launch.accelerate]
    else:
        processes = config.launch.processes
        command += ["--num_machines", "1", "--num_processes", str(processes), "--mixed_precision", "no"]
        command += ["--dynamo_backend", "no", "--main_process_port", str(_free_port())]
        if processes > 1:
            # Without GPUs this gives as many CPU processes over gloo; --cpu would start one only.
            command += ["--multi_gpu"]
        elif not torch.cuda.is_available():
            command += ["--cpu"]
    command += ["-m", "rethinker.lab.jobs", "rank", os.fspath(config_file)]
    return command + (["--resume"] if resume else [])


def train(config: RunConfig, *, resume: bool = False, tracebacks: bool = False) -> int:
    """Run ``config`` to its end; returns the exit code. Raises what ``claim`` does. To be called in the main thread.

    ``failures.first_failure`` tells why it failed. ``tracebacks``: those of its processes go to the terminal too, not
    only to the run's ``errors.log``.

    The first Ctrl-C or SIGTERM (what a scheduler sends) saves and stops after the episode, the second one kills;
    KILL_SIGNAL kills at once. Before the run trains there is nothing to save: the first one ends it (INTERRUPTED).
    """
    with _lock(config, resume=resume) as lock:
        return _run(config, lock, resume=resume, tracebacks=tracebacks)


@contextmanager
def _lock(config: RunConfig, *, resume: bool) -> Iterator[int]:
    """The lock that was handed down with the command, which stays until this process ends; else one of our own."""
    handed_down = os.environ.pop(LOCK_VARIABLE, None)
    if handed_down and locks.is_lock_of(int(handed_down), RunDir(config.folder).job_lock):
        yield int(handed_down)
        return
    lock = claim(config, resume=resume)
    try:
        log, log_from = _redirected()
        write_record(config.folder, os.getpid(), [sys.executable, *sys.argv], home="", log=log, log_from=log_from)
        yield lock
    finally:
        os.close(lock)


def _run(config: RunConfig, lock: int, *, resume: bool, tracebacks: bool) -> int:
    folder = RunDir(config.folder)
    environment = os.environ | {
        "OMP_NUM_THREADS": str(config.launch.threads),
        "OMP_WAIT_POLICY": "passive",  # idle threads would spin and take the other process's core
        "TOKENIZERS_PARALLELISM": "false",
        ERRORS_VARIABLE: os.path.abspath(folder.errors),
    }
    if tracebacks:
        environment[TRACEBACK_VARIABLE] = "1"
    folder.errors.unlink(missing_ok=True)
    command = launch_command(config, folder.job_config, resume=resume)
    signals = _Signals(config.folder)
    with signals.handled():
        # A session of its own, or the terminal's Ctrl-C would end the processes before they could save.
        process = subprocess.Popen(command, env=environment, start_new_session=True, pass_fds=(lock,))
        signals.began(process)
        launcher: dict[str, Any] = {"pid": process.pid, "process": process_started(process.pid)}
        atomic_write_text(folder.job_launcher, json.dumps(launcher | {"exit_code": None}))
        code = process.wait()
        code = INTERRUPTED if code and signals.ended else code
        if folder.errors.exists() and not folder.errors.stat().st_size:  # it was ready, and nothing went wrong
            folder.errors.unlink()
        if locks.is_lock_of(lock, folder.job_lock):  # the folder has not been moved, and is nobody else's
            atomic_write_text(folder.job_launcher, json.dumps(launcher | {"exit_code": code}))
        return code


class _Signals:
    """What signals do to a run while it is waited for: in their handlers and not by exceptions, so that whenever one
    comes, it is answered and the run does not live on without anybody who waits for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        self.interrupts = 0
        self.killed = False
        self.ended = False  # by an interrupt, without a checkpoint

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Ctrl-C, SIGTERM and KILL_SIGNAL come here; a SIGINT that a shell has switched off stays off."""
        handlers: dict[int, Any] = {signal.SIGTERM: self.interrupt, KILL_SIGNAL: self.kill}
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            handlers[signal.SIGINT] = self.interrupt
        if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # nohup: it still does nothing here, but the processes
            handlers[signal.SIGHUP] = lambda *_: None  # of the run do not inherit that: they are killed by it
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def began(self, process: subprocess.Popen[bytes]) -> None:
        """The run's launcher has been started; it is told what came before."""
        self.process = process
        if self.killed:
            hang_up(process.pid)
        if self.interrupts:
            self.answer(process)

    def kill(self, *_: object) -> None:
        self.killed = True
        if self.process is not None and self.process.returncode is None:
            hang_up(self.process.pid)

    def interrupt(self, *_: object) -> None:
        self.interrupts += 1
        if self.process is not None and self.process.returncode is None:
            self.answer(self.process)

    def answer(self, process: subprocess.Popen[bytes]) -> None:
        if self.interrupts > 1:
            self.ended = True
            hang_up(process.pid)
            print("killed; the last checkpoint is as it was", file=sys.stderr)
        elif run_state(self.folder) == "starting":
            self.ended = True
            hang_up(process.pid, signal.SIGTERM)
            print("ended before it began to train: there was nothing to save", file=sys.stderr)
        else:
            with suppress(FileNotFoundError):  # the folder was moved: it ends by itself
                RunDir(self.folder).stop_request.touch()
            print("stopping after this episode, with a checkpoint (Ctrl-C again: at once)", file=sys.stderr)


def hang_up(launcher: int, number: int = signal.SIGHUP) -> None:
    """Kill a run by its launcher's process id, without a checkpoint."""
    # First not SIGKILL: torchrun's workers have sessions of their own and would outlive it; it passes SIGHUP on.
    with suppress(ProcessLookupError):
        os.killpg(launcher, number)


def _redirected() -> tuple[str | None, int]:
    """The file that this process's stderr goes to (`> log 2>&1`, a scheduler's), and its size now; None: a terminal, or
    what else cannot be read again."""
    with suppress(OSError):  # a pipe, a file that has been removed, or no /proc
        status, path = os.fstat(2), os.readlink("/proc/self/fd/2")
        if stat.S_ISREG(status.st_mode) and os.path.samestat(status, os.stat(path)):
            return path, status.st_size
    return None, 0


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
