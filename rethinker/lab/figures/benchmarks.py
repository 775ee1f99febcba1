"""Evaluations on benchmarks beside the paper's rows, from the table of ``lab.compare``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from rethinker.lab.figures.output import finish, save_drawings
from rethinker.lab.figures.style import LIGHT, Drawing, NoData, Theme, settings

NAME = "comparison"
COLUMNS = 4  # panels beside each other
MARKERS = {"plain": "o", "forced": "s", "bound": "^"}


def draw(table: pd.DataFrame, titles: Sequence[str], theme: Theme = LIGHT) -> Drawing:
    """A panel for each of ``titles``, a line for each ``row`` of the table, in its order, intervals where it has any.

    Raises NoData for an empty table.
    """
    table = table[table["title"].isin(titles)]
    if table.empty:
        raise NoData("There is neither an evaluation nor a row of the paper.")
    with matplotlib.rc_context(settings(theme)):
        drawing = _draw(table, titles, theme)
    ours = table[table["kind"] == "ours"]
    return finish(drawing, "" if ours.empty else f"Evaluations: {', '.join(dict.fromkeys(ours['source']))}.")


def save_figures(table: pd.DataFrame, titles: Sequence[str], folder: str | Path) -> list[Path]:
    """Write ``comparison-<theme>.svg`` and ``.png``; returns the paths."""
    return save_drawings([NAME], lambda _, theme: draw(table, titles, theme), folder)


def _draw(table: pd.DataFrame, titles: Sequence[str], theme: Theme) -> Drawing:
    rows = list(dict.fromkeys(table["row"]))
    across = min(COLUMNS, len(titles))
    down = -(-len(titles) // across)
    layout = ConstrainedLayoutEngine(wspace=0.03, hspace=0.05, w_pad=0.06, h_pad=0.06)
    height = down * (0.24 * len(rows) + 0.75) + 0.4
    figure = Figure(figsize=(10.4 if across > 1 else 6.8, height), layout=layout)
    axes = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
    for spare in axes[len(titles) :]:
        spare.set_visible(False)
    for axis, title in zip(axes, titles, strict=False):
        _panel(axis, table[table["title"] == title], rows, theme)
        axis.set_title(title, pad=8)
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    figure.legend(
        handles=_legend(table, theme),
        loc="outside lower left",
        ncols=2 if across == 1 else 5,
        handletextpad=0.4,
        frameon=False,
    )
    words = "Scores on benchmarks in percent."
    ours = table[table["kind"] == "ours"]
    if ours["low"].notna().any():
        words += " Lines: 95% intervals over the problems of a benchmark."
    if (table["kind"] == "paper").any():
        words += " The paper's rows have none: it gives none."
    if (ours["mark"] != "").any():
        words += " Not everything is a whole benchmark: see the table."
    return Drawing(figure, words)


def _panel(axis: Axes, part: pd.DataFrame, rows: list[str], theme: Theme) -> None:
    for each in part.to_dict("records"):
        y, value = rows.index(each["row"]), each["value"]
        if value is None or pd.isna(value):
            continue
        if each["kind"] == "ours" and pd.notna(each["low"]):
            axis.plot([each["low"], each["high"]], [y, y], color=theme.blue, linewidth=1.4)
        axis.plot(value, y, linestyle="none", markersize=5.5, **_style(each["kind"], each["mode"], each["row"], theme))
    axis.set_yticks(range(len(rows)), rows)
    axis.tick_params(axis="y", labelcolor=theme.ink, labelsize=8.5)
    axis.grid(True, axis="x")
    axis.grid(True, axis="y", linewidth=0.5)
    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))
    axis.margins(x=0.12)


def _style(kind: str, mode: str, row: str, theme: Theme) -> dict[str, Any]:
    if kind == "ours":
        return {"marker": MARKERS.get(mode, "o"), "color": theme.blue}
    ink = theme.orange if row.startswith("VL-Rethinker") else theme.grey_line
    return {"marker": MARKERS.get(mode, "o"), "markerfacecolor": theme.paper, "markeredgecolor": ink}


def _legend(table: pd.DataFrame, theme: Theme) -> list[Line2D]:
    kinds = {
        "evaluated here": table["kind"] == "ours",
        "VL-Rethinker in the paper": (table["kind"] == "paper") & table["row"].str.startswith("VL-Rethinker"),
        "other rows of the paper": (table["kind"] == "paper") & ~table["row"].str.startswith("VL-Rethinker"),
    }
    handles = []
    for label, chosen in kinds.items():
        for mode in dict.fromkeys(table[chosen]["mode"]):
            row = table[chosen & (table["mode"] == mode)].iloc[0]
            name = label if mode == "plain" else f"{label}, {mode}"
            style = _style(row["kind"], mode, row["row"], theme)
            handles.append(Line2D([], [], linestyle="none", markersize=5.5, label=name, **style))
    return handles
