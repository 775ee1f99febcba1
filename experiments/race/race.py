"""TRL's GRPOTrainer against our GRPO, SSR and Forced Rethinking over the seconds of training. See README.md beside this
file.

    race.py sweep                        learning rates for every method, one seed     -> results/sweep.csv
    race.py race                         the best rates, three seeds                   -> results/race.csv
    race.py sweep --start reflecting     from weights that reflect now and then        -> results/sweep-reflecting.csv
    race.py race --start reflecting                                                    -> results/race-reflecting.csv

Finished runs of the table are not repeated, failed ones are; a race's group of methods is, if one of them is missing or
has failed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import beside  # noqa: F401
import records
from channel import Worker, WorkerFailed
from entrants import CONFIG, ENTRANTS, REFLECTING, STARTS
from facts import facts_of_run
from rich.console import Console

from rethinker.rundir.atomic import atomic_write_text

HERE = Path(__file__).parent
RESULTS = HERE / "results"
REPOSITORY = CONFIG.parents[1]
RATES = (5e-5, 1e-4, 2e-4, 4e-4)
SWEEP_SEED = 100  # none of the race's


@dataclass(frozen=True)
class Run:
    """A run to be made."""

    method: str
    seed: int
    lr: float

    @property
    def name(self) -> tuple[str, int, float]:
        """As ``records`` names it."""
        return (self.method, self.seed, self.lr)

    def __str__(self) -> str:
        return f"{self.method}, seed {self.seed}, lr {self.lr:g}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    options = parse(arguments)
    console = Console(highlight=False)
    try:
        groups = unfinished(wanted(options), records.finished(records.read(options.table)), options.what)
        count = sum(map(len, groups))
        console.print(f"{count} runs of {options.seconds:g} CPU seconds; {options.jobs} at a time; {options.table}")
        make_start(options.start, console)
        failed = race(groups, options, console)
    except (WorkerFailed, ValueError) as error:
        console.print(str(error), style="red", markup=False, soft_wrap=True)
        return 1
    return 1 if failed else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; ``table`` is the file of the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("sweep", "race"))
    parser.add_argument("--start", choices=tuple(STARTS), default="base", help="the weights that all begin with")
    parser.add_argument("--methods", nargs="+", choices=tuple(ENTRANTS), help="default: those of the start")
    parser.add_argument("--seeds", nargs="+", type=int, help=f"default: {SWEEP_SEED} for the sweep, 0 1 2 for the race")
    parser.add_argument("--rates", nargs="+", type=float, help="learning rates of the sweep; of the race: one for all")
    parser.add_argument("--seconds", type=float, help="CPU seconds of training a run (120 for the sweep, 180 else)")
    parser.add_argument("--slice", type=float, default=10.0, help="CPU seconds between evaluations (default 10)")
    parser.add_argument("--jobs", type=int, default=1, help="runs of a sweep at a time, one core each")
    parser.add_argument("--micro-batch", type=int, help="samples of a forward pass of TRL's; default: an update's")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="lines of config for every run")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(arguments)
    sweep = options.what == "sweep"
    options.seeds = options.seeds or ([SWEEP_SEED] if sweep else [0, 1, 2])
    options.seconds = options.seconds or (120.0 if sweep else 180.0)
    options.methods = options.methods or list(STARTS[options.start].methods)
    options.table, options.sweep = (table_of(options.out, what, options.start) for what in (options.what, "sweep"))
    if options.set and options.out == RESULTS:
        parser.error("--set needs --out FOLDER: its numbers must not stand beside those of other settings")
    if min(options.seconds, options.slice, options.jobs) <= 0:
        parser.error("--seconds, --slice and --jobs must be above 0")
    if options.jobs > 1 and not sweep:
        parser.error("--jobs is of the sweep: in a race one run works at a time")
    return options


def table_of(folder: Path, what: str, start: str) -> Path:
    """Where the results of a sweep or a race are."""
    return folder / f"{what}{'' if start == 'base' else '-' + start}.csv"


def make_start(start: str, console: Console) -> None:
    """Train the weights that a race begins with, if they are not there."""
    model = REPOSITORY / STARTS[start].model
    if model.is_dir():
        return
    with tempfile.TemporaryDirectory(prefix="rethinker-race-") as folder:
        what = {"model": str(model), "folder": folder}
        with Worker(str(HERE / "start.py"), what, Path(folder) / "start.log") as worker:
            console.print(f"{model}: making it, until {REFLECTING:.0%} of the responses reflect")
            found = worker.start()
    console.print(f"{model}: {found['reflection']:.0%} after {found['episode']} episodes")


def wanted(options: argparse.Namespace) -> list[list[Run]]:
    """Groups of runs that take turns: all of a sweep's alone, the methods of a seed together.

    Raises ValueError where a method has no learning rate yet, or its race had another one before.
    """
    if options.what == "sweep":
        rates = options.rates or RATES
        return [[Run(method, seed, lr)] for seed in options.seeds for lr in rates for method in options.methods]
    if options.rates:
        if len(options.rates) > 1:
            raise ValueError(f"race: give one --rates for all methods, or none: the best of {options.sweep}")
        best = dict.fromkeys(options.methods, options.rates[0])
    else:
        best = records.best_rates(records.read(options.sweep))
    missing = [method for method in options.methods if method not in best]
    if missing:
        raise ValueError(f"{options.sweep} has no {', '.join(missing)}: run the sweep first")
    for method, _, lr in records.named(records.read(options.table)):
        if method in options.methods and lr != best[method]:
            raise ValueError(
                f"{options.table}: {method} raced at {lr:g}, now it would at {best[method]:g}; take it out first"
            )
    return [[Run(method, seed, best[method]) for method in options.methods] for seed in options.seeds]


def unfinished(groups: Iterable[Sequence[Run]], done: set[tuple[str, int, float]], what: str) -> list[list[Run]]:
    """What is left: runs of a sweep; of a race whole groups, since who takes turns must run together."""
    if what == "race":
        return [list(group) for group in groups if any(run.name not in done for run in group)]
    left = [[run for run in group if run.name not in done] for group in groups]
    return [group for group in left if group]


def race(groups: Sequence[Sequence[Run]], options: argparse.Namespace, console: Console) -> bool:
    """All groups, ``options.jobs`` of them at a time; a run is in the table as soon as it ends. True if one failed."""
    lock = Lock()
    failures = []

    def group(runs: Sequence[Run]) -> None:
        with tempfile.TemporaryDirectory(prefix="rethinker-race-") as folder:
            for run, rows in take_turns(runs, options, Path(folder), console):
                failed = rows[-1]["split"] == records.FAILED
                with lock:
                    records.add(options.table, rows)
                    remember(run, options)
                    failures.extend([run] * failed)
                console.print(f"{run}: {'failed' if failed else 'finished'}")

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(group, groups))
    return bool(failures)


def remember(run: Run, options: argparse.Namespace) -> None:
    """Write beside the table when, where and with what the run was made."""
    file = options.table.with_suffix(".json")
    told = {key: value for key, value in vars(options).items() if key not in ("out", "table", "sweep")}
    known = json.loads(file.read_text()) if file.exists() else {}
    facts = facts_of_run() | {"options": told}
    if (made := REPOSITORY / STARTS[options.start].model / "start.json").exists():
        facts["start"] = json.loads(made.read_text())
    atomic_write_text(file, json.dumps(known | {str(run): facts}, indent=1))


def take_turns(
    runs: Sequence[Run], options: argparse.Namespace, folder: Path, console: Console
) -> Iterable[tuple[Run, list[dict[str, Any]]]]:
    """The runs in turn, a slice of training and an evaluation each, another one first in every round; yields each with
    its rows when it has had its seconds, or has failed (as one with too high a rate may). All live at the same time,
    one works.
    """
    rows: dict[Run, list[dict[str, Any]]] = {run: [] for run in runs}
    with ExitStack() as stack:
        workers = {}
        for index, run in enumerate(runs):
            where = folder / str(index)
            worker = Worker(str(HERE / ENTRANTS[run.method].script), job(run, options, where), folder / f"{index}.log")
            workers[run] = stack.enter_context(worker)
            rows[run].append(row(run, worker.start()))
        for start in itertools.count():
            if not workers:
                return
            for run in rotated(list(workers), start):
                try:
                    rows[run].append(row(run, workers[run].step("train")))
                except WorkerFailed as error:
                    console.print(f"{run}: {error}", style="red", markup=False, soft_wrap=True)
                    rows[run].append(rows[run][-1] | {"split": records.FAILED, "accuracy": math.nan})
                last = rows[run][-1]
                failed = last["split"] == records.FAILED
                console.print(f"{run}: {last['cpu_s']:.0f} s, episode {last['episode']}, {last['accuracy']:.3f}")
                if failed or last["cpu_s"] >= options.seconds:
                    if options.what == "race" and not failed:  # the only use of the test split
                        rows[run].append(row(run, workers[run].step("test")))
                    workers.pop(run).__exit__()
                    yield run, rows[run]


def job(run: Run, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What a worker is told."""
    told = {"name": run.method, "seed": run.seed, "lr": run.lr, "folder": str(folder)}
    config = told | {"overrides": options.set, "start": options.start}
    return {"config": config, "slice": options.slice, "micro_batch": options.micro_batch}


def row(run: Run, answer: dict[str, Any]) -> dict[str, Any]:
    """A row of the table."""
    return {"method": run.method, "seed": run.seed, "lr": run.lr, **answer, "load_1min": os.getloadavg()[0]}


def rotated(runs: Sequence[Run], by: int) -> list[Run]:
    """The runs with another one first."""
    by %= len(runs)
    return [*runs[by:], *runs[:by]]


if __name__ == "__main__":
    sys.exit(main())
