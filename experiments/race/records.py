"""The tables of a race, one row an evaluation, and what is read off them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from rethinker.rundir.atomic import atomic_write_text

RUN = ("method", "seed", "lr")  # what names a run
COLUMNS = (*RUN, "split", "wall_s", "cpu_s", "episode", "step", "tokens", "accuracy", "queries", "load_1min")
LAST = 3  # evaluations whose mean is a run's accuracy: 120 queries alone have a standard error of 4 points


def read(file: Path) -> pd.DataFrame:
    """The table; an empty one where there is none. Raises ValueError for other columns."""
    if not file.exists():
        return pd.DataFrame(columns=list(COLUMNS))
    table = pd.read_csv(file)
    if tuple(table.columns) != COLUMNS:
        raise ValueError(f"{file}: its columns are {', '.join(table.columns)}; expected {', '.join(COLUMNS)}")
    return table


def add(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Put a finished run into the table, which is written anew, sorted."""
    new = pd.DataFrame(list(rows), columns=list(COLUMNS))
    before = read(file)
    table = pd.concat([before, new], ignore_index=True) if len(before) else new
    table = table.sort_values([*RUN, "cpu_s", "split"], ascending=[True] * 4 + [False], ignore_index=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    table = table.round({"wall_s": 3, "cpu_s": 3, "accuracy": 6, "load_1min": 2})
    atomic_write_text(file, table.to_csv(index=False, lineterminator="\n"))


def finished(table: pd.DataFrame) -> set[tuple[str, int, float]]:
    """The runs that are in the table: only whole ones are put there."""
    return {(str(method), int(seed), float(lr)) for method, seed, lr in table[list(RUN)].itertuples(index=False)}


def validations(table: pd.DataFrame) -> list[tuple[tuple[str, int, float], pd.DataFrame]]:
    """Each run's evaluations on the validation split, in their order."""
    return [
        ((str(name[0]), int(name[1]), float(name[2])), rows.sort_values("cpu_s"))
        for name, rows in table[table["split"] == "validation"].groupby(list(RUN))
    ]


def best_rates(sweep: pd.DataFrame) -> dict[str, float]:
    """The learning rate of each method whose last evaluations are best on average; the smallest of equal ones."""
    scores: dict[str, dict[float, list[float]]] = {}
    for (method, _, lr), rows in validations(sweep):
        scores.setdefault(method, {}).setdefault(lr, []).append(float(rows["accuracy"].tail(LAST).mean()))
    return {
        method: max(sorted(rates), key=lambda lr: round(sum(rates[lr]) / len(rates[lr]), 9))
        for method, rates in scores.items()
    }


def time_to(rows: pd.DataFrame, threshold: float, clock: str) -> float | None:
    """When a run reached ``threshold``: at the first of two evaluations in a row that are there, since a single one may
    be luck; None where it did not.
    """
    there = (rows["accuracy"] >= threshold - 1e-9).tolist()
    for index in range(len(there) - 1):
        if there[index] and there[index + 1]:
            return float(rows[clock].iloc[index])
    return None


def summary(table: pd.DataFrame, titles: Mapping[str, str], thresholds: Iterable[float]) -> str:
    """A Markdown table: a method a row, its seeds in order behind one another."""
    marks = list(thresholds)
    clocks = (("CPU s", "cpu_s"), ("wall s", "wall_s"))
    heads = [f"{label} to {mark:.0%}" for mark in marks for label, _ in clocks]
    columns = ["method", "lr", "seeds", *heads, "episodes", "tokens", f"validation (last {LAST})", "test"]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    runs = validations(table)
    for method, title in titles.items():
        own = [(name, rows) for name, rows in runs if name[0] == method]
        if not own:
            continue
        cells = [title, _each(f"{lr:g}" for lr in dict.fromkeys(name[2] for name, _ in own))]
        cells.append(_each(str(name[1]) for name, _ in own))
        for mark in marks:
            cells += [_each(_seconds(time_to(rows, mark, clock)) for _, rows in own) for _, clock in clocks]
        cells.append(_each(f"{rows['episode'].max():.0f}" for _, rows in own))
        cells.append(_each(f"{rows['tokens'].max():,.0f}" for _, rows in own))
        cells.append(_each(f"{rows['accuracy'].tail(LAST).mean():.3f}" for _, rows in own))
        tests = table[(table["split"] == "test") & (table["method"] == method)].sort_values("seed")["accuracy"]
        cells.append(_each(f"{value:.3f}" for value in tests))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _each(cells: Iterable[str]) -> str:
    shown = list(cells)
    return shown[0] if len(set(shown)) == 1 else " / ".join(shown)


def _seconds(value: float | None) -> str:
    return "not reached" if value is None else f"{value:.0f}"
