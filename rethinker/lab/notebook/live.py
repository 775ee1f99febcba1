"""A run in a notebook while it trains: figures and the newest responses with their images, renewed in place.

Plain display handles (``update_display``), no widgets and no JavaScript: it works over a remote kernel, under papermill
and in the saved notebook. It reads the run's files and costs training nothing. Nothing here is from the paper.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from html import escape
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
from rethinker.lab.jobs.handle import Job, JobStatus
from rethinker.lab.report import page as report_page
from rethinker.lab.watch.follow import RunReader, ShownResponse
from rethinker.lab.watch.terminal import headline
from rethinker.rundir.glossary import COORDINATES, RECORDS

WIDTH = 980  # pixels of the figure on the page

STYLE = """<style>
.rethinker-live { font: 14px/1.5 system-ui, sans-serif; max-width: 60rem; }
.rethinker-live .bar { background: rgba(128,128,128,.25); border-radius: 5px; height: 10px; margin: .4rem 0; }
.rethinker-live .bar div { background: #0072b2; border-radius: 5px; height: 10px; min-width: 4px; }
.rethinker-live .state { font-weight: 700; } .rethinker-live .muted { opacity: .7; }
.rethinker-live .said { white-space: pre-wrap; overflow-wrap: anywhere; font: 12.5px/1.45 monospace;
  border-left: 4px solid rgba(128,128,128,.4); padding: .1rem .7rem; margin: .3rem 0;
  max-height: 14rem; overflow-y: auto; }
.rethinker-live .second { border-left-color: #0072b2; }
.rethinker-live .right { color: #008a62; font-weight: 700; }
.rethinker-live .wrong { color: #d55e00; font-weight: 700; }
.rethinker-live .one { display: grid; grid-template-columns: 120px minmax(0, 1fr); gap: 1rem; padding: .7rem 0;
  border-top: 1px solid rgba(128,128,128,.3); }
.rethinker-live .one img { width: 112px; height: auto; image-rendering: pixelated; margin: 0 0 .3rem; }
</style>"""


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

    ``timeout``: for so many seconds at most; ``until``: until this episode has ended. Three outputs are renewed in
    place: where the run is, its figures, and ``responses`` responses of the newest episode; looks come ``every``
    seconds, and what has not changed is not sent again. Interrupting the cell ends the watching, not the run. Raises
    FileNotFoundError where ``run`` is not the folder of a run.
    """
    job = run if isinstance(run, Job) else Job(run)
    theme = THEMES[theme] if isinstance(theme, str) else theme
    screen = _Screen(job, responses, theme)
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


class _Screen:
    """The three outputs of a cell."""

    def __init__(self, job: Job, responses: int, theme: Theme) -> None:
        self.job, self.responses, self.theme = job, responses, theme
        self.reader = RunReader(job.folder)
        self.head, self.figure, self.said = _Place(), _Place(), _Place()

    def look(self) -> JobStatus:
        status = self.job.status()  # before the reading: then what an ended run wrote has been read
        self.reader.update()
        text = head(self.job, self.reader, status)
        self.head.show(text, HTML(text))
        episodes = len(self.reader.episodes), len(self.reader.validations), status.episode
        if not self.reader.episodes:  # holds the places, in order
            self.figure.show(None, HTML("<span class='muted'>The figures come with the first episode.</span>"))
        elif episodes != self.figure.shown:
            drawing = charts(self.reader, self.theme)
            self.figure.show(episodes, Image(data=render(drawing, "png"), width=WIDTH, alt=drawing.caption))
        newest = self.reader.rollouts()
        if newest is None:
            self.said.show(None, HTML(""))
        elif newest != self.said.shown:
            self.said.show(newest, HTML(said(self.job, self.reader, self.responses)))
        return status


def head(job: Job, reader: RunReader, status: JobStatus) -> str:
    """Where the run is, as HTML: name, state, progress, and what went wrong."""
    share = 100 * min(1.0, status.episode / max(1, status.episodes))
    wrong = "".join(f'<div class="said wrong">{escape(text)}</div>' for text in status.error)
    return (
        f'{STYLE}<div class="rethinker-live"><span class="state">{escape(job.name)}: {status.state}</span> '
        f'<span class="muted">{escape(headline(reader, status))}</span>'
        f'<div class="bar"><div style="width:{share:.1f}%"></div></div>{wrong}</div>'
    )


def charts(reader: RunReader, theme: Theme = LIGHT) -> Drawing:
    """Four panels over the episodes so far: reward and accuracy, effective share, replay and reflection, tokens/s."""
    # A run of another version may lack a metric: its line is missing then, and nothing else.
    table = pd.DataFrame(reader.episodes, columns=[*COORDINATES, *RECORDS["episode"]])
    with matplotlib.rc_context(settings(theme)):
        figure, axes = panels(4, 2.6)
        figure.set_size_inches(13, 2.9)
        reward, effective, share, speed = axes
        line(reward, table, "reward/mean", theme.blue, "reward")
        line(reward, table, "accuracy/first", theme.orange, "accuracy", (0, (3, 1.5)))
        if reader.validations:
            points = pd.DataFrame(reader.validations, columns=[*COORDINATES, *RECORDS["validation"]])
            greedy = pd.to_numeric(points["validation/accuracy"])
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
    return Drawing(
        figure,
        f"Training so far ({len(table)} episodes): mean reward of the trained groups, accuracy of sampled first "
        "responses and greedy validation accuracy; share of samples with an advantage other than zero, before and "
        "after selection; share of trained samples from the buffer and of first responses that reflect unforced; "
        "generated tokens by second of generation.",
    )


def _stages(axis: Axes, table: pd.DataFrame) -> None:
    """A line where a stage begins."""
    changes = table["stage"].ne(table["stage"].shift())
    for episode in table["episode"][changes].iloc[1:]:
        axis.axvline(episode - 0.5, color=axis.xaxis.label.get_color(), linewidth=1, linestyle=(0, (2, 2)), zorder=1.5)


def said(job: Job, reader: RunReader, n: int) -> str:
    """``n`` responses of the newest episode with the images of their questions, as HTML."""
    newest = reader.rollouts()
    if newest is None:
        return ""
    home = Path(job.record.get("home", ""))  # where the run's relative paths start
    rows = "".join(_one(response, home) for response in reader.responses(n))
    title = f"Responses of episode {int(newest.stem.split('-')[1])}"
    return f'<div class="rethinker-live"><b>{title}</b>{rows}</div>'


def _one(response: ShownResponse, home: Path) -> str:
    pictures = "".join(report_page.image(str(home / path)) for path in response.images)
    level = f", level {response.level}" if response.level else ""
    first, second = (_verdict(right) for right in (response.first_correct, response.correct))
    again = "" if response.second is None else f'<div class="said second">{second} {escape(response.second)}</div>'
    return (
        f'<div class="one"><div>{pictures}</div><div>'
        f'<div class="muted">{escape(response.category)}{level} · gold answer {escape(response.gold)}</div>'
        f'<b>{escape(response.question)}</b><div class="said">{first} {escape(response.first)}</div>{again}'
        "</div></div>"
    )


def _verdict(correct: bool) -> str:
    return '<span class="right">✓</span>' if correct else '<span class="wrong">✗</span>'
