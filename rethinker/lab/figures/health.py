"""Healthy and unhealthy runs over their episodes, a panel per metric."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib
from matplotlib.ticker import MaxNLocator

from rethinker.lab.analysis.vital_signs import EPISODE, STEP, vital_signs
from rethinker.lab.figures.output import finish
from rethinker.lab.figures.style import DASHES, LIGHT, Drawing, Theme, colors, grid, settings

MARKERS = "os^Dvx"


def health(runs: Mapping[str, str | Path], theme: Theme = LIGHT) -> Drawing:
    """The metrics of ``vital_signs`` for up to six runs, by label; a gap is an episode without any update."""
    table = vital_signs(runs)
    with matplotlib.rc_context(settings(theme)):
        figure, axes = grid(len(EPISODE) + len(STEP), height=2.1, sharey=False)
        for axis, name in zip(axes, (*EPISODE, *STEP), strict=True):
            for label, color, dash, marker in zip(runs, colors(theme), DASHES, MARKERS, strict=False):
                part = table[table["run"] == label]
                axis.plot(
                    part["episode"],
                    part[name],
                    color=color,
                    linestyle=dash,
                    marker=marker,
                    ms=4,
                    label=label,
                    alpha=0.9,
                )
            axis.set_title(name, pad=5)
            axis.set_ylim(min(0, axis.get_ylim()[0]), None)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axis in axes[-3:]:
            axis.set_xlabel("episode")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=6)
    episodes = table.groupby("run").size()
    words = (
        f"Vital signs of {len(runs)} runs, n = {episodes.min()} to {episodes.max()} episodes each; values without "
        f"interval, those of the lower row are means over an episode's updates. A line that is missing in the lower "
        f"row belongs to a run that made no update."
    )
    return finish(Drawing(figure, words), "One seed each.")
