"""Run what is left of a grid, side by side and resumable, and collect its table from the files of its runs."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from rethinker import locks
from rethinker.ablation.grid import Grid
from rethinker.ablation.slots import Ending, Job, log_end, run_in_slots
from rethinker.ablation.table import COLUMNS, run_rows, typed
from rethinker.config import RunConfig, to_yaml
from rethinker.files import atomic_write_bytes, atomic_write_text
from rethinker.jobs.claim import LOCK
from rethinker.run_folder import check_folder, run_state

FINISHED, BUSY = "nothing: finished", "nothing: another job writes it"
STATES = {FINISHED: "finished", BUSY: "running"}  # outcomes of runs that are left alone
GENERATED = "data/generated/"  # what `rethinker train` draws where it is missing


def plan(grid: Grid) -> pd.DataFrame:
    """A row a run: name, labels, seed, episodes, what would happen (start, go on, or nothing and why), its settings.

    Raises RunExists where a folder of that name holds a run with other settings.
    """
    rows = []
    for run in grid.runs:
        checkpoint = check_folder(run.config, resume=True)
        todo = "go on" if checkpoint else "start"
        if run_state(run.config.folder) == "finished":
            todo = FINISHED
        elif locks.is_held(run.config.folder / LOCK):
            todo = BUSY
        rows.append(
            {"run": run.config.name, **run.labels, "seed": run.config.seed, "episodes": run.config.episodes}
            | {"to do": todo, "overrides": " ".join(run.overrides)}
        )
    return pd.DataFrame(rows)


def train_command(config_file: Path) -> tuple[str, ...]:
    """The command of one run; it starts a new run, or goes on with one that was stopped."""
    return (sys.executable, "-m", "rethinker.cli", "train", os.fspath(config_file), "--resume")


def run_grid(grid: Grid, slots: int | None = None, *, say: Callable[[str], None] = print) -> dict[str, str]:
    """Run what is left of a grid, then write its table; returns run -> finished, stopped, failed or running.

    A finished run is loaded, a stopped one goes on, one that another job is writing is left to it. A run that fails
    does not stop the others; the end of its log is said when all are done. Ctrl-C or SIGTERM stops all after their
    episode, with checkpoints, and raises KeyboardInterrupt; the same call goes on.

    Raises RunExists, before anything is started, where a run's folder holds a run with other settings.
    """
    todo = plan(grid).set_index("run")["to do"]
    outcomes = {name: STATES[what] for name, what in todo.items() if what in STATES}
    for what, state in STATES.items():
        if (count := list(outcomes.values()).count(state)) > 0:
            say(f"{count} of {len(grid.runs)} runs: {what}")
    left = {run.config.name: run.config for run in grid.runs if run.config.name not in outcomes}
    jobs = []
    for name, config in left.items():
        file = atomic_write_text(grid.folder / "configs" / f"{name}.yaml", to_yaml(config))
        jobs.append(Job(name, train_command(file), grid.folder / "logs" / f"{name}.log"))
    titles = {job.name: f"[{number}/{len(jobs)}] {job.name}" for number, job in enumerate(jobs, start=1)}

    def started(job: Job) -> None:
        say(f"{titles[job.name]}: started, log {job.log}")

    def ended(job: Job, ending: Ending) -> None:
        failed = ending.code and not ending.asked  # told to stop before it could save, it says so by its exit code
        finished = run_state(left[job.name].folder) == "finished"
        outcomes[job.name] = state = "failed" if failed else "finished" if finished else "stopped"
        why = f" (exit code {ending.code})" if failed else ""
        say(f"{titles[job.name]}: {state}{why} after {ending.seconds / 60:.1f} minutes")

    _draw_data(left.values(), say)
    completed = run_in_slots(jobs, grid.slots if slots is None else slots, on_start=started, on_end=ended)
    save_table(grid)
    for job in jobs:
        if outcomes.get(job.name) == "failed":
            say(f"\n{job.name} failed; the end of {job.log}:\n{log_end(job.log)}\n")
    if not completed:
        raise KeyboardInterrupt
    return outcomes


def _draw_data(configs: Iterable[RunConfig], say: Callable[[str], None]) -> None:
    """Draw the visual-math world where runs need it and it is missing: each would do so itself, at the same time."""
    paths = {path for config in configs for path in (config.data.train, config.data.validation, config.data.test)}
    missing = [path for path in paths if path and path.startswith(GENERATED) and not Path(path).exists()]
    for folder in sorted({Path(path).parent for path in missing}):
        say(f"drawing the visual-math world into {folder}")
        command = [sys.executable, "-m", "rethinker.cli", "make-data", "--out", os.fspath(folder)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def collect(grid: Grid) -> pd.DataFrame:
    """What the runs' files say, a row a run and measure: the columns of ``ablation.table.COLUMNS``, one of each axis.

    ``state`` tells how each run stands; one that has not begun has its progress, 0 episodes, only.
    Raises RunExists where a run's folder holds a run with other settings, ValueError for a broken file.
    """
    rows = []
    for run in grid.runs:
        check_folder(run.config, resume=True)
        about = {"run": run.config.name, **run.labels, "label": run.label, "seed": run.config.seed}
        rows += [about | row for row in run_rows(run.config)]
    first, *rest = COLUMNS
    return typed(pd.DataFrame(rows, columns=[first, *grid.axes, *rest]))


def save_table(grid: Grid) -> pd.DataFrame:
    """``collect``, written to ``table.parquet`` and ``table.csv`` in the grid's folder."""
    table, buffer = collect(grid), io.BytesIO()
    table.to_parquet(buffer, index=False)
    atomic_write_bytes(grid.folder / "table.parquet", buffer.getvalue())
    atomic_write_text(grid.folder / "table.csv", table.to_csv(index=False))
    return table
