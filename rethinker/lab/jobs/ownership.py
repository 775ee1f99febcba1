"""Who may write a run's folder: the lock that a start takes and hands down, and the record of who started it.

No two jobs write one folder. Who starts a run holds the lock of its folder and hands it down to accelerate's launcher,
and the main process of the run holds a lock of its own, so that the run counts as alive as long as one of them lives
(``rethinker.rundir.locks`` says where that holds). Nothing here is from the paper.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rethinker.config import RunConfig, to_yaml
from rethinker.lab.jobs.accelerate import machine_count
from rethinker.lab.jobs.processes import MARK, new_mark
from rethinker.rundir import locks
from rethinker.rundir.atomic import atomic_write_text, read_json
from rethinker.rundir.folder import check_folder, run_state
from rethinker.rundir.paths import RunDir


class RunBusy(ValueError):
    """The run's folder is being written by another job."""


def claim(config: RunConfig, *, resume: bool, home: str | Path = "") -> int:
    """Take the lock of the run's folder and make it ready for a start; returns the lock's descriptor.

    ``home``: where relative paths of ``config`` start; "": in the working directory.

    Raises RunBusy if another job has the lock, RunExists as ``check_folder`` does, ConfigError for a bad
    ``launch.accelerate``.
    """
    machine_count(config, home)
    here = replace(config, runs_dir=os.fspath(Path(home, config.runs_dir)))
    files = RunDir(here.folder)
    lock = locks.take(files.job_lock)
    try:
        if lock is None or locks.is_held(files.writer_lock):
            record = read_json(files.job_record)
            who = " (process {pid} on {host}, started {started})".format_map(record) if "pid" in record else ""
            choice = f"wait for it, end it (rethinker stop {files}), or choose another name=..."
            raise RunBusy(f"{files} is being written by another job{who}: {choice}")
        check_folder(here, resume=resume)
        files.stop_request.unlink(missing_ok=True)  # of a run that was killed before it answered
        files.job_exit_code.unlink(missing_ok=True)
        if run_state(here.folder) != "finished":
            atomic_write_text(files.status, json.dumps(read_json(files.status) | {"state": "starting"}))
        atomic_write_text(files.job_config, to_yaml(config))
    except BaseException:
        if lock is not None:
            os.close(lock)
        raise
    return lock


def write_record(files: RunDir, mark: str, **facts: Any) -> None:
    """Write down who started the run: ``mark`` is that of its processes (``processes.MARK``), and ``facts`` are

    - pid, command: of the process that waits for it;
    - home: its working directory, where relative paths of its config start;
    - log_from: where in its log the output of this start begins; missing where that goes to a terminal;
    - gpus: its CUDA_VISIBLE_DEVICES, where it was given some.

    No environment, so no keys.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    record = {"mark": mark, "host": socket.gethostname(), "started": now} | facts
    atomic_write_text(files.job_record, json.dumps(record, indent=1))


@contextmanager
def owned(config: RunConfig, *, resume: bool) -> Iterator[tuple[int, str]]:
    """The lock and the mark that were handed down with the command, which stay until this process ends; else new ones,
    which raises what ``claim`` does."""
    files, mark = RunDir(config.folder), os.environ.get(MARK, "")
    if mark and locks.is_lock_of(lock := int(mark.rpartition(":")[2]), files.job_lock):
        yield lock, mark
        return
    lock = claim(config, resume=resume)
    try:
        mark = new_mark(lock)
        write_record(files, mark, pid=os.getpid(), command=[sys.executable, *sys.argv], home=os.getcwd())
        yield lock, mark
    finally:
        os.close(lock)
