"""Figures of vanishing advantages (the paper's Fig. 2): where the signal goes, and what its absence costs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from rethinker.lab.analysis import diagnostics
from rethinker.lab.figures.contrast import readable
from rethinker.lab.figures.style import DASHES, Drawing, Theme, colors, grid, legend_below, panels, share_axis, strength
from rethinker.lab.figures.timeline import episodes, line, need_rollouts, smoothing, time_axis
from rethinker.lab.figures.words import largest, level_name, queries_words, share_words, unanimous_words, widths

PANELS = 6  # of one kind in a figure: more categories than that are not shown
UNITS = ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))
MAP_ROWS, MAP_COLUMNS = 10, 6  # categories and levels in the map


def vanishing(run: Path, theme: Theme) -> Drawing:
    """Fig. 2: which share of queries still carries a signal."""
    rows = episodes(run)
    figure, (left, right) = panels(2, 3.6)
    shares = [rows[f"queries/{name}"].astype(float) for name in ("all_incorrect", "effective", "all_correct")]
    _stack(left, rows["episode"], shares, theme)
    left.set_title("Queries by their first responses")
    share_axis(left)
    legend_below(left, 3)
    right.set_title("Effective queries by difficulty")
    first, last = shares[1].iloc[0], shares[1].iloc[-1]
    went, words = f"{first:.0%}", f"{last:.0%}"
    more = ""
    try:
        total = diagnostics.vanishing(run)
    except FileNotFoundError:
        right.text(0.5, 0.5, "no rollout files", transform=right.transAxes, ha="center", color=theme.muted)
    else:
        went, words = (
            share_words(round(item.effective * item.queries), item.queries) for item in (total.iloc[0], total.iloc[-1])
        )
        by = "level" if diagnostics.vanishing(run, "level")["level"].nunique() > 1 else "category"
        table = diagnostics.vanishing(run, by)
        keys, note = largest(table, by, "queries", PANELS)
        for key, color, dash in zip(keys, colors(theme), DASHES, strict=False):
            line(right, table[table[by] == key], "effective", color, level_name(by, key), dash)
        line(right, total, "wasted_tokens", theme.muted, "tokens without signal", (0, (1, 1.5)))
        more = (
            f" Right: the share of effective queries by {by}{note}, and the share of first-response tokens spent on "
            f"queries without signal ({total['wasted_tokens'].iloc[0]:.0%} in the first episode, "
            f"{total['wasted_tokens'].iloc[-1]:.0%} in the last)."
        )
        right.set_title(f"Effective queries by {'difficulty' if by == 'level' else 'kind'}")
        legend_below(right, 4)
    share_axis(right)
    for axis in (left, right):
        time_axis(axis, run)
    return Drawing(
        figure,
        f"Vanishing advantages (the paper's Fig. 2). {unanimous_words(run)}; the share of the others, the effective "
        f"ones, went from {went} in the first episode to {words} in the last ({queries_words(run)}).{more}"
        f"{smoothing(len(rows))}",
    )


def _stack(axis: Axes, episode: pd.Series, shares: list[pd.Series], theme: Theme) -> None:
    """All wrong, effective, all right, from below."""
    axis.stackplot(
        episode,
        shares,
        colors=[theme.grey, theme.blue, theme.sky],
        labels=["all wrong", "effective", "all right"],
        edgecolor=theme.paper,
        linewidth=0.8,
    )


def vanishing_kinds(run: Path, theme: Theme) -> Drawing:
    """Fig. 2 for every kind of question and every difficulty."""
    need_rollouts(run)
    spans = 12
    parts, notes = [], []
    for by in diagnostics.KEYS:
        table = diagnostics.vanishing(run, by, spans)
        if table[by].nunique() > 1 or by == "category":
            keys, note = largest(table, by, "queries", PANELS)
            parts += [(level_name(by, key), table[table[by] == key]) for key in keys]
            notes += [f"{'kinds' if by == 'category' else 'levels'}{note}"] if note else []
    figure, axes = grid(len(parts))
    names = ("all_incorrect", "effective", "all_correct")
    labels = ("all wrong", "effective", "all right")
    for axis, (title, table) in zip(axes, parts, strict=True):
        bottom = np.zeros(len(table))
        for name, color, label in zip(names, (theme.grey, theme.blue, theme.sky), labels, strict=True):
            width = (table["last"] - table["first"] + 1) * 0.94
            axis.bar(
                (table["first"] + table["last"]) / 2, table[name], width, bottom, color=color, label=label, linewidth=0
            )
            bottom += table[name].to_numpy(float)
        axis.set_title(title, pad=5)
        axis.text(1, 1.03, f"n = {table['queries'].sum():,}", transform=axis.transAxes, ha="right", fontsize=8.5)
        share_axis(axis)
        axis.set_yticks([0, 0.5, 1])
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        axis.tick_params(labelbottom=True)
    for axis in axes[-3:]:
        axis.set_xlabel("episode")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=3)
    whole = diagnostics.vanishing(run, windows=1).iloc[0]
    sizes = pd.concat([table["queries"] for _, table in parts])
    return Drawing(
        figure,
        f"Vanishing advantages by kind of question and by difficulty. Shares of queries whose first responses are all "
        f"wrong, mixed (effective) or all right, in {parts[0][1]['window'].max()} spans of the run; a query counts "
        f"once per episode, n = {int(whole['queries']):,} in all, {sizes.min()} to {sizes.max()} a bar "
        f"({widths(sizes)})."
        f"{' Shown are the ' + ' and the '.join(notes) + '.' if notes else ''}",
    )


def vanishing_map(run: Path, theme: Theme) -> Drawing:
    """The effective share by kind and difficulty, early and late."""
    need_rollouts(run)
    table = diagnostics.vanishing(run, diagnostics.KEYS, 3)
    spans = [table["window"].min(), table["window"].max()]
    spans = spans[:1] if spans[0] == spans[1] else spans
    kinds, note = largest(table, "category", "queries", MAP_ROWS)
    levels, level_note = largest(table, "level", "queries", MAP_COLUMNS)
    figure, axes = panels(len(spans), 1.4 + 0.42 * len(kinds))
    for axis, span in zip(axes, spans, strict=True):
        part = table[table["window"] == span].set_index(["category", "level"])
        shares = part["effective"].unstack().reindex(index=kinds, columns=levels).to_numpy(float)
        axis.imshow(shares, cmap=strength(theme), vmin=0, vmax=1, aspect="auto")
        for row, kind in enumerate(kinds):
            for column, level in enumerate(levels):
                _cell(axis, row, column, part.loc[(kind, level)] if (kind, level) in part.index else None, theme)
        axis.set_xticks(range(len(levels)), [level_name("level", level) for level in levels])
        axis.set_yticks(range(len(kinds)), [level_name("category", kind) for kind in kinds])
        axis.tick_params(labelcolor=theme.ink)
        axis.grid(False)
        axis.spines["bottom"].set_visible(False)
        axis.set_title(f"Episodes {part['first'].iloc[0]} to {part['last'].iloc[0]}", pad=8)
    sizes = table[table["window"].isin(spans)]["queries"]
    rest = f" Shown are the kinds{note} and levels{level_note}." if note or level_note else ""
    return Drawing(
        figure,
        f"Where the signal is: share of effective queries by kind and difficulty, in the first and the last third of "
        f"the run. In small print the number of queries and the main reason for the rest. n = {sizes.sum():,} queries "
        f"(once per episode), {sizes.min()} to {sizes.max()} a cell; {widths(sizes)}.{rest}",
    )


def _cell(axis: Axes, row: int, column: int, item: pd.Series | None, theme: Theme) -> None:
    if item is None:
        axis.text(column, row, "no query", ha="center", va="center", fontsize=8, color=theme.muted)
        return
    reason = "all wrong" if item["all_incorrect"] >= item["all_correct"] else "all right"
    rest = f" · {reason}" if item["effective"] < 1 else ""
    color = readable(strength(theme)(float(item["effective"])), theme)
    axis.text(column, row - 0.13, f"{item['effective']:.0%}", ha="center", va="center", color=color)
    axis.text(column, row + 0.24, f"{item['queries']:.0f}{rest}", ha="center", va="center", fontsize=7.5, color=color)


def waste(run: Path, theme: Theme) -> Drawing:
    """What samples without an advantage cost in tokens and in seconds."""
    need_rollouts(run)
    rows = episodes(run)
    table = diagnostics.waste(run)
    figure, (left, right) = panels(2, 3.6)
    names = {
        "signal_share": ("with an advantage", theme.blue, "-"),
        "no_signal_share": ("without an advantage", theme.orange, DASHES[1]),
        "not_kept_share": ("second looks not kept", theme.purple, DASHES[2]),
    }
    for name, (label, color, dash) in names.items():
        line(left, table, name, color, label, dash)
    left.set_title("Generated tokens, by what became of them")
    share_axis(left)
    legend_below(left, 3)
    spent = (table["rollout_seconds"] + table["rethink_seconds"]).fillna(0.0).cumsum()
    lost = (table["rollout_lost"] + table["rethink_lost"]).fillna(0.0).cumsum()
    seconds, unit = next((item for item in UNITS if spent.iloc[-1] >= 3 * item[0]), UNITS[-1])
    right.fill_between(table["episode"], 0, lost / seconds, color=theme.orange, alpha=0.25, linewidth=0)
    right.plot(table["episode"], spent / seconds, color=theme.blue, label="generating, since the start")
    right.plot(
        table["episode"], lost / seconds, color=theme.orange, linestyle=DASHES[1], label="of it without an advantage"
    )
    right.set_ylim(0)
    right.set_ylabel(unit)
    right.set_title("Time")
    legend_below(right, 2)
    for axis in (left, right):
        time_axis(axis, run)
    total = table[["tokens", *diagnostics.FATES]].sum()
    low, high = (1 - table["signal_share"]).quantile([0.05, 0.95])
    share = (total["no_signal"] + total["not_kept"]) / total["tokens"] if total["tokens"] else float("nan")
    whole = table["lost_share"].mul(_seconds(rows, table)).sum() / _seconds(rows, table).sum()
    return Drawing(
        figure,
        f"What samples without an advantage cost. n = {total['tokens']:,.0f} generated tokens in {len(table)} "
        f"{'episode' if len(table) == 1 else 'episodes'}: {share:.0%} carried no advantage (middle 90% of episodes: "
        f"{low:.0%} to {high:.0%}), of these {total['no_signal']:,.0f} in samples of advantage zero and "
        f"{total['not_kept']:,.0f} in second looks that were not kept. Right: time/rollout and time/rethink, "
        f"given to responses by their tokens: {lost.iloc[-1]:,.0f} of {spent.iloc[-1]:,.0f} seconds of "
        f"generation were lost, {whole:.0%} of all training time.{smoothing(len(rows))}",
    )


def _seconds(rows: pd.DataFrame, table: pd.DataFrame) -> pd.Series:
    """time/episode at the rows of ``table``."""
    seconds = rows.set_index("episode")["time/episode"].astype(float).reindex(table["episode"])
    return seconds.reset_index(drop=True)
