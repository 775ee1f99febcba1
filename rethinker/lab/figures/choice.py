"""Where a run's policy thinks twice, and what it pays for: held-out responses before and after its last stage."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from rethinker.evaluation.result import load
from rethinker.lab.analysis import choice
from rethinker.lab.analysis.diagnostics import load_evaluations, load_metrics
from rethinker.lab.figures import evidence
from rethinker.lab.figures.style import Drawing, NoData, Theme, legend_below, panels, share_axis
from rethinker.lab.figures.words import level_name
from rethinker.rundir.paths import RunDir
from rethinker.rundir.reader import file_stamp

FIRST = {0.0: "wrong", 1.0: "right"}


def held_out_looks(run: Path, label: str) -> pd.DataFrame:
    """``choice.looks`` of an evaluation's sampled responses, or of its greedy ones where none was sampled."""
    return _looks(run, label, file_stamp(RunDir(run).evaluation_rows(label)))


@lru_cache(maxsize=8)  # light and dark, and two figures
def _looks(run: Path, label: str, _: object) -> pd.DataFrame:
    evaluation = load(run, label)
    return choice.looks(evaluation.rows[evaluation.rows["greedy"] != (evaluation.samples > 0)])


def evaluated(run: Path, mode: str) -> list[str]:
    """The evaluations of the run itself that have ``mode``: before training and after each stage."""
    own = ["start", *load_metrics(run).stages()["stage"]]
    return [label for label, found in load_evaluations(run).items() if label in own and mode in found["modes"]]


def second_looks(run: Path, theme: Theme) -> Drawing:
    """Second looks by kind, level and first verdict, before and after the last stage, beside right first looks."""
    labels = evaluated(run, "plain")[-2:]
    tables = {label: held_out_looks(run, label) for label in labels}
    tables = {label: table[table["mode"] == "plain"] for label, table in tables.items()}
    if not any(table["second"].any() for table in tables.values()):
        raise NoData("No held-out response takes a second look by itself yet.")
    figure, axes = panels(3, 3.6)
    titles = {"category": "kind of question", "level": "difficulty", "first_correct": "first look"}
    shades = (theme.grey, theme.purple)[-len(labels) :]
    for axis, (by, title) in zip(axes, titles.items(), strict=True):
        keys = sorted({key for table in tables.values() for key in table[by].dropna()})
        for number, (table, color) in enumerate(zip(tables.values(), shades, strict=True)):
            at = np.arange(len(keys)) + (number - (len(labels) - 1) / 2) * 0.4
            _bars(
                axis, at, choice.second_looks_by(table, [by]).set_index(by).reindex(keys), color, theme, labels[number]
            )
        if by != "first_correct":
            right = tables[labels[-1]].groupby(by)["first_correct"].mean().reindex(keys)
            axis.plot(range(len(keys)), right, "D", color=theme.blue, mec=theme.paper, ms=7, label="right first looks")
        names = [FIRST[key] if by == "first_correct" else level_name(by, key) for key in keys]
        axis.set_xticks(range(len(keys)), names)
        axis.set_title(f"Second looks by {title}", pad=8)
        share_axis(axis, 1.03)
    legend_below(axes[1], 3, lines=1)
    return Drawing(
        figure,
        f"Where it thinks twice: share of {'; '.join(_words(label, table) for label, table in tables.items())}. Lines: "
        f"95% intervals with queries as clusters; diamonds: share of right first looks, {labels[-1]}.",
    )


def _bars(axis: Axes, at: np.ndarray, part: pd.DataFrame, color: str, theme: Theme, label: str) -> None:
    value, low, high = (part[name].astype(float).to_numpy() for name in ("share", "low", "high"))
    axis.bar(at, value, 0.37, color=color, label=label)
    axis.errorbar(
        at, value, np.vstack([value - low, high - value]).clip(min=0), fmt="none", ecolor=theme.ink, elinewidth=1.1
    )


def _words(label: str, table: pd.DataFrame) -> str:
    shares = choice.rates(table)
    parts = [
        f"{shares[first]:.0%} after {first} first looks" for first in FIRST.values() if not np.isnan(shares[first])
    ]
    knows = choice.knows_when_wrong(table, choice.CELLS) if table["second"].any() else np.nan
    within = "" if np.isnan(knows) else f"; AUC against wrong first looks within kind and level {knows:.2f}"
    when = "before training" if label == "start" else f"after {label}"
    return (
        f"held-out responses with a second look {when}, {table['second'].mean():.0%} ({', '.join(parts)}{within}), "
        f"n = {len(table)} responses to {table['qid'].nunique()} queries"
    )


def frontier(run: Path, theme: Theme) -> Drawing:
    """Accuracy over tokens a response: plain, forced and bound, before training and after each stage."""
    labels = evaluated(run, "plain")
    tables = [held_out_looks(run, label).assign(variant=label) for label in labels]
    if not any(table.loc[table["mode"] == "plain", "second"].any() for table in tables):
        raise NoData("No held-out response takes a second look by itself yet.")
    points = choice.frontier(pd.concat(tables), ("variant", "mode"))
    plain = points[points["mode"] == "plain"]
    steps = ", ".join(f"{row.variant} {row.accuracy:.1%} for {row.tokens:.0f} tokens" for row in plain.itertuples())
    caption = (
        f"What second looks cost: accuracy over the length of a response, forced trigger included; plain: {steps}; "
        f"lines up and down: 95% intervals with queries as clusters, n = {points['n'].max()} responses to "
        f"{points['clusters'].max()} held-out queries a point. forced: every response continued after a trigger; "
        "bound: only wrong responses (needs the label)."
    )
    return evidence.frontier(points, caption, theme=theme)
