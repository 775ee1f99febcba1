"""What a run writes: metrics.jsonl, roll-outs as parquet, progress on the terminal, W&B as a mirror of the files.

Only the main process has a ``Tracker`` that writes; the others get one that does nothing (``enabled=False``).
"""

from __future__ import annotations

import json
import math
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from rethinker.config import RunConfig, to_dict
from rethinker.files import append_json_line, atomic_write_bytes, atomic_write_text
from rethinker.glossary import RECORDS


class Tracker:
    """The writer of one run's files.

    ``seconds_before``: seconds that earlier processes of this run took (resume).
    """

    def __init__(self, config: RunConfig, *, enabled: bool = True, seconds_before: float = 0.0) -> None:
        self.config = config
        self.enabled = enabled
        self.folder = config.folder
        self.console = Console(quiet=not enabled, highlight=False, emoji=False)
        self.started = time.perf_counter() - seconds_before
        self._pace = [time.perf_counter()]  # when the last episodes ended, for the time left
        self.wandb_run = _start_wandb(config) if enabled and config.tracking.wandb else None

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
        append_json_line(self.folder / "metrics.jsonl", line)
        if self.wandb_run is not None:
            self.wandb_run.log(_for_wandb(line))

    def rollouts(self, episode: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the responses of an episode (glossary.ROLLOUT_COLUMNS)."""
        if not self.enabled:
            return
        frame = pd.DataFrame(list(rows))
        atomic_write_bytes(self.folder / "rollouts" / f"episode-{episode:05d}.parquet", frame.to_parquet(index=False))
        if self.wandb_run is not None:
            self.wandb_run.log({"rollouts": _wandb_table(frame), "episode": episode})

    def forget_after(self, episode: int, step: int) -> None:
        """Drop what a killed process wrote after the checkpoint that the run goes on from."""
        if not self.enabled:
            return
        path = self.folder / "metrics.jsonl"
        if path.exists():
            kept = []
            for text in path.read_text(encoding="utf-8").splitlines():
                try:
                    line = json.loads(text)
                except json.JSONDecodeError:  # the last line of a killed process
                    continue
                if line["episode"] <= episode and line["step"] <= step:
                    kept.append(text + "\n")
            atomic_write_text(path, "".join(kept))
        for file in (self.folder / "rollouts").glob("episode-*.parquet"):
            if int(file.stem.split("-")[1]) > episode:
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

    def close(self) -> None:
        """Finish the W&B run, if there is one."""
        if self.wandb_run is not None:
            self.wandb_run.finish()


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


def _start_wandb(config: RunConfig) -> Any:
    """Start or go on with the run's W&B twin. The key stays where W&B keeps it: it is in no config and no file.

    The twin's id is random and kept in ``wandb_id``: a new run of an old name must not go on in the old one's twin.
    """
    import wandb

    file = config.folder / "wandb_id"
    if not file.exists():
        atomic_write_text(file, secrets.token_hex(8))
    run = wandb.init(
        project=config.tracking.wandb_project,
        name=config.name,
        id=file.read_text(encoding="utf-8"),
        dir=os.fspath(config.folder),
        config=to_dict(config),
        mode=config.tracking.wandb_mode,
        resume="allow",
    )
    for record, names in RECORDS.items():
        axis = "step" if record == "step" else "episode"
        for prefix in sorted({name.partition("/")[0] for name in names}):
            run.define_metric(f"{prefix}/*", step_metric=axis)
    return run


def _for_wandb(line: Mapping[str, Any]) -> dict[str, Any]:
    import numpy as np
    import wandb

    out: dict[str, Any] = {}
    for name, value in line.items():
        if isinstance(value, Mapping):  # a histogram
            out[name] = wandb.Histogram(np_histogram=(np.array(value["counts"]), np.array(value["edges"])))
        elif isinstance(value, int | float):
            out[name] = value
    return out


def _wandb_table(frame: pd.DataFrame, rows: int = 64) -> Any:
    """A table of the first ``rows`` responses with their images."""
    import wandb

    shown = frame.head(rows)
    columns = [name for name in shown.columns if name != "images"]
    table = wandb.Table(columns=["image", *columns])
    for _, row in shown.iterrows():
        image = wandb.Image(os.fspath(Path(row["images"][0]))) if len(row["images"]) else None
        table.add_data(image, *(row[name] for name in columns))
    return table
