"""The figures of a run, each drawn from its files alone, light or dark, as SVG or PNG.

Intervals are 95%. A figure whose data a run does not have (yet) raises ``NoData`` with the reason.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from rethinker import diagnostics
from rethinker.files import atomic_write_bytes
from rethinker.plot_style import (
    LIGHT,
    THEMES,
    NoData,
    Theme,
    episodes,
    legend,
    line,
    panels,
    settings,
    share_axis,
    smoothing,
    time_axis,
)


@dataclass(frozen=True)
class Drawing:
    """A figure and what it shows in words (numbers of cases and intervals included)."""

    figure: Figure
    caption: str


def draw(run: str | Path, name: str, theme: Theme = LIGHT) -> Drawing:
    """Figure ``name`` of ``FIGURES``. Raises NoData; FileNotFoundError and ValueError for missing or broken files."""
    if name not in FIGURES:
        raise ValueError(f"no figure {name!r}; there are {', '.join(FIGURES)}")
    with matplotlib.rc_context(settings(theme)):
        drawing = FIGURES[name](Path(run), theme)
    return replace(drawing, caption=drawing.caption.replace("n = ", "n\u00a0=\u00a0"))  # kept on one line


def render(drawing: Drawing, kind: str) -> bytes:
    """The figure as ``svg`` or ``png`` (at 160 dpi)."""
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else None
    with matplotlib.rc_context({"svg.hashsalt": "rethinker"}):
        drawing.figure.savefig(buffer, format=kind, dpi=160, metadata=metadata)
    return buffer.getvalue()


def save_figures(run: str | Path, folder: str | Path, names: Sequence[str] | None = None) -> list[Path]:
    """Write ``<name>-<theme>.svg`` and ``.png`` for every figure that the run has data for; returns the paths."""
    written = []
    for name in names or FIGURES:
        for theme in THEMES.values():
            try:
                drawing = draw(run, name, theme)
            except NoData:
                continue
            for kind in ("svg", "png"):
                path = Path(folder) / f"{name}-{theme.name}.{kind}"
                written.append(atomic_write_bytes(path, render(drawing, kind)))
    return written


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


def vanishing(run: Path, theme: Theme) -> Drawing:
    """Fig. 2: which share of queries still carries a signal."""
    rows = episodes(run)
    figure, (left, right) = panels(2)
    shares = [rows[f"queries/{name}"].astype(float) for name in ("all_incorrect", "effective", "all_correct")]
    left.stackplot(
        rows["episode"],
        shares,
        colors=[theme.grey, theme.blue, theme.sky],
        labels=["all wrong", "effective", "all right"],
        edgecolor=theme.paper,
        linewidth=0.8,
    )
    left.set_title("Queries by their first responses")
    share_axis(left)
    legend(left, 3, loc="lower left")
    right.set_title("Effective share by difficulty")
    words = ""
    try:
        by = "level" if diagnostics.vanishing(run, "level")["level"].nunique() > 1 else "category"
        table = diagnostics.vanishing(run, by)
        colors = (theme.blue, theme.orange, theme.purple, theme.green, theme.sky, theme.grey)
        sizes = table.groupby(by)["queries"].sum().sort_values(ascending=False, kind="stable")
        keys = sorted(sizes.index[: len(colors)])
        largest = f" (the {len(keys)} largest of {len(sizes)})" if len(keys) < len(sizes) else ""
        for number, key in enumerate(keys):
            part = table[table[by] == key]
            label = f"level {key}" if by == "level" else str(key)
            line(right, part, "effective", colors[number], label)
        total = diagnostics.vanishing(run)
        line(right, total, "wasted_tokens", theme.ink, "tokens without signal", (0, (1, 1.5)))
        words = (
            f" Right: the effective share by {by}{largest}, and the share of first-response tokens spent on queries "
            f"without signal ({total['wasted_tokens'].iloc[0]:.0%} in the first episode, "
            f"{total['wasted_tokens'].iloc[-1]:.0%} in the last)."
        )
        right.set_title(f"Effective share by {'difficulty' if by == 'level' else 'kind'}")
        legend(right, 2, loc="lower left")
    except FileNotFoundError:
        right.text(0.5, 0.5, "no roll-out files", transform=right.transAxes, ha="center", color=theme.muted)
    share_axis(right)
    for axis in (left, right):
        time_axis(axis, run)
    first, last = shares[1].iloc[0], shares[1].iloc[-1]
    count = _queries(run)
    return Drawing(
        figure,
        f"Vanishing advantages (the paper's Fig. 2). A query whose first responses are all right or all wrong gives no "
        f"gradient; the effective share went from {first:.0%} in the first episode to {last:.0%} in the last "
        f"({count}).{words}{smoothing(len(rows))}",
    )


def _queries(run: Path) -> str:
    try:
        table = diagnostics.vanishing(run)
    except FileNotFoundError:
        return "number of queries unknown: no roll-out files"
    low, high = int(table["queries"].min()), int(table["queries"].max())
    return f"n = {low if low == high else f'{low} to {high}'} queries an episode"


def advantages(run: Path, theme: Theme) -> Drawing:
    """Fig. 6: advantages of all samples and of the trained ones."""
    table = diagnostics.advantage_histograms(run)
    if table.empty:
        raise NoData("No episode has recorded its advantages yet.")
    rows = episodes(run)
    stages = list(table["stage"].unique())
    figure, axes = panels(len(stages))
    words = []
    for axis, stage in zip(axes, stages, strict=True):
        part = table[table["stage"] == stage]
        counts = {}
        for which, color, label in (
            ("before", theme.grey, "before: all samples"),
            ("after", theme.blue, "after: trained on"),
        ):
            bins = part[part["which"] == which].groupby(["left", "right"], as_index=False)["count"].sum()
            counts[which] = int(bins["count"].sum())
            if not counts[which]:
                continue
            edges = [*bins["left"], bins["right"].iloc[-1]]
            share = bins["count"] / counts[which]
            if which == "before":
                axis.stairs(share, edges, color=color, fill=True, label=label)
            else:
                axis.stairs(share, edges, color=color, linewidth=1.8, label=label)
                axis.stairs(share, edges, color=color, fill=True, alpha=0.15)
        axis.set_title(stage, pad=8)
        share_axis(axis, None)
        axis.set_xlabel("advantage")
        part = rows[rows["stage"] == stage]
        before, after = (_percent(part[f"replay/effective_{which}"].mean()) for which in ("before", "after"))
        words.append(
            f"{stage}: n = {counts['before']:,} before, {counts['after']:,} after; not zero: {before} before, "
            f"{after} after"
        )
    axes[0].set_ylabel("share of samples")
    legend(axes[0], 1, loc="upper left")
    return Drawing(
        figure,
        "Advantages before and after the selection of samples (the paper's Fig. 6), all episodes of a stage together. "
        f"Samples at zero do not move the policy. {'. '.join(words)} (mean over episodes).",
    )


def validation(run: Path, theme: Theme) -> Drawing:
    """Fig. 5: greedy validation accuracy, and the sampled accuracy of first responses on training queries."""
    figure, (axis,) = panels(1, 3.5)
    words = _validation(axis, run, theme)
    rows = episodes(run)
    line(axis, rows, "accuracy/first", theme.orange, "training queries, sampled", (0, (3, 1.5)))
    axis.set_title("Accuracy during training")
    share_axis(axis)
    time_axis(axis, run)
    legend(axis, 2, loc="lower right")
    return Drawing(
        figure,
        f"Validation during training (the paper's Fig. 5): {words}. Dashed: mean correctness of sampled first "
        f"responses on the training queries of each episode ({_queries(run)}).{smoothing(len(rows))}",
    )


def rethinking(run: Path, theme: Theme) -> Drawing:
    """What a forced second look did, and how reflection grew."""
    rows = episodes(run)
    table = diagnostics.rethinking_outcomes(run)
    forced = table[table["forced"] > 0]
    if forced.empty:
        raise NoData("Nothing was forced to rethink: no stage with rethink.fraction > 0 has had an episode yet.")
    figure, (left, right) = panels(2)
    names = ("wrong_to_right", "right_to_right", "right_to_wrong", "wrong_to_wrong")
    colors = (theme.green, theme.sky, theme.orange, theme.grey)
    bottom = np.zeros(len(forced))
    for name, color in zip(names, colors, strict=True):
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
    legend(right, 1, loc="upper left")
    # rollout/responses counts first responses and forced ones: their number follows from the share.
    responses = rows.loc[forced.index, "rollout/responses"].astype(float)
    count = (responses * forced["forced"] / (1 + forced["forced"])).round()
    rescued = _weighted(forced["rescued"], count * (forced["wrong_to_right"] + forced["wrong_to_wrong"]))
    lost = _weighted(forced["lost"], count * (forced["right_to_wrong"] + forced["right_to_right"]))
    return Drawing(
        figure,
        f"Forced Rethinking during training. Left: first and final verdict of forced responses, as shares of all "
        f"first responses (n = {count.sum():,.0f} forced in {len(forced)} "
        f"{'episode' if len(forced) == 1 else 'episodes'}); over all of them a second look turned {rescued} of wrong "
        f"answers right and {lost} of right answers wrong. Right: reflection that nobody forced, and what was forced "
        f"and kept."
        f"{smoothing(len(rows))}",
    )


def _percent(value: float) -> str:
    return "none" if np.isnan(value) else f"{value:.0%}"


def _weighted(values: pd.Series, weights: pd.Series) -> str:
    known = values.notna() & (weights > 0)
    return f"{np.average(values[known], weights=weights[known]):.0%}" if known.any() else "none (no cases)"


def fig7(run: Path, theme: Theme) -> Drawing:
    """Fig. 7: plain, forced and bound, for each evaluated model."""
    table = diagnostics.fig7_table(run)
    if table.empty:
        raise NoData("No evaluation has been made yet.")
    measure = "pass@1" if (table["measure"] == "pass@1").any() else "greedy"
    table = table[table["measure"] == measure]
    labels, modes = list(table["label"].unique()), [m for m in ("plain", "forced", "bound") if m in set(table["mode"])]
    colors = {"plain": theme.blue, "forced": theme.purple, "bound": theme.grey}
    figure, (axis,) = panels(1, 3.7)
    width = 0.8 / len(modes)
    for number, mode in enumerate(modes):
        part = table[table["mode"] == mode].set_index("label").reindex(labels)
        at = np.arange(len(labels)) + (number - (len(modes) - 1) / 2) * width
        value = part["value"].astype(float)
        spread = np.vstack([value - part["low"].astype(float), part["high"].astype(float) - value])
        axis.bar(at, value, width * 0.92, color=colors[mode], label=mode)
        axis.errorbar(at, value, spread, fmt="none", ecolor=theme.ink, elinewidth=1.1, capsize=2.5)
        for x, height, top in zip(at, value, part["high"].astype(float), strict=True):
            if not np.isnan(height):
                axis.annotate(f"{height:.0%}", (x, top), (0, 3), textcoords="offset points", ha="center", fontsize=8.5)
    plain = table[table["mode"] == "plain"].set_index("label")["rethinking"]
    names = [f"{name}\n{plain[name]:.0%} reflect" if name in plain else name for name in labels]
    axis.set_xticks(range(len(labels)), names)
    axis.tick_params(axis="x", labelcolor=theme.ink)
    axis.set_title("Held-out accuracy, plain and with a second look")
    share_axis(axis, 1.12)
    axis.set_yticks(np.arange(0, 1.01, 0.25))
    legend(axis, 3, loc="lower left", bbox_to_anchor=(-0.01, 0.97))
    first = table.iloc[0]
    kind = "one sampled response (pass@1)" if measure == "pass@1" else "the greedy response"
    return Drawing(
        figure,
        f"Second looks at test time (the paper's Fig. 7): accuracy of {kind}; {int(first['clusters'])} held-out "
        f"queries, n = {int(first['n'])} responses a bar; lines: 95% interval with queries as clusters. plain: the "
        f"model as it is; forced: every response continued after a trigger; bound: wrong responses only, which needs "
        f"the label. Below: share of plain responses that reflect by themselves.",
    )


def kinds(run: Path, theme: Theme) -> Drawing:
    """Accuracy by kind of question, before and after."""
    table = diagnostics.accuracy_by(run, "category")
    if table.empty:
        raise NoData("No evaluation has been made yet.")
    measure = "pass@1" if (table["measure"] == "pass@1").any() else "greedy"
    table = table[(table["measure"] == measure) & (table["mode"] == "plain")]
    if table.empty:
        raise NoData("No evaluation in the mode plain has been made yet.")
    labels = list(table["label"].unique())
    last = table[table["label"] == labels[-1]].sort_values("value")
    order = list(last["category"])
    figure, (axis,) = panels(1, 1.5 + 0.44 * len(order))
    colors = (theme.grey, theme.blue, theme.purple, theme.green, theme.orange)
    markers = ("o", "D", "s", "^", "v")
    for number, label in enumerate(labels):
        part = table[table["label"] == label].set_index("category").reindex(order)
        y = np.arange(len(order)) + (len(labels) - 1 - 2 * number) * 0.09
        value = part["value"].astype(float)
        spread = np.vstack([value - part["low"].astype(float), part["high"].astype(float) - value])
        color = colors[number % len(colors)]
        axis.errorbar(value, y, xerr=spread, fmt=markers[number % 5], color=color, elinewidth=1.3, ms=6, label=label)
    axis.set_yticks(range(len(order)), [name or "(none)" for name in order])
    axis.tick_params(axis="y", labelcolor=theme.ink)
    axis.grid(True, axis="x")
    axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.set_xlim(0, 1)
    axis.set_title("Held-out accuracy by kind of question")
    legend(axis, len(labels), loc="lower left", bbox_to_anchor=(-0.01, 0.97))
    cases = sorted(last["clusters"].astype(int))
    kind = "sampled (pass@1)" if measure == "pass@1" else "greedy"
    size = f"{cases[0]} to {cases[-1]}" if cases[0] < cases[-1] else f"{cases[0]}"
    return Drawing(
        figure,
        f"Accuracy of plain responses by kind of question, {kind}, {size} held-out queries a kind; "
        f"lines: 95% intervals with queries as clusters.",
    )


def overview(run: Path, theme: Theme) -> Drawing:
    """Three panels for the README: accuracy, reflection, effective share."""
    rows = episodes(run)
    figure, (left, middle, right) = panels(3, 2.9)
    try:
        words = _validation(left, run, theme)
    except NoData:
        line(left, rows, "accuracy/first", theme.blue, "training queries, sampled")
        words = "sampled accuracy of first responses on training queries"
    left.set_title("Accuracy")
    line(middle, rows, "reflection/share", theme.purple, "reflects")
    middle.set_title("Spontaneous reflection")
    line(right, rows, "queries/effective", theme.orange, "first responses")
    line(right, rows, "replay/effective_after", theme.green, "trained samples", (0, (3, 1.5)))
    right.set_title("Effective share")
    for axis in (left, middle, right):
        share_axis(axis, 1.02)
        time_axis(axis, run)
    legend(right, 1, loc="lower left")
    return Drawing(
        figure,
        f"Training at a glance. Accuracy: {words}. Reflection: share of sampled first responses with a reflection "
        f"word that nobody forced. Effective: queries whose first responses are neither all right nor all wrong, and "
        f"trained samples with an advantage other than zero ({_queries(run)}).{smoothing(len(rows))}",
    )


FIGURES: dict[str, Callable[[Path, Theme], Drawing]] = {
    "overview": overview,
    "validation": validation,
    "fig7": fig7,
    "kinds": kinds,
    "vanishing": vanishing,
    "advantages": advantages,
    "rethinking": rethinking,
}
