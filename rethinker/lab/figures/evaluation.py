"""Figures of held-out queries: plain, forced and bound (Fig. 7), and by kind of question."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.ticker import PercentFormatter

from rethinker.lab.analysis import diagnostics
from rethinker.lab.figures.style import Drawing, NoData, Theme, legend, panels, share_axis


def one_measure(table: pd.DataFrame) -> tuple[pd.DataFrame, str, str]:
    """The rows of one measure, its name, and words for the evaluations that lack it ("" if none does).

    pass@1 where an evaluation has it, for sampled responses are what training is about; else the greedy response.
    """
    measure = "pass@1" if (table["measure"] == "pass@1").any() else "greedy"
    rows = table[table["measure"] == measure]
    lacking = [label for label in table["label"].unique() if label not in set(rows["label"])]
    return rows, measure, f"Without sampled responses, so not among them: {', '.join(lacking)}." if lacking else ""


def count_range(counts: pd.Series) -> str:
    """Numbers of cases in words: "64", or "64 to 500" where they differ."""
    low, high = int(counts.min()), int(counts.max())
    return f"{low}" if low == high else f"{low} to {high}"


def fig7(run: Path, theme: Theme) -> Drawing:
    """Fig. 7: plain, forced and bound, for each evaluated model."""
    table = diagnostics.fig7_table(run)
    if table.empty:
        raise NoData("No evaluation has been made yet.")
    table, measure, lacking = one_measure(table)
    labels, modes = list(table["label"].unique()), [m for m in ("plain", "forced", "bound") if m in set(table["mode"])]
    colors = {"plain": theme.blue, "forced": theme.purple, "bound": theme.grey}
    figure, (axis,) = panels(1, 3.7)
    width = 0.8 / len(modes)
    for number, mode in enumerate(modes):
        part = table[table["mode"] == mode].set_index("label").reindex(labels)
        at = np.arange(len(labels)) + (number - (len(modes) - 1) / 2) * width
        value = part["value"].astype(float)
        spread = np.vstack([value - part["low"].astype(float), part["high"].astype(float) - value]).clip(min=0)
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
    kind = "one sampled response (pass@1)" if measure == "pass@1" else "the greedy response"
    return Drawing(
        figure,
        f"Second looks at test time (the paper's Fig. 7): accuracy of {kind}; "
        f"{count_range(table['clusters'])} held-out queries, n = {count_range(table['n'])} responses per bar; lines: "
        f"95% intervals with queries as clusters. plain: the model as it is; forced: every response continued after a "
        f"trigger; bound: only wrong responses (needs the label). Below: share of plain responses that reflect by "
        f"themselves. {lacking}".strip(),
    )


def kinds(run: Path, theme: Theme) -> Drawing:
    """Accuracy by kind of question, before and after."""
    table = diagnostics.accuracy_by(run, "category")
    if table.empty:
        raise NoData("No evaluation has been made yet.")
    table = table[table["mode"] == "plain"]
    if table.empty:
        raise NoData("No evaluation in the mode plain has been made yet.")
    table, measure, lacking = one_measure(table)
    labels = list(table["label"].unique())
    last = table[table["label"] == labels[-1]].sort_values("value")
    order = list(dict.fromkeys([*last["category"], *table["category"]]))
    figure, (axis,) = panels(1, 1.5 + 0.44 * len(order))
    colors = (theme.muted, theme.blue, theme.purple, theme.green, theme.orange)
    markers = ("o", "D", "s", "^", "v")
    for number, label in enumerate(labels):
        part = table[table["label"] == label].set_index("category").reindex(order)
        y = np.arange(len(order)) + (len(labels) - 1 - 2 * number) * 0.09
        value = part["value"].astype(float)
        spread = np.vstack([value - part["low"].astype(float), part["high"].astype(float) - value]).clip(min=0)
        color = colors[number % len(colors)]
        axis.errorbar(value, y, xerr=spread, fmt=markers[number % 5], color=color, elinewidth=1.3, ms=6, label=label)
    axis.set_yticks(range(len(order)), [name or "(none)" for name in order])
    axis.tick_params(axis="y", labelcolor=theme.ink)
    axis.grid(True, axis="x")
    axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.set_xlim(-0.02, 1.02)  # a marker at 100% is a whole one
    axis.set_title("Held-out accuracy by kind of question")
    legend(axis, len(labels), loc="lower left", bbox_to_anchor=(-0.01, 0.97))
    kind = "sampled (pass@1)" if measure == "pass@1" else "greedy"
    return Drawing(
        figure,
        f"Accuracy of plain responses by kind of question, {kind}, {count_range(table['clusters'])} held-out queries "
        f"a kind; lines: 95% intervals with queries as clusters. {lacking}".strip(),
    )
