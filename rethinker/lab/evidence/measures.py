"""One number per run and measure from the tables: what variants are compared by, at equal generated tokens or updates.

Variants that are compared are cut at the tokens (with ``@updates``: the updates) that every one of their finished runs
reached. ``start`` and ``end`` are the first and the last tenth of that budget; the area under a curve is its mean over
the budget. Curves are linear between validations; metrics of episodes are means over episodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from rethinker.lab.evidence.tables import Tables

Variant = tuple[str, str]  # a grid's name, and one of its labels

POINTS = 201  # of the grid of tokens or updates
TENTH = 0.1
LAST = round((1 - TENTH) * (POINTS - 1))  # its point where the last tenth begins
TRAINING = (
    "accuracy",
    "reward",
    "effective",
    "all_correct",
    "all_incorrect",
    "effective_before",
    "effective_after",
    "batch_fill",
    "reflection",
    "length",
    "entropy",
)
TEST = ("tokens", "reflection", "second", "rescued", "lost", "greedy")
NO_SHARE = (
    "tokens",
    "length",
    "entropy",
    "ratio",
    "updates",
    "auc",
    "auc_within",
)  # parts of what is no share
DIFFERENCES = ("over_rule",)  # of shares: may lie below 0

MEASURES = {
    "validation/end": "greedy validation accuracy, mean over the last tenth of the budget",
    "validation/area": "mean greedy validation accuracy over the budget (area under the curve)",
    "validation/fall": "best of the running mean over a tenth of the budget, minus its last value: what was lost again",
    "validation/<...>@updates": "the same at equal updates",
    "updates": "optimizer updates within the budget",
    "<training>/start": "mean of a metric of episodes over the first tenth of the budget, e.g. effective/start",
    "<training>/end": "the same over the last tenth",
    "<training>/ratio": "end by start",
    "test/<mode>/accuracy": "pass@1 on the test split at the end of the run (seeds x queries)",
    "test/<mode>/tokens": "tokens a response",
    "test/<mode>/reflection": "share of responses that reflect by themselves",
    "test/<mode>/second": "share of responses with a second look, forced or not",
    "test/<mode>/rescued, lost": "forced second looks that mend a wrong answer, spoil a right one",
    "choice/wrong, choice/right": "share of wrong (right) first looks that got a second look, plain",
    "choice/auc": "does it know when it is wrong: AUC of taking a second look against a wrong first one, plain",
    "choice/auc_within": "the same within kind and level, cells weighted by their pairs",
    "choice/over_rule": "share of wrong first looks that got a second look, minus that of the best rule per kind",
}


def finished_seeds(tables: Tables, *variants: Variant) -> list[int]:
    """Seeds that are finished in every one of the variants."""
    runs = [tables.of("runs", *variant) for variant in variants]
    return sorted(
        set.intersection(*({int(seed) for seed in each[each["state"] == "finished"]["seed"]} for each in runs))
    )


def axis_of(measure: str) -> str:
    """What a measure's budget is counted in: the column ``tokens`` or ``step``."""
    return "step" if measure.endswith("@updates") else "tokens"


def budget(tables: Tables, *variants: Variant, axis: str = "tokens") -> float:
    """Tokens that every finished run of the variants has a validation at or after; 0 where none was validated."""
    ends = []
    for variant in variants:
        part = tables.of("validations", *variant)
        part = part[part["seed"].isin(finished_seeds(tables, variant))]
        ends.append(float(part.groupby("seed")[axis].max().min()) if len(part) else 0.0)
    return min(ends)


def curves(
    tables: Tables, grid: str, variant: str, seeds: Sequence[int], most: float, axis: str = "tokens"
) -> np.ndarray:
    """Validation accuracy at ``POINTS`` equal steps of tokens from 0 to ``most``: seeds x POINTS, linear between."""
    at = np.linspace(0.0, most, POINTS)
    found = []
    for seed in seeds:
        rows = tables.of("validations", grid, variant, seed).sort_values("episode")
        found.append(np.interp(at, rows[axis], rows["accuracy"]) if len(rows) else np.full(POINTS, math.nan))
    return np.array(found).reshape(len(found), POINTS)


def values(tables: Tables, measure: str, grid: str, variant: str, seeds: Sequence[int], most: float) -> pd.DataFrame:
    """A measure of ``MEASURES`` of the runs of a variant: a row per seed; one column, for test accuracy one a query.

    ``test/...`` and ``choice/...`` are those at the end of the run, or with ``@STAGE`` behind them at that stage's end.
    NaN where a run has none of it. Raises ValueError for an unknown measure.
    """
    name = measure
    measure, _, stage = measure.partition("@")
    kind, _, rest = measure.partition("/")
    if kind == "test" and rest.endswith("/accuracy"):
        return _by_query(_at(tables.of("queries", grid, variant), rest.removesuffix("/accuracy"), stage), seeds)
    if kind == "validation" and rest in ("end", "area", "fall"):
        found = _of_curves(curves(tables, grid, variant, seeds, most, axis_of(name)), rest).tolist()
    elif kind == "test" and rest.partition("/")[2] in TEST:
        mode, _, what = rest.partition("/")
        rows = _at(tables.of("tests", grid, variant), mode, stage)
        found = rows.set_index("seed")[what].astype(float).reindex(list(seeds)).tolist()
    elif kind == "choice" and rest in CHOICE:
        rows = _at(tables.of("queries", grid, variant), "plain", stage)
        found = [CHOICE[rest](rows[rows["seed"] == seed]) for seed in seeds]
    elif measure == "updates" or (kind in TRAINING and rest in ("start", "end", "ratio")):
        found = [_training(tables.of("episodes", grid, variant, seed), kind, rest, most) for seed in seeds]
    else:
        raise ValueError(f"no measure {measure!r}; there are {', '.join(MEASURES)}; <training>: {', '.join(TRAINING)}")
    return pd.DataFrame({"value": found}, index=pd.Index(seeds, name="seed"), dtype=float)


def _of_curves(found: np.ndarray, what: str) -> np.ndarray:
    if what == "area":
        return mean_height(found)
    if what == "end":
        return mean_height(found[:, LAST:])
    width = POINTS - LAST  # a running mean over a tenth of the budget
    smooth = np.array([np.convolve(row, np.full(width, 1 / width), mode="valid") for row in found])
    return smooth.max(axis=1) - smooth[:, -1]


def mean_height(found: np.ndarray) -> np.ndarray:
    """Mean of each row's straight lines between equally spaced points."""
    return (found[:, 1:] + found[:, :-1]).mean(axis=1) / 2


def _training(rows: pd.DataFrame, column: str, what: str, most: float) -> float:
    rows = rows[rows["tokens"] <= most] if most else rows
    if rows.empty:
        return math.nan
    if column == "updates":
        return float(rows["step"].max())
    parts = {"start": rows[rows["tokens"] <= TENTH * most], "end": rows[rows["tokens"] > (1 - TENTH) * most]}
    parts = {
        name: part if len(part) else rows.head(1) if name == "start" else rows.tail(1) for name, part in parts.items()
    }
    means = {name: float(part[column].astype(float).mean()) for name, part in parts.items()}
    return means["end"] / means["start"] if what == "ratio" else means[what]


def _at(rows: pd.DataFrame, mode: str, stage: str) -> pd.DataFrame:
    """The rows of a mode at the end of a stage; "": of the run."""
    here = rows["label"] == stage if stage else rows["last"].astype(bool)
    return rows[here & (rows["mode"] == mode)]


def _by_query(rows: pd.DataFrame, seeds: Sequence[int]) -> pd.DataFrame:
    """pass@1 of every query: seeds x queries."""
    rows = rows[rows["seed"].isin(list(seeds))]
    shares = rows.assign(share=rows["correct"] / rows["samples"]).pivot(index="seed", columns="qid", values="share")
    return shares.reindex(list(seeds)).astype(float)


def _auc(wrong_second: float, wrong: float, right_second: float, right: float) -> float:
    """Of a binary decision, from counts."""
    return 0.5 + (wrong_second / wrong - right_second / right) / 2 if wrong and right else math.nan


def _cells(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Counts of known first looks by cell: wrong, right, and those of each that got a second look."""
    known = rows["samples"] - rows["unknown_first"]
    table = rows.assign(wrong=known - rows["first_correct"], right=rows["first_correct"])
    # Responses that reflect before any answer have a second look, and no verdict on the first.
    table = table.assign(right_second=rows["second"] - rows["unknown_first"] - rows["second_wrong"])
    names = ["wrong", "right", "second_wrong", "right_second"]
    return table.groupby(list(by))[names].sum() if by else table[names].sum().to_frame().T


def _share(rows: pd.DataFrame, hit: str, of_all: str) -> float:
    total = _cells(rows, ()).iloc[0]
    return float(total[hit] / total[of_all]) if total[of_all] else math.nan


def _auc_within(rows: pd.DataFrame) -> float:
    cells = _cells(rows, ("category", "level"))
    pairs = cells["wrong"] * cells["right"]
    each = [_auc(row.second_wrong, row.wrong, row.right_second, row.right) for row in cells.itertuples()]
    return float(np.nansum(np.array(each) * pairs) / pairs.sum()) if pairs.sum() else math.nan


def _over_rule(rows: pd.DataFrame) -> float:
    """See ``analysis.choice.best_rule``; here from counts."""
    cells = _cells(rows, ("category",))
    size = cells["wrong"] + cells["right"]
    order = (cells["wrong"] / size).sort_values(ascending=False, kind="stable").index
    cells, size = cells.loc[order], size.loc[order]
    seconds = float((cells["second_wrong"] + cells["right_second"]).sum())
    taken = ((seconds - (size.cumsum() - size)) / size).clip(0.0, 1.0)
    wrong = float(cells["wrong"].sum())
    return float(cells["second_wrong"].sum() - (taken * cells["wrong"]).sum()) / wrong if wrong else math.nan


CHOICE: dict[str, Callable[[pd.DataFrame], float]] = {
    "wrong": lambda rows: _share(rows, "second_wrong", "wrong"),
    "right": lambda rows: _share(rows, "right_second", "right"),
    "auc": lambda rows: _auc(*_cells(rows, ()).iloc[0][["second_wrong", "wrong", "right_second", "right"]]),
    "auc_within": _auc_within,
    "over_rule": _over_rule,
}
