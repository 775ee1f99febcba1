"""Figures of a grid of runs, from its table: validation over episodes (Fig. 5), results and differences (Table 3).

Intervals are 95%: Student's t over seeds, or the run's own over queries where a label has one seed. The captions say
which, with the numbers of queries, responses and seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from rethinker.lab.ablation.origin import mixture
from rethinker.lab.ablation.table import NOT_MEASURED, NOT_VALIDATED, TEST, VALIDATION, compare, curves, final
from rethinker.lab.figures.output import finish, save_drawings
from rethinker.lab.figures.style import (
    DASHES,
    LIGHT,
    Drawing,
    NoData,
    Theme,
    colors,
    legend_below,
    panels,
    settings,
    share_axis,
)

MARKERS = ("o", "D", "s", "^", "v", "P")


def draw(table: pd.DataFrame, name: str, theme: Theme = LIGHT, baseline: str | None = None) -> Drawing:
    """Figure ``name`` of ``FIGURES`` from the table of ``ablation.run.collect``; ``baseline``: see ``compare``.

    Raises NoData if the runs have not come so far, ValueError for an unknown figure or baseline.
    """
    if name not in FIGURES:
        raise ValueError(f"no figure {name!r}; there are {', '.join(FIGURES)}")
    with matplotlib.rc_context(settings(theme)):
        drawing = FIGURES[name](table, theme, baseline)
    return finish(drawing, " ".join(filter(None, (_unfinished(table), mixture(table)))))


def save_figures(table: pd.DataFrame, folder: str | Path, baseline: str | None = None) -> list[Path]:
    """Write ``<name>-<theme>.svg`` and ``.png`` for every figure that the table has data for; returns the paths."""
    return save_drawings(FIGURES, lambda name, theme: draw(table, name, theme, baseline), folder)


def _unfinished(table: pd.DataFrame) -> str:
    states = table.groupby("run")["state"].first()
    left = int((states != "finished").sum())
    return f"{left} of {len(states)} runs are not finished." if left else f"All {len(states)} runs are finished."


def _style(table: pd.DataFrame, theme: Theme) -> dict[str, dict[str, Any]]:
    """Colour, dash and marker of every label: the same ones in all figures of a grid."""
    shades = colors(theme)
    return {
        label: {
            "color": shades[number % len(shades)],
            "linestyle": DASHES[(number + number // len(shades)) % len(DASHES)],
            "marker": MARKERS[number % len(MARKERS)],
        }
        for number, label in enumerate(dict.fromkeys(table["label"]))
    }


def fig5(table: pd.DataFrame, theme: Theme, baseline: str | None) -> Drawing:
    """Fig. 5: greedy validation accuracy over episodes, a thin line per run, a thick one per label.

    The paper has optimiser steps; here runs may skip some, and a mean over seeds needs a time that all of them share.
    """
    rows = table[table["measure"] == VALIDATION]
    if rows.empty:
        raise NoData(NOT_VALIDATED if (table["state"] == "finished").any() else "No run has been validated yet.")
    means, styles = curves(table), _style(table, theme)
    figure, (axis,) = panels(1, 3.8)
    for label, part in means.groupby("label", sort=False):
        style = styles[label]
        if part["low"].notna().any():
            axis.fill_between(part["episode"], part["low"], part["high"], color=style["color"], alpha=0.13, linewidth=0)
        if part["seeds"].max() > 1:
            for _, run in rows[rows["label"] == label].groupby("run", sort=False):
                axis.plot(run["episode"], run["value"], color=style["color"], alpha=0.45, linewidth=0.8)
        axis.plot(part["episode"], part["value"], label=label, linewidth=2.2, markersize=4, **style)
    axis.set_title("Validation accuracy by method", pad=8)
    axis.set_xlabel("episode")
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    share_axis(axis, min(1.0, 1.05 * float(max(rows["value"].max(), means["high"].fillna(0).max(), 0.2))))
    legend_below(axis, min(4, means["label"].nunique()), lines=2)
    several = (means["seeds"] > 1).any()
    band = (
        "Thin: single runs; thick: mean over the seeds, as far as all runs of a label have come; band: its 95% t "
        "interval. "
        if several
        else ""
    )
    return Drawing(
        figure,
        f"Accuracy during training (the paper's Fig. 5, which has optimiser steps where this has episodes): greedy, "
        f"n = {_numbers(rows['queries'])} validation queries per point. {band}Seeds: {_seeds(rows)}.",
    )


def table3(table: pd.DataFrame, theme: Theme, baseline: str | None) -> Drawing:
    """Table 3: the final accuracy of every label, and its paired difference from the baseline."""
    finished = table[table["state"] == "finished"]
    measure = TEST if (finished["measure"] == TEST).any() else VALIDATION
    comparison = compare(table, baseline)
    comparison = comparison[comparison["measure"] == measure].reset_index(drop=True)
    if comparison.empty:
        raise NoData("No run of the grid is finished yet." if finished.empty else NOT_MEASURED)
    paired = baseline is not None and comparison["difference"].notna().any()
    figure, axes = panels(2 if paired else 1, 1.3 + 0.55 * len(comparison))
    styles = _style(table, theme)
    runs = final(finished)
    runs = runs[runs["measure"] == measure]
    for at, row in enumerate(comparison.to_dict("records")):
        style = styles[row["label"]]
        _dot(axes[0], at, row, "value", style)
        points = runs[runs["label"] == row["label"]]["value"]
        if len(points) > 1:
            height = np.full(len(points), at + 0.24)
            axes[0].plot(points, height, ls="", marker="|", ms=8, color=style["color"], alpha=0.8)
        if paired:
            _dot(axes[1], at, row, "difference", style, "+")
    _rows(axes[0], list(comparison["label"]), "Held-out accuracy" if measure == TEST else "Validation accuracy")
    axes[0].xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes[0].set_xlim(0, 1)
    words = ""
    if paired:
        _rows(axes[1], [""] * len(comparison), f"Difference from {baseline}, in points")
        axes[1].axvline(0, color=theme.muted, linewidth=1)
        axes[1].xaxis.set_major_formatter(lambda value, _: f"{100 * value:+.3g}" if value else "0")
        words = (
            f" Right: difference from {baseline} of runs with the same seed, "
            f"{_numbers(comparison.loc[comparison['difference'].notna(), 'pairs'])} pairs per label"
            f"{', with its t interval over the pairs' if comparison['difference_low'].notna().any() else ''}."
        )
    kind = "one sampled response (pass@1) to" if measure == TEST else "the greedy response to"
    return Drawing(
        figure,
        f"Results at the end of training (the paper's Table 3): accuracy of {kind} "
        f"{_numbers(comparison['queries'])} queries, n = {_numbers(comparison['n'])} responses per label. Lines: 95% "
        f"interval, {_intervals(comparison)}.{words} Seeds: {_seeds(runs)}.",
    )


def _dot(axis: Axes, at: int, row: dict[str, Any], name: str, style: dict[str, Any], sign: str = "") -> None:
    """The mean, its interval (if there is one) and the number in percent."""
    prefix = "difference_" if name == "difference" else ""
    value, low, high = row[name], row[f"{prefix}low"], row[f"{prefix}high"]
    color, marker = style["color"], style["marker"]
    if pd.isna(value):
        return
    if pd.notna(low):
        axis.plot([low, high], [at, at], color=color, linewidth=1.6)
    axis.plot([value], [at], color=color, marker=marker, markersize=7)
    text = f"{100 * value:{sign}.1f}"
    axis.annotate(text, (value, at), (0, 8), textcoords="offset points", ha="center", fontsize=8.5)


def _rows(axis: Axes, labels: list[str], title: str) -> None:
    """A row a label, the first one on top."""
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    axis.grid(True, axis="x")
    axis.grid(False, axis="y")
    axis.set_title(title, pad=8)


def _numbers(values: pd.Series) -> str:
    low, high = int(values.min()), int(values.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _intervals(comparison: pd.DataFrame) -> str:
    """What the lines are; t over seeds and, for labels with one seed, over queries."""
    kinds = set(comparison["interval"].dropna())
    words = {
        "t over seeds": "Student's t over seeds (ticks: single runs)",
        "over queries": "of the one run over queries",
    }
    return " or ".join(text for kind, text in words.items() if kind in kinds) or "none"


def _seeds(rows: pd.DataFrame) -> str:
    """The seeds, once if all labels have the same."""
    seeds = {label: ", ".join(map(str, sorted(set(part["seed"])))) for label, part in rows.groupby("label", sort=False)}
    if len(set(seeds.values())) == 1:
        return next(iter(seeds.values()))
    return "; ".join(f"{label} {text}" for label, text in seeds.items())


FIGURES: dict[str, Callable[[pd.DataFrame, Theme, str | None], Drawing]] = {"fig5": fig5, "table3": table3}
