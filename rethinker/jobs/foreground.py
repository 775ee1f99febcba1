"""Start training and wait for it: ``accelerate launch`` in a process group of its own, stopped in good order.

``rethinker train`` is little more than ``train``, and ``handle.start`` runs that command in the background. Both leave
the same files in ``runs/<name>/job/``, so a run can be found again whoever started it. Nothing here is from the paper.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rethinker import locks
from rethinker.config import RunConfig
from rethinker.files import atomic_write_text
from rethinker.jobs.claim import (
    CONFIG_FILE,
    LAUNCHER_FILE,
    LOCK,
    LOCK_VARIABLE,
    claim,
    process_started,
    write_record,
)
from rethinker.run_folder import STOP_FILE, run_state

KILL_SIGNAL = signal.SIGUSR1  # tells who waits for a run to kill it, without a checkpoint


def launch_command(config: RunConfig, config_file: Path, *, resume: bool) -> list[str]:
    """The command that starts the processes of a run."""
    import torch  # here: who only starts a job in the background (a notebook's kernel) has no use for it

    command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]  # one traceback is enough
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
    command += ["-m", "rethinker.experiment", os.fspath(config_file)]
    return command + (["--resume"] if resume else [])


def train(config: RunConfig, *, resume: bool = False) -> int:
    """Run ``config`` to its end; returns the exit code. Raises what ``claim`` does.

    The first Ctrl-C or SIGTERM (what a scheduler sends) saves and stops after the episode, the second one kills;
    KILL_SIGNAL kills at once.
    """
    with _lock(config, resume=resume) as lock:
        return _run(config, lock, resume=resume)


@contextmanager
def _lock(config: RunConfig, *, resume: bool) -> Iterator[int]:
    """The lock that was handed down with the command, which stays until this process ends; else one of our own."""
    handed_down = os.environ.pop(LOCK_VARIABLE, None)
    if handed_down and locks.is_lock_of(int(handed_down), config.folder / LOCK):
        yield int(handed_down)
        return
    lock = claim(config, resume=resume)
    try:
        write_record(config.folder, os.getpid(), [sys.executable, *sys.argv], home="", log=None)
        yield lock
    finally:
        os.close(lock)


def _run(config: RunConfig, lock: int, *, resume: bool) -> int:
    environment = os.environ | {
        "OMP_NUM_THREADS": str(config.launch.threads),
        "OMP_WAIT_POLICY": "passive",  # idle threads would spin and take the other process's core
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = launch_command(config, config.folder / CONFIG_FILE, resume=resume)
    process: subprocess.Popen[bytes] | None = None
    killed = False

    def kill(*_: object) -> None:
        nonlocal killed
        killed = True
        if process is not None:
            hang_up(process.pid)

    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, _interrupt),
        KILL_SIGNAL: signal.signal(KILL_SIGNAL, kill),
    }
    try:
        # A session of its own, or the terminal's Ctrl-C would end the processes before they could save.
        process = subprocess.Popen(command, env=environment, start_new_session=True, pass_fds=(lock,))
        if killed:  # before there was anything to kill
            hang_up(process.pid)
        launcher: dict[str, Any] = {"pid": process.pid, "process": process_started(process.pid)}
        atomic_write_text(config.folder / LAUNCHER_FILE, json.dumps(launcher | {"exit_code": None}))
        code = _wait(process, config)
        atomic_write_text(config.folder / LAUNCHER_FILE, json.dumps(launcher | {"exit_code": code}))
        return code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def hang_up(launcher: int, number: int = signal.SIGHUP) -> None:
    """Kill a run by its launcher's process id, without a checkpoint."""
    # First not SIGKILL: torchrun's workers have sessions of their own and would outlive it; it passes SIGHUP on.
    with suppress(ProcessLookupError):
        os.killpg(launcher, number)


def _wait(process: subprocess.Popen[bytes], config: RunConfig) -> int:
    asked = False
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            if asked:
                hang_up(process.pid)
                process.wait()
                print("killed; the last checkpoint is as it was", file=sys.stderr)
                return 130
            asked = True
            if run_state(config.folder) == "starting":
                os.killpg(process.pid, signal.SIGTERM)  # nothing to save yet
            else:
                (config.folder / STOP_FILE).touch()
                print("stopping after this episode, with a checkpoint (Ctrl-C again: at once)", file=sys.stderr)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
