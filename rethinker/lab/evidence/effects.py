"""Effects with intervals, from the tables: a variant's value, a paired difference or ratio, tokens to an accuracy."""

from __future__ import annotations

import numpy as np
import pandas as pd

from rethinker.lab.evidence.bootstrap import NOTHING, Effect, curve_effect, mean_effect
from rethinker.lab.evidence.measures import (
    LAST,
    POINTS,
    Variant,
    axis_of,
    budget,
    curves,
    finished_seeds,
    mean_height,
    values,
)
from rethinker.lab.evidence.tables import Tables

MATCH = "tokens_to_match"  # tokens until a variant's mean curve reaches the other's end, by the other's own
REACH = "tokens_to"  # "tokens_to/0.75": tokens until the mean curve reaches an accuracy; infinite if it does not


def effect(
    tables: Tables,
    measure: str,
    grid: str,
    of: str,
    against: str | None = None,
    *,
    minus: str | None = None,
    relative: bool = False,
    beyond: tuple[str, ...] = (),
) -> Effect:
    """``measure`` of variant ``of`` over its finished seeds or, given ``against``, the difference paired by seed.

    ``against`` may be a variant of another grid, ``bare:ssr``. ``minus``: the measure that is subtracted (None: the
    same), so that a variant can be compared with itself. ``relative``: the ratio of the two instead, as exp of the mean
    difference of logarithms. ``beyond``: another pair, whose difference is subtracted from this one. Measures:
    ``measures.MEASURES``, ``tokens_to_match`` and ``tokens_to/<accuracy>``. NaN without a seed.

    Raises ValueError for an unknown measure, or a difference question by question of runs on different data.
    """
    key = (measure, grid, of, against, minus, relative, beyond)
    if key not in tables.effects:
        tables.effects[key] = _effect(tables, *key)
    return tables.effects[key]


def _effect(
    tables: Tables,
    measure: str,
    grid: str,
    of: str,
    against: str | None,
    minus: str | None,
    relative: bool,
    beyond: tuple[str, ...],
) -> Effect:
    variants = [(grid, of), *(parse(name, grid) for name in (against, *beyond) if name is not None)]
    seeds = finished_seeds(tables, *variants)
    if not seeds:
        return NOTHING
    most = budget(tables, *variants, axis=axis_of(measure))
    if measure == MATCH or measure.startswith(REACH + "/"):
        return _tokens(tables, measure, variants, seeds, most)
    measures = [measure, minus or measure, measure, minus or measure]
    each = [values(tables, name, *variant, seeds, most) for name, variant in zip(measures, variants, strict=False)]
    if each[0].shape[1] > 1:
        _check_data(tables, variants)
    here = _difference(each[0], each[1], relative) if against is not None else each[0]
    if beyond:
        here = _difference(here, _difference(each[2], each[3], relative), relative=False)
    here = here.replace([np.inf, -np.inf], np.nan).dropna(axis=1, how="all").dropna(axis=0)
    if here.empty:
        return NOTHING
    found = mean_effect(here.iloc[:, 0].to_numpy() if here.shape[1] == 1 else here.to_numpy())
    if against is not None and relative:
        value, low, high = np.exp([found.value, found.low, found.high])
        return Effect(float(value), float(low), float(high), found.seeds, found.queries)
    return found


def _difference(first: pd.DataFrame, second: pd.DataFrame, relative: bool) -> pd.DataFrame:
    first, second = first.align(second, join="inner")
    return np.log(first / second) if relative else first - second


def _check_data(tables: Tables, variants: list[Variant]) -> None:
    """Questions are paired by their ids, which two drawn worlds share."""
    data = {variant: set(tables.of("runs", *variant)["data"].dropna().unique()) - {""} for variant in variants}
    if len(set.union(*data.values())) > 1:
        words = "; ".join(f"{':'.join(variant)}: {', '.join(sorted(found))}" for variant, found in data.items())
        raise ValueError(f"held-out accuracies of runs on different data cannot be paired by question ({words})")


def parse(name: str, grid: str) -> Variant:
    """A variant by its name: ``ssr`` of ``grid`` itself, or ``bare:ssr`` of another grid."""
    other, colon, label = name.partition(":")
    return (other, label) if colon else (grid, name)


def _tokens(tables: Tables, measure: str, variants: list[Variant], seeds: list[int], most: float) -> Effect:
    if not most:
        return NOTHING
    table = np.stack([curves(tables, *variant, seeds, most) for variant in variants], axis=1)
    table = table[~np.isnan(table).any(axis=(1, 2))]
    if measure != MATCH:
        target = float(measure.partition("/")[2])
        first = [crossing(table[:, number], target, most) for number in range(len(variants))]
        return (
            first[0]
            if len(variants) == 1
            else curve_effect(table, lambda means: _first(means[:, 0], target) / _first(means[:, 1], target))
        )
    assert len(variants) == 2, f"{MATCH} compares two variants"

    def ratio(means: np.ndarray) -> np.ndarray:
        target = mean_height(means[:, 1, LAST:])
        return _first(means[:, 0], target) / _first(means[:, 1], target)

    return curve_effect(table, ratio)


def crossing(table: np.ndarray, target: float, most: float) -> Effect:
    """Tokens until the mean over seeds of the curves (seeds x POINTS) first reaches ``target``."""
    return curve_effect(table, lambda means: _first(means, target, 0) * most / (POINTS - 1))


def _first(means: np.ndarray, target: float | np.ndarray, least: int = 1) -> np.ndarray:
    """Where on the grid, in steps (``least`` at least), each curve first reaches its target; infinite if nowhere."""
    goal = np.broadcast_to(np.asarray(target, dtype=float), len(means))
    hit = means >= goal[:, None] - 1e-12
    at = hit.argmax(axis=1)
    rows, before = np.arange(len(means)), np.maximum(at - 1, 0)
    low, high = means[rows, before], means[rows, at]
    with np.errstate(divide="ignore", invalid="ignore"):
        within = np.where(at > 0, before + (goal - low) / (high - low), 0.0)
    return np.where(hit.any(axis=1), np.maximum(np.minimum(within, at), least), np.inf)


def variants_of(tables: Tables, grid: str) -> list[str]:
    """Variants of a grid that have a finished run, in order of their names."""
    runs = tables["runs"]
    return sorted(runs[(runs["grid"] == grid) & (runs["state"] == "finished")]["variant"].unique())
