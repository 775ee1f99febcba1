"""A run over its episodes: the axis, lines on it, and the sentence that says how they are smoothed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from rethinker.lab.analysis import diagnostics
from rethinker.lab.figures.style import NoData
from rethinker.rundir.reader import rollout_stamps


def episodes(run: Path) -> pd.DataFrame:
    """The episode records. Raises NoData if there are none yet."""
    rows = diagnostics.load_metrics(run).episodes
    if rows.empty:
        raise NoData("No episode has ended yet.")
    return rows


def need_rollouts(run: Path) -> None:
    """Raises NoData if no episode has written its responses yet."""
    if not rollout_stamps(run):
        raise NoData("There is no rollout file (rollouts/episode-*.parquet) yet.")


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

    The mean does not look across the boundary of a stage. A value without a neighbour is a dot.
    """
    y = pd.to_numeric(table[name]).astype(float)
    window = _window(len(y))
    if window > 1:
        axis.plot(table["episode"], y, color=color, alpha=0.3, linewidth=0.8)
        means = y.groupby(table["stage"]).transform(
            lambda part: part.rolling(window, center=True, min_periods=1).mean()
        )
        y = means.where(y.notna())
    alone = np.flatnonzero(y.notna() & y.shift().isna() & y.shift(-1).isna()).tolist()
    marker = "o" if alone else None
    axis.plot(
        table["episode"], y, color=color, label=label, linestyle=dash, marker=marker, markevery=alone, markersize=4
    )


def smoothing(count: int) -> str:
    """The sentence for the caption that says whether lines are running means."""
    window = _window(count)
    return (
        f" Thick lines are running means over {window} episodes of a stage, thin lines the values."
        if window > 1
        else ""
    )
