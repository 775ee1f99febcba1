"""The tables on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from world import Point

# figure and its row's name
ROWS = (
    ("step_s", "step, s"),
    ("cpu_s", "step, CPU s"),
    ("generation_s", "  generation, s"),
    ("logprobs_s", "  log-probs, s"),
    ("forward_s", "  forward, s"),
    ("backward_s", "  backward, s"),
    ("optimiser_s", "  optimiser, s"),
    ("orchestration_s", "  rest, s"),
    ("orchestration_percent", "  rest, %"),
    ("large_gflops", "products, GFLOP/s"),
    ("training_gflops", "  layers, training"),
    ("large_decoding_gflops", "products, decoding"),
    ("decoding_gflops", "  layers, decoding"),
    ("generation_percent", "generation, % of it"),
    ("logprobs_percent", "log-probs, %"),
    ("forward_percent", "forward, %"),
    ("backward_percent", "backward, %"),
    ("generation_gflop", "generation, GFLOP"),
    ("logprobs_gflop", "log-probs, GFLOP"),
    ("forward_gflop", "forward, GFLOP"),
    ("backward_gflop", "backward, GFLOP"),
    ("peak_mb", "peak above model, MB"),
    ("images_encoded", "images encoded"),
    ("vision_calls", "vision calls"),
    ("images_preprocessed", "images prepared"),
    ("samples_per_s", "samples/s"),
    ("tokens_per_s", "generated tokens/s"),
)


def trl_table(
    point: Point,
    summaries: Mapping[str, Mapping[str, Mapping[str, float]]],
    ratios: Mapping[str, Mapping[str, Mapping[str, float] | None]],
    dtype: str = "float32",
) -> Table:
    """Median (smallest to largest) a side, and how many times ours the others are."""
    size = f"{point.queries} queries x {point.group} responses x {point.tokens} tokens"
    table = Table(
        title=f"{point.pixels} px, {size}, {dtype}", title_justify="left", title_style="bold", box=SIMPLE_HEAD
    )
    table.add_column("a step", no_wrap=True)
    for name in summaries:
        table.add_column(name, justify="right")
    for name in ratios:
        table.add_column(f"{name} / ours", justify="right")
    for figure, label in ROWS:
        cells = [_spread(summary[figure]) for summary in summaries.values()]
        table.add_row(label, *cells, *(_ratio(ratio.get(figure)) for ratio in ratios.values()))
    return table


def growth_table(curves: Sequence[Mapping[str, Any]]) -> Table:
    """Medians at every point, and how many times the point before it."""
    title = "growth of our step: median seconds, and times the point before"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for column in ("", "pixels-queries x\nresponses x tokens"):
        table.add_column(column)
    for column in ("step\ns", "gener.\ns", "train\ns", "size\n×", "step\n×", "train\n×"):
        table.add_column(column, justify="right")
    for line in curves:
        for index, point in enumerate(line["points"]):
            seconds = [f"{line[name][index]['median']:.3f}" for name in ("step_s", "generation_s", "training_s")]
            factors = ["", "", ""]
            if index:
                step, training = (line["growth"][name][index - 1] for name in ("step_s", "training_s"))
                factors = [f"{step['size']:.2f}", f"{step['time']:.2f}", f"{training['time']:.2f}"]
            table.add_row("" if index else line["axis"], point, *seconds, *factors)
        table.add_section()
    return table


def _spread(spread: Mapping[str, float]) -> str:
    median, low, high = (_number(spread[name]) for name in ("median", "min", "max"))
    return median if low == high else f"{median} ({low}–{high})"


def _ratio(ratio: Mapping[str, float] | None) -> str:
    if ratio is None:
        return "–"
    return _spread({"median": ratio["of_medians"], "min": ratio["paired_min"], "max": ratio["paired_max"]})


def _number(value: float) -> str:
    if value == int(value):
        return f"{value:.0f}"
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"
