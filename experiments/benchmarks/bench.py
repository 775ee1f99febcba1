"""`make bench`: our training step against TRL's GRPOTrainer, and how our step grows. See README.md beside this file.

Options go through make: make bench ARGS="--only trl --steps 9"
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from channel import ENVIRONMENT, Worker, WorkerFailed
from curves import (
    CURVES,
    QUICK_CURVES,
    QUICK_TRAINING_HALVES,
    TRAINING_HALVES,
    draw,
    points_of,
    save_picture,
    summarise_curve,
)
from facts import facts_of_run
from rich.console import Console
from summary import compare, summarise
from table import growth_table, trl_table
from transformers.utils.logging import disable_progress_bar
from world import LEARNING_RATE, SEED, Point, build_model, write_queries

from rethinker.rundir.atomic import atomic_write_text

SCENARIOS = (Point(pixels=112, queries=8, group=8, tokens=64), Point(pixels=448, queries=4, group=8, tokens=64))
QUICK_SCENARIOS = (Point(pixels=56, queries=2, group=8, tokens=4),)
WARM_UP = 1  # steps of each side and point that are not counted
RESULTS = Path(__file__).parent / "results"

FILES = {"float32": "trl.json", "bfloat16": "trl-bfloat16.json"}

Steps = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Side:
    """Who makes the steps: the worker's script, and our forward's name where it is ours."""

    name: str
    script: str
    forward: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    options = parse(arguments)
    console = Console(highlight=False)
    started = time.perf_counter()
    disable_progress_bar()
    try:
        with tempfile.TemporaryDirectory(prefix="rethinker-bench-") as folder:
            build_model(Path(folder) / "model")
            if options.only != "growth":
                for dtype in options.dtypes:
                    against_trl(dtype, options, Path(folder), console)
            if options.only != "trl":
                grow(options, Path(folder), console)
    except WorkerFailed as error:
        console.print(str(error), style="red", markup=False, soft_wrap=True)
        return 1
    console.print(f"{time.perf_counter() - started:.0f} s; results in {options.out}")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=("trl", "growth"), help="one of the two halves")
    parser.add_argument("--steps", type=int, default=5, help="measured steps a side (default 5)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run? The numbers mean nothing")
    parser.add_argument(
        "--ours",
        nargs="+",
        choices=("shared", "plain"),
        default=["shared"],
        help="our sides by their forward; the first is the one that the ratios are taken to",
    )
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=tuple(FILES),
        default=list(FILES),
        help="of the arithmetic of both sides, on float32 weights, against TRL (default: both)",
    )
    parser.add_argument("--peer-micro-batch", type=int, help="samples of a forward pass of TRL's; default: the batch")
    options = parser.parse_args(arguments)
    if options.quick and options.out == RESULTS:
        parser.error("--quick needs --out FOLDER: its numbers must not stand for real ones")
    if options.only != "growth" and options.out == RESULTS and not importlib.util.find_spec("trl"):
        parser.error("TRL is not installed (make setup-dev); --out FOLDER measures our side alone")
    if options.steps < 1:
        parser.error(f"--steps {options.steps}: must be at least 1")
    for point in QUICK_SCENARIOS if options.quick else SCENARIOS:
        if options.peer_micro_batch and point.samples % options.peer_micro_batch:
            parser.error(f"--peer-micro-batch {options.peer_micro_batch} does not divide {point.samples} samples")
    return options


def against_trl(dtype: str, options: argparse.Namespace, folder: Path, console: Console) -> None:
    """Both sides, step by step in turn; writes the file of this type."""
    sides = sides_of(options.ours, console)
    scenarios = []
    for point in QUICK_SCENARIOS if options.quick else SCENARIOS:
        steps, ready = in_turn(sides, point, dtype, options, folder, console)
        ours = steps[sides[0].name][WARM_UP:]
        counted = {name: of_side[WARM_UP:] for name, of_side in steps.items()}
        summaries = {name: summarise(counted[name], point, steps[name][0]["flops"]) for name in counted}
        ratios = {name: compare(of_side, ours, point) for name, of_side in counted.items() if name != sides[0].name}
        console.print(trl_table(point, summaries, ratios, dtype))
        scenarios.append(
            {
                "point": asdict(point),
                "prompt_tokens": [int(prompt.split(":")[0]) for prompt in ours[0]["prompts"]],
                "workers": ready,
                "summary": summaries,
                "ratios_to_ours": ratios,
                "steps": steps,
            }
        )
    write(options, FILES[dtype], dtype, {"sides": [asdict(side) for side in sides], "scenarios": scenarios})


def sides_of(forwards: Sequence[str], console: Console) -> list[Side]:
    """Our sides, the first of them "ours", and TRL where it is installed."""
    sides = [Side("ours" if forward == forwards[0] else forward, "ours.py", forward) for forward in forwards]
    if importlib.util.find_spec("trl"):
        sides.append(Side("TRL", "peer.py"))
    else:
        console.print("TRL is not installed (make setup-dev): our side is measured alone.")
    return sides


def in_turn(
    sides: Sequence[Side], point: Point, dtype: str, options: argparse.Namespace, folder: Path, console: Console
) -> tuple[Steps, dict[str, Any]]:
    """The steps of every side, warm-up first, and what the workers say of themselves.

    Raises RuntimeError where a step's prompts are not the same tokens on all sides.
    """
    total = WARM_UP + options.steps
    # One step more than is made: TRL fetches a batch ahead.
    files = {point.name: write_queries(folder / point.name, point, (total + 1) * point.queries)}
    steps: Steps = defaultdict(list)
    with ExitStack() as stack:
        workers = {
            side.name: stack.enter_context(
                Worker(
                    side.script,
                    job(side, [point], files, options, folder, dtype),
                    folder / f"{point.name}-{dtype}-{side.name}.log",
                )
            )
            for side in sides
        }
        ready = {name: worker.start() for name, worker in workers.items()}
        for number in range(total):
            for name, worker in workers.items():
                steps[name].append(worker.step(point.name, count=number == 0))
            check_prompts(
                {name: of_side[-1]["prompts"] for name, of_side in steps.items()}, f"{point.name}, step {number}"
            )
            seconds = "  ".join(f"{name} {of_side[-1]['wall']:.2f} s" for name, of_side in steps.items())
            console.print(f"{point.name}  {dtype}  {'warm-up' if number < WARM_UP else f'step {number}'}  {seconds}")
    return dict(steps), ready


def check_prompts(prompts: Mapping[str, list[str]], where: str) -> None:
    """Raises RuntimeError unless all sides read the same prompts in the same order."""
    (first, expected), *others = prompts.items()
    for name, found in others:
        if found != expected:
            raise RuntimeError(f"{where}: {first} and {name} read different prompts (length:hash) {expected} {found}")


def job(
    side: Side,
    points: Sequence[Point],
    files: Mapping[str, Path],
    options: argparse.Namespace,
    folder: Path,
    dtype: str = "float32",
) -> dict[str, Any]:
    """What a worker is told."""
    return {
        "model": str(folder / "model"),
        "folder": str(folder / f"{points[0].name}-{len(points)}-{dtype}-{side.name}"),
        "dtype": dtype,
        "points": [asdict(point) for point in points],
        "queries": {name: str(file) for name, file in files.items()},
        "forward": side.forward,
        "steps": WARM_UP + options.steps + 1,
        "micro_batch": options.peer_micro_batch,
    }


def grow(options: argparse.Namespace, folder: Path, console: Console) -> None:
    """Our step at every point, the points in turn; writes growth.json and the picture."""
    curves, halves = (QUICK_CURVES, QUICK_TRAINING_HALVES) if options.quick else (CURVES, TRAINING_HALVES)
    points = points_of([*curves, *halves])
    side = Side("growth", "ours.py", options.ours[0])
    total = WARM_UP + options.steps
    files = {
        point.name: write_queries(folder / "growth" / point.name, point, total * point.queries) for point in points
    }
    steps: Steps = defaultdict(list)
    with Worker(side.script, job(side, points, files, options, folder), folder / "growth.log") as worker:
        ready = worker.start()
        for number in range(total):
            begun = time.perf_counter()
            for point in points:
                steps[point.name].append(worker.step(point.name))
            kind = "warm-up" if number < WARM_UP else f"round {number}"
            console.print(f"growth  {kind}  {len(points)} points  {time.perf_counter() - begun:.1f} s")
    counted = {name: of_point[WARM_UP:] for name, of_point in steps.items()}
    summaries = [summarise_curve(line, counted) for line in curves]
    half_summaries = [summarise_curve(line, counted) for line in halves]
    console.print(growth_table([*summaries, *half_summaries]))
    write(
        options,
        "growth.json",
        "float32",
        {
            "forward": side.forward,
            "worker": ready,
            "curves": summaries,
            "training_halves": half_summaries,
            "steps": steps,
        },
    )
    save_picture(draw(curves, summaries), options.out)


def write(options: argparse.Namespace, name: str, dtype: str, results: Mapping[str, Any]) -> None:
    """The results with where and how they were measured."""
    facts = facts_of_run() | {
        "settings": {
            "quick": options.quick,
            "measured_steps": options.steps,
            "warm_up_steps": WARM_UP,
            "threads": int(ENVIRONMENT["OMP_NUM_THREADS"]),
            "dtype": dtype,
            "seed": SEED,
            "learning_rate": LEARNING_RATE,
            "peer_micro_batch": options.peer_micro_batch,
        },
    }
    atomic_write_text(options.out / name, json.dumps({**facts, **results}, indent=1))


if __name__ == "__main__":
    sys.exit(main())
