"""A run in a notebook while it trains: figures and the newest responses with their images, renewed in place.

Plain display handles (``update_display``), no widgets and no JavaScript: it works over a remote kernel, under papermill
and in the saved notebook. It reads the run's files and costs training nothing. Nothing here is from the paper.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from IPython.display import HTML, Image, display
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from rethinker.lab.figures.catalogue import render
from rethinker.lab.figures.style import LIGHT, THEMES, Drawing, Theme, legend_below, panels, settings, share_axis
from rethinker.lab.figures.timeline import line
from rethinker.lab.jobs import Job, JobStatus
from rethinker.lab.report.html import environment
from rethinker.lab.watch.snapshot import Snapshot, snapshot
from rethinker.rundir.reader import Metrics

WIDTH = 980  # pixels of the figure on the page


def watch(
    run: Job | str | Path,
    every: float = 2.0,
    timeout: float | None = None,
    *,
    until: int | None = None,
    responses: int = 4,
    theme: Theme | str = LIGHT,
) -> JobStatus:
    """Show ``run``, a job or the folder of one, until it ends; returns how it stands then.

    ``timeout``: for at most this many seconds; ``until``: until this episode has ended. Three outputs are renewed in
    place: where the run is, its figures, and ``responses`` responses of the newest episode; looks come ``every``
    seconds, and what has not changed is not sent again. Interrupting the cell ends the watching, not the run. Raises
    FileNotFoundError if ``run`` is not the folder of a run.
    """
    job = run if isinstance(run, Job) else Job(run)
    theme = THEMES[theme] if isinstance(theme, str) else theme
    screen = Screen(job, responses, theme)
    deadline = None if timeout is None else time.monotonic() + timeout
    status = screen.look()
    try:
        while status.alive and (deadline is None or time.monotonic() < deadline):
            if until is not None and status.episode >= until:
                break
            job.wait(every if deadline is None else max(0.0, min(every, deadline - time.monotonic())))
            status = screen.look()
    except KeyboardInterrupt:
        pass
    return status


@dataclass
class _Place:
    """An output of the cell that is renewed; what has not changed is not sent again."""

    handle: Any = None
    shown: Any = None

    def show(self, key: Any, content: Any) -> None:
        if self.handle is None:
            self.handle = display(content, display_id=True)
        elif key != self.shown:
            self.handle.update(content)
        self.shown = key


class Screen:
    """The three outputs of a cell."""

    def __init__(self, job: Job, responses: int, theme: Theme) -> None:
        self.job, self.responses, self.theme = job, responses, theme
        self.head, self.figure, self.said = _Place(), _Place(), _Place()

    def look(self) -> JobStatus:
        run = snapshot(self.job)
        text = head(run)
        self.head.show(text, HTML(text))
        episodes = len(run.metrics.episodes), len(run.metrics.validations), run.status.episode
        if run.metrics.episodes.empty:  # holds the places, in order
            self.figure.show(None, HTML("<span class='muted'>The figures come with the first episode.</span>"))
        elif episodes != self.figure.shown:
            drawing = charts(run.metrics, self.theme)
            self.figure.show(episodes, Image(data=render(drawing, "png"), width=WIDTH, alt=drawing.caption))
        if run.rollouts is None:
            self.said.show(None, HTML(""))
        elif run.rollouts != self.said.shown:
            self.said.show(run.rollouts, HTML(said(run, self.responses, Path(self.job.record.get("home", "")))))
        return run.status


def head(run: Snapshot) -> str:
    """Where the run is, as HTML: name, state, progress, and what is wrong."""
    return environment.get_template("live_head.html").render(run=run, status=run.status)


def said(run: Snapshot, n: int, home: Path) -> str:
    """``n`` responses of the newest episode with the images of their questions, as HTML.

    ``home``: where the run's relative paths start.
    """
    assert run.rollouts is not None
    return environment.get_template("live_responses.html").render(
        episode=run.rollouts[0], responses=run.responses(n), home=home
    )


def charts(metrics: Metrics, theme: Theme = LIGHT) -> Drawing:
    """Four panels over the episodes so far: reward and accuracy, effective share, replay and reflection, tokens/s."""
    table, points = metrics.episodes, metrics.validations
    with matplotlib.rc_context(settings(theme)):
        figure, axes = panels(4, 2.6)
        figure.set_size_inches(13, 2.9)
        reward, effective, share, speed = axes
        line(reward, table, "reward/mean", theme.blue, "reward")
        line(reward, table, "accuracy/first", theme.orange, "accuracy", (0, (3, 1.5)))
        if len(points):
            greedy = points["validation/accuracy"]
            reward.plot(points["episode"], greedy, "o", color=theme.green, markersize=4, label="validation")
        line(effective, table, "replay/effective_before", theme.orange, "before")
        line(effective, table, "replay/effective_after", theme.green, "trained on", (0, (3, 1.5)))
        line(share, table, "replay/share", theme.blue, "replayed")
        line(share, table, "reflection/share", theme.purple, "reflects by itself", (0, (3, 1.5)))
        line(speed, table, "rollout/tokens_per_second", theme.grey, "tokens/s")
        for axis, title in zip(
            axes, ("Reward and accuracy", "Effective samples", "Replay and reflection", "Tokens/s"), strict=True
        ):
            axis.set_title(title, pad=8)
            axis.set_xlabel("episode")
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
            if axis is speed:
                axis.set_ylim(0)
            else:
                share_axis(axis, 1.03)
                legend_below(axis, 3, lines=2)
            _stages(axis, table)
        reward.set_ylim(bottom=min(0.0, float(table["reward/mean"].min())))  # a price of tokens can make it negative
    return Drawing(
        figure,
        f"Training so far ({len(table)} episodes): mean reward of the trained groups, accuracy of sampled first "
        "responses and greedy validation accuracy; share of samples whose advantage, by correctness, is not zero, "
        "before and after selection; share of trained samples from the buffer and of first responses that reflect "
        "unforced; generated tokens by second of generation.",
    )


def _stages(axis: Axes, table: pd.DataFrame) -> None:
    """A line where a stage begins."""
    changes = table["stage"].ne(table["stage"].shift())
    for episode in table["episode"][changes].iloc[1:]:
        axis.axvline(episode - 0.5, color=axis.xaxis.label.get_color(), linewidth=1, linestyle=(0, (2, 2)), zorder=1.5)
