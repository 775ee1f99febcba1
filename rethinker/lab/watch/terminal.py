"""Watching a run from its files, while it trains or later: the terminal's view of it (``rethinker watch``).

No torch. Nothing here is from the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rethinker.lab.jobs.handle import Job, JobStatus
from rethinker.lab.watch.follow import RunReader, ShownResponse

SHOWN = (  # metric of an episode, its name in a view, largest value (None: of its own)
    ("reward/mean", "reward", 1.0),
    ("accuracy/first", "accuracy of first responses", 1.0),
    ("replay/effective_before", "effective samples, before", 1.0),
    ("replay/effective_after", "effective samples, trained on", 1.0),
    ("replay/share", "replayed", 1.0),
    ("reflection/share", "reflects by itself", 1.0),
    ("rollout/tokens_per_second", "tokens/s", None),
)
LEAST_LINES = 6  # of a response in a low terminal, the empty one above it included
COLORS = {"running": "green", "finished": "blue", "failed": "red"}
BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float | None], width: int, top: float | None = None) -> str:
    """Up to ``width`` bars from 0 to ``top`` (None: the largest value): means of equally many neighbours; a gap for
    no value."""
    per_bar = max(1, -(-len(values) // width))
    groups = [values[start : start + per_bar] for start in range(0, len(values), per_bar)]
    means = []
    for group in groups:
        known = [value for value in group if value is not None]
        means.append(sum(known) / len(known) if known else None)
    top = top or max((mean for mean in means if mean is not None), default=0.0) or 1.0
    return "".join(
        " " if mean is None else BARS[min(len(BARS) - 1, max(0, int(mean / top * len(BARS))))] for mean in means
    )


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def number(value: float | None, top: float | None = 1.0) -> str:
    """A metric: a share with two digits, a rate without; a dash for None."""
    return "–" if value is None else f"{value:.2f}" if top else f"{value:,.0f}"


def headline(reader: RunReader, status: JobStatus) -> str:
    """Where the run is, in a line."""
    step = reader.steps[-1]["step"] if reader.steps else 0
    parts = [f"episode {status.episode}/{status.episodes}", f"step {step}", clock(status.seconds)]
    left = reader.seconds_left(status.episodes)
    if status.alive and left is not None:
        parts.append(f"{clock(left)} left")
    return "  ".join(([status.stage] if status.stage else []) + parts)


def view(
    reader: RunReader, status: JobStatus, responses: int, console: Console, *, fit: bool = False
) -> RenderableType:
    """A run in a terminal: progress, metrics, the newest responses; ``fit``: no higher than the terminal, so that long
    responses lose their middles, and a low terminal shows fewer of them."""
    width = console.width
    top = Text.assemble(
        (reader.folder.resolve().name, "bold"), "  ", (status.state, f"bold {COLORS.get(status.state, 'yellow')}")
    )
    top.append("  " + headline(reader, status))
    done = round(width * min(1.0, status.episode / max(1, status.episodes)))
    parts: list[RenderableType] = [top, Text.assemble(("━" * done, "blue"), ("━" * (width - done), "bright_black"))]
    parts += [Text(line, style="red") for line in status.error]
    parts += [_metrics(reader, width)] if reader.episodes else [Text("\nno episode has ended yet", style="dim")]
    room = console.height - len(console.render_lines(Group(*parts))) - 1 if fit else 0
    count = min(responses, room // LEAST_LINES) if fit else responses
    for response in reader.responses(count):
        said = _said(response)
        parts += ["", _shortened(said, console, room // count - 1) if fit else said]
    return Group(*parts)


def _shortened(text: Text, console: Console, lines: int) -> Text:
    """At most ``lines`` lines of the terminal: beginning and end, where the answers are."""
    rows = text.wrap(console, console.width)
    if len(rows) <= lines:
        return text
    end = (lines - 1) // 2
    gap = Text(f"… {len(rows) - lines + 1} lines …", style="dim")
    return Text("\n").join([*rows[: lines - 1 - end], gap, *rows[len(rows) - end :]])


def _metrics(reader: RunReader, width: int) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    for title in ("", "now", "mean of 10", f"episodes 1 to {reader.episodes[-1]['episode']}"):
        table.add_column(title, justify="right" if title in ("now", "mean of 10") else "left", header_style="dim")
    rows = [(label, reader.series(name), top) for name, label, top in SHOWN]
    if reader.validations:
        greedy = [record.get("validation/accuracy") for record in reader.validations]
        rows.insert(2, (f"validation, greedy ({len(greedy)})", greedy, 1.0))
    for label, values, top in rows:
        recent = [value for value in values[-10:] if value is not None]
        mean = sum(recent) / len(recent) if recent else None
        table.add_row(label, number(values[-1], top), number(mean, top), sparkline(values, max(10, width - 56), top))
    return table


def _said(response: ShownResponse) -> Text:
    level = f", level {response.level}" if response.level else ""
    text = Text.assemble((f"{response.category}{level}", "dim"), "  ", (response.question, "bold"))
    images = ", ".join(Path(path).name for path in response.images)
    text.append(f"  [{images}]" if images else "", "dim")
    text.append(f"\n{_mark(response.first_correct)} ", _color(response.first_correct)).append(response.first)
    if response.second is not None:
        text.append(f"\n{_mark(response.correct)} ", _color(response.correct)).append(response.second, "italic")
    return text.append(f"  (gold {response.gold})", "dim")


def _mark(correct: bool) -> str:
    return "✓" if correct else "✗"


def _color(correct: bool) -> str:
    return "green" if correct else "red"


def follow(
    run: str | Path, *, every: float = 2.0, once: bool = False, responses: int = 3, console: Console | None = None
) -> JobStatus:
    """Show a run in the terminal until it ends; ``once``: as it is now. Ctrl-C ends the watching only. What is printed
    once, an ended run's view too, has its responses in full.

    Raises FileNotFoundError where ``run`` is not the folder of a run.
    """
    console = console or Console(highlight=False)
    job, reader = Job(run), RunReader(run)

    def look() -> tuple[JobStatus, RenderableType]:
        status = job.status()  # before the reading: then what an ended run wrote has been read
        reader.update()
        return status, view(reader, status, responses, console, fit=status.alive and not once)

    status, shown = look()
    if once or not status.alive:
        console.print(shown)
        return status
    with Live(shown, console=console, auto_refresh=False) as live:
        try:
            while status.alive:
                job.wait(every)
                status, shown = look()
                live.update(shown, refresh=True)
        except KeyboardInterrupt:
            pass
    return status
