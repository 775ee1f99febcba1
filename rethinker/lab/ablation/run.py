"""Run what is left of a grid, side by side and resumable, and collect its table from the files of its runs."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from rethinker.config import RunConfig
from rethinker.lab.ablation.cluster import ClusterJobs, Where
from rethinker.lab.ablation.gpus import check_processes, slot_gpus
from rethinker.lab.ablation.grid import Grid
from rethinker.lab.ablation.origin import CurrentProvenance, mixture
from rethinker.lab.ablation.slots import RunOutcome, Slots, exclusive
from rethinker.lab.ablation.table import COLUMNS, NOT_BEGUN, run_rows, typed
from rethinker.lab.jobs.files import config_file, is_alive, is_run
from rethinker.lab.jobs.gpus import visible_gpus
from rethinker.lab.jobs.preflight import make_missing
from rethinker.rundir.atomic import atomic_write_bytes, atomic_write_text
from rethinker.rundir.folder import check_folder, check_settings, run_state
from rethinker.rundir.paths import RunDir

FINISHED, BUSY = "nothing: finished", "wait: another job writes it"


def plan(grid: Grid) -> pd.DataFrame:
    """One row per wanted run: name, labels, seed, episodes, what would happen (start, resume, wait, nothing), what
    changed since it was made (code, data; "" for nothing), its settings.

    Raises RunExists if a folder of that name holds a run with other settings.
    """
    rows, now = [], CurrentProvenance()
    for run in grid.runs:
        folder = run.config.folder
        checkpoint = check_folder(run.config, resume=True)  # of the others too: the table is read from them
        if grid.only and run.config.name not in grid.only:
            continue
        todo = "resume" if checkpoint else "start"
        if is_alive(folder):
            todo = BUSY
            if is_run(folder):  # it may not have a config of its own yet, only that of its start
                check_settings(folder, config_file(folder), run.config)
        elif run_state(folder) == "finished":
            todo = FINISHED
        rows.append(
            {"run": run.config.name, **run.labels, "seed": run.config.seed, "episodes": run.config.episodes}
            | {"to do": todo, "changed since": now.differs(run.config), "overrides": " ".join(run.overrides)}
        )
    return pd.DataFrame(rows)


def run_grid(
    grid: Grid, slots: int | None = None, *, on: Where | None = None, say: Callable[[str], None] = print
) -> dict[str, str]:
    """Run what is left of a grid's wanted runs, then write its table; returns run -> finished, stopped or failed.

    A finished run is loaded, a stopped one is resumed, one that another job writes is waited for (see ``Slots``). A run
    that fails does not stop the others; the end of its log is said when all are done. Ctrl-C or SIGTERM stops all after
    their episode, with checkpoints, and raises KeyboardInterrupt; the same call resumes them. What was made by other
    code or from other data is used and said.

    ``on``: submit the runs as jobs of a cluster instead (see ``cluster``), as many at a time as there are slots; an
    interrupt leaves these in the queue, and the same call finds them.

    Raises, before anything is started: RunExists if a run's folder holds a run with other settings, GridBusy if
    another process looks after this grid, ConfigError if the slots do not fit the GPUs or submitit refuses.
    """
    planned = plan(grid).set_index("run")
    _warn(grid, planned["changed since"], say)
    outcomes = dict.fromkeys(planned.index[planned["to do"] == FINISHED], "finished")
    if outcomes:
        say(f"{len(outcomes)} of {len(grid.wanted)} runs: {FINISHED}")
    left = [run.config for run in grid.wanted if run.config.name not in outcomes]
    count = grid.slots if slots is None else slots
    completed, ended = True, dict[str, RunOutcome]()
    if left and on:
        ended = _submit(left, grid, on, count, say)
    elif left:
        completed, ended = _run(left, grid.folder, count, say)
    for name, outcome in ended.items():
        outcomes[name] = outcome.state
        if outcome.state == "failed" and outcome.log:
            log = grid.folder / "submitit" if on else RunDir(grid.folder.parent / name).log
            say(f"\n{name} failed; the end of {log}:\n" + "\n".join(outcome.log) + "\n")
    if differ := mixture(save_table(grid)):
        say(f"warning: {differ}")
    if not completed:
        raise KeyboardInterrupt
    return {run.config.name: outcomes[run.config.name] for run in grid.wanted}


def _run(
    left: list[RunConfig], folder: Path, count: int, say: Callable[[str], None]
) -> tuple[bool, dict[str, RunOutcome]]:
    """Run what is left in ``count`` slots; False if it was interrupted, and how the runs ended."""
    gpus = visible_gpus()
    shares = slot_gpus(gpus, count)
    check_processes(left, gpus, count)
    if over := len(gpus) % count:
        say(f"{over} of {len(gpus)} GPUs stay idle: they cannot be shared equally by {count} slots")
    slots = Slots(left, shares, folder, say)
    with exclusive(folder):
        make_missing(left, say)  # each run would do so itself, at the same time
        completed = slots.run()
    return completed, slots.outcomes


def _submit(
    left: list[RunConfig], grid: Grid, on: Where, count: int, say: Callable[[str], None]
) -> dict[str, RunOutcome]:
    """Run what is left as jobs of a cluster, at most ``count`` at a time; how the runs ended."""
    options = {"name": grid.name, "slurm_array_parallelism": count, **grid.slurm}
    jobs = ClusterJobs(on, grid.folder, options, say)
    with exclusive(grid.folder):
        make_missing(left, say)
        return jobs.run(left)


def _warn(grid: Grid, changed: pd.Series, say: Callable[[str], None]) -> None:
    """Say what makes the comparison of the runs less than it seems."""
    if not any(run.config.data.test or run.config.data.validation for run in grid.runs):
        say("warning: neither data.test nor data.validation is set: there will be no accuracy to compare")
    for what, runs in changed[changed != ""].groupby(changed, sort=False):
        say(
            f"warning: changed since {len(runs)} of {len(changed)} runs were made: {what} ({', '.join(runs.index)}); "
            "they are used as they are, and made anew where their folders are removed"
        )


def collect(grid: Grid) -> pd.DataFrame:
    """What the runs' files say, one row per run and measure: the columns of ``ablation.table.COLUMNS``, one of each
    axis.

    ``state`` tells how each run stands; one that has not begun has its progress, 0 episodes, only.
    Raises RunExists if a run's folder holds a run with other settings, ValueError for a broken file.
    """
    rows = []
    for run in grid.runs:
        check_folder(run.config, resume=True)
        about = {"run": run.config.name, **run.labels, "label": run.label, "seed": run.config.seed}
        rows += [about | row for row in run_rows(run.config)]
    first, *rest = COLUMNS
    return typed(pd.DataFrame(rows, columns=[first, *grid.axes, *rest]))


def save_table(grid: Grid) -> pd.DataFrame:
    """``collect``, written to ``table.parquet`` and ``table.csv`` in the grid's folder.

    Where not all runs are wanted, the rows that the file has of runs without data now stay in it.
    """
    table, buffer, file = collect(grid), io.BytesIO(), grid.folder / "table.parquet"
    if grid.only and file.is_file():
        table = _with_rows_of(pd.read_parquet(file), table)
    table.to_parquet(buffer, index=False)
    atomic_write_bytes(file, buffer.getvalue())
    atomic_write_text(grid.folder / "table.csv", table.to_csv(index=False))
    return table


def _with_rows_of(before: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The table with the rows that one of ``before`` has of runs that have not begun, or are not in it."""
    order = {name: at for at, name in enumerate(dict.fromkeys([*table["run"], *before["run"]]))}
    begun = table.loc[table["state"] != NOT_BEGUN, "run"]
    kept = before[~before["run"].isin(begun)]
    both = pd.concat([table[~table["run"].isin(kept["run"])], kept])[list(table.columns)]
    return typed(both.sort_values("run", key=lambda names: names.map(order), kind="stable", ignore_index=True))
