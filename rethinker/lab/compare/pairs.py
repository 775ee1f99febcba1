"""The same questions, two evaluations: differences of scores, paired by item, with 95% intervals.

Two models that answer the same questions are compared by the differences of their answers, not by their two intervals:
what makes a question hard for both cancels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from rethinker.benchmarks.summary import in_mode, read_counted
from rethinker.evaluation.statistics import Z95, Estimate
from rethinker.lab.compare.rows import Evaluation, title

ASKED = (
    *("protocol", "prompt.suffix", "prompt.hint"),
    *("model.min_pixels", "model.max_pixels", "rollout.max_new_tokens"),
)
# Of samples and of second looks; an evaluation without them has none of these.
ASKED_TOO = (
    *("rollout.temperature", "rollout.top_p"),
    *("rethink.temperature", "rethink.min_second_look_tokens", "rethink.seam"),
)
SHOWN = 60  # characters of a setting
COLUMNS = ("title", "mode", "before", "after", "difference", "low", "high", "n", "clusters")


def differences(evaluations: Sequence[Evaluation]) -> pd.DataFrame:
    """Of every later evaluation and the first one: greedy responses of each mode that both have, on benchmarks that
    both have. Items that only one of them has, or that cannot be scored, are left out; ``n`` says how many remain."""
    rows = []
    for later in evaluations[1:]:
        first = evaluations[0]
        for name, counted in first.counts.items():
            if name not in later.counts:
                continue
            tables = [read_counted(each.folder / f"{name}.parquet") for each in (first, later)]
            for mode in (mode for mode in counted["modes"] if mode in later.counts[name]["modes"]):
                before, after = (_greedy(in_mode(table, mode)) for table in tables)
                found = paired(before, after, counted["mean_over"])
                about = {"title": title(counted), "mode": mode}
                labels = {"before": first.label, "after": later.label}
                interval = {"difference": found.value, "low": found.low, "high": found.high}
                rows.append(about | labels | interval | {"n": found.n, "clusters": found.clusters})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def asked_otherwise(evaluations: Sequence[Evaluation]) -> list[str]:
    """A warning for every later evaluation that shares a benchmark with the first one and was asked with other
    settings, types and engines aside: they change no more than rounding does."""
    warnings = []
    for later in evaluations[1:]:
        first = evaluations[0]
        changes = list(_changes(first, later))
        if changes and first.counts.keys() & later.counts.keys():
            warnings.append(
                f"Warning: {first.label} and {later.label} were asked with other settings ({'; '.join(changes)}), so "
                "their difference is not the model's alone; evaluate one of them again with the other's"
            )
    return warnings


def _changes(first: Evaluation, later: Evaluation) -> Iterator[str]:
    for key in (*ASKED, *ASKED_TOO):
        before, after = _setting(first, key), _setting(later, key)
        absent = key in ASKED_TOO and (before is None or after is None)
        if before != after and not absent:
            yield f"{key} {_short(before)} -> {_short(after)}"


def _setting(each: Evaluation, key: str) -> Any:
    section, _, name = key.partition(".")
    found = each.settings.get(section)
    return (found or {}).get(name) if name else found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def paired(before: pd.DataFrame, after: pd.DataFrame, mean_over: str | None) -> Estimate:
    """mean(after - before) over items or, with ``mean_over``, over that group's values of their means.

    Both tables have qid, score, cluster and groups. The variance is that of the differences around the mean of their
    stratum, summed by cluster; the interval is normal, in [-1, 1]. Without two clusters it is all of that.
    """
    both = before.merge(after[["qid", "score"]], on="qid", suffixes=("", "_after"))
    if both.empty:
        return Estimate(None, None, None, 0, 0)
    difference = both["score_after"] - both["score"]
    strata = both["groups"].map(lambda found: found[mean_over][0] if mean_over else "")
    weight = 1 / (strata.map(strata.value_counts()) * strata.nunique())
    value = float((weight * difference).sum())
    residual = weight * (difference - difference.groupby(strata).transform("mean"))
    sums = residual.groupby(both["cluster"]).sum()
    n = len(sums)
    spread = Z95 * math.sqrt(float((sums**2).sum()) * n / (n - 1)) if n > 1 else 2.0
    return Estimate(value, max(-1.0, value - spread), min(1.0, value + spread), len(both), n)


def _greedy(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["greedy"] & rows["score"].notna()]
