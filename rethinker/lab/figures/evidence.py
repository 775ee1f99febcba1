"""Figures of the evidence, from tables of means with intervals (``lab.evidence.series`` and ``effects`` make them)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator

from rethinker.lab.figures import reflection, training
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

MODES = {"plain": "o", "forced": "^", "bound": "s"}
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
NEAR = 0.1  # of 0: what lies within is enlarged where other effects are several times as large


def themed(draw: Callable[..., Drawing]) -> Callable[..., Drawing]:
    """A figure of its theme, ``LIGHT`` unless said; the theme is the last argument."""

    def drawn(*arguments: Any, theme: Theme = LIGHT, **options: Any) -> Drawing:
        with matplotlib.rc_context(settings(theme)):
            return draw(*arguments, theme=theme, **options)

    drawn.__doc__ = draw.__doc__
    return drawn


def styles(variants: Sequence[str], theme: Theme) -> dict[str, dict[str, Any]]:
    """Colour and dash of every variant."""
    shades = colors(theme)
    return {
        name: {"color": shades[at % len(shades)], "linestyle": DASHES[(at + at // len(shades)) % len(DASHES)]}
        for at, name in enumerate(variants)
    }


@themed
def over_tokens(parts: Mapping[str, pd.DataFrame], caption: str, *, theme: Theme, from_zero: bool = True) -> Drawing:
    """Panels of lines over generated tokens, title -> table of ``series.LINE``; bands are 95% over seeds."""
    if not any(len(table) for table in parts.values()):
        raise NoData("No run of this figure is finished yet.")
    variants = list(dict.fromkeys(name for table in parts.values() for name in table["variant"]))
    look = styles(variants, theme)
    figure, axes = panels(len(parts), 3.6)
    for axis, (title, table) in zip(axes, parts.items(), strict=True):
        for name, line in table.groupby("variant", sort=False):
            if line["low"].notna().any():
                shade = look[name]["color"]
                axis.fill_between(line["tokens"], line["low"], line["high"], color=shade, alpha=0.13, linewidth=0)
            axis.plot(line["tokens"], line["value"], label=name, **look[name])
        axis.set_title(title, pad=8)
        _token_axis(axis)
        share_axis(axis, min(1.02, 1.1 * float(table["high"].fillna(table["value"]).max())) if len(table) else 1.0)
        if len(table) and not from_zero:
            axis.set_ylim(bottom=max(0.0, 0.9 * float(table["low"].fillna(table["value"]).min())))
    fullest = max(axes, key=lambda axis: len(axis.get_lines()))
    legend_below(fullest, min(4 if len(parts) == 1 else 3, len(variants)), lines=2)
    return Drawing(figure, f"{caption} {_bands(parts.values())}")


def _token_axis(axis: Axes) -> None:
    axis.set_xlabel("generated tokens")
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.xaxis.set_major_formatter(FuncFormatter(short_number))
    axis.set_xlim(left=0)


def short_number(value: float, _: Any = None) -> str:
    """1.2M, 300k, 17."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _bands(tables: Any) -> str:
    counts = pd.concat([table.groupby("variant")["seeds"].max() for table in tables]).groupby(level=0).max()
    seeds = ", ".join(f"{name} {int(count)}" for name, count in counts.items())
    return f"Lines: means over seeds; bands: Student's 95% interval over them. Seeds: {seeds}."


@themed
def forest(rows: pd.DataFrame, title: str, caption: str, *, theme: Theme, percent: bool = True) -> Drawing:
    """Effects with their intervals, one below the other: columns label, value, low, high, and bound where one is
    claimed (a mark) with verdict (its colour). ``percent``: the values are shares or their differences.

    Where some effects are far larger than others a second panel enlarges what is near 0.
    """
    rows = rows[rows["value"].notna()].reset_index(drop=True)
    if rows.empty:
        raise NoData("No effect has been measured yet.")
    reach = rows[["value", "low", "high"]].abs().max(axis=1)
    near = reach[reach <= NEAR].max()
    count = 2 if pd.notna(near) and reach.max() > 2 * NEAR else 1
    size = 8.4 if count == 1 else 10.4, (0.9 if "verdict" not in rows else 1.2) + 0.42 * len(rows)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06))
    axes = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    for axis in axes:
        _effects(axis, rows, theme)
        if percent:
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:+.3g}" if value else "0"))
    axes[0].set_title(title, pad=8)
    if count == 2:
        axes[1].set_title("The same, near 0", pad=8)
        axes[1].set_xlim(-1.1 * near, 1.1 * near)
    if "verdict" in rows:
        legend_below(axes[0], 4, lines=1)
    return Drawing(figure, caption)


def _effects(axis: Axes, rows: pd.DataFrame, theme: Theme) -> None:
    shade = {"holds": theme.green, "does not hold": theme.orange, "cannot be said": theme.grey_line}
    for at, row in enumerate(rows.to_dict("records")):
        color = shade.get(row["verdict"], theme.grey_line) if "verdict" in row else theme.blue
        if not math.isnan(row["low"]) and all(map(math.isfinite, (row["low"], row["high"]))):
            axis.plot([row["low"], row["high"]], [at, at], color=color, linewidth=2)
        if math.isfinite(row["value"]):
            axis.plot([row["value"]], [at], "o", color=color, markersize=6)
        if pd.notna(row.get("bound")):
            axis.plot([row["bound"]], [at], "|", color=theme.ink, markersize=15, markeredgewidth=1.6)
    axis.axvline(0, color=theme.muted, linewidth=1)
    axis.set_yticks(range(len(rows)), rows["label"])
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.grid(True, axis="x")
    axis.grid(False, axis="y")
    for verdict in [name for name in shade if "verdict" in rows and name in set(rows["verdict"])]:
        axis.plot([], [], "o-", color=shade[verdict], linewidth=2, markersize=6, label=verdict)
    if "bound" in rows:
        axis.plot([], [], "|", color=theme.ink, markersize=12, markeredgewidth=1.6, label="bound")


@themed
def advantages(parts: Mapping[str, pd.DataFrame], caption: str, *, theme: Theme) -> Drawing:
    """A panel of advantages before and after selection for each table: columns which, left, right, count."""
    return training.draw_advantages(parts, caption, theme)


@themed
def words(table: pd.DataFrame, caption: str, *, theme: Theme) -> Drawing:
    """Words of reflection: columns word, share, before, forced."""
    return reflection.draw_words(table, caption, theme)


@themed
def frontier(points: pd.DataFrame, caption: str, *, theme: Theme) -> Drawing:
    """Accuracy over tokens a response: a colour per variant, a mark per mode (``series.frontier_points``)."""
    if points.empty:
        raise NoData("No run of this figure is finished yet.")
    figure, (axis,) = panels(1, 4.2)
    _frontier(axis, points, theme)
    return Drawing(figure, caption)


def _frontier(axis: Axes, points: pd.DataFrame, theme: Theme) -> None:
    look = styles(list(dict.fromkeys(points["variant"])), theme)
    for name, part in points.groupby("variant", sort=False):
        for number, row in enumerate(part.to_dict("records")):
            color = look[name]["color"]
            if pd.notna(row["low"]):
                axis.plot([row["tokens"]] * 2, [row["low"], row["high"]], color=color, linewidth=1.4)
            label = name if number == 0 else None
            axis.plot([row["tokens"]], [row["accuracy"]], MODES[row["mode"]], color=color, markersize=7, label=label)
    for mode, mark in MODES.items():
        if points["mode"].nunique() > 1 and mode in set(points["mode"]):
            axis.plot([], [], mark, color=theme.muted, label=mode)
    axis.set_title("Held-out accuracy over tokens a response", pad=8)
    axis.set_xlabel("tokens a response")
    axis.margins(x=0.12)
    low = points["low"].fillna(points["accuracy"]).min()
    share_axis(axis, min(1.0, 1.05 * float(points["high"].fillna(points["accuracy"]).max())))
    axis.set_ylim(bottom=max(0.0, float(low) - 0.08))
    legend_below(axis, 4, lines=2)


@themed
def pays(cells: pd.DataFrame, points: pd.DataFrame, title: str, caption: str, *, theme: Theme) -> Drawing:
    """Left: share of second looks over what they gain less what they cost, a mark per kind and level
    (``series.gains``); right: accuracy over tokens (``series.frontier_points``)."""
    if cells.empty or points.empty:
        raise NoData("No run of this figure is finished yet.")
    shades = colors(theme)
    figure, (left, right) = panels(2, 3.8)
    for at, (kind, part) in enumerate(cells.groupby("category", sort=False)):
        shade, mark, area = shades[at % len(shades)], MARKS[at % len(MARKS)], 26 + 20 * part["level"]
        where = part["gain"] - part["cost"], part["second"]
        left.scatter(*where, area, shade, marker=mark, edgecolors=theme.paper, label=kind, zorder=3)
        left.hlines(part["second"], part["low"] - part["cost"], part["high"] - part["cost"], color=shade, alpha=0.5)
    left.axvline(0, color=theme.muted, linewidth=1.2, linestyle="--")
    left.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:+.0f}" if value else "0"))
    left.set_xlabel("points that a second look gains, less the price of its tokens")
    left.set_ylabel("responses with a second look")
    left.set_title(title, pad=8)
    share_axis(left, 1.04)
    left.set_ylim(bottom=-0.04)  # marks at 0 are whole
    legend_below(left, 3, lines=2)
    _frontier(right, points, theme)
    return Drawing(figure, caption)


@themed
def second_looks(parts: Mapping[str, pd.DataFrame], by: str, caption: str, *, theme: Theme) -> Drawing:
    """Share of second looks after wrong and after right first ones, by kind or level; a panel per variant."""
    parts = {name: table for name, table in parts.items() if len(table)}
    if not parts:
        raise NoData("No run of this figure is finished yet.")
    figure, axes = panels(len(parts), 3.2)
    for axis, (name, table) in zip(axes, parts.items(), strict=True):
        keys = sorted(table[by].unique())
        for shift, (first, color) in zip((-0.2, 0.2), (("wrong", theme.orange), ("right", theme.blue)), strict=True):
            part = table[table["first"] == first].set_index(by).reindex(keys)
            at = [number + shift for number in range(len(keys))]
            hatch = "//" if first == "right" else None
            axis.bar(at, part["value"].fillna(0), 0.36, color=color, hatch=hatch, label=f"first look {first}")
            for x, row in zip(at, part.to_dict("records"), strict=True):
                if pd.notna(row["low"]):
                    axis.plot([x, x], [max(0, row["low"]), min(1, row["high"])], color=theme.ink, linewidth=1.1)
        axis.set_xticks(range(len(keys)), [str(key) for key in keys])
        axis.set_title(name, pad=8)
        axis.set_xlabel({"category": "kind of question"}.get(by, by))
        share_axis(axis, 1.02)
    axes[0].set_ylabel("responses with a second look")
    legend_below(axes[0], 2, lines=2)
    return Drawing(figure, caption)


@themed
def knowing(
    known: pd.DataFrame, rules: Mapping[str, pd.DataFrame], policy: str, caption: str, *, theme: Theme
) -> Drawing:
    """Left: AUC of scores against a wrong first look, by policy (columns policy, score, value, low, high); right:
    accuracy over tokens of rules who is looked at twice (``lab.evidence.knowing.rule``), for ``policy``."""
    if known.empty:
        raise NoData("Not measured yet.")
    figure, (left, right) = panels(2, 4.2)
    names, scores = list(dict.fromkeys(known["policy"])), list(dict.fromkeys(known["score"]))
    shades = colors(theme)
    for number, score in enumerate(scores):
        part = known[known["score"] == score].set_index("policy").reindex(names)
        at = [place + 0.22 * (number - (len(scores) - 1) / 2) for place in range(len(names))]
        left.hlines(at, part["low"], part["high"], color=shades[number], linewidth=1.6)
        left.plot(part["value"], at, MARKS[number], color=shades[number], markersize=6, label=score)
    left.axvline(0.5, color=theme.muted, linewidth=1.2, linestyle="--")
    left.set_yticks(range(len(names)), names)
    left.set_ylim(len(names) - 0.5, -0.5)
    left.set_title("Wrong or right, within kind and level", pad=8)
    left.set_xlabel("AUC (0.5: no better than chance)")
    legend_below(left, 1, lines=2)
    look = styles(list(rules), theme)
    for name, curve in rules.items():
        right.plot(curve["tokens"], curve["accuracy"], label=name, **look[name])
    right.set_title(f"{policy}: who is looked at twice", pad=8)
    right.set_xlabel("tokens a response")
    share_axis(right, 1.0)
    right.set_ylim(bottom=0.3)
    legend_below(right, 2, lines=2)
    return Drawing(figure, caption)
