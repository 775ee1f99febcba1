"""Intervals over few seeds, by bootstrap, and what follows from one.

Runs are drawn again with replacement; a pair of variants keeps its seeds together. With eight seeds a percentile
interval is too narrow: its ends are moved outward to the quantiles that give Student's t interval for a mean of normal
values (Hesterberg 2015, "What teachers should know about the bootstrap", the expanded percentile interval). Even so the
interval of a mean ends at the smallest and the largest run: where all have one sign it never holds 0, and five have one
sign by chance in 6 of 100 cases. So that of a mean reaches at least as far as Student's t on either side.

Where every run answered the same queries, these are drawn again too, independently: runs and queries are crossed, not
nested. Whole rows and columns drawn together (McCullagh 2000; Owen 2007, "The pigeonhole bootstrap") count what is
neither a run's nor a query's, the chance of single answers, three times. So the means of runs and those of queries are
drawn, scaled to the variance that two-way analysis of variance gives each (a reflated bootstrap of random effects,
Carpenter, Goldstein and Rasbash 2003), and the ends are moved outward for the degrees of freedom of the sum
(Satterthwaite 1946). Draws are seeded: the same numbers give the same interval.
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
FEWEST_SEEDS = 5  # with fewer Student's t leans on a standard deviation that is hardly known: nothing is decided (ours)


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
    if queries > 1 and seeds > 1:
        return Effect(float(table.mean()), *_crossed(table), seeds, queries)
    table = table.reshape(seeds, -1).mean(axis=1)
    mean, (low, high) = float(table.mean()), _ends(_draws(seeds) @ table / seeds, seeds)
    if seeds > 1:
        reach = t95(seeds - 1) * float(table.std(ddof=1)) / math.sqrt(seeds)
        low, high = min(low, mean - reach), max(high, mean + reach)
    return Effect(mean, low, high, seeds, queries)


def _crossed(table: np.ndarray) -> tuple[float, float]:
    """The interval of the mean of seeds x queries; see the module."""
    seeds, queries = table.shape
    mean, rows, columns = float(table.mean()), table.mean(axis=1), table.mean(axis=0)
    rest = table - rows[:, None] - columns + mean
    chance = (
        float((rest**2).sum()) / ((seeds - 1) * (queries - 1)) / (seeds * queries)
    )  # of the mean, by single answers
    of_rows = float(rows.var(ddof=1)) / seeds  # of the mean, by runs and by single answers
    by_columns = float(columns.var(ddof=1)) / queries
    of_columns = max(0.0, by_columns - chance)
    shrunk = math.sqrt(of_columns / by_columns * queries / (queries - 1)) if of_columns else 0.0
    draws = mean + math.sqrt(seeds / (seeds - 1)) * (_draws(seeds) @ rows / seeds - mean)
    draws += shrunk * (_draws(queries, DRAWS, SEED + 1) @ columns / queries - mean)
    freedom = (of_rows + of_columns) ** 2
    freedom /= max(of_rows**2 / (seeds - 1) + of_columns**2 / (queries - 1), 1e-300)
    t = t95(max(1, int(freedom)))
    tail = NormalDist().cdf(-t)
    low, high = map(float, np.quantile(draws, [tail, 1 - tail]))
    reach = t * math.sqrt(of_rows + of_columns)
    return min(low, mean - reach), max(high, mean + reach)


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
