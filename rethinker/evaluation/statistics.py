"""Accuracies with intervals. All intervals are 95%.

A query is the unit that was drawn from the population; several samples of one query are not independent of each other.
So every interval of sampled responses takes the queries as clusters.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

Z95 = 1.959963984540054  # the normal distribution's 97.5 % quantile


@dataclass(frozen=True, slots=True)
class Estimate:
    """A share with its interval; ``n`` cases (responses) in ``clusters`` queries. Without cases all three are None."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    clusters: int

    def to_dict(self) -> dict[str, float | int | None]:
        """Plain values for JSON."""
        return asdict(self)


def wilson(successes: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a binomial share (Wilson 1927); ``n`` may be an effective, fractional size.

    Raises ValueError for n <= 0 or successes outside [0, n].
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"wilson: needs 0 <= successes <= n and n > 0, got {successes} of {n}")
    share = successes / n
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # Rounding must not put the share outside: at 0 and 1 the interval begins and ends there.
    return max(0.0, min(share, (centre - spread) / scale)), min(1.0, max(share, (centre + spread) / scale))


def binomial(outcomes: Sequence[bool]) -> Estimate:
    """The share of True among independent outcomes (one per query: greedy accuracy), Wilson's interval."""
    n = len(outcomes)
    if n == 0:
        return Estimate(None, None, None, 0, 0)
    successes = sum(bool(outcome) for outcome in outcomes)
    return Estimate(successes / n, *wilson(successes, n), n, n)


def clustered(totals: Sequence[float], sizes: Sequence[int]) -> Estimate:
    """The share sum(totals) / sum(sizes), cluster ``q`` (a query) having ``totals[q]`` successes in ``sizes[q]`` cases.

    The variance is the ratio estimator's over clusters (linearised; Cochran, Sampling Techniques, 6.3). The interval is
    Wilson's with the effective size that has this variance, share * (1 - share) / variance (Korn and Graubard 1998), at
    most the number of cases; so it stays inside [0, 1] and does not vanish at 0 and 1, where the number of clusters is
    the size. With one case per cluster it equals the binomial interval. Below about 20 clusters it is somewhat narrow.
    """
    if len(totals) != len(sizes):
        raise ValueError(f"clustered: {len(totals)} totals but {len(sizes)} sizes")
    pairs = [(total, size) for total, size in zip(totals, sizes, strict=True) if size > 0]
    cases = sum(size for _, size in pairs)
    if not cases:
        return Estimate(None, None, None, 0, 0)
    share = sum(total for total, _ in pairs) / cases
    variance = sum((total - share * size) ** 2 for total, size in pairs) / cases**2
    return Estimate(share, *_wilson_of(share, variance, len(pairs), cases), cases, len(pairs))


def mean_of_means(values: Sequence[float], strata: Sequence[str], clusters: Sequence[str]) -> Estimate:
    """The mean over strata of the mean of their cases, which lie in [0, 1]; with one stratum the mean of all cases.

    Case ``i`` has ``values[i]``, belongs to stratum ``strata[i]`` (a task of a benchmark: fixed, not drawn) and to
    cluster ``clusters[i]`` (what asks the same problem; it may reach over strata). The variance is that of the cases
    around their stratum's mean, summed by clusters; the interval is ``clustered``'s, with which it agrees for one
    stratum. A stratum with a single case says nothing of its variance: the interval is then too narrow.
    """
    if not len(values) == len(strata) == len(clusters):
        raise ValueError(f"mean_of_means: {len(values)} values, {len(strata)} strata, {len(clusters)} clusters")
    if not values:
        return Estimate(None, None, None, 0, 0)
    grouped: dict[str, list[float]] = defaultdict(list)
    for value, stratum in zip(values, strata, strict=True):
        grouped[stratum].append(value)
    means = {stratum: math.fsum(cases) / len(cases) for stratum, cases in grouped.items()}
    share = min(1.0, max(0.0, math.fsum(means.values()) / len(means)))
    residuals: dict[str, float] = defaultdict(float)
    for value, stratum, cluster in zip(values, strata, clusters, strict=True):
        residuals[cluster] += (value - means[stratum]) / (len(grouped[stratum]) * len(means))
    variance = math.fsum(residual**2 for residual in residuals.values())
    return Estimate(share, *_wilson_of(share, variance, len(residuals), len(values)), len(values), len(residuals))


def _wilson_of(share: float, variance: float, clusters: int, cases: int | float) -> tuple[float, float]:
    """Wilson's interval with the effective size that has this variance; see ``clustered``."""
    binomial_variance = share * (1 - share)
    size = float(clusters)
    if binomial_variance > 0:
        size = min(float(cases), binomial_variance / variance) if variance > 0 else float(cases)
    low, high = wilson(min(share * size, size), size)
    return min(low, share), max(high, share)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased estimate of P(at least one of k samples is right) from ``correct`` of ``n`` (Chen et al. 2021, eq. 1).

    1 - C(n - correct, k) / C(n, k). Raises ValueError unless 1 <= k <= n and 0 <= correct <= n.
    """
    if not (1 <= k <= n and 0 <= correct <= n):
        raise ValueError(f"pass_at_k: needs 1 <= k <= n and 0 <= correct <= n, got n={n}, correct={correct}, k={k}")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def pass_sizes(samples: int) -> list[int]:
    """The k of pass@k that are reported: powers of two up to ``samples``, and ``samples`` itself."""
    return sorted({2**power for power in range(samples.bit_length())} | {samples})


def mean_pass_at_k(counts: Mapping[str, tuple[int, int]], k: int) -> Estimate:
    """pass@k over queries, ``counts[qid] = (n, correct)`` with the same n everywhere; the queries are the clusters."""
    if len({n for n, _ in counts.values()}) > 1:
        raise ValueError("mean_pass_at_k: queries have different numbers of samples")
    totals = [n * pass_at_k(n, correct, k) for n, correct in counts.values()]
    return clustered(totals, [n for n, _ in counts.values()])


def paired_difference(before: Mapping[str, float], after: Mapping[str, float]) -> Estimate:
    """mean(after - before) over the same queries, each a query's mean correctness; normal interval over queries.

    A difference is not a share: the interval lies in [-1, 1]. Raises ValueError if the queries differ.
    """
    if before.keys() != after.keys():
        missing = sorted(before.keys() ^ after.keys())[:3]
        raise ValueError(f"paired_difference: the two evaluations have different queries, e.g. {missing}")
    n = len(before)
    if n < 2:
        raise ValueError(f"paired_difference: needs at least 2 queries, got {n}")
    differences = [after[qid] - before[qid] for qid in before]
    mean = sum(differences) / n
    spread = Z95 * math.sqrt(sum((value - mean) ** 2 for value in differences) / (n - 1) / n)
    return Estimate(mean, max(-1.0, mean - spread), min(1.0, mean + spread), n, n)


def over_seeds(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of one value per seed and Student's t interval: (mean, low, high). The interval is not cut at any bound.

    Seeds are the sample here, not queries: how far another seed's run would lie from these. Raises ValueError below 2.
    """
    n = len(values)
    if n < 2:
        raise ValueError(f"over_seeds: an interval needs at least 2 seeds, got {n}")
    mean = math.fsum(values) / n
    spread = t95(n - 1) * math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
    return mean, mean - spread, mean + spread


def t95(freedom: int) -> float:
    """The 97.5 % quantile of Student's t with ``freedom`` degrees, from its exact distribution (Abramowitz and Stegun
    26.7.3 and 26.7.4) by bisection. Raises ValueError below 1."""
    if freedom < 1:
        raise ValueError(f"t95: needs at least 1 degree of freedom, got {freedom}")

    def within(angle: float) -> float:  # P(abs(t) < sqrt(freedom) * tan(angle))
        cos2 = math.cos(angle) ** 2
        odd = freedom % 2
        term = total = (math.cos(angle) if odd else 1.0) if freedom > 1 else 0.0
        for k in range(2 + odd, freedom - 1, 2):
            term *= cos2 * (k - 1) / k
            total += term
        total *= math.sin(angle)
        return 2 * (angle + total) / math.pi if odd else total

    low, high = 0.0, math.pi / 2
    for _ in range(60):  # to the last bit
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < 0.95 else (low, middle)
    return math.sqrt(freedom) * math.tan(high)
