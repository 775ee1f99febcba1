"""Figures of reflection: forced and spontaneous, its words (the paper's Fig. 3), whether it pays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from rethinker.evaluation.statistics import clustered
from rethinker.lab.analysis import diagnostics
from rethinker.lab.analysis import reflection as tables
from rethinker.lab.analysis.diagnostics import KEYS
from rethinker.lab.figures.style import (
    DASHES,
    LIGHT,
    Drawing,
    NoData,
    Theme,
    colors,
    legend,
    legend_below,
    panels,
    share_axis,
)
from rethinker.lab.figures.timeline import episodes, line, need_rollouts, smoothing, time_axis
from rethinker.lab.figures.words import interval, largest, level_name
from rethinker.rethink import REFLECTION_PATTERN

STACKED = ("wrong_to_right", "right_to_right", "right_to_wrong", "wrong_to_wrong")  # from below


def outcome_colors(theme: Theme) -> tuple[str, ...]:
    """Those of STACKED."""
    return theme.green, theme.sky, theme.orange, theme.grey


def rethinking(run: Path, theme: Theme) -> Drawing:
    """What a forced second look did, and how reflection grew."""
    rows = episodes(run)
    table = diagnostics.rethinking_outcomes(run)
    forced = table[table["forced"] > 0]
    if forced.empty:
        raise NoData("Nothing was forced to rethink: no stage with rethink.fraction > 0 has had an episode yet.")
    figure, (left, right) = panels(2, 3.6)
    bottom = np.zeros(len(forced))
    for name, color in zip(STACKED, outcome_colors(theme), strict=True):
        height = (forced[name] * forced["forced"]).to_numpy(float)
        label = name.replace("_to_", " → ")
        left.bar(forced["episode"], height, 0.85, bottom, color=color, label=label)
        bottom += height
    left.set_title("Forced second looks")
    left.set_ylabel("share of first responses")
    share_axis(left, None)
    left.set_xlabel("episode")
    left.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    left.set_xlim(forced["episode"].min() - 0.6, forced["episode"].max() + 0.6)
    legend(left, 4, loc="lower center", bbox_to_anchor=(0.47, 0.99))
    line(right, rows, "reflection/share", theme.purple, "reflects by itself")
    line(right, table, "forced", theme.blue, "forced", (0, (3, 1.5)))
    line(right, table, "kept", theme.green, "kept", (0, (1, 1.5)))
    right.set_title("Share of first responses")
    share_axis(right)
    time_axis(right, run)
    legend_below(right, 3)
    count, rescued, lost = _changes(run, rows, forced)
    return Drawing(
        figure,
        f"Forced Rethinking during training. Left: first and final verdict of forced responses, as shares of all "
        f"first responses (n = {count:,.0f} forced in {len(forced)} "
        f"{'episode' if len(forced) == 1 else 'episodes'}); over all of them a second look turned {rescued} of wrong "
        f"answers right and {lost} of right answers wrong, queries as clusters. Right: unforced reflection, "
        f"and what was forced and kept."
        f"{smoothing(len(rows))}",
    )


def _changes(run: Path, rows: pd.DataFrame, forced: pd.DataFrame) -> tuple[float, str, str]:
    """Forced responses, and the words for the shares that were rescued and lost; intervals need the rollouts."""
    try:
        looks = diagnostics.load_rollouts(run, ["qid", "pass", "first_correct", "correct"])
    except FileNotFoundError:
        # rollout/responses counts first responses and forced ones: their number follows from the share.
        responses = rows.loc[forced.index, "rollout/responses"].astype(float)
        count = (responses * forced["forced"] / (1 + forced["forced"])).round()
        rescued = _weighted(forced["rescued"], count * (forced["wrong_to_right"] + forced["wrong_to_wrong"]))
        lost = _weighted(forced["lost"], count * (forced["right_to_wrong"] + forced["right_to_right"]))
        return float(count.sum()), rescued, lost
    looks = looks[looks["pass"] == "forced"].astype({"first_correct": bool, "correct": bool})
    words = []
    for first in (False, True):
        part = looks[looks["first_correct"] == first]
        changed = (part["correct"] != first).groupby(part["qid"]).agg(["sum", "size"])
        estimate = clustered(changed["sum"].tolist(), changed["size"].tolist())
        known = estimate.value is not None
        words.append(f"{estimate.value:.0%}{interval(estimate.low, estimate.high)}" if known else "none (no cases)")
    return float(len(looks)), words[0], words[1]


def _weighted(values: pd.Series, weights: pd.Series) -> str:
    known = values.notna() & (weights > 0)
    return f"{np.average(values[known], weights=weights[known]):.0%}" if known.any() else "none (no cases)"


def reflection(run: Path, theme: Theme) -> Drawing:
    """Spontaneous reflection over time, by kind of question and by difficulty."""
    need_rollouts(run)
    rows = episodes(run)
    figure, axes = panels(2, 3.8)
    notes = []
    for axis, by, title in zip(axes, KEYS, ("kind of question", "difficulty"), strict=True):
        table = tables.reflection_over_time(run, by)
        keys, note = largest(table, by, "responses", 6)
        notes += [f"{by}{note}"] if note else []
        for key, color, dash in zip(keys, colors(theme), DASHES, strict=False):
            line(axis, table[table[by] == key], "share", color, level_name(by, key), dash)
        axis.set_title(f"Reflects by itself, by {title}")
        share_axis(axis, 1.02)
        time_axis(axis, run)
        legend_below(axis, 3)
    stages = [
        f"{row['stage']}: {row['share']:.1%} (95% interval {100 * row['low']:.1f} to {100 * row['high']:.1f}%, "
        f"n = {row['n']:,} responses to {row['clusters']:,} queries)"
        for row in tables.reflection_by(run).to_dict("records")
    ]
    return Drawing(
        figure,
        f"Unforced reflection: share of sampled first responses with a word of a second look, by kind of "
        f"question and by difficulty. {'; '.join(stages)}; queries as clusters.{_only(notes)}{smoothing(len(rows))}",
    )


def _only(notes: list[str]) -> str:
    return f" Shown are of {' and of '.join(notes)}." if notes else ""


def pays(run: Path, theme: Theme) -> Drawing:
    """Does reflection pay: inside groups of one query, and before and after in one response."""
    need_rollouts(run)
    table = tables.does_reflection_pay(run)
    main = table[table["what"] == "within"].iloc[0]
    if not main["groups"]:
        raise NoData("No query has had responses with and without reflection in one episode yet.")
    parts = [table[table["what"] == what] for what in ("level", "category")]
    shown = pd.concat([table[table["what"].isin(("raw", "within"))], *(part.nlargest(8, "groups") for part in parts)])
    shown = shown.sort_index().reset_index(drop=True)
    figure, (left, right) = panels(2, max(3.4, 1.5 + 0.29 * len(shown)))
    names = {"raw": "all responses (confounded)", "within": "within a query"}
    styles = {"raw": (theme.grey_line, "s"), "within": (theme.blue, "D"), "level": (theme.purple, "o")}
    for row in shown.itertuples():
        color, marker = styles.get(row.what, (theme.green, "^"))
        spread = None if np.isnan(row.low) else [[row.value - row.low], [row.high - row.value]]
        left.errorbar(row.value, -row.Index, xerr=spread, fmt=marker, color=color, elinewidth=1.3, ms=6)
    ticks = [names.get(row.what) or f"{level_name(row.what, row.key)} ({row.groups:,})" for row in shown.itertuples()]
    left.set_yticks(-np.arange(len(shown)), ticks)
    left.tick_params(axis="y", labelcolor=theme.ink)
    left.axvline(0, color=theme.muted, linewidth=1)
    left.grid(True, axis="x")
    left.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:+.0f}" if value else "0"))
    left.set_xlabel("accuracy with reflection minus without, points")
    left.set_title("Responses that reflect against others", pad=8)
    words = _before_and_after(right, run, theme)
    value = f"{100 * main['value']:+.1f} points"
    bounds = "" if np.isnan(main["low"]) else f" (95% interval {100 * main['low']:+.1f} to {100 * main['high']:+.1f})"
    return Drawing(
        figure,
        f"Does reflection pay? Left: first responses of training; within a query (one group of one episode, so that "
        f"neither difficulty nor training time confounds) {value}{bounds}; n = {main['groups']:,} groups of "
        f"{main['queries']:,} queries that hold both sorts ({main['with_reflection']:,} responses with reflection, "
        f"{main['without_reflection']:,} without); lines: 95% intervals with queries as clusters, in brackets the "
        f"groups. Which response of a group reflects is the policy's choice: no experiment. {words}",
    )


def _before_and_after(axis: Axes, run: Path, theme: Theme) -> str:
    """Verdicts of held-out responses before and after their own reflection; returns the words for the caption."""
    table = tables.self_corrections(run)
    table = table[table["responses"] > 0].reset_index(drop=True)
    axis.set_title("Before and after, in one response", pad=8)
    if table.empty:
        axis.text(0.5, 0.5, "no held-out response reflects", transform=axis.transAxes, ha="center", color=theme.muted)
        axis.set_axis_off()
        return "Right: no held-out response of an evaluated model reflects by itself."
    bottom = np.zeros(len(table))
    for name, color in zip(STACKED, outcome_colors(theme), strict=True):
        share = (table[name] / table["responses"]).to_numpy(float)
        axis.bar(range(len(table)), share, 0.6, bottom, color=color, label=name.replace("_to_", " → "))
        for x, (low, height) in enumerate(zip(bottom, share, strict=True)):
            if height >= 0.06:
                ink = theme.ink if color == theme.grey else LIGHT.ink  # the other colours are light in both themes
                axis.text(x, low + height / 2, f"{height:.0%}", ha="center", va="center", fontsize=8.5, color=ink)
        bottom += share
    axis.set_xticks(range(len(table)), [f"{row.label}\nn = {row.responses}" for row in table.itertuples()])
    axis.tick_params(axis="x", labelcolor=theme.ink)
    axis.set_xlim(-0.6, len(table) + 0.9)  # the legend stands beside the bars
    share_axis(axis)
    legend(axis, 1, loc="center right", reverse=True)
    last = table.iloc[-1]
    gain, loss = (
        f"{last[name]:.0%}{interval(last[f'{name}_low'], last[f'{name}_high'])}"
        if pd.notna(last[name])
        else "none (no cases)"
        for name in ("rescued", "lost")
    )
    left_out = f" ({last['ungraded']} more reflect before any answer and are left out)" if last["ungraded"] else ""
    return (
        f"Right: sampled plain held-out responses that reflect, their verdict before and after; {last['label']}: of "
        f"n = {last['responses']} responses to {last['queries']} queries{left_out}, {gain} of the wrong first answers "
        f"became right and {loss} of the right ones wrong, queries as clusters."
    )


def words(run: Path, theme: Theme) -> Drawing:
    """Fig. 3: the words of reflection."""
    need_rollouts(run)
    table = tables.reflection_words(run, 44)
    if table.empty:
        raise NoData("No first response reflects by itself yet.")
    of_pattern = table[table["word"].str.contains(REFLECTION_PATTERN)]
    named = (table if of_pattern.empty else of_pattern).iloc[0]
    rings = (
        f"; rings: n = {table.attrs['forced']:,} forced second looks, after the trigger's words"
        if table.attrs["forced"]
        else ""
    )
    return draw_words(
        table,
        f"The words of reflection (the paper's Fig. 3): the {len(table)} most frequent words from the first "
        f"word of a second look on, in first responses of training that reflect by themselves; a word counts "
        f"once per response, frequent function words are left out. Left: area by frequency, down to a least size; "
        f"purple: by itself a word of reflection. Right: n = {table.attrs['reflecting']:,} reflecting responses to "
        f"{table.attrs['queries']:,} queries; “{named['word']}” is in {named['share']:.0%}"
        f"{interval(named['low'], named['high'])}, queries as clusters; diamonds: the same responses before their "
        f"reflection begins{rings}.",
        theme,
    )


def draw_words(table: pd.DataFrame, caption: str, theme: Theme) -> Drawing:
    """A cloud of words and bars of the first of them: columns word, share, before and forced (NaN: none was)."""
    figure, (left, right) = panels(2, 4.2)
    _word_cloud(figure, left, table, theme)
    bars = table.head(16)
    y = -np.arange(len(bars))
    right.barh(y, bars["share"], 0.7, color=theme.purple, label="after reflection begins")
    if bars["forced"].notna().any():
        right.plot(bars["forced"], y, "o", color=theme.paper, markersize=8, mec=theme.ink, label="when forced")
    right.plot(bars["before"], y, "D", color=theme.ink, markersize=4, label="before")
    right.set_yticks(y, bars["word"])
    right.tick_params(axis="y", labelcolor=theme.ink)
    right.grid(True, axis="x")
    right.grid(False, axis="y")
    right.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    right.set_xlim(-0.02, 1.02)
    right.set_title("Share of responses that hold the word")
    legend(right, 3, loc="lower left", bbox_to_anchor=(-0.02, 0.98))
    return Drawing(figure, caption)


def _word_cloud(figure: Figure, axis: Axes, table: pd.DataFrame, theme: Theme) -> None:
    """Words in centred rows, largest in the middle, the area of a word by its frequency."""
    sizes = np.sqrt(table["share"] / table["share"].max()).clip(lower=0.3)
    items = []
    for word, size in zip(table["word"], sizes, strict=True):
        box = TextPath((0, 0), word, size=size, prop=FontProperties(family="DejaVu Sans")).get_extents()
        items.append((word, size, box.width + 0.35 * size))
    # A row as wide that the cloud has the panel's proportions; rows go to the middle, above it, below it, ...
    width = max(max(item[2] for item in items), np.sqrt(1.7 * sum(item[2] * item[1] * 1.15 for item in items)))
    rows: list[list[tuple[str, float, float]]] = [[]]
    for item in items:
        if rows[-1] and sum(other[2] for other in rows[-1]) + item[2] > width:
            rows.append([])
        rows[-1].append(item)
    ordered = rows[1::2][::-1] + rows[::2]
    heights = [1.15 * max(item[1] for item in row) for row in ordered]
    axis.set_xlim(0, width)
    axis.set_ylim(sum(heights), 0)
    axis.set_axis_off()
    axis.set_title("In the second look")
    figure.draw_without_rendering()  # the layout decides how large the panel is
    scale = min(axis.bbox.width / width, axis.bbox.height / sum(heights)) * 72 / figure.dpi * 0.95
    top = 0.0
    for row, height in zip(ordered, heights, strict=True):
        x = (width - sum(item[2] for item in row)) / 2
        for word, size, wide in row:
            color = theme.purple if REFLECTION_PATTERN.search(word) else (theme.blue if size > 0.6 else theme.muted)
            axis.text(
                x + wide / 2, top + height / 2, word, ha="center", va="center", fontsize=size * scale, color=color
            )
            x += wide
        top += height
