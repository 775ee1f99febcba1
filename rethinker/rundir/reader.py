"""Reading the files of a run: metrics.jsonl, rollouts/, evaluation/, provenance.json. Nothing is written.

A missing file raises FileNotFoundError, a broken one ValueError, both with the path and what to do. A last line of
``metrics.jsonl`` that a crash cut short is left out and noted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as parquet
import yaml
from pyarrow import ArrowException

from rethinker.config import RunConfig, to_dict
from rethinker.rundir.atomic import read_json
from rethinker.rundir.glossary import COORDINATES, RECORDS, ROLLOUT_COLUMNS
from rethinker.rundir.paths import RunDir


@dataclass(frozen=True)
class Metrics:
    """The records of ``metrics.jsonl`` by kind, with every column of the glossary; notes say what was left out."""

    episodes: pd.DataFrame
    steps: pd.DataFrame
    validations: pd.DataFrame
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, records: Mapping[str, list[dict[str, Any]]], notes: Sequence[str] = ()) -> Metrics:
        """From the records by kind."""
        frames = {}
        for kind, names in RECORDS.items():
            columns = list(COORDINATES) + list(names)
            found = records.get(kind, [])
            extra = sorted({name for record in found for name in record} - set(columns))
            frame = pd.DataFrame(found, columns=columns + extra)
            numeric = [
                name for name in columns if name not in ("record", "stage") and not name.startswith("advantages/")
            ]
            frame[numeric] = frame[numeric].apply(pd.to_numeric)
            frames[kind] = frame
        return cls(frames["episode"], frames["step"], frames["validation"], tuple(notes))

    def stages(self) -> pd.DataFrame:
        """stage, first and last episode, and updates made before it (``step``), in order of the episodes."""
        rows = self.episodes
        table = rows.groupby("stage", sort=False).agg(first=("episode", "min"), last=("episode", "max"))
        ends = rows.groupby("stage", sort=False)["step"].max()
        table["step"] = ends.shift(fill_value=0).astype(int)
        return table.reset_index()


def load_metrics(run: str | Path) -> Metrics:
    """Every record of a run."""
    path = RunDir(run).metrics
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: is {run} the folder of a run, and has its first episode ended?")
    found = _parse_metrics(file_stamp(path))
    return Metrics(found.episodes.copy(), found.steps.copy(), found.validations.copy(), found.notes)


def metrics_so_far(run: str | Path) -> Metrics:
    """``load_metrics`` of a run that may not have any yet: then without rows."""
    return load_metrics(run) if RunDir(run).metrics.is_file() else Metrics.of({})


Stamp = tuple[Path, int, int]  # a file as it is now: path, time of its last change, bytes


def file_stamp(path: Path) -> Stamp:
    """A key for caches of what was read from a file: a file that is written again has another."""
    status = path.stat()
    return path, status.st_mtime_ns, status.st_size


def rollout_stamps(run: str | Path) -> tuple[Stamp, ...]:
    """Those of all rollout files of a run, in order of the episodes."""
    return tuple(file_stamp(path) for path in RunDir(run).all_rollouts().values())


@lru_cache(maxsize=8)  # a report asks some forty times
def _parse_metrics(stamp: Stamp) -> Metrics:
    path = stamp[0]
    *lines, rest = path.read_bytes().split(b"\n")
    notes = [f"{path.name}: the last line ({len(lines) + 1}) is cut short and was left out."] if rest else []
    kept: dict[str, list[dict[str, Any]]] = {kind: [] for kind in RECORDS}
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            kept[record["record"]].append(record)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: not a record of a run ({error!r}); remove the line") from error
    return Metrics.of(kept, notes)


def load_rollouts(run: str | Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """All responses of all episodes; ``columns`` of glossary.ROLLOUT_COLUMNS (None: all)."""
    wanted = list(ROLLOUT_COLUMNS) if columns is None else list(columns)
    paths = RunDir(run).all_rollouts()
    if not paths:
        raise FileNotFoundError(f"{run}/rollouts holds no episode-*.parquet: has the run's first episode ended?")
    return pd.concat([load_episode(path, wanted) for path in paths.values()], ignore_index=True)


def load_episode(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """The responses of one episode, from its file."""
    try:
        with parquet.ParquetFile(path) as file:
            missing = sorted(set(columns) - set(file.schema_arrow.names))
            table = None if missing else file.read(columns=list(columns)).to_pandas()
    except (ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}); move it away to continue without this episode") from error
    if table is None:
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}: was it written by another version?")
    return table


def split_looks(text: str, first_text: str) -> tuple[str, str]:
    """A forced trajectory's y1, and the trigger with what follows it.

    Decoding y1 alone and y1 with what follows can differ where they meet; then the second part is the whole.
    """
    return first_text.strip(), text.removeprefix(first_text).strip()


def load_evaluations(run: str | Path) -> dict[str, dict[str, Any]]:
    """The summaries ``evaluation/<label>.json`` by label, oldest first; {} if there are none yet.

    "start" comes first, then the stages in the order of their training, then the others by name.
    """
    found = {path.stem: read_json(path) for path in RunDir(run).all_evaluations()}
    order = ["start"]
    if RunDir(run).metrics.is_file():
        order += load_metrics(run).stages()["stage"].tolist()
    return {
        label: found[label] for label in sorted(found, key=lambda x: (order.index(x) if x in order else len(order), x))
    }


def load_settings(run: str | Path) -> dict[str, Any]:
    """config.yaml as a plain dict, also that of a run of another version, which ``load_config`` would refuse."""
    path = RunDir(run).config
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    return settings if isinstance(settings, dict) else {}


def stage_settings(settings: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """The settings of a stage by section, complete: the default where a config of another version lacks one."""
    merged = to_dict(RunConfig())
    overrides = [item.get("overrides") for item in settings.get("stages") or [] if item.get("name") == stage]
    for layer in (settings, *overrides):
        for section, values in (layer or {}).items():
            merged[section] = merged.get(section, {}) | values if isinstance(values, Mapping) else values
    return merged


def run_seed(run: str | Path) -> int | None:
    """The seed that provenance.json records; None if it does not say."""
    return read_json(RunDir(run).provenance).get("seed")
