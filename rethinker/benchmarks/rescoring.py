"""Scoring a table again, without the model: after a rule was mended, or to add a judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rethinker.benchmarks.asking import verdict_columns
from rethinker.benchmarks.base import Benchmark, Protocol
from rethinker.benchmarks.judge import Judge
from rethinker.benchmarks.registry import BENCHMARKS
from rethinker.benchmarks.table import KEY, Row, Shards, item_of, read_groups
from rethinker.rundir.atomic import read_json

JUDGE = ("judge", "judge_reply", "judge_model")
VERDICT = ("score", "extracted", "reason", "guessed")


def rescore_table(folder: Path, name: str, benchmark: Benchmark, protocol: Protocol, judge: Judge | None) -> int:
    """Score ``<name>.parquet`` again, a chunk of items at a time; returns how many scores changed. The table is
    replaced when all of it is done; what a killed call has asked of the judge is not asked again."""
    shards = Shards(folder, name, work="rescored")
    changed = count = 0
    for rows in read_groups(shards.table):
        done = _judged_before(shards.part(count))
        scored = []
        for row in rows:
            new = row if row["skipped"] is not None else row | _verdict(benchmark, protocol, row)
            scored.append(new | done.get(_key(row), {}))
            changed += new["score"] != row["score"]
        shards.write(count, judge.ask(scored) if judge else scored)
        count += 1
    shards.merge(count)
    return changed


def _verdict(benchmark: Benchmark, protocol: Protocol, row: Row) -> Row:
    return verdict_columns(benchmark.score(item_of(row), row["text"], protocol))


def _judged_before(part: Path) -> dict[tuple[Any, ...], Row]:
    """The judge's columns in a shard that a killed call has left."""
    if not part.exists():
        return {}
    rows = pq.read_table(part, columns=[*KEY, *JUDGE]).to_pylist()
    return {_key(row): {name: row[name] for name in JUDGE} for row in rows if row["judge_model"] is not None}


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in KEY)


def rescore(folder: Path, judge: Judge | None = None) -> dict[str, int]:
    """Score every finished table in ``folder`` again; how many scores changed, by name.

    Raises FileNotFoundError if nothing is finished yet.
    """
    settings = read_json(folder / "settings.json")
    finished = {name: facts for name, facts in settings["benchmarks"].items() if Shards(folder, name).table.exists()}
    if not finished:
        raise FileNotFoundError(f"{folder}: no benchmark is finished yet; `rethinker evaluate` resumes it")
    protocol = settings["protocol"]
    return {
        name: rescore_table(folder, name, BENCHMARKS[facts["name"]], protocol, judge)
        for name, facts in finished.items()
    }
