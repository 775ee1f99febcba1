"""Effects with intervals, from the tables: a variant's value, a paired difference or ratio, tokens to an accuracy."""

from __future__ import annotations

import numpy as np

from rethinker.lab.evidence.bootstrap import NOTHING, Effect, curve_effect, mean_effect
from rethinker.lab.evidence.measures import (
    POINTS,
    TENTH,
    Variant,
    budget,
    curves,
    finished_seeds,
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
) -> Effect:
    """``measure`` of variant ``of`` over its finished seeds or, given ``against``, the difference paired by seed.

    ``against`` may be a variant of another grid, ``bare:ssr``. ``minus``: the measure that is subtracted (None: the
    same), so that a variant can be compared with itself. ``relative``: the ratio of the two instead, as exp of the mean
    difference of logarithms. Measures: ``measures.MEASURES``, ``tokens_to_match`` and ``tokens_to/<accuracy>``. NaN
    without a seed.
    """
    key = (measure, grid, of, against, minus, relative)
    if key not in tables.effects:
        tables.effects[key] = _effect(tables, *key)
    return tables.effects[key]


def _effect(
    tables: Tables, measure: str, grid: str, of: str, against: str | None, minus: str | None, relative: bool
) -> Effect:
    first = (grid, of)
    second = parse(against, grid) if against is not None else first
    seeds = finished_seeds(tables, first, second)
    if not seeds:
        return NOTHING
    most = budget(tables, first, second)
    if measure == MATCH or measure.startswith(REACH + "/"):
        return _tokens(tables, measure, list(dict.fromkeys((first, second))), seeds, most)
    here = values(tables, measure, *first, seeds, most)
    if against is not None:
        there = values(tables, minus or measure, *second, seeds, most)
        here, there = here.align(there, join="inner")
        here = np.log(here / there) if relative else here - there
    here = here.replace([np.inf, -np.inf], np.nan).dropna(axis=1, how="all").dropna(axis=0)
    if here.empty:
        return NOTHING
    found = mean_effect(here.iloc[:, 0].to_numpy() if here.shape[1] == 1 else here.to_numpy())
    if against is not None and relative:
        value, low, high = np.exp([found.value, found.low, found.high])
        return Effect(float(value), float(low), float(high), found.seeds, found.queries)
    return found


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
        target = means[:, 1, -max(2, round(TENTH * POINTS)) :].mean(axis=1)
        return _first(means[:, 0], target) / _first(means[:, 1], target)

    return curve_effect(table, ratio)


def crossing(table: np.ndarray, target: float, most: float) -> Effect:
    """Tokens until the mean over seeds of the curves (seeds x POINTS) first reaches ``target``."""
    return curve_effect(table, lambda means: _first(means, target, 0) * most / (POINTS - 1))


def _first(means: np.ndarray, target: float | np.ndarray, least: int = 1) -> np.ndarray:
    """Grid step (``least`` at least) at which each curve first reaches its target; infinite if it never does."""
    hit = means >= (np.asarray(target)[:, None] if np.ndim(target) else target) - 1e-12
    return np.where(hit.any(axis=1), np.maximum(hit.argmax(axis=1), least), np.inf)


def variants_of(tables: Tables, grid: str) -> list[str]:
    """Variants of a grid that have a finished run, in order of their names."""
    runs = tables["runs"]
    return sorted(runs[(runs["grid"] == grid) & (runs["state"] == "finished")]["variant"].unique())
