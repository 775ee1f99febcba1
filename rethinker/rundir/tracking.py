"""What a run writes: metrics.jsonl, rollouts as parquet, progress on the terminal, W&B as a mirror of the files.

Only the main process has a ``Tracker`` that writes; the others get one that does nothing (``enabled=False``).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape

from rethinker.config import RunConfig, to_dict
from rethinker.lab.wandb.mirror import Mirror, mirror_errors, recording_mode
from rethinker.rundir.atomic import append_json_line, atomic_write_bytes, atomic_write_text
from rethinker.rundir.diagnosis import Finding, diagnose, news
from rethinker.rundir.glossary import RECORDS
from rethinker.rundir.paths import RunDir


class Tracker:
    """The writer of one run's files.

    ``seconds_before``: seconds that earlier processes of this run took (resume).
    """

    def __init__(self, config: RunConfig, *, enabled: bool = True, seconds_before: float = 0.0) -> None:
        self.config = config
        self.enabled = enabled
        self.folder = RunDir(config.folder)
        self.console = Console(quiet=not enabled, highlight=False, emoji=False)
        self.started = time.perf_counter() - seconds_before
        self.episodes: list[dict[str, Any]] = []  # their lines of metrics.jsonl, for the diagnosis
        self._pace = [time.perf_counter()]  # when the last episodes ended, for the time left
        self.mirror = self._twin() if enabled and config.tracking.wandb else None

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of this run, pauses excluded."""
        return time.perf_counter() - self.started

    def log(self, record: str, stage: str, episode: int, step: int, metrics: Mapping[str, Any]) -> None:
        """Add a line to metrics.jsonl (and W&B). Raises KeyError for a metric that the glossary does not explain."""
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
        self._mirrored(lambda mirror: mirror.log(line))

    def rollouts(self, episode: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the responses of an episode (glossary.ROLLOUT_COLUMNS)."""
        if not self.enabled:
            return
        frame = pd.DataFrame(list(rows))
        atomic_write_bytes(self.folder.rollouts(episode), frame.to_parquet(index=False))
        self._mirrored(lambda mirror: mirror.responses(episode, rows))

    def evaluation(self, label: str) -> None:
        """Say that ``evaluation/<label>.json`` has been written."""
        if self.mirror is not None:
            summary = json.loads(self.folder.evaluation(label).read_text(encoding="utf-8"))
            self._mirrored(lambda mirror: mirror.evaluation(label, summary))

    def truncate_after(self, episode: int, step: int) -> None:
        """Drop what a killed process wrote after the checkpoint from which the run resumes."""
        if not self.enabled:
            return
        path = self.folder.metrics
        if path.exists():
            kept, self.episodes = [], []
            for text in path.read_text(encoding="utf-8").splitlines():
                try:
                    line = json.loads(text)
                except json.JSONDecodeError:  # the last line of a killed process
                    continue
                if line["episode"] <= episode and line["step"] <= step:
                    kept.append(text + "\n")
                    self.episodes += [line] if line["record"] == "episode" else []
            atomic_write_text(path, "".join(kept))
        for written, file in self.folder.all_rollouts().items():
            if written > episode:
                file.unlink()

    def say(self, text: str) -> None:
        """A line on the terminal of the main process."""
        self.console.print(text, soft_wrap=True)

    def progress(self, episode: int, step: int, metrics: Mapping[str, Any]) -> None:
        """The episode's line: where the run is and how it does."""
        recent = self._pace[-10:]
        left = (self.config.episodes - episode) * (time.perf_counter() - recent[0]) / len(recent)
        self._pace.append(time.perf_counter())
        self.say(
            f"episode [bold]{episode:>4}[/]/{self.config.episodes}  step {step:>5}  "
            f"accuracy {metrics['accuracy/first']:.3f}  reward {_number(metrics['reward/mean'])}  "
            f"effective {metrics['queries/effective']:.2f}"
            f"→{_number(metrics['replay/effective_after'])}  buffer {metrics['replay/buffer_size']:>5}  "
            f"reflects {metrics['reflection/share']:.2f}  {metrics['rollout/tokens_per_second']:>6,.0f} tokens/s  "
            f"{_clock(left)} left"
        )

    def warn(self) -> None:
        """Say what is wrong after the newest episode; what stays wrong is said again at longer and longer intervals."""
        self._say_findings("warning", news(self.episodes, to_dict(self.config)))

    def _say_findings(self, word: str, findings: Sequence[Finding]) -> None:
        for finding in findings:
            self.say(f"[bold]{word}[/]: {escape(str(finding))}")

    def close(self) -> None:
        """Say what was wrong with the run as a whole, and finish the W&B run, if there is one."""
        self._say_findings("diagnosis of the run", diagnose(self.episodes, to_dict(self.config)))
        self._mirrored(lambda mirror: mirror.close())
        if self.mirror is not None and self.mirror.mode == "offline":
            self.say(f"recorded for W&B; send it: {escape(self._sync_command)}")

    @property
    def _sync_command(self) -> str:
        return f"rethinker sync {self.folder}"

    def _twin(self) -> Mirror | None:
        if recording_mode(self.config) == "disabled":
            self.say("WANDB_MODE=disabled: nothing is recorded for W&B (tracking.wandb=true)")
            return None
        return Mirror(self.config)

    def _mirrored(self, act: Callable[[Mirror], None]) -> None:
        """Do it to the W&B twin, if there is one. The files are what counts: where W&B fails, the run continues."""
        if self.mirror is None:
            return
        try:
            act(self.mirror)
        except mirror_errors() as error:
            self.mirror = None
            self.say(
                f"W&B failed ({escape(f'{type(error).__name__}: {error}')}): no more is recorded for it; the files "
                f"of the run get everything. What was recorded and has not arrived: {escape(self._sync_command)}"
            )


def _number(value: float | None) -> str:
    return "  – " if value is None else f"{value:.2f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _finite(value: Any) -> Any:
    """A number that JSON can hold; a metric without cases is null, and so is one that overflowed."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
