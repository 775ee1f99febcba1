"""How every figure looks: themes, axes of time and share, lines and legends.

Colours are Okabe and Ito's (2008), which stay apart for colour-blind readers; lines also differ in dash, bars in
their labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import ScaledTranslation

from rethinker import diagnostics
from rethinker.evaluation.statistics import wilson
from rethinker.run_files import rollout_stamps


class NoData(ValueError):
    """The run has no data for a figure; the message says which and when it will be there."""


@dataclass(frozen=True)
class Drawing:
    """A figure and what it shows in words (numbers of cases and intervals included)."""

    figure: Figure
    caption: str


@dataclass(frozen=True)
class Theme:
    """Colours of a figure."""

    name: str
    paper: str
    ink: str
    muted: str
    grid: str
    blue: str
    orange: str
    green: str
    purple: str
    sky: str
    grey: str
    sky_line: str  # of these two for thin lines and small markers: 3 to 1 against the paper, as WCAG 2.2 wants (1.4.11)
    grey_line: str


LIGHT = Theme(
    "light",
    "#ffffff",
    "#1c1e21",
    "#63676e",
    "#e4e6ea",
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#b4578c",
    "#56b4e9",
    "#b8bdc5",
    "#2f93cf",
    "#868c95",
)
DARK = Theme(
    "dark",
    "#15171a",
    "#e8eaed",
    "#9aa0a8",
    "#2d3136",
    "#58b0e8",
    "#f08a4b",
    "#3cc39a",
    "#dd94bd",
    "#c4e6fa",
    "#5b616a",
    "#c4e6fa",
    "#7d848e",
)
THEMES = {theme.name: theme for theme in (LIGHT, DARK)}


def settings(theme: Theme) -> dict[str, Any]:
    """matplotlib's rcParams of a theme."""
    return {
        "figure.facecolor": theme.paper,
        "axes.facecolor": theme.paper,
        "savefig.facecolor": theme.paper,
        "text.color": theme.ink,
        "axes.labelcolor": theme.muted,
        "axes.edgecolor": theme.grid,
        "axes.titlecolor": theme.ink,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "grid.color": theme.grid,
        "hatch.color": theme.paper,
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],  # matplotlib's own: the same figure on every machine
        "font.size": 9.5,
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 22,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "lines.linewidth": 1.9,
        "lines.solid_capstyle": "round",
        "legend.frameon": True,
        "legend.framealpha": 0.85,
        "legend.facecolor": theme.paper,
        "legend.edgecolor": "none",
        "legend.fontsize": 8.5,
    }


DASHES: tuple[str | tuple[float, tuple[float, ...]], ...] = (
    "-",
    (0, (4, 1.5)),
    (0, (1, 1.3)),
    (0, (5, 1.5, 1, 1.5)),
    (0, (8, 2)),
    (0, (2, 2.5)),
)


def colors(theme: Theme) -> tuple[str, ...]:
    """Six colours of lines for things without an order; each has its dash in ``DASHES``."""
    return theme.blue, theme.orange, theme.purple, theme.green, theme.sky_line, theme.grey_line


def strength(theme: Theme) -> Colormap:
    """From paper to blue: shares in a map."""
    return LinearSegmentedColormap.from_list(f"strength-{theme.name}", [theme.paper, theme.blue])


def grid(count: int, columns: int = 3, height: float = 1.9) -> tuple[Figure, list[Axes]]:
    """A figure of ``count`` small panels in rows of ``columns``, one scale for all; height in inches a row."""
    rows = -(-count // columns)
    layout = ConstrainedLayoutEngine(wspace=0.05, hspace=0.04, w_pad=0.06, h_pad=0.06)
    figure = Figure(figsize=(10.4, height * rows + 0.5), layout=layout)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for spare in axes[count:]:
        spare.set_visible(False)
    return figure, list(axes[:count])


def panels(count: int, height: float = 3.3) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` panels side by side; height in inches."""
    layout = ConstrainedLayoutEngine(wspace=0.06, w_pad=0.08, h_pad=0.06)
    figure = Figure(figsize=(10.4 if count > 1 else 6.8, height), layout=layout)
    axes = figure.subplots(1, count, squeeze=False)[0]
    return figure, list(axes)


def episodes(run: Path) -> pd.DataFrame:
    """The episode records. Raises NoData if there are none yet."""
    rows = diagnostics.load_metrics(run).episodes
    if rows.empty:
        raise NoData("No episode has ended yet.")
    return rows


def need_rollouts(run: Path) -> None:
    """Raises NoData if no episode has written its responses yet."""
    if not rollout_stamps(run):
        raise NoData("There is no roll-out file (rollouts/episode-*.parquet) yet.")


def share_axis(axis: Axes, top: float | None = 1.0) -> None:
    """Percent on the vertical axis, from 0; a tick between two whole ones keeps its decimals."""
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))
    axis.set_ylim(0, top)


def time_axis(axis: Axes, run: Path) -> None:
    """Episodes, below them the optimiser steps made by then; a line and the stages' names where a stage begins."""
    metrics = diagnostics.load_metrics(run)
    known = pd.concat([metrics.episodes, metrics.validations]).sort_values(["episode", "step"])
    episodes, steps = known["episode"].to_numpy(float), known["step"].to_numpy(float)
    first, last = float(metrics.episodes["episode"].min()), float(episodes.max())
    axis.set_xlim(min(first, float(episodes.min())) - 0.4, last + 0.4)
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))

    def label(value: float, _: int) -> str:
        if not episodes.min() <= value <= last or value != int(value):
            return ""
        return f"{value:.0f}\n{np.interp(value, episodes, steps):.0f}"

    axis.xaxis.set_major_formatter(FuncFormatter(label))
    axis.set_xlabel("episode / optimiser step")
    stages = metrics.stages()
    low, high = axis.get_xlim()
    for number, stage in enumerate(stages.itertuples()):
        start = max(low, stage.first - 0.5) if number else low
        end = stage.last + 0.5 if number < len(stages) - 1 else high
        if number:
            axis.axvline(start, color=axis.xaxis.label.get_color(), linewidth=1, linestyle=(0, (2, 2)), zorder=1.5)
        axis.annotate(
            stage.stage,
            ((start + end) / 2, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
            color=axis.xaxis.label.get_color(),
        )


def _window(count: int) -> int:
    """Length of the running mean: lines of up to 40 points are drawn as they are."""
    return 1 if count <= 40 else max(3, count // 20)


def line(
    axis: Axes,
    table: pd.DataFrame,
    name: str,
    color: str,
    label: str,
    dash: str | tuple[float, tuple[float, ...]] = "-",
) -> None:
    """Column ``name`` over the episodes of ``table``; a long one as running mean with its values behind it.

    The mean does not look across the boundary of a stage. A single value is a dot.
    """
    y = pd.to_numeric(table[name]).astype(float)
    window = _window(len(y))
    if window > 1:
        axis.plot(table["episode"], y, color=color, alpha=0.3, linewidth=0.8)
        means = y.groupby(table["stage"]).transform(
            lambda part: part.rolling(window, center=True, min_periods=1).mean()
        )
        y = means.where(y.notna())
    lonely = y.notna().sum() == 1
    axis.plot(
        table["episode"], y, color=color, label=label, linestyle=dash, marker="o" if lonely else None, markersize=4
    )


def smoothing(count: int) -> str:
    """The sentence for the caption that says whether lines are running means."""
    window = _window(count)
    return (
        f" Thick lines are running means over {window} episodes of a stage, thin lines the values."
        if window > 1
        else ""
    )


def interval(low: float | None, high: float | None) -> str:
    """The words "(95% interval 36 to 69%)"; nothing where there is no interval."""
    if low is None or high is None or np.isnan(low) or np.isnan(high):
        return ""
    return f" (95% interval {100 * low:.0f} to {100 * high:.0f}%)"


def share_words(hits: float, count: float) -> str:
    """A share of independent cases with Wilson's interval, for a caption."""
    return f"{hits / count:.0%}{interval(*wilson(hits, count))}" if count > 0 else "none (no cases)"


def widths(sizes: pd.Series) -> str:
    """How wide Wilson's interval of a share of one half is for the largest and the smallest of ``sizes`` cases."""
    narrow, wide = (100 * (wilson(size / 2, size)[1] - 0.5) for size in (sizes.max(), sizes.min()))
    reach = f"± {narrow:.0f}" + ("" if sizes.max() == sizes.min() else f" to ± {wide:.0f}")
    return f"95% Wilson interval of a share of one half: {reach} points"


def level_name(by: str, key: object) -> str:
    """How a kind or a level is called in a legend."""
    return f"level {key}" if by == "level" else str(key) or "(none)"


def largest(table: pd.DataFrame, by: str, size: str, most: int) -> tuple[list[Any], str]:
    """The ``most`` largest keys of ``table[by]`` by the sum of column ``size``, sorted, and words if some were left."""
    sizes = table.groupby(by)[size].sum().sort_values(ascending=False, kind="stable")
    keys = sorted(sizes.index[:most])
    return keys, f" (the {len(keys)} largest of {len(sizes)})" if len(keys) < len(sizes) else ""


def queries_words(run: Path) -> str:
    """How many queries an episode has, for a caption."""
    try:
        table = diagnostics.vanishing(run)
    except FileNotFoundError:
        return "number of queries unknown: no roll-out files"
    low, high = int(table["queries"].min()), int(table["queries"].max())
    return f"n = {low if low == high else f'{low} to {high}'} queries an episode"


def legend(axis: Axes, columns: int = 1, **where: Any) -> None:
    """A legend on the paper's colour, without a border; ``where``: matplotlib's keywords."""
    axis.legend(ncols=columns, handlelength=1.6, columnspacing=1.2, **where)


def legend_below(axis: Axes, columns: int, lines: int = 3) -> None:
    """A legend below the panel, where it covers no data; ``lines`` of text (tick labels, axis label) stand between."""
    down = ScaledTranslation(0, -(0.1 + 0.175 * lines), axis.figure.dpi_scale_trans)
    where = {"bbox_to_anchor": (0.5, 0), "bbox_transform": axis.transAxes + down, "borderaxespad": 0}
    legend(axis, columns, loc="upper center", **where)
