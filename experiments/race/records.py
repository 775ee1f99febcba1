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
FAILED = "failed"  # the split of a run's last row, if it did not come to its end


def read(file: Path) -> pd.DataFrame:
    """The table; an empty one where there is none. Raises ValueError for other columns."""
    if not file.exists():
        return pd.DataFrame(columns=list(COLUMNS))
    table = pd.read_csv(file)
    if tuple(table.columns) != COLUMNS:
        raise ValueError(f"{file}: its columns are {', '.join(table.columns)}; expected {', '.join(COLUMNS)}")
    return table


def add(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Put a run that has ended into the table, in place of an earlier one of its name; written anew, sorted."""
    new = pd.DataFrame(list(rows), columns=list(COLUMNS))
    before = read(file)
    if len(before):
        before = before[~before[list(RUN)].apply(tuple, axis=1).isin(named(new))]
    table = pd.concat([before, new], ignore_index=True) if len(before) else new
    table = table.sort_values([*RUN, "cpu_s", "split"], ascending=[True] * 4 + [False], ignore_index=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    table = table.round({"wall_s": 3, "cpu_s": 3, "accuracy": 6, "load_1min": 2})
    atomic_write_text(file, table.to_csv(index=False, lineterminator="\n"))


def finished(table: pd.DataFrame) -> set[tuple[str, int, float]]:
    """The runs of the table that came to their end: the others are to be run again."""
    return named(table) - named(table[table["split"] == FAILED])


def named(table: pd.DataFrame) -> set[tuple[str, int, float]]:
    """All runs of the table, those that failed too."""
    return {(str(method), int(seed), float(lr)) for method, seed, lr in table[list(RUN)].itertuples(index=False)}


def validations(table: pd.DataFrame) -> list[tuple[tuple[str, int, float], pd.DataFrame]]:
    """Each run's evaluations on the validation split, in their order."""
    return [
        ((str(name[0]), int(name[1]), float(name[2])), rows.sort_values("cpu_s"))
        for name, rows in table[table["split"] == "validation"].groupby(list(RUN))
    ]


def best_rates(sweep: pd.DataFrame) -> dict[str, float]:
    """The learning rate of each method whose last evaluations are best on average; the smallest of equal ones. None
    of a method whose runs have all failed.
    """
    return {
        method: max(sorted(rates), key=lambda lr: round(rates[lr], 9)) for method, rates in sweep_scores(sweep).items()
    }


def sweep_scores(sweep: pd.DataFrame) -> dict[str, dict[float, float]]:
    """Of each method and learning rate that none of its runs failed at: the mean of the last evaluations."""
    failed = {(method, lr) for method, _, lr in named(sweep[sweep["split"] == FAILED])}
    scores: dict[str, dict[float, list[float]]] = {}
    for (method, _, lr), rows in validations(sweep):
        if (method, lr) not in failed:
            scores.setdefault(method, {}).setdefault(lr, []).append(last(rows))
    return {method: {lr: sum(found) / len(found) for lr, found in rates.items()} for method, rates in scores.items()}


def last(rows: pd.DataFrame) -> float:
    """The accuracy that a run has at its end: the mean of its last evaluations."""
    return float(rows["accuracy"].tail(LAST).mean())


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
    """A Markdown table: a method a row, means over its seeds with the smallest and the largest."""
    marks, clocks = list(thresholds), (("CPU s", "cpu_s"), ("wall s", "wall_s"))
    heads = [f"{label} to {mark:.0%}" for mark in marks for label, _ in clocks]
    columns = ["method", "lr", "seeds", *heads, "episodes", "CPU s an episode", "tokens a CPU s", "validation", "test"]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for method, title in titles.items():
        own = table[table["method"] == method]
        runs = [rows for _, rows in validations(own)]
        if not runs:
            continue
        ends = pd.DataFrame([rows.iloc[-1] for rows in runs])
        failed = int((own["split"] == FAILED).sum())
        cells = [title, f"{own['lr'].iloc[0]:g}", f"{len(runs)}" + f", {failed} failed" * bool(failed)]
        cells += [over([time_to(rows, mark, clock) for rows in runs], ".0f") for mark in marks for _, clock in clocks]
        cells.append(over(ends["episode"], ".0f"))
        cells.append(over(ends["cpu_s"] / ends["episode"], ".2f"))
        cells.append(over(ends["tokens"] / ends["cpu_s"], ",.0f"))
        cells.append(over([last(rows) for rows in runs], ".3f"))
        cells.append(over(own["accuracy"][own["split"] == "test"], ".3f"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def sweep_summary(sweep: pd.DataFrame, titles: Mapping[str, str]) -> str:
    """A Markdown table: a method a row, a learning rate a column; the best one's in bold."""
    scores, best = sweep_scores(sweep), best_rates(sweep)
    cells = {
        (method, lr): f"**{score:.3f}**" if best[method] == lr else f"{score:.3f}"
        for method, rates in scores.items()
        for lr, score in rates.items()
    }
    return _by_rate(sweep, titles, cells)


def sweep_times(sweep: pd.DataFrame, titles: Mapping[str, str], thresholds: Iterable[float]) -> str:
    """The same table with the CPU seconds to each threshold; of the first seed that ran."""
    marks = list(thresholds)
    cells: dict[tuple[str, float], str] = {}
    for (method, _, lr), rows in validations(sweep):
        times = [time_to(rows, mark, "cpu_s") for mark in marks]
        cells.setdefault((method, lr), ", ".join("never" if time is None else f"{time:.0f}" for time in times))
    return _by_rate(sweep, titles, cells)


def _by_rate(sweep: pd.DataFrame, titles: Mapping[str, str], cells: Mapping[tuple[str, float], str]) -> str:
    rates = sorted(sweep["lr"].unique())
    lines = [f"| method | {' | '.join(f'{lr:g}' for lr in rates)} |", f"|{'---|' * (len(rates) + 1)}"]
    for method in (name for name in titles if name in set(sweep["method"])):
        lines.append(f"| {titles[method]} | {' | '.join(cells.get((method, lr), '–') for lr in rates)} |")
    return "\n".join(lines) + "\n"


def over(values: Iterable[float | None], form: str) -> str:
    """The mean of what seeds have, the smallest and the largest; how many have it, if not all."""
    every = list(values)
    known = [value for value in every if value is not None]
    if not known:
        return "not reached"
    text = f"{sum(known) / len(known):{form}}"
    if len(known) > 1:
        text += f" ({min(known):{form}} to {max(known):{form}})"
    return text + f", {len(known)} of {len(every)}" * (len(known) < len(every))
