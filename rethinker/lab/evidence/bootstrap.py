"""Intervals over few seeds, by bootstrap, and what follows from one.

Runs are drawn again with replacement (a pair of variants keeps its seeds together) and, where every run answered the
same queries, the queries too, independently of the runs: the two are crossed, not nested, so a draw takes whole rows
and whole columns of the table (McCullagh 2000, "Resampling and exchangeable arrays"; Owen 2007, "The pigeonhole
bootstrap", which says that the variance is then a little too large, never too small). With eight seeds a percentile
interval is too narrow: its ends are moved outward to the quantiles that give Student's t interval for a mean of normal
values (Hesterberg 2015, "What teachers should know about the bootstrap", the expanded percentile interval). Draws are
seeded: the same numbers give the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from rethinker.evaluation.statistics import t95

DRAWS = 10_000
SEED = 2504
FEWEST_SEEDS = (
    5  # below it the interval cannot reach 95% (its ends are the smallest and largest run), and decides nothing
)


@dataclass(frozen=True)
class Effect:
    """A value with its 95% interval over ``seeds`` runs (and ``queries``, 0: not drawn again). NaN where unknown."""

    value: float
    low: float
    high: float
    seeds: int
    queries: int = 0


NOTHING = Effect(math.nan, math.nan, math.nan, 0)


def mean_effect(values: np.ndarray) -> Effect:
    """The mean of ``values``: one per seed, or seeds x queries."""
    table = np.asarray(values, dtype=float)
    seeds, queries = len(table), table.shape[1] if table.ndim == 2 else 0
    if not seeds:
        return NOTHING
    if queries:
        weights, columns = _draws(seeds), _draws(queries, DRAWS, SEED + 1)
        draws = np.einsum("dq,dq->d", weights @ table.astype(np.float32), columns) / (seeds * queries)
    else:
        draws = _draws(seeds) @ table / seeds
    low, high = _ends(draws, seeds)
    return Effect(float(table.mean()), low, high, seeds, queries)


def curve_effect(curves: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]) -> Effect:
    """A statistic of mean curves; ``curves``: seeds x ... , ``statistic``: draws x ... -> one number a draw."""
    seeds = len(curves)
    if not seeds:
        return NOTHING
    flat = curves.reshape(seeds, -1)
    means = np.vstack([flat.mean(axis=0), _draws(seeds, 4_000) @ flat / seeds]).reshape(-1, *curves.shape[1:])
    found = statistic(means)
    return Effect(float(found[0]), *_ends(found[1:], seeds), seeds)


@lru_cache(maxsize=32)
def _draws(cases: int, draws: int = DRAWS, seed: int = SEED) -> np.ndarray:
    """How often each case is drawn: draws x cases, each row with the sum ``cases``."""
    return np.random.default_rng([seed, cases]).multinomial(cases, np.full(cases, 1 / cases), draws).astype(np.float32)


def _ends(draws: np.ndarray, seeds: int) -> tuple[float, float]:
    """The expanded percentile interval; NaN with one seed, or where a draw has no value."""
    if seeds < 2 or np.isnan(draws).any():
        return math.nan, math.nan
    tail = tail_share(seeds)
    ends = np.quantile(draws, [tail, 1 - tail], method="nearest")  # nearest: a draw may be infinite
    return float(ends[0]), float(ends[1])


def tail_share(seeds: int) -> float:
    """Share of the draws beyond each end: 2.5 % for many seeds, less for few."""
    return NormalDist().cdf(-math.sqrt(seeds / (seeds - 1)) * t95(seeds - 1))


HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "cannot be said"


def verdict(
    effect: Effect, above: float | None = None, below: float | None = None, not_below: float | None = None
) -> str:
    """Whether "the effect lies above (below) the bound" holds, by its interval.

    holds: the whole interval lies on the claimed side. does not hold: the whole interval lies on the other side. cannot
    be said: the interval holds the bound, or there are fewer than ``FEWEST_SEEDS`` seeds, or no interval.
    ``not_below`` is a weaker claim, "it has not been shown to lie below": the interval may hold the bound.
    """
    assert sum(bound is not None for bound in (above, below, not_below)) == 1, "a claim has one bound"
    if effect.seeds < FEWEST_SEEDS or math.isnan(effect.low) or math.isnan(effect.high):
        return UNKNOWN
    if not_below is not None:
        return HOLDS if effect.high >= not_below else FAILS
    if above is not None:
        return HOLDS if effect.low > above else FAILS if effect.high < above else UNKNOWN
    assert below is not None
    return HOLDS if effect.high < below else FAILS if effect.low > below else UNKNOWN


def all_of(verdicts: list[str]) -> str:
    """Of a claim with several parts: it holds if all do, does not hold if one does not, else it cannot be said."""
    if not verdicts or (UNKNOWN in verdicts and FAILS not in verdicts):
        return UNKNOWN
    return FAILS if FAILS in verdicts else HOLDS
