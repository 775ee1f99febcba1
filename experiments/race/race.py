"""TRL's GRPOTrainer against our GRPO, SSR and Forced Rethinking over the seconds of training. See README.md beside this
file.

    race.py sweep      learning rates for every method, one seed     -> results/sweep.csv
    race.py race       the best rates, three seeds                   -> results/race.csv

Runs that are in the table are not repeated.
"""

from __future__ import annotations

import argparse
import itertools
import json
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
from entrants import ENTRANTS, MAIN
from facts import facts_of_run
from rich.console import Console

from rethinker.rundir.atomic import atomic_write_text

HERE = Path(__file__).parent
RESULTS = HERE / "results"
RATES = (2.5e-5, 5e-5, 1e-4, 2e-4, 4e-4)
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
        groups = unfinished(wanted(options), records.finished(records.read(options.table)))
        count = sum(map(len, groups))
        console.print(f"{count} runs of {options.seconds:g} CPU seconds; {options.jobs} at a time; {options.table}")
        race(groups, options, console)
    except (WorkerFailed, ValueError) as error:
        console.print(str(error), style="red", markup=False, soft_wrap=True)
        return 1
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; ``table`` is the file of the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("sweep", "race"))
    parser.add_argument("--methods", nargs="+", choices=tuple(ENTRANTS), default=list(MAIN))
    parser.add_argument("--seeds", nargs="+", type=int, help=f"default: {SWEEP_SEED} for the sweep, 0 1 2 for the race")
    parser.add_argument("--rates", nargs="+", type=float, help="learning rates of the sweep; of the race: one for all")
    parser.add_argument("--seconds", type=float, help="CPU seconds of training a run (90 for the sweep, 180 else)")
    parser.add_argument("--slice", type=float, default=10.0, help="CPU seconds between evaluations (default 10)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one core each (default 1)")
    parser.add_argument("--micro-batch", type=int, help="samples of a forward pass of TRL's; default: an update's")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="lines of config for every run")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(arguments)
    sweep = options.what == "sweep"
    options.seeds = options.seeds or ([SWEEP_SEED] if sweep else [0, 1, 2])
    options.seconds = options.seconds or (90.0 if sweep else 180.0)
    options.table = options.out / f"{options.what}.csv"
    if options.set and options.out == RESULTS:
        parser.error("--set needs --out FOLDER: its numbers must not stand beside those of other settings")
    if min(options.seconds, options.slice, options.jobs) <= 0:
        parser.error("--seconds, --slice and --jobs must be above 0")
    return options


def wanted(options: argparse.Namespace) -> list[list[Run]]:
    """Groups of runs that take turns: all of a sweep's alone, the methods of a seed together.

    Raises ValueError where a method has no learning rate yet.
    """
    if options.what == "sweep":
        rates = options.rates or RATES
        return [[Run(method, seed, lr)] for seed in options.seeds for lr in rates for method in options.methods]
    if options.rates:
        if len(options.rates) > 1:
            raise ValueError("race: give one --rates for all methods, or none: the best of results/sweep.csv")
        best = dict.fromkeys(options.methods, options.rates[0])
    else:
        best = records.best_rates(records.read(options.out / "sweep.csv"))
    missing = [method for method in options.methods if method not in best]
    if missing:
        raise ValueError(f"{options.out / 'sweep.csv'} has no {', '.join(missing)}: run the sweep first")
    return [[Run(method, seed, best[method]) for method in options.methods] for seed in options.seeds]


def unfinished(groups: Iterable[Sequence[Run]], done: set[tuple[str, int, float]]) -> list[list[Run]]:
    """What is left of the groups."""
    left = [[run for run in group if run.name not in done] for group in groups]
    return [group for group in left if group]


def race(groups: Sequence[Sequence[Run]], options: argparse.Namespace, console: Console) -> None:
    """All groups, ``options.jobs`` of them at a time; a finished run is in the table at once."""
    lock = Lock()

    def group(runs: Sequence[Run]) -> None:
        with tempfile.TemporaryDirectory(prefix="rethinker-race-") as folder:
            for run, rows in take_turns(runs, options, Path(folder), console):
                with lock:
                    records.add(options.table, rows)
                    told = {key: value for key, value in vars(options).items() if key not in ("out", "table")}
                    facts = facts_of_run() | {"options": told}
                    atomic_write_text(options.table.with_suffix(".json"), json.dumps(facts, indent=1))
                console.print(f"{run}: finished")

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(group, groups))


def take_turns(
    runs: Sequence[Run], options: argparse.Namespace, folder: Path, console: Console
) -> Iterable[tuple[Run, list[dict[str, Any]]]]:
    """The runs in turn, a slice of training and an evaluation each, another one first in every round; yields each with
    its rows when it has had its seconds. All live at the same time, one works.
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
                rows[run].append(row(run, workers[run].step("train")))
                last = rows[run][-1]
                console.print(f"{run}: {last['cpu_s']:.0f} s, episode {last['episode']}, {last['accuracy']:.3f}")
                if last["cpu_s"] >= options.seconds:
                    if options.what == "race":  # the only use of the test split
                        rows[run].append(row(run, workers[run].step("test")))
                    workers.pop(run).__exit__()
                    yield run, rows[run]


def job(run: Run, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What a worker is told."""
    return {
        "entrant": run.method,
        "seed": run.seed,
        "lr": run.lr,
        "folder": str(folder),
        "slice": options.slice,
        "micro_batch": options.micro_batch,
        "overrides": options.set,
    }


def row(run: Run, answer: dict[str, Any]) -> dict[str, Any]:
    """A row of the table."""
    return {"method": run.method, "seed": run.seed, "lr": run.lr, **answer, "load_1min": os.getloadavg()[0]}


def rotated(runs: Sequence[Run], by: int) -> list[Run]:
    """The runs with another one first."""
    by %= len(runs)
    return [*runs[by:], *runs[:by]]


if __name__ == "__main__":
    sys.exit(main())
