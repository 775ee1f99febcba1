"""Jobs from the command line: ``rethinker launch | jobs | tail | stop``. Nothing here is from the paper."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from contextlib import suppress
from pathlib import Path

from rethinker.lab.command_line import CONFIG, FOLDER, RESUME, command, option, settings


@command("launch", "Train from a config in the background; the run outlives the terminal.", CONFIG, settings(), RESUME)
def launch(file: str, overrides: list[str], resume: bool) -> int:
    """Start a run and print the commands that control it."""
    from rethinker.config import load_config
    from rethinker.lab.jobs.job import start
    from rethinker.lab.jobs.preflight import preflight
    from rethinker.rundir.folder import run_state
    from rethinker.rundir.paths import RunDir

    config = load_config(file, typed=overrides)
    finished = run_state(config.folder) == "finished"
    if not finished:
        for warning in preflight(config):  # the job checks too, but only its log would say so
            print(f"warning: {warning}", file=sys.stderr)
    job = start(config, resume=resume or finished)
    if finished:
        print(f"{config.folder} is finished; its report: {RunDir(config.folder).report}")
        return 0
    print(f"{job.name} is started in the background (process {job.record['pid']})")
    for does, words in {
        "watch it": ["watch"],
        "what it prints": ["tail", "-f"],
        "save and stop": ["stop"],
    }.items():
        print(f"  {does:14}  {shlex.join([*program(), *words, os.fspath(config.folder)])}")
    return 0


@command(
    "jobs",
    "List runs and their state.",
    option("runs", nargs="?", type=Path, default=Path("runs"), help="a folder of runs, or one run's"),
)
def jobs(runs: Path) -> int:
    """One line per run, and the last words of those that failed."""
    from rethinker.lab.jobs.job import Job, find

    found = find(runs)
    found = [found] if isinstance(found, Job) else found
    width = max((len(job.name) for job in found), default=0)
    for job in found:
        print(f"{job.name:{width}}  {job.status()}")
    if not found:
        print(f"no runs in {runs}")
    return 0


@command(
    "tail",
    "Show the last output of a run in the background.",
    FOLDER,
    option("-n", "--lines", type=int, default=20, help="lines (default: %(default)s)"),
    option("-f", "--follow", action="store_true", help="keep printing new output until the run ends"),
)
def tail(folder: Path, lines: int, follow: bool) -> int:
    """Exit code 1 if a run that was followed has failed. Ctrl-C ends the following only."""
    from rethinker.lab.jobs.job import Job

    job = Job(folder)
    if "log_from" not in job.record:
        raise ValueError(f"{folder}: it prints where it was started; `rethinker watch` shows its metrics")
    if not follow:
        for line in job.tail(lines):
            print(line)
        return 0
    with suppress(KeyboardInterrupt):
        for line in job.follow(lines):
            print(line, flush=True)
    return 1 if job.status().state == "failed" else 0


@command(
    "stop",
    "Ask a run to save and stop after the current episode.",
    FOLDER,
    option("--kill", action="store_true", help="kill it without saving a checkpoint"),
)
def stop(folder: Path, kill: bool) -> int:
    """Exit code 1 if the run cannot be ended from here."""
    from rethinker.lab.jobs.job import Job

    job = Job(folder)
    elsewhere = job.elsewhere
    if not job.alive and not elsewhere:
        print(f"{job.name} does not run: {job.status()}")
        return 0
    if elsewhere and kill:
        print(f"rethinker stop: {job.name} was started on {elsewhere}: kill it there", file=sys.stderr)
        return 1
    if elsewhere:
        job.stop()
        print(
            f"{job.name} was started on {elsewhere}, whose locks are not seen here: asked to save and end, if it runs"
        )
        return 0
    if not kill:
        job.stop()
        print(f"{job.name} saves and ends after its episode (--kill: immediately, without a checkpoint)")
        return 0
    try:
        print(f"{job.name}: {job.kill()}")
    except RuntimeError as error:
        print(f"rethinker stop: {error}", file=sys.stderr)
        return 1
    return 0


def program() -> list[str]:
    """The words that call this program again: "rethinker" where the shell finds it, else as it was called."""
    called = Path(sys.argv[0])
    if called.name != "rethinker":  # python -m rethinker.cli
        return [sys.executable, "-m", "rethinker.cli"]
    found = shutil.which("rethinker")
    return ["rethinker" if found and Path(found).resolve() == called.resolve() else sys.argv[0]]
