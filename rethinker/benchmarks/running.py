"""A model on several benchmarks, into one folder, resumable after a kill at any moment.

``settings.json`` says how the folder was made; the same command resumes it, and another one is refused with what
changed. Of every benchmark ``<name>-<split>.parquet`` holds the responses (``table.COLUMNS``), ``<name>-<split>.json``
what is counted from them, and ``summary.json`` the headline numbers of all.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rethinker.benchmarks.asking import Asking, ask
from rethinker.benchmarks.journal import Journal, KeepingEngine
from rethinker.benchmarks.judge import Judge
from rethinker.benchmarks.summary import write_summaries
from rethinker.benchmarks.table import Row, Shards
from rethinker.benchmarks.tasks import Task
from rethinker.policy.policy import Policy
from rethinker.processes import return_freed_memory
from rethinker.rollout.base import RolloutEngine
from rethinker.rundir import locks
from rethinker.rundir.atomic import atomic_write_text, read_json

SETTINGS = "settings.json"
Skipped = dict[str, dict[str, str]]  # task -> id of an item -> why it cannot be asked
Start = Callable[[Sequence[Task]], "tuple[Policy, RolloutEngine, Skipped]"]


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. Raises ValueError while another process has it."""
    lock = locks.take(folder / "lock")
    if lock is None:
        raise ValueError(f"{folder}: another process writes there")
    try:
        yield
    finally:
        os.close(lock)


def run_tasks(
    folder: Path,
    tasks: Sequence[Task],
    how: Asking,
    settings: dict[str, Any],
    start: Start,
    *,
    chunk: int,
    judge: Judge | None = None,
) -> dict[str, Any]:
    """Ask what ``folder`` lacks, ``chunk`` items at a time, and return its summary.

    ``start`` loads the model, if there is something to ask, and says which items cannot be asked. ``settings``:
    everything beside the data that the responses depend on. Raises ValueError if the folder was made with other
    settings or data.
    """
    with only_writer(folder):
        check_settings(folder, settings | {"chunk": chunk}, tasks)
        left = []
        for task in tasks:
            shards = Shards(folder, task.name)
            if shards.table.exists():
                shards.discard()  # which a kill may have prevented
            else:
                left.append(task)
        if left:
            policy, engine, skipped = start(left)
            try:
                for task in left:
                    _run(folder, task, policy, engine, skipped.get(task.name, {}), how, chunk, judge)
            finally:
                engine.close()
        return write_summaries(folder)


def _run(
    folder: Path,
    task: Task,
    policy: Policy,
    engine: RolloutEngine,
    skipped: dict[str, str],
    how: Asking,
    chunk: int,
    judge: Judge | None,
) -> None:
    """The table of one task. Chunks are the same whenever it is resumed, so that no response depends on the kills."""
    shards = Shards(folder, task.name)
    chunks = [task.items[first : first + chunk] for first in range(0, len(task.items), chunk)]
    with progress(task.name, len(task.items)) as advance:
        for number, items in enumerate(chunks):
            rows: list[Row] = []
            if not shards.part(number).exists():
                journal = Journal(shards.journal(number))
                rows = ask(task, items, KeepingEngine(engine, journal), policy, how, skipped)
                shards.write(number, judge.ask(rows) if judge else rows)
                journal.discard()
                return_freed_memory()
            advance(len(items), rows)
    shards.merge(len(chunks))


def check_settings(folder: Path, settings: dict[str, Any], tasks: Sequence[Task]) -> None:
    """Write ``settings.json``, or compare it; benchmarks may be added to a folder. Raises ValueError, with all that
    changed, if the folder was made otherwise."""
    path = folder / SETTINGS
    before = read_json(path)
    data = {
        task.name: {"items": len(task.items), "digest": task.digest, "name": task.benchmark.name, "split": task.split}
        for task in tasks
    }
    if before:
        known = before.pop("benchmarks")
        places = before.pop("places")
        changes = list(_changes(before, settings))
        for name, facts in data.items():
            if (old := known.get(name, facts)) != facts:
                what = f"{old['items']} -> {facts['items']} items" if old["items"] != facts["items"] else "the content"
                changes.append(f"the data of {name} ({what})")
        if changes:
            raise ValueError(f"{folder} was made otherwise: {'; '.join(changes)}; choose another --label or --out")
        data = known | data
    else:
        places = {}
    places |= {task.name: task.place for task in tasks}
    atomic_write_text(path, json.dumps(settings | {"benchmarks": data, "places": places}, indent=1) + "\n")


def _changes(before: Any, now: Any, where: str = "") -> Iterator[str]:
    """Settings that differ, with both values."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *(key for key in now if key not in before)]:
            yield from _changes(before.get(key), now.get(key), f"{where}.{key}" if where else key)
    elif before != now:
        yield f"{where} {before!r} -> {now!r}"


@contextmanager
def progress(name: str, total: int) -> Iterator[Callable[[int, Sequence[Row]], None]]:
    """A bar on stderr, with the mean score of the greedy first looks so far and those that are unparsed or truncated.
    Gives the function that adds asked items and their rows."""
    counts = {"n": 0, "score": 0.0, "unparsed": 0, "truncated": 0}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(file=sys.stderr)) as bar:
        shown = bar.add_task(name, total=total, note="")

        def advance(items: int, rows: Sequence[Row]) -> None:
            firsts = [row for row in rows if row["greedy"] and row["look"] == "first" and row["score"] is not None]
            counts["n"] += len(firsts)
            counts["score"] += sum(row["score"] for row in firsts)
            counts["unparsed"] += sum(row["extracted"] is None for row in firsts)
            counts["truncated"] += sum(not row["finished"] for row in firsts)
            note = ""
            if counts["n"]:
                mean = counts["score"] / counts["n"]
                note = f"score {mean:.3f}, {counts['unparsed']} unparsed, {counts['truncated']} truncated"
            bar.update(shown, advance=items, note=note)

        yield advance
