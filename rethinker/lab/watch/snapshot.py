"""A run as it is now, read from its files while it is written: what the terminal's and the notebook's views show.

All of ``metrics.jsonl`` is read again when it has changed (some 2 MB late in a run). Nothing here is from the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from rethinker.lab.jobs import Job, JobStatus
from rethinker.rundir.diagnosis import WINDOW, Finding, diagnose
from rethinker.rundir.pace import seconds_left
from rethinker.rundir.paths import RunDir
from rethinker.rundir.reader import Metrics, load_episode, load_settings, metrics_so_far, split_looks
from rethinker.rundir.tracking import clock

COLUMNS = (
    "qid", "category", "level", "question", "gold", "images", "pass", "text", "correct", "first_text", "first_correct",
    "kept",
)  # fmt: skip


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
    second: str | None  # trigger and second look; None if nothing was forced
    first_correct: bool
    correct: bool  # of the whole


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment. ``metrics`` has no rows before the first episode has ended."""

    folder: Path
    status: JobStatus
    metrics: Metrics

    @property
    def headline(self) -> str:
        """Where the run is, in a line."""
        status, steps = self.status, self.metrics.steps
        step = int(steps["step"].iloc[-1]) if len(steps) else 0
        parts = [status.stage, status.progress, f"step {step}", clock(status.seconds)]
        if status.alive and self.seconds_left is not None:
            parts.append(f"{clock(self.seconds_left)} left")
        return "  ".join(part for part in parts if part)

    @property
    def seconds_left(self) -> float | None:
        """``pace.seconds_left`` of the episodes so far."""
        episodes = self.metrics.episodes.to_dict("records")
        return seconds_left(episodes, load_settings(self.folder)) if episodes else None

    @cached_property
    def findings(self) -> list[Finding]:
        """What is wrong with the newest ``WINDOW`` episodes."""
        episodes = self.metrics.episodes.tail(WINDOW).to_dict("records")
        return diagnose(episodes, load_settings(self.folder)) if episodes else []

    @cached_property
    def rollouts(self) -> tuple[int, Path] | None:
        """The newest episode that has metrics, and the file of its responses; None before the first. A later file may
        be there already: it is shown by the next look, with its metrics."""
        episodes = self.metrics.episodes["episode"]
        last = int(episodes.iloc[-1]) if len(episodes) else 0
        return max((item for item in RunDir(self.folder).all_rollouts().items() if item[0] <= last), default=None)

    def series(self, name: str) -> list[float | None]:
        """A metric of every episode, or of every validation."""
        table = self.metrics.validations if name.startswith("validation/") else self.metrics.episodes
        return [None if pd.isna(value) else float(value) for value in table[name]]

    def responses(self, n: int) -> list[ShownResponse]:
        """One response each of ``n`` queries of the newest episode, evenly spread over it: not hand-picked.

        A query's forced trajectory, a kept one first, where it has any; else its first response.
        """
        if self.rollouts is None:
            return []
        try:
            rows = load_episode(self.rollouts[1], COLUMNS)
        except ValueError:
            if self.rollouts[1].exists():
                raise
            return []  # a resume has just removed it
        rank = (rows["pass"] == "forced").astype(int) + rows["kept"].fillna(False).astype(bool)
        best = rows.loc[rank.groupby(rows["qid"], sort=False).idxmax()]
        count = min(n, len(best))
        return [_response(best.iloc[index * len(best) // count]) for index in range(count)]


def snapshot(job: Job) -> Snapshot:
    """How the run of ``job`` is now. Raises ValueError for a broken file."""
    status = job.status()  # before the reading: then what an ended run wrote has been read
    return Snapshot(job.folder, status, metrics_so_far(job.folder))


def _response(row: pd.Series) -> ShownResponse:
    forced = row["pass"] == "forced"
    first, second = split_looks(row["text"], row["first_text"]) if forced else (row["text"].strip(), None)
    return ShownResponse(
        qid=row["qid"],
        category=row["category"],
        level=int(row["level"]),
        question=row["question"].replace("<image>", "").strip(),
        gold=row["gold"],
        images=tuple(row["images"]),
        first=first,
        second=second,
        first_correct=bool(row["first_correct"] if forced else row["correct"]),
        correct=bool(row["correct"]),
    )
