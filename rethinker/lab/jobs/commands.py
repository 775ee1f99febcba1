"""Jobs from the command line: ``rethinker launch | jobs | tail | stop``. Nothing here is from the paper."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

AddCommand = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]


def add_commands(command: AddCommand) -> None:
    """The commands with their options; ``command`` adds one by its name, its function and what it does."""
    sub = command("launch", launch, "Train as a config says, in the background: it outlives the terminal.")
    sub.add_argument("config", help="YAML file, e.g. experiments/tiny.yaml")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. seed=1 optim.lr=3e-5")
    sub.add_argument("--resume", action="store_true", help="resume the run of this name, if there is one")

    sub = command("jobs", jobs, "List runs and how they stand.")
    sub.add_argument("runs", nargs="?", type=Path, default=Path("runs"), help="a folder of runs, or one run's")

    sub = command("tail", tail, "Show the end of what a run in the background has printed.")
    sub.add_argument("folder", type=Path, metavar="RUN")
    sub.add_argument("-n", "--lines", type=int, default=20, help="lines (default: %(default)s)")
    sub.add_argument("-f", "--follow", action="store_true", help="and what it prints from now on, until it ends")

    sub = command("stop", stop, "Ask a run to save and end after its episode.")
    sub.add_argument("folder", type=Path, metavar="RUN")
    sub.add_argument("--kill", action="store_true", help="kill it, without a checkpoint")


def launch(arguments: argparse.Namespace) -> int:
    """Start a run and say how to look after it."""
    from rethinker.config import load_config
    from rethinker.lab.jobs.job import start
    from rethinker.lab.jobs.preflight import preflight
    from rethinker.rundir.folder import run_state
    from rethinker.rundir.paths import RunDir

    config = load_config(arguments.config, typed=arguments.overrides)
    finished = run_state(config.folder) == "finished"
    if not finished:
        preflight(config)  # the job does so too, but only its log would say so
    job = start(config, resume=arguments.resume or finished)
    if finished:
        print(f"{config.folder} is finished; its report: {RunDir(config.folder).report}")
        return 0
    print(f"{job.name} is started in the background (process {job.record['pid']})")
    for does, words in {
        "watch it": ["watch"],
        "what it prints": ["tail", "-f"],
        "save and stop": ["stop"],
    }.items():
        print(f"  {does:14}  {shlex.join([*called_as(), *words, os.fspath(config.folder)])}")
    return 0


def jobs(arguments: argparse.Namespace) -> int:
    """A line a run, and the last words of those that failed."""
    from rethinker.lab.jobs.job import Job, find

    found = find(arguments.runs)
    found = [found] if isinstance(found, Job) else found
    width = max((len(job.name) for job in found), default=0)
    for job in found:
        print(f"{job.name:{width}}  {job.status()}")
    if not found:
        print(f"no runs in {arguments.runs}")
    return 0


def tail(arguments: argparse.Namespace) -> int:
    """Exit code 1 where a run that was followed has failed. Ctrl-C ends the following only."""
    from rethinker.lab.jobs.job import Job

    job = Job(arguments.folder)
    if "log_from" not in job.record:
        raise ValueError(f"{arguments.folder}: it prints where it was started; `rethinker watch` shows its metrics")
    if not arguments.follow:
        for line in job.tail(arguments.lines):
            print(line)
        return 0
    with suppress(KeyboardInterrupt):
        for line in job.follow(arguments.lines):
            print(line, flush=True)
    return 1 if job.status().state == "failed" else 0


def stop(arguments: argparse.Namespace) -> int:
    """Exit code 1 where the run cannot be ended from here."""
    from rethinker.lab.jobs.job import Job

    job = Job(arguments.folder)
    if not job.alive:
        print(f"{job.name} does not run: {job.status()}")
        return 0
    if not arguments.kill:
        job.stop()
        print(f"{job.name} saves and ends after its episode (--kill: immediately, without a checkpoint)")
        return 0
    try:
        print(f"{job.name}: {job.kill()}")
    except RuntimeError as error:
        print(f"rethinker stop: {error}", file=sys.stderr)
        return 1
    return 0


def called_as() -> list[str]:
    """The words that call this program again: "rethinker" where the shell finds it, else as it was called."""
    called = Path(sys.argv[0])
    if called.name != "rethinker":  # python -m rethinker.cli
        return [sys.executable, "-m", "rethinker.cli"]
    found = shutil.which("rethinker")
    return ["rethinker" if found and Path(found).resolve() == called.resolve() else sys.argv[0]]
