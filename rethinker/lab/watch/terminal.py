"""The terminal's view of a run, while it trains or later (``rethinker watch``).

No torch. Nothing here is from the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rethinker.lab.jobs import Job, JobStatus
from rethinker.lab.watch.snapshot import ShownResponse, Snapshot, snapshot

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


def number(value: float | None, top: float | None = 1.0) -> str:
    """A metric: a share with two digits, a rate without; a dash for None."""
    return "–" if value is None else f"{value:.2f}" if top else f"{value:,.0f}"


def view(run: Snapshot, responses: int, console: Console, *, fit: bool = False) -> RenderableType:
    """A run in a terminal: progress, what is wrong, metrics, the newest responses.

    ``fit``: no higher than the terminal, so that long responses lose their middles, and a low terminal shows fewer.
    """
    width, status = console.width, run.status
    top = Text.assemble((run.folder.name, "bold"), "  ", (status.state, f"bold {COLORS.get(status.state, 'yellow')}"))
    top.append(f"  {run.headline}")
    done = round(width * status.share)
    head = [top, Text.assemble(("━" * done, "blue"), ("━" * (width - done), "bright_black"))]
    head += [Text(line, style="red") for line in status.error]
    metrics = _metrics(run, width) if len(run.metrics.episodes) else Text("\nno episode has ended yet", style="dim")
    wrong = Text("\n".join(map(str, run.findings)), style="yellow")
    if fit:
        wrong = _shortened(wrong, console, max(1, console.height - _lines(console, *head, metrics) - 1))
    parts: list[RenderableType] = [*head, *([wrong] if wrong else []), metrics]
    room = console.height - _lines(console, *parts) - 1
    count = max(0, min(responses, room // LEAST_LINES)) if fit else responses
    for response in run.responses(count):
        said = _said(response)
        parts += ["", _shortened(said, console, room // count - 1) if fit else said]
    return Group(*parts)


def _lines(console: Console, *parts: RenderableType) -> int:
    return len(console.render_lines(Group(*parts)))


def _shortened(text: Text, console: Console, lines: int) -> Text:
    """At most ``lines`` lines of the terminal: beginning and end, where the answers are."""
    rows = text.wrap(console, console.width)
    if len(rows) <= lines:
        return text
    end = (lines - 1) // 2
    gap = Text(f"… {len(rows) - lines + 1} lines …", style="dim")
    return Text("\n").join([*rows[: lines - 1 - end], gap, *rows[len(rows) - end :]])


def _metrics(run: Snapshot, width: int) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    last = int(run.metrics.episodes["episode"].iloc[-1])
    for title in ("", "now", "mean of 10", f"episodes 1 to {last}"):
        table.add_column(title, justify="right" if title in ("now", "mean of 10") else "left", header_style="dim")
    rows = [(label, run.series(name), top) for name, label, top in SHOWN]
    greedy = run.series("validation/accuracy")
    if greedy:
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

    Raises FileNotFoundError if ``run`` is not the folder of a run.
    """
    console = console or Console(highlight=False)
    job = Job(run)
    now = snapshot(job)
    if once or not now.status.alive:
        console.print(view(now, responses, console))
        return now.status
    with Live(view(now, responses, console, fit=True), console=console, auto_refresh=False) as live:
        try:
            while now.status.alive:
                job.wait(every)
                now = snapshot(job)
                live.update(view(now, responses, console, fit=now.status.alive), refresh=True)
        except KeyboardInterrupt:
            pass
    return now.status
