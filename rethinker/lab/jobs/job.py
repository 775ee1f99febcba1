"""A run in the background, in hand: start it from a notebook, watch, stop and resume it.

``start`` runs ``rethinker train`` in a session of its own, so it outlives the kernel that started it; its output goes
to ``runs/<name>/launch.log``. All that a later kernel needs to find it is in ``runs/<name>/job/``, and whether it lives
is the lock of its folder: no server, and no state in the kernel. Imports no torch: the kernel stays off the GPU.
Nothing here is from the paper.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal

from rethinker.config import RunConfig, check_trainable, load_config
from rethinker.config.schema import ConfigError
from rethinker.lab.jobs.accelerate import machine_count
from rethinker.lab.jobs.failures import first_failure
from rethinker.lab.jobs.files import config_file, is_alive, is_run, last_line, planned_episodes
from rethinker.lab.jobs.ownership import RunBusy, claim, write_record
from rethinker.lab.jobs.processes import MARK, POLL, kill, new_mark
from rethinker.rundir.atomic import read_json
from rethinker.rundir.folder import check_settings, run_state
from rethinker.rundir.paths import RunDir

State = Literal["starting", "running", "stopping", "finished", "stopped", "failed"]
LOG_BYTES = 1 << 20  # of a log that are read
KERNELS_OWN = ("CLICOLOR_FORCE", "FORCE_COLOR", "MPLBACKEND")  # a kernel's variables that are not for its jobs


@dataclass(frozen=True, slots=True)
class JobStatus:
    """How a job stands. ``episode``, ``stage`` and ``seconds`` are those of the last line of metrics.jsonl."""

    state: State
    episode: int  # the last one that has ended; 0: none has
    episodes: int  # of all stages
    stage: str  # "" before the first line
    seconds: float  # wall-clock, pauses excluded
    exit_code: int | None  # None while it lives, or where it was killed together with who waited for it
    error: tuple[str, ...] = ()  # of a job that has failed: what its processes noted, else the last words of its log

    @property
    def alive(self) -> bool:
        """Whether its processes live."""
        return self.state in ("starting", "running", "stopping")

    @property
    def share(self) -> float:
        """Of the run that is done, from 0 to 1: 1 where it is finished, also by a budget."""
        return 1.0 if self.state == "finished" else min(1.0, self.episode / max(1, self.episodes))

    @property
    def progress(self) -> str:
        """How many of its episodes have ended, in words."""
        ended_early = self.state == "finished" and 0 < self.episode < self.episodes
        return f"episode {self.episode}/{self.episodes}{' (budget used up)' if ended_early else ''}"

    def __str__(self) -> str:
        where = f", {self.stage}" if self.stage else ""
        text = f"{self.state}, {self.progress}{where}"
        return "\n  ".join([text, *self.error])


class Job:
    """The run in a folder, running or ended, whoever started it."""

    def __init__(self, folder: str | Path) -> None:
        """Raises FileNotFoundError if ``folder`` is not the folder of a run."""
        self.folder = Path(folder).resolve()
        self.files = RunDir(self.folder)
        if not is_run(self.folder):
            raise FileNotFoundError(f"{self.folder} is not the folder of a run (no config.yaml, no job/config.yaml)")

    @property
    def name(self) -> str:
        """The run's name."""
        return self.folder.name

    @property
    def config(self) -> RunConfig:
        """As the run was last started."""
        return load_config(config_file(self.folder))

    @property
    def record(self) -> dict[str, Any]:
        """Who started it last (``ownership.write_record``); {} if neither `rethinker train` nor ``start`` did."""
        return read_json(self.files.job_record)

    @property
    def alive(self) -> bool:
        """Whether its processes live. Cheap: no file is read."""
        return is_alive(self.folder)

    @property
    def elsewhere(self) -> str | None:
        """The machine that it may be running on without our seeing it: not every file system that machines share shows
        a lock of another one. None if it was started here, or has said how it ended."""
        host, said = self.record.get("host"), run_state(self.folder)
        hidden = (
            host != socket.gethostname() and said in ("starting", "running") and not self.files.job_exit_code.exists()
        )
        return host if hidden and not self.alive else None

    def status(self) -> JobStatus:
        """How it stands now."""
        alive = self.alive  # first: a job that ends while we look has ended, with everything it had to say
        stop = self.files.stop_request.exists()  # before the state, as a run says first that it has stopped
        said, file = run_state(self.folder), self.files.job_exit_code
        code = int(file.read_text()) if file.exists() else None
        state: State = "finished" if said == "finished" else "stopped" if said == "stopped" else "failed"
        if alive:  # one that has said its last word writes its report
            asked = said == "stopped" or (said != "finished" and stop)
            state = "stopping" if asked else "starting" if said in (None, "starting") else "running"
        last = last_line(self.files.metrics)
        return JobStatus(
            state,
            episode=last.get("episode", 0) - (last.get("record") == "step"),
            episodes=planned_episodes(config_file(self.folder)),
            stage=last.get("stage", ""),
            seconds=last.get("seconds", 0.0),
            exit_code=code,
            error=self._error(code) if state == "failed" or (code and not alive and first_failure(self.folder)) else (),
        )

    def tail(self, n: int = 20) -> list[str]:
        """The last ``n`` lines of what it printed since it was last started; [] if that went to a terminal."""
        with self._log() as log:
            lines = log.read().decode("utf-8", errors="replace").splitlines()
        return lines[-n:] if n > 0 else []

    def follow(self, n: int = 0) -> Iterator[str]:
        """The last ``n`` lines of what it printed since it was last started, then every line as it comes, until the job
        ends. None if that went to a terminal."""
        with self._log() as log:
            *lines, rest = log.read().split(b"\n")
            lines = lines[-n:] if n > 0 else []
            alive = True
            while True:
                yield from (line.decode("utf-8", errors="replace") for line in lines)
                if not alive:
                    return
                time.sleep(0 if lines else POLL)
                alive = self.alive  # before the reading: then what an ended job said has been read
                *lines, rest = (rest + log.read()).split(b"\n")
                if rest and not alive:
                    lines.append(rest)

    def _log(self) -> BinaryIO:
        """Its log, open at what it printed since it was last started, the last megabyte at most."""
        start = self.record.get("log_from")
        if start is None or not self.files.log.exists():
            return BytesIO()
        log = self.files.log.open("rb")
        log.seek(max(start, log.seek(0, os.SEEK_END) - LOG_BYTES))
        return log

    def _error(self, code: int | None) -> tuple[str, ...]:
        if failure := first_failure(self.folder):
            return failure, f"details: {self.files.errors}"
        return tuple(self.tail(3)) or (() if code is None else (f"exit code {code}",))

    def wait(self, timeout: float | None = None) -> JobStatus:
        """Wait until it ends, or for ``timeout`` seconds; its state says which. An interrupt ends the waiting only."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.alive and (deadline is None or time.monotonic() < deadline):
            time.sleep(POLL)
        return self.status()

    def stop(self) -> JobStatus:
        """Ask it to save a checkpoint and end after the episode; returns immediately (``wait`` waits). One that has not
        trained yet ends after its first episode; one that has ended already is left alone. From any machine."""
        if self.alive or self.elsewhere:
            self.files.stop_request.touch()
        return self.status()

    def kill(self) -> JobStatus:
        """Kill it: what came after the last checkpoint is lost, and its state is "failed".

        Raises RuntimeError if it runs on another machine, or does not die.
        """
        kill(self.folder)
        return self.status()

    def resume(self) -> Job:
        """Resume it from its last checkpoint, from the folder that it was started in. A finished run stays as it is.
        Raises RunBusy while it lives."""
        return start(self.config, resume=True, home=self.record.get("home", ""))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and other.folder == self.folder

    def __hash__(self) -> int:
        return hash(self.folder)

    def __repr__(self) -> str:
        return f"<Job {self.name}: {self.status()}>"


def start(config: RunConfig, resume: bool = False, *, home: str | Path = "", gpus: str | None = None) -> Job:
    """Start a run in the background and return immediately.

    ``home``: the job's working directory, where relative paths of ``config`` start; "": this process's.
    ``gpus``: its CUDA_VISIBLE_DEVICES; None: this process's.
    ``resume``: resume the run of this name if there is one; a finished one is left as it is. Raises RunBusy if
    another job writes the folder, RunExists if it holds a run (with ``resume``: one with other settings),
    ConfigError for settings that cannot be trained, or that need several machines: a job is of one.
    """
    check_trainable(config)
    if (machines := machine_count(config, home)) > 1:
        raise ConfigError(
            f"the run is of {machines} machines: call `rethinker train` on each of them (see docs/scale.md)"
        )
    folder = Path(home, config.folder)
    files = RunDir(folder)
    if resume and run_state(folder) == "finished":
        check_settings(folder, files.config, config)
        return Job(folder)
    lock = claim(config, resume=resume, home=home)
    try:
        command, mark = train_command(config, resume=resume), new_mark(lock)
        environment = {name: value for name, value in os.environ.items() if name not in KERNELS_OWN}
        environment |= {MARK: mark, "PYTHONUNBUFFERED": "1"} | ({} if gpus is None else {"CUDA_VISIBLE_DEVICES": gpus})
        with files.log.open("ab") as log:
            facts = {"command": command, "home": os.path.abspath(home), "log_from": log.tell(), "gpus": gpus}
            process = subprocess.Popen(
                command,
                cwd=home or None,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # the end of the kernel is not its end
                pass_fds=(lock,),
            )
        threading.Thread(target=process.wait, daemon=True).start()  # or it would stay a zombie when it has ended
        write_record(files, mark, pid=process.pid, **facts)
    finally:
        os.close(lock)  # the job has it now
    return Job(folder)


def ensure(config: RunConfig) -> Job:
    """The run of ``config``, whatever it takes: a finished one is loaded, one that runs is returned, one that was
    stopped, killed or failed is resumed from its last checkpoint, a new one is started.

    Raises RunExists, which names them, where the run of this name has other settings.
    """
    folder = config.folder
    while True:
        try:
            return start(config, resume=RunDir(folder).config.exists())
        except RunBusy:
            if is_run(folder):
                check_settings(folder, config_file(folder), config)
                return Job(folder)
        time.sleep(POLL)  # another kernel has just taken the lock, and writes its first file now


def find(path: str | Path) -> Job | list[Job]:
    """The job of a run's folder; of a folder of runs, all of them by name, running and ended.

    Raises FileNotFoundError if there is no such folder.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder")
    if is_run(path):
        return Job(path)
    return [Job(folder) for folder in sorted(path.iterdir()) if folder.is_dir() and is_run(folder)]


def train_command(config: RunConfig, *, resume: bool) -> list[str]:
    """The command of a job: the one that a person would type."""
    command = [sys.executable, "-m", "rethinker.cli", "train", os.fspath(RunDir(config.folder).job_config)]
    return command + (["--resume"] if resume else [])
