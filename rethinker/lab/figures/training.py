"""Figures of training: everything at a glance, validation (Fig. 5), advantages (Fig. 6)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from rethinker.lab.analysis import diagnostics
from rethinker.lab.figures.style import Drawing, NoData, Theme, legend_below, panels, share_axis
from rethinker.lab.figures.timeline import episodes, line, smoothing, time_axis
from rethinker.lab.figures.words import queries_words, share_words


def overview(run: Path, theme: Theme) -> Drawing:
    """Three panels for the README: accuracy, reflection, what still has an advantage."""
    rows = episodes(run)
    figure, (left, middle, right) = panels(3, 3.1)
    try:
        words = _validation(left, run, theme)
    except NoData:
        line(left, rows, "accuracy/first", theme.blue, "training queries, sampled")
        words = "sampled accuracy of first responses on training queries"
    left.set_title("Accuracy")
    line(middle, rows, "reflection/share", theme.purple, "reflects")
    middle.set_title("Spontaneous reflection")
    line(right, rows, "queries/effective", theme.orange, "queries")
    line(right, rows, "replay/effective_after", theme.green, "trained samples", (0, (3, 1.5)))
    right.set_title("Effective queries and samples")
    for axis in (left, middle, right):
        share_axis(axis, 1.02)
        time_axis(axis, run)
    legend_below(right, 2)
    return Drawing(
        figure,
        f"Training at a glance. Accuracy: {words}. Reflection: share of sampled first responses with a reflection "
        f"word that was not forced. Effective: queries whose first responses are neither all right nor all wrong, and "
        f"trained samples whose advantage, by correctness, is not zero ({queries_words(run)}).{_last(run)}"
        f"{smoothing(len(rows))}",
    )


def _last(run: Path) -> str:
    """The last episode's effective share with its interval; nothing without rollouts."""
    try:
        row = diagnostics.vanishing(run).iloc[-1]
    except FileNotFoundError:
        return ""
    hits = round(row["effective"] * row["queries"])
    return f" Effective queries in the last episode: {share_words(hits, row['queries'])}, by Wilson."


def validation(run: Path, theme: Theme) -> Drawing:
    """Fig. 5: greedy validation accuracy, and the sampled accuracy of first responses on training queries."""
    figure, (axis,) = panels(1, 3.8)
    words = _validation(axis, run, theme)
    rows = episodes(run)
    line(axis, rows, "accuracy/first", theme.orange, "training queries, sampled", (0, (3, 1.5)))
    axis.set_title("Accuracy during training")
    share_axis(axis)
    time_axis(axis, run)
    legend_below(axis, 2)
    return Drawing(
        figure,
        f"Validation during training (the paper's Fig. 5): {words}. Dashed: mean correctness of sampled first "
        f"responses on the training queries of each episode ({queries_words(run)}).{smoothing(len(rows))}",
    )


def _validation(axis: Axes, run: Path, theme: Theme) -> str:
    """Greedy validation accuracy with its band; returns the words for the caption."""
    table = diagnostics.validation_curve(run)
    if table.empty:
        raise NoData("There has been no validation yet.")
    axis.fill_between(table["episode"], table["low"], table["high"], color=theme.blue, alpha=0.18, linewidth=0)
    axis.plot(
        table["episode"], table["accuracy"], color=theme.blue, marker="o", markersize=3.5, label="validation, greedy"
    )
    numbers = sorted(table["queries"].dropna().astype(int).unique().tolist())
    return f"greedy accuracy on n = {' or '.join(map(str, numbers))} validation queries, band: 95% Wilson interval"


def advantages(run: Path, theme: Theme) -> Drawing:
    """Fig. 6: advantages of all samples and of the trained ones."""
    table = diagnostics.advantage_histograms(run)
    if not table["count"].any():
        raise NoData("No episode has recorded its advantages yet.")
    rows = episodes(run)
    parts = {str(stage): part for stage, part in table.groupby("stage", sort=False)}
    words = []
    for stage, part in parts.items():
        counts = part.groupby("which")["count"].sum()
        own = rows[rows["stage"] == stage]
        before, after = (_spread(own[f"replay/effective_{which}"]) for which in ("before", "after"))
        words.append(
            f"{stage}: n = {counts.get('before', 0):,} before, {counts.get('after', 0):,} after; not zero, by "
            f"correctness: {before} before, {after} after"
        )
    return draw_advantages(
        parts,
        "Advantages before and after the selection of samples (the paper's Fig. 6), all episodes of a stage together. "
        f"Samples at zero do not move the policy. {'. '.join(words)} (mean over episodes, in brackets the middle 90% "
        f"of them).",
        theme,
    )


def draw_advantages(parts: Mapping[str, pd.DataFrame], caption: str, theme: Theme) -> Drawing:
    """A panel of each table (``diagnostics.advantage_histograms``; bins of one range are added), on one scale."""
    figure, axes = panels(len(parts))
    seen = pd.concat([part[part["count"] > 0] for part in parts.values()])
    reach = 1.08 * float(seen[["left", "right"]].abs().to_numpy().max())  # the recorded bins go much further
    for axis, (title, part) in zip(axes, parts.items(), strict=True):
        for which, color, label in (
            ("before", theme.grey, "before: all samples"),
            ("after", theme.blue, "after: trained on"),
        ):
            bins = part[part["which"] == which].groupby(["left", "right"], as_index=False)["count"].sum()
            if not bins["count"].any():
                continue
            if (bins["left"].to_numpy()[1:] != bins["right"].to_numpy()[:-1]).any():
                raise ValueError(
                    f"{title}: advantages {which} selection were counted in bins that overlap or leave gaps"
                )
            edges, share = [*bins["left"], bins["right"].iloc[-1]], bins["count"] / bins["count"].sum()
            if which == "before":
                axis.stairs(share, edges, color=color, fill=True, label=label)
            else:
                axis.stairs(share, edges, color=color, linewidth=1.8, label=label)
                axis.stairs(share, edges, color=color, fill=True, alpha=0.15)
        axis.set_title(title, pad=8)
        share_axis(axis, None)
        axis.set_xlim(-reach, reach)
        axis.set_xlabel("advantage")
    for axis in axes:
        axis.set_ylim(0, max(other.get_ylim()[1] for other in axes))
    axes[0].set_ylabel("share of samples")
    legend_below(axes[0], 2, lines=2)
    return Drawing(figure, caption)


def _spread(shares: pd.Series) -> str:
    """Mean over episodes and the range of the middle nine tenths of them."""
    known = shares.astype(float).dropna()
    if known.empty:
        return "none"
    return f"{known.mean():.0%} ({known.quantile(0.05):.0%} to {known.quantile(0.95):.0%})"
