"""Figures of the method's parts for the notebooks that teach them.

Intervals are 95%; every caption says n, the seed and the interval where something was drawn or measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from rethinker.config import load_config
from rethinker.lab.analysis import method as method_tables
from rethinker.lab.figures.output import finish
from rethinker.lab.figures.style import (
    DASHES,
    LIGHT,
    Drawing,
    NoData,
    Theme,
    legend,
    legend_below,
    panels,
    settings,
    share_axis,
)
from rethinker.lab.figures.timeline import line, smoothing, time_axis
from rethinker.rundir.paths import RunDir
from rethinker.rundir.reader import run_seed

ABOVE: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (-0.01, 0.97)}  # between panel and title
NOTHING_DRAWN = "A formula: nothing is sampled."


def _of_run(run: str | Path) -> str:
    seed = run_seed(run)
    return f"One run, seed {'not recorded' if seed is None else seed}."


@contextmanager
def _style(theme: Theme) -> Iterator[None]:
    with matplotlib.rc_context(settings(theme)):
        yield


def clipped_objective(clip_low: float, clip_high: float, dual_clip: float = 0.0, theme: Theme = LIGHT) -> Drawing:
    """The objective of one token over its ratio, for A = 1 and A = -1; ``dual_clip`` 0: without a dual clip."""
    ratio = np.linspace(0, max(2.5, dual_clip + 0.5), 501)
    clipped = ratio.clip(1 - clip_low, 1 + clip_high)
    with _style(theme):
        figure, axes = panels(2, 3.2)
        for axis, advantage in zip(axes, (1.0, -1.0), strict=True):
            value = np.minimum(ratio * advantage, clipped * advantage)
            if advantage < 0 and dual_clip:
                value = np.maximum(value, dual_clip * advantage)
            axis.axvspan(1 - clip_low, 1 + clip_high, color=theme.grid, alpha=0.6, linewidth=0)
            axis.plot(ratio, ratio * advantage, color=theme.grey_line, linestyle=(0, (2, 2)), label="ratio x A")
            axis.plot(ratio, value, color=theme.blue if advantage > 0 else theme.orange, label="objective")
            axis.axvline(1, color=theme.muted, linewidth=0.8)
            axis.set_title(f"A = {advantage:+.0f}", pad=8)
            axis.set_xlabel("ratio of the policy to the one that wrote the token")
            axis.set_xlim(0, ratio[-1])
            legend(axis, 1, loc="best")
    dual = f"; below -{dual_clip:g} the dual clip holds it" if dual_clip else ""
    words = (
        f"The clipped objective of one token. Shaded: 1 - {clip_low:g} to "
        f"1 + {clip_high:g}. Where the line is level the token has no gradient: a good token that has become likelier "
        f"than {1 + clip_high:g} times, and a bad one that has become rarer than {1 - clip_low:g} times{dual}. "
        f"On the other sides the minimum keeps the gradient, so that mistakes can always be undone."
    )
    return finish(Drawing(figure, words), NOTHING_DRAWN)


def advantages_by_correct(scales: Mapping[str, Tensor], theme: Theme = LIGHT) -> Drawing:
    """What dividing by the standard deviation does to rare and common successes.

    ``scales``: advantages (G - 1, G) by ``advantage_scale``; row k - 1 is a group with k right responses, those first.
    """
    size = next(iter(scales.values())).shape[1]
    right = range(1, size)
    with _style(theme):
        figure, axes = panels(len(scales), 3.2)
        for axis, (scale, advantages) in zip(axes, scales.items(), strict=True):
            axis.plot(right, advantages[:, 0], color=theme.blue, marker="o", markersize=4, label="a right one")
            axis.plot(right, advantages[:, -1], color=theme.orange, marker="s", markersize=4, label="a wrong one")
            axis.plot(
                [0, size], [0, 0], color=theme.ink, marker="D", markersize=5, linestyle="none", label="unanimous: 0"
            )
            axis.axhline(0, color=theme.muted, linewidth=0.8)
            axis.set_title(f"advantage_scale: {scale}", pad=8)
            axis.set_xlabel(f"right responses of {size}")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[0].set_ylabel("advantage")
        legend(axes[0], 1, loc="best")
    weights = " and ".join(f"{float(rows[0, 0]):.2f} ({scale})" for scale, rows in scales.items())
    words = (
        f"Advantages in a group of {size} binary rewards. A lone success weighs {weights}; with half of the "
        f"responses right, the two differ by a factor of about 2. Unanimous groups have exactly 0: they are the "
        f"vanishing advantages."
    )
    return finish(Drawing(figure, words), NOTHING_DRAWN)


def alpha_sweep(table: pd.DataFrame, draws: int, seed: int, theme: Theme = LIGHT) -> Drawing:
    """``teaching.draws_table``: replay's sampling distribution against draws of the real buffer, and how evenly it
    draws."""
    colors = (theme.grey_line, theme.sky_line, theme.blue, theme.purple, theme.orange, theme.green)
    dashes = ("-", (0, (6, 1)), (0, (3, 1.5)), (0, (1, 1.5)), (0, (5, 1, 1, 1)), (0, (2, 3)))
    alphas = list(table["alpha"].unique())
    even = []
    with _style(theme):
        figure, (left, right) = panels(2, 3.5)
        for number, alpha in enumerate(alphas):
            part = table[table["alpha"] == alpha].sort_values("abs(A)")
            color, dash = colors[number % len(colors)], dashes[number % len(dashes)]
            left.plot(part["abs(A)"], part["probability"], color=color, linestyle=dash, label=f"alpha {alpha:g}")
            spread = np.vstack([part["share"] - part["low"], part["high"] - part["share"]]).clip(min=0)
            left.errorbar(part["abs(A)"], part["share"], spread, fmt="o", color=color, markersize=3.5, elinewidth=1)
            even.append(1 / float((part["probability"] ** 2).sum()))
        left.set_title("Probabilities (lines) and draws (dots)", pad=8)
        left.set_xlabel("abs(A)")
        left.set_ylabel("probability of a draw")
        left.set_ylim(0, None)
        legend(left, 1, loc="upper left")
        right.plot(alphas, even, color=theme.blue, marker="o", markersize=4)
        right.set_title("Samples that share the draws", pad=8)
        right.set_xlabel("alpha")
        right.set_ylabel("1 / sum of squared probabilities")
        right.set_ylim(0, table["sample"].nunique() + 0.5)
    worst = float(table["z"].abs().max())
    words = (
        f"P(j) proportional to abs(A_j)^alpha. Left: {table['sample'].nunique()} samples in the buffer, n = {draws:,} "
        f"draws a value of alpha, 95% Wilson intervals (smaller than most dots); the largest of "
        f"{len(table)} distances from the probability is {worst:.1f} standard errors. Right: the number of equally "
        f"likely samples that would be drawn as unevenly; alpha 0 draws all alike."
    )
    return finish(Drawing(figure, words), f"Seed {seed}.")


def buffer_life(run: str | Path, theme: Theme = LIGHT) -> Drawing:
    """What replay adds to the batches of a run, and how old it is. NoData if nothing was ever kept for replay."""
    table = method_tables.buffer_life(run)
    if table.empty or not table["buffer_size"].astype(float).max() > 0:
        raise NoData("The run has kept no sample for replay: replay.mode is not ssr, or no sample had an advantage.")
    with _style(theme):
        figure, (left, middle, right) = panels(3, 3.1)
        line(left, table, "effective_before", theme.grey_line, "rolled out")
        line(left, table, "effective_after", theme.blue, "trained")
        line(left, table, "share", theme.orange, "replayed", DASHES[1])
        left.set_title("Effective, and replayed")
        share_axis(left, 1.04)
        legend_below(left, 3)
        line(middle, table, "buffer_size", theme.purple, "samples")
        middle.set_title("Samples in the buffer")
        middle.set_ylim(0, None)
        line(right, table, "age_mean", theme.green, "mean")
        line(right, table, "age_max", theme.grey_line, "largest", DASHES[1])
        right.set_title("Age of replayed samples")
        right.set_ylabel("episodes")
        right.set_ylim(0, None)
        legend_below(right, 2)
        for axis in (left, middle, right):
            time_axis(axis, Path(run))
    replayed = table["share"].astype(float).mean()
    without = int(table["age_mean"].isna().sum())
    gaps = f" Gaps: nothing was replayed in {without} of the episodes." if without else ""
    words = (
        f"The replay buffer over n = {len(table)} episodes (values without interval); it starts empty with a stage. "
        f"Left: the share of samples with an advantage among those rolled out and those trained on, and the share of "
        f"the trained ones that came from the buffer ({replayed:.0%} on average). Right: ages in episodes; 0 is the "
        f"episode that made the sample.{gaps}{smoothing(len(table))}"
    )
    return finish(Drawing(figure, words), _of_run(run))


def triggers(run: str | Path, theme: Theme = LIGHT) -> Drawing:
    """What a second look does to wrong and to right answers, by trigger. NoData if nothing was forced."""
    table, config = method_tables.trigger_table(run), load_config(RunDir(run).config)
    if table.empty:
        raise NoData("Nothing was forced to rethink: no stage with rethink.fraction > 0 has had an episode yet.")
    with _style(theme):
        figure, (axis,) = panels(1, 1.6 + 0.5 * len(table))
        for name, color, marker, shift in (("rescued", theme.green, "o", 0.12), ("lost", theme.orange, "s", -0.12)):
            known = table[table[f"{name}_n"] > 0]
            value = known[name].astype(float)
            spread = np.vstack(
                [value - known[f"{name}_low"].astype(float), known[f"{name}_high"].astype(float) - value]
            )
            words = "wrong, then right" if name == "rescued" else "right, then wrong"
            at = known.index.to_numpy() + shift
            axis.errorbar(
                value, at, xerr=spread.clip(min=0), fmt=marker, color=color, ms=6, elinewidth=1.3, label=words
            )
        axis.set_yticks(
            range(len(table)), [f"{row['trigger']}\n{row['forced']} forced" for row in table.to_dict("records")]
        )
        axis.tick_params(axis="y", labelcolor=theme.ink)
        axis.grid(True, axis="x")
        axis.set_xlim(-0.02, 1.02)
        axis.set_ylim(-0.6, len(table) - 0.4)
        axis.set_xlabel("share of the wrong (right) first answers")
        axis.set_title("Second looks by trigger")
        legend(axis, 2, **ABOVE)
    chosen = {config.for_stage(number).rethink.trigger_choice for number in range(len(config.stages))}
    words = (
        f"Forced second looks of training by trigger, n = {int(table['forced'].sum()):,}; "
        f"lines: 95% intervals with queries as clusters. "
        + (
            "The trigger was drawn without looking at the answer, so that its words are the only difference."
            if chosen == {"blind"}
            else "The trigger was chosen by the verdict on the first answer: its words are not the only difference."
        )
    )
    return finish(Drawing(figure, words), _of_run(run))
