"""Finished runs for notebooks: a small one that is made once, and any config's.

``demo_run`` is the default experiment's first two stages in miniature: fewer and smaller episodes, a higher learning
rate. It is long enough for reflection to appear, and too small for its numbers to mean anything else.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rethinker.config import load_config
from rethinker.config.repository import repository_root
from rethinker.datasets.world.visual_math import make_data
from rethinker.lab import jobs
from rethinker.lab.notebook.show import shown
from rethinker.lab.report.write import write_report
from rethinker.rundir import locks
from rethinker.rundir.paths import RunDir

CONFIG = "experiments/tiny.yaml"
TEST = "data/visual_math/test.parquet"  # 36 committed queries: two of each kind and level
TRAIN_QUERIES, VALIDATION_QUERIES, DATA_SEED = 360, 36, 2505
SETTINGS = (
    "queries_per_episode=16",
    "rollout.engine=transformers",
    "optim.lr=2e-4",  # twice the default experiment's: it has a quarter of its first two stages' episodes
    "optim.warmup_steps=0",
    "evaluation.every=4",
    "evaluation.samples=2",
    "tracking.save_every=0",
    "launch.processes=2",
    "stages=[{name: vl-reasoner, episodes: 4},"
    "{name: vl-rethinker, episodes: 24, overrides: {rethink: {fraction: 0.5}}}]",
)


def demo_run(runs_dir: str | Path = "runs", name: str = "demo") -> Path:
    """The folder of a small finished run, made if it is missing (about 45 seconds on two CPU cores).

    28 episodes of 16 queries x 8 responses by the transformers engine in two processes, 36 validation and 36 test
    queries of the visual-math world, ``report.html``. Safe to call from several notebooks at the same time: the first
    makes it, the others wait. ValueError if the folder holds a run with other settings; RuntimeError if training
    failed.
    """
    root = repository_root()
    data = Path(runs_dir) / ".data" / name  # relative, as it may be: a checkout can be moved
    splits = {"train": data / "train.parquet", "validation": data / "validation.parquet", "test": TEST}
    overrides = [*SETTINGS, f"name={name}", f"runs_dir={runs_dir}"]
    overrides += [f"data.{split}={path}" for split, path in splits.items()]
    with _alone(root / data.parent / f"{name}.lock"):
        make_data(root / data, TRAIN_QUERIES, VALIDATION_QUERIES, 0, DATA_SEED)
    return finished_run(CONFIG, overrides)


def run_or_demo(run: str | Path, runs_dir: str | Path = "runs") -> Path:
    """The folder of ``run``, or the demo's where ``run`` is "". FileNotFoundError if it is no run's folder."""
    if not str(run):
        return demo_run(runs_dir)
    folder = repository_root() / run
    if not RunDir(folder).config.is_file():
        raise FileNotFoundError(f"{folder} is not the folder of a run (no config.yaml)")
    return folder


def finished_run(config: str | Path, overrides: Sequence[str] = ()) -> Path:
    """The folder of the finished run of ``config`` with ``overrides`` (key=value), trained if it is missing.

    A run that was interrupted is resumed, one that another notebook has started is waited for, a finished one with the
    same settings is loaded. Relative paths start at the repository's root. What the run says from now on is printed. An
    interrupt (the kernel's stop button) saves and stops it; a kernel that dies leaves it running.
    Raises ValueError if the folder holds a run with other settings, RuntimeError if training failed or stopped.
    """
    root = repository_root()
    run = load_config(root / config, list(overrides))
    folder = root / run.folder
    with _alone(folder.parent / f".{run.name}.lock"):
        before = sys.maxsize  # lines of its log that are printed first: all
        try:
            job = jobs.start(run, resume=True, home=root)
        except jobs.RunBusy:  # of a kernel that is no more: its job lives on
            job, before = jobs.Job(folder), 0
        status = job.status()
        if status.state == "finished":
            print(f"{shown(folder)}: loaded, {status.episode} episodes")
        else:
            _follow(job, before)
            status = job.status()
        if status.state != "finished":
            raise RuntimeError(f"{shown(folder)}: {status}; call again to resume it")
        if not RunDir(folder).report.is_file():
            write_report(folder)
    return folder


def _follow(job: jobs.Job, before: int) -> None:
    """Print the last ``before`` lines of a job's log, and what it adds until it ends."""
    try:
        for line in job.follow(before):
            print(line, flush=True)
    except KeyboardInterrupt:
        job.stop()
        print("saving and stopping after this episode")
        job.wait()
        raise


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process at a time, however long the others take."""
    descriptor = locks.take(lock, patience=math.inf)
    assert descriptor is not None
    try:
        yield
    finally:
        os.close(descriptor)
