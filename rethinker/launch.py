"""Start training: ``accelerate launch`` in a process group of its own, watched, and stopped in good order.

``train`` blocks until the run ends; ``rethinker train`` is little more, and ``rethinker.jobs`` starts that command in
the background. Both leave the same files in ``runs/<name>/job/``, so a run can be found again whoever started it.
No two of them write one folder: who starts a run holds the lock of its folder, and hands it down to accelerate's
launcher, as long as one of them lives (see ``rethinker.locks`` for what that holds on). Nothing here is from the paper.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rethinker import locks
from rethinker.config import RunConfig, to_yaml
from rethinker.files import atomic_write_text
from rethinker.run_folder import STATUS_FILE, STOP_FILE, WRITER_LOCK, check_folder, run_state
from rethinker.schema import ConfigError

CONFIG_FILE = "job/config.yaml"  # the config as it was started with
LOCK = "job/lock"  # held by who started the run and by accelerate's launcher, as long as they live
RECORD_FILE = "job/record.json"  # who started it: see ``write_record``
LAUNCHER_FILE = "job/launcher.json"  # {"pid", "process", "exit_code"}: accelerate's launcher, and how it ended
LOCK_VARIABLE = "RETHINKER_LOCK"  # the descriptor of a lock that was handed down with the command
KILL_SIGNAL = signal.SIGUSR1  # tells who waits for a run to kill it, without a checkpoint


class RunBusy(ValueError):
    """The run's folder is being written by another job."""


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


def check_accelerate_file(path: str) -> None:
    """Raises ConfigError where ``launch.accelerate`` names no file of `accelerate config`, or one for many machines."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        settings = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"launch.accelerate={path!r}: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"launch.accelerate={path!r}: not a file of `accelerate config`")
    if settings.get("num_machines", 1) != 1:
        raise ConfigError(
            f"launch.accelerate={path!r}: num_machines is {settings['num_machines']}; a run has to be on one machine"
        )


def claim(config: RunConfig, *, resume: bool, home: str | Path = "") -> int:
    """Take the lock of the run's folder and make it ready for a start; returns the lock's descriptor.

    ``home``: where relative paths of ``config`` start; "": in the working directory.

    Raises RunBusy where another job has the lock, RunExists as ``check_folder`` does, ConfigError for a bad
    ``launch.accelerate``.
    """
    if config.launch.accelerate:
        check_accelerate_file(os.fspath(Path(home, config.launch.accelerate)))
    here = replace(config, runs_dir=os.fspath(Path(home, config.runs_dir)))
    folder = here.folder
    lock = locks.take(folder / LOCK)
    if lock is None:
        raise RunBusy(
            f"{folder} is being written by another job{_who(folder)}: wait for it, or choose another name=..."
        )
    try:
        if locks.is_held(folder / WRITER_LOCK):
            pid = (folder / WRITER_LOCK).read_text().strip()
            raise RunBusy(f"{folder} is still being written by process {pid}, whose launcher was killed: kill it first")
        check_folder(here, resume=resume)
        (folder / STOP_FILE).unlink(missing_ok=True)  # of a run that was killed before it answered
        (folder / LAUNCHER_FILE).unlink(missing_ok=True)
        if run_state(folder) != "finished":
            atomic_write_text(folder / STATUS_FILE, json.dumps({"state": "starting"}))
        atomic_write_text(folder / CONFIG_FILE, to_yaml(config))
    except BaseException:
        os.close(lock)
        raise
    return lock


def write_record(
    folder: Path, pid: int, command: Sequence[str], *, home: str | Path, log: str | None, log_from: int = 0
) -> None:
    """Write down who started the run, and where (``home``). ``log``: the file of its output in ``folder``, from byte
    ``log_from`` on; None: it goes to a terminal. No environment, so no keys."""
    record = {
        "pid": pid,
        "process": process_started(pid),
        "host": socket.gethostname(),
        "command": list(command),
        "home": os.path.abspath(home),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "log": log,
        "log_from": log_from,
    }
    atomic_write_text(folder / RECORD_FILE, json.dumps(record, indent=1))


def process_started(pid: int) -> str | None:
    """A word that process ``pid`` shares with no other process that ever has its number; None: there is no such."""
    if Path("/proc/self/stat").exists():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return None if fields[0] == "Z" else f"{boot}/{fields[19]}"  # clock ticks between the boot and its start
    found = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


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


def _who(folder: Path) -> str:
    """Who holds the lock, in words, as far as it is known."""
    try:
        record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ""
    return f" (process {record['pid']} on {record['host']}, started {record['started']})"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
