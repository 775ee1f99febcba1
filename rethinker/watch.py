"""Watching a run from its files, while it trains or later; the terminal's view of it (``rethinker watch``).

``RunReader`` follows ``metrics.jsonl`` and the newest roll-outs: each look reads what came since the last one, so that
it costs the same late in a run as early, and training nothing. No torch. Nothing here is from the paper.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rethinker.glossary import RECORDS
from rethinker.jobs.handle import Job, JobStatus
from rethinker.run_files import load_episode

SHOWN = (  # metric of an episode, its name in a view, largest value (None: of its own)
    ("reward/mean", "reward", 1.0),
    ("accuracy/first", "accuracy of first responses", 1.0),
    ("replay/effective_before", "effective samples, before", 1.0),
    ("replay/effective_after", "effective samples, trained on", 1.0),
    ("replay/share", "replayed", 1.0),
    ("reflection/share", "reflects by itself", 1.0),
    ("rollout/tokens_per_second", "tokens/s", None),
)
COLUMNS = (
    "qid", "category", "level", "question", "gold", "images", "pass", "text", "correct", "first_text", "first_correct",
    "kept",
)  # fmt: skip
TAIL_BYTES = 256  # before the place where reading goes on: another text there is another file
PACE_EPISODES = 10  # that the time left is reckoned from
COLORS = {"running": "green", "finished": "blue", "failed": "red"}


@dataclass(frozen=True, slots=True)
class ShownResponse:
    """A response of the newest episode, for reading."""

    qid: str
    category: str
    level: int
    question: str
    gold: str
    images: tuple[str, ...]  # paths as the run knows them
    first: str  # y1
    second: str | None  # trigger and second look; None where nothing was forced
    first_correct: bool
    correct: bool  # of the whole


class RunReader:
    """The records of a run, up to date after every ``update``."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._forget()

    def _forget(self) -> None:
        self.episodes: list[dict[str, Any]] = []  # lines of metrics.jsonl by kind, as they are (rethinker/glossary.py)
        self.steps: list[dict[str, Any]] = []
        self.validations: list[dict[str, Any]] = []
        self._file: tuple[int, int] | None = None  # device and inode of what was read
        self._offset, self._tail = 0, b""

    def update(self) -> bool:
        """Read what is new; True if anything is. A last line without its end waits for the next time.

        A resume writes the file anew, without what came after the checkpoint: then all is read again. Raises
        ValueError for a line that is not a record.
        """
        path = self.folder / "metrics.jsonl"
        try:
            file = path.open("rb")
        except FileNotFoundError:
            changed = self._file is not None
            self._forget()
            return changed
        with file:
            status = os.fstat(file.fileno())
            identity = status.st_dev, status.st_ino
            changed = False
            if identity != self._file or not self._goes_on(file, status.st_size):
                changed = self._file is not None
                self._forget()
                self._file = identity
            file.seek(self._offset)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        for line in whole.splitlines():
            self._add(path, line)
        self._offset += len(whole)
        self._tail = (self._tail + whole)[-TAIL_BYTES:]
        return changed or bool(whole)

    def _goes_on(self, file: Any, size: int) -> bool:
        """Whether what was read is still there, in front of where reading goes on."""
        if size < self._offset:
            return False
        file.seek(self._offset - len(self._tail))
        return file.read(len(self._tail)) == self._tail

    def _add(self, path: Path, line: bytes) -> None:
        try:
            record = json.loads(line)
            lists = dict(zip(RECORDS, (self.episodes, self.steps, self.validations), strict=True))
            lists[record["record"]].append(record)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: not a record of a run ({error!r}): {line[:80]!r}; remove the line") from error

    def series(self, name: str) -> list[float | None]:
        """A metric of every episode."""
        return [record.get(name) for record in self.episodes]

    def seconds_left(self, episodes: int) -> float | None:
        """Until ``episodes`` have ended, by the pace of the last ones; None before two have."""
        recent = self.episodes[-PACE_EPISODES - 1 :]
        if len(recent) < 2:
            return None
        first, last = recent[0], recent[-1]
        pace = (last["seconds"] - first["seconds"]) / (last["episode"] - first["episode"])
        return max(0.0, (episodes - last["episode"]) * pace)

    def rollouts(self) -> Path | None:
        """The file of the newest episode; None before the first."""
        return max((self.folder / "rollouts").glob("episode-*.parquet"), default=None)

    def responses(self, n: int) -> list[ShownResponse]:
        """One response each of ``n`` queries of the newest episode, evenly spread over it; nobody chose.

        A query's forced trajectory, a kept one first, where it has any; else its first response.
        """
        path = self.rollouts()
        if path is None:
            return []
        try:
            rows = load_episode(path, COLUMNS).to_dict("records")
        except ValueError:
            if path.exists():
                raise
            return []  # a resume has just removed it
        queries: dict[str, dict[str, Any]] = {}
        for row in rows:
            if row["qid"] not in queries or _rank(row) > _rank(queries[row["qid"]]):
                queries[row["qid"]] = row
        chosen = list(queries.values())
        count = min(n, len(chosen))
        return [_response(chosen[index * len(chosen) // count]) for index in range(count)]


def _rank(row: dict[str, Any]) -> int:
    return (row["pass"] == "forced") + bool(row["kept"])


def _response(row: dict[str, Any]) -> ShownResponse:
    forced, text = row["pass"] == "forced", row["text"]
    # Decoding y1 alone and y1 with what follows could differ where they meet; then the whole is the second look.
    first = row["first_text"] if forced and text.startswith(row["first_text"]) else "" if forced else text
    return ShownResponse(
        qid=row["qid"],
        category=row["category"],
        level=int(row["level"]),
        question=row["question"].replace("<image>", "").strip(),
        gold=row["gold"],
        images=tuple(row["images"]),
        first=first.strip(),
        second=text[len(first) :].strip() if forced else None,
        first_correct=bool(row["first_correct"] if forced else row["correct"]),
        correct=bool(row["correct"]),
    )


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


def clock(seconds: float | None) -> str:
    """Hours, minutes and seconds; a dash for None."""
    if seconds is None:
        return "–"
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
    if status.alive:
        parts.append(f"{clock(reader.seconds_left(status.episodes))} left")
    return "  ".join(([status.stage] if status.stage else []) + parts)


def view(reader: RunReader, status: JobStatus, responses: int, width: int = 100) -> RenderableType:
    """A run in a terminal ``width`` columns wide: progress, metrics, the newest responses."""
    top = Text.assemble(
        (reader.folder.resolve().name, "bold"), "  ", (status.state, f"bold {COLORS.get(status.state, 'yellow')}")
    )
    top.append("  " + headline(reader, status))
    done = round(width * min(1.0, status.episode / max(1, status.episodes)))
    parts: list[RenderableType] = [top, Text.assemble(("━" * done, "blue"), ("━" * (width - done), "bright_black"))]
    parts += [Text(line, style="red") for line in status.error]
    parts += [_metrics(reader, width)] if reader.episodes else [Text("\nno episode has ended yet", style="dim")]
    for response in reader.responses(responses):
        parts += ["", _said(response)]
    return Group(*parts)


def _metrics(reader: RunReader, width: int) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    for title in ("", "now", "mean of 10", f"episodes 1 to {reader.episodes[-1]['episode']}"):
        table.add_column(title, justify="right" if title in ("now", "mean of 10") else "left", header_style="dim")
    rows = [(label, reader.series(name), top) for name, label, top in SHOWN]
    if reader.validations:
        greedy = [record["validation/accuracy"] for record in reader.validations]
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
    """Show a run in the terminal until it ends; ``once``: as it is now. Ctrl-C ends the watching only.

    Raises FileNotFoundError where ``run`` is not the folder of a run.
    """
    console = console or Console(highlight=False)
    job, reader = Job(run), RunReader(run)

    def look() -> tuple[JobStatus, RenderableType]:
        status = job.status()  # before the reading: then what an ended run wrote has been read
        reader.update()
        return status, view(reader, status, responses, console.width)

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
