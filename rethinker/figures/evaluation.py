"""Figures of held-out queries: plain, forced and bound (Fig. 7), and by kind of question."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.ticker import PercentFormatter

from rethinker import diagnostics
from rethinker.figures.style import Drawing, NoData, Theme, legend, panels, share_axis


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
