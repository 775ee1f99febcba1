"""How our step grows: which points are measured, and the picture of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from summary import growth, spread
from world import Point

from rethinker.lab.figures.catalogue import Drawing, render
from rethinker.lab.figures.style import LIGHT, legend, panels, settings
from rethinker.rundir.atomic import atomic_write_bytes

TIMES = ("step_s", "generation_s", "training_s")


@dataclass(frozen=True)
class Curve:
    """Points that differ in one thing. ``sizes`` are what the time could at most be proportional to."""

    axis: str
    label: str
    points: tuple[Point, ...]

    @property
    def values(self) -> list[int]:
        """The thing that differs, as it is named on the axis."""
        return [getattr(point, self.axis) for point in self.points]

    @property
    def sizes(self) -> list[int]:
        """As ``values``; for images their area, which is what their tokens are proportional to."""
        return [value**2 if self.axis == "pixels" else value for value in self.values]


def curve(axis: str, label: str, values: Sequence[int], base: Point) -> Curve:
    """``base`` with each of ``values`` for ``axis``."""
    return Curve(axis, label, tuple(replace(base, **{axis: value}) for value in values))


BASE = Point(pixels=112, queries=8, group=8, tokens=64)
CURVES = (
    curve("pixels", "image side (pixels)", (112, 224, 448), BASE),
    curve("group", "responses a query", (2, 4, 8, 16, 32), BASE),
    curve("tokens", "tokens a response", (64, 128, 256, 512), replace(BASE, queries=4)),  # 8 would take too long
    curve("queries", "queries a step", (4, 8, 16, 32), BASE),
)
# How the training half grows with G is a matter of how long responses are beside their prompt of 270 tokens.
TRAINING_HALVES = tuple(
    curve("group", "responses a query", (8, 16), Point(pixels=448, queries=4, tokens=tokens)) for tokens in (16, 32, 64)
)

TINY = Point(pixels=56, queries=2, group=8, tokens=4)
QUICK_CURVES = (
    curve("pixels", "image side (pixels)", (56, 112), TINY),
    curve("group", "responses a query", (8, 16), TINY),
    curve("tokens", "tokens a response", (4, 8), TINY),
    curve("queries", "queries a step", (2, 4), TINY),
)
QUICK_TRAINING_HALVES = (curve("group", "responses a query", (8, 16), replace(TINY, pixels=112)),)


def points_of(curves: Sequence[Curve]) -> list[Point]:
    """Every point once."""
    return list(dict.fromkeys(point for line in curves for point in line.points))


def times(step: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of a step, of its generation, and of its training half (log-probs and update, by the trainer's clock)."""
    return {"step_s": step["wall"], "generation_s": step["parts"]["generation"], "training_s": step["training"]}


def summarise_curve(line: Curve, steps: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Spreads at every point of ``line``, and growth of the medians from point to point, for each of ``TIMES``."""
    rows = [[times(step) for step in steps[point.name]] for point in line.points]
    spreads = {name: [spread([row[name] for row in point]) for point in rows] for name in TIMES}
    return {
        "axis": line.axis,
        "values": line.values,
        "points": [point.name for point in line.points],
        **spreads,
        "growth": {name: growth(line.sizes, [s["median"] for s in spreads[name]]) for name in TIMES},
    }


def draw(curves: Sequence[Curve], summaries: Sequence[Mapping[str, Any]]) -> Drawing:
    """A panel a curve, both axes logarithmic, with the line of exact proportionality."""
    with matplotlib.rc_context({**settings(LIGHT), "axes.titlepad": 8}):
        figure, axes = panels(len(curves), height=3.0)
        for axis, line, summary in zip(axes, curves, summaries, strict=True):
            _panel(axis, line, summary)
        axes[0].set_ylabel("seconds")
        legend(axes[0], loc="upper left")
    steps = "median and range of the steps of one run"
    return Drawing(figure, f"Seconds of a step and of its halves, {steps}, one thread; dashed: proportional.")


def _panel(axis: Axes, line: Curve, summary: Mapping[str, Any]) -> None:
    looks = ((LIGHT.blue, "o", "step"), (LIGHT.orange, "s", "generation"), (LIGHT.green, "^", "training"))
    for name, (color, marker, label) in zip(TIMES, looks, strict=True):
        middle = [point["median"] for point in summary[name]]
        low = [point["median"] - point["min"] for point in summary[name]]
        high = [point["max"] - point["median"] for point in summary[name]]
        axis.errorbar(
            line.values, middle, yerr=[low, high], color=color, marker=marker, markersize=4, label=label, capsize=2
        )
    start = summary["step_s"][0]["median"]
    axis.plot(
        line.values,
        [start * size / line.sizes[0] for size in line.sizes],
        color=LIGHT.muted,
        linestyle=(0, (4, 3)),
        linewidth=1.1,
        label="proportional",
    )
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.xaxis.set_major_locator(FixedLocator(line.values))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_title(line.label)


def save_picture(drawing: Drawing, folder: Path) -> None:
    """``growth.svg`` and ``growth.png``."""
    for kind in ("svg", "png"):
        atomic_write_bytes(folder / f"growth.{kind}", render(drawing, kind))
