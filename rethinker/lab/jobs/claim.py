"""Whose a run's folder is: the lock of who starts it, and the record of who that is.

No two jobs write one folder: who starts a run holds the lock of its folder, and hands it down to accelerate's launcher,
as long as one of them lives (see ``rethinker.rundir.locks`` for what that holds on). Nothing here is from the paper.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rethinker.config import RunConfig, to_yaml
from rethinker.config.schema import ConfigError
from rethinker.rundir import locks
from rethinker.rundir.atomic import atomic_write_text
from rethinker.rundir.folder import check_folder, run_state
from rethinker.rundir.paths import RunDir

LOCK_VARIABLE = "RETHINKER_LOCK"  # the descriptor of a lock that was handed down with the command


class RunBusy(ValueError):
    """The run's folder is being written by another job."""


def claim(config: RunConfig, *, resume: bool, home: str | Path = "") -> int:
    """Take the lock of the run's folder and make it ready for a start; returns the lock's descriptor.

    ``home``: where relative paths of ``config`` start; "": in the working directory.

    Raises RunBusy where another job has the lock, RunExists as ``check_folder`` does, ConfigError for a bad
    ``launch.accelerate``.
    """
    if config.launch.accelerate:
        check_accelerate_file(os.fspath(Path(home, config.launch.accelerate)))
    here = replace(config, runs_dir=os.fspath(Path(home, config.runs_dir)))
    folder = RunDir(here.folder)
    lock = locks.take(folder.job_lock)
    if lock is None:
        raise RunBusy(
            f"{folder} is being written by another job{_who(folder)}: wait for it, or choose another name=..."
        )
    try:
        if locks.is_held(folder.writer_lock):
            pid = folder.writer_lock.read_text().strip()
            raise RunBusy(
                f"{folder} is still being written by process {pid}, which no `rethinker train` waits for (that was "
                "killed, or accelerate was started by hand): wait for it, or kill it first"
            )
        check_folder(here, resume=resume)
        folder.stop_request.unlink(missing_ok=True)  # of a run that was killed before it answered
        folder.job_launcher.unlink(missing_ok=True)
        if run_state(folder) != "finished":
            atomic_write_text(folder.status, json.dumps({"state": "starting"}))
        atomic_write_text(folder.job_config, to_yaml(config))
    except BaseException:
        os.close(lock)
        raise
    return lock


def is_alive(folder: Path) -> bool:
    """Whether processes of a run of ``folder`` live. Cheap: no file is read."""
    return locks.is_held(RunDir(folder).job_lock) or locks.is_held(RunDir(folder).writer_lock)


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


def write_record(
    folder: Path, pid: int, command: Sequence[str], *, home: str | Path, log: str | None, log_from: int = 0
) -> None:
    """Write down who started the run, and where (``home``). ``log``: the file of its output, from byte ``log_from`` on,
    relative to ``folder`` or absolute; None: it goes to a terminal. No environment, so no keys."""
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
    atomic_write_text(RunDir(folder).job_record, json.dumps(record, indent=1))


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


def is_same(record: dict[str, Any]) -> bool:
    """Whether the process of a record lives, and its number is not another's by now."""
    return bool(record) and record["process"] is not None and process_started(record["pid"]) == record["process"]


def _who(folder: RunDir) -> str:
    """Who holds the lock, in words, as far as it is known."""
    try:
        record = json.loads(folder.job_record.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ""
    return f" (process {record['pid']} on {record['host']}, started {record['started']})"
