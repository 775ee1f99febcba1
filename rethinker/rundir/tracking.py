"""What a run writes: metrics.jsonl, rollouts as parquet, progress on the terminal, and a copy of them to a ``Sink``.

Only the main process has a ``Tracker`` that writes; the others get one that does nothing (``enabled=False``).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import pandas as pd
from rich.console import Console
from rich.markup import escape

from rethinker.config import RunConfig, to_dict
from rethinker.rundir.atomic import append_json_line, atomic_write_bytes, atomic_write_text, read_json
from rethinker.rundir.diagnosis import Finding, diagnose, news
from rethinker.rundir.glossary import RECORDS
from rethinker.rundir.pace import seconds_left
from rethinker.rundir.paths import RunDir


class Sink(Protocol):
    """A service that gets a copy of what the run writes to its files, while it does."""

    name: str
    errors: tuple[type[Exception], ...]  # what its methods raise where the service fails
    resend: str  # the command that sends what has not arrived

    def log(self, line: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl."""

    def responses(self, episode: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """The responses of an episode (glossary.ROLLOUT_COLUMNS)."""

    def evaluation(self, label: str, summary: Mapping[str, Any]) -> None:
        """The summary of an evaluation."""

    def close(self) -> bool:
        """Finish; False if the command ``resend`` has to send what was recorded."""


MakeSink = Callable[[RunConfig], Sink | None]


class Tracker:
    """The writer of one run's files.

    ``seconds_before``: seconds that earlier processes of this run took (resume). ``make_sink`` is called where this
    process writes and ``tracking.wandb`` is set. Raises ValueError where that is set without it.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        enabled: bool = True,
        seconds_before: float = 0.0,
        make_sink: MakeSink | None = None,
    ) -> None:
        self.config = config
        self.enabled = enabled
        self.folder = RunDir(config.folder)
        self.console = Console(quiet=not enabled, highlight=False, emoji=False)
        self.started = time.perf_counter() - seconds_before
        self.episodes: list[dict[str, Any]] = []  # their lines of metrics.jsonl, for the diagnosis
        self.sink: Sink | None = None
        if config.tracking.wandb and make_sink is None:
            raise ValueError("tracking.wandb=true needs a sink: start the run by `rethinker train`, or give make_sink=")
        if config.tracking.wandb and make_sink and enabled:
            self.sink = make_sink(config)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of this run, pauses excluded."""
        return time.perf_counter() - self.started

    def log(self, record: str, stage: str, episode: int, step: int, metrics: Mapping[str, Any]) -> None:
        """Add a line to metrics.jsonl. Raises KeyError for a metric that the glossary does not explain."""
        if not self.enabled:
            return
        unknown = set(metrics) - set(RECORDS[record])
        if unknown:
            raise KeyError(f"not in glossary.{record.upper()}: {', '.join(sorted(unknown))}")
        line = {"record": record, "stage": stage, "episode": episode, "step": step, "seconds": round(self.seconds, 3)}
        line |= {name: _finite(value) for name, value in metrics.items()}
        append_json_line(self.folder.metrics, line)
        if record == "episode":
            self.episodes.append(line)
        self._copy(lambda sink: sink.log(line))

    def rollouts(self, episode: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the responses of an episode (glossary.ROLLOUT_COLUMNS)."""
        if not self.enabled:
            return
        frame = pd.DataFrame(list(rows))
        atomic_write_bytes(self.folder.rollouts(episode), frame.to_parquet(index=False))
        self._copy(lambda sink: sink.responses(episode, rows))

    def evaluation(self, label: str) -> None:
        """Copy ``evaluation/<label>.json``, which has been written."""
        if self.sink is not None:
            self._copy(lambda sink: sink.evaluation(label, read_json(self.folder.evaluation(label))))

    def truncate_after(self, episode: int, step: int) -> None:
        """Drop what a killed process wrote after the checkpoint from which the run resumes."""
        if not self.enabled:
            return
        path = self.folder.metrics
        if path.exists():
            whole = path.read_text(encoding="utf-8").split("\n")[:-1]  # without the half line of a killed process
            lines = [(text, json.loads(text)) for text in whole]
            kept = [(text, line) for text, line in lines if line["episode"] <= episode and line["step"] <= step]
            atomic_write_text(path, "".join(f"{text}\n" for text, _ in kept))
            self.episodes = [line for _, line in kept if line["record"] == "episode"]
        for written, file in self.folder.all_rollouts().items():
            if written > episode:
                file.unlink()
        run = self.folder.folder
        for unfinished in (*run.glob(".*.json*.tmp"), *run.glob(".config.yaml.*.tmp"), *run.glob("rollouts/.*.tmp")):
            unfinished.unlink()  # of an atomic write

    def say(self, text: str) -> None:
        """A line on the terminal of the main process."""
        self.console.print(text, soft_wrap=True)

    def progress(self, episode: int, step: int, metrics: Mapping[str, Any]) -> None:
        """The episode's line: where the run is and how it does."""
        left = seconds_left([START, *self.episodes], to_dict(self.config))
        self.say(
            f"episode [bold]{episode:>4}[/]/{self.config.episodes}  step {step:>5}  "
            f"accuracy {metrics['accuracy/first']:.3f}  reward {_number(metrics['reward/mean'])}  "
            f"effective {metrics['queries/effective']:.2f}"
            f"→{_number(metrics['replay/effective_after'])}  buffer {metrics['replay/buffer_size']:>5}  "
            f"reflects {metrics['reflection/share']:.2f}  {metrics['rollout/tokens_per_second']:>6,.0f} tokens/s  "
            f"{'–' if left is None else clock(left)} left"
        )

    def warn(self) -> None:
        """Say what is wrong after the newest episode; what stays wrong is said again at longer and longer intervals."""
        self._say_findings("warning", news(self.episodes, to_dict(self.config)))

    def _say_findings(self, word: str, findings: Sequence[Finding]) -> None:
        for finding in findings:
            self.say(f"[bold]{word}[/]: {escape(str(finding))}")

    def close(self) -> None:
        """Say what was wrong with the run as a whole, and finish its copy, if there is one."""
        self._say_findings("diagnosis of the run", diagnose(self.episodes, to_dict(self.config)))
        self._copy(self._close_sink)

    def _close_sink(self, sink: Sink) -> None:
        if not sink.close():
            self.say(f"recorded for {sink.name}; send it: {escape(sink.resend)}")

    def _copy(self, act: Callable[[Sink], None]) -> None:
        """Copy something to the sink, if there is one. Where it fails the run continues without: the files count."""
        if self.sink is None:
            return
        sink = self.sink
        try:
            act(sink)
        except sink.errors as error:
            self.sink = None
            self.say(
                f"{sink.name} failed ({escape(f'{type(error).__name__}: {error}')}): no more is recorded for it; the "
                f"files of the run get everything. What was recorded and has not arrived: {escape(sink.resend)}"
            )


START = {"episode": 0, "step": 0, "seconds": 0.0, "tokens/generated": 0}  # before the first line of an episode


def _number(value: float | None) -> str:
    return "  – " if value is None else f"{value:.2f}"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _finite(value: Any) -> Any:
    """A number that JSON can hold; a metric without cases is null, and so is one that overflowed."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
