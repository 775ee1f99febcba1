"""Words of captions and legends: intervals, numbers of cases, names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rethinker.evaluation.statistics import wilson
from rethinker.lab.analysis import diagnostics
from rethinker.rundir.reader import load_settings, stage_settings


def interval(low: float | None, high: float | None) -> str:
    """The words "(95% interval 36 to 69%)"; empty if there is no interval."""
    if low is None or high is None or np.isnan(low) or np.isnan(high):
        return ""
    return f" (95% interval {100 * low:.0f} to {100 * high:.0f}%)"


def share_words(hits: float, count: float) -> str:
    """A share of independent cases with Wilson's interval, for a caption."""
    return f"{hits / count:.0%}{interval(*wilson(hits, count))}" if count > 0 else "none (no cases)"


def widths(sizes: pd.Series) -> str:
    """How wide Wilson's interval of a share of one half is for the largest and the smallest of ``sizes`` cases."""
    narrow, wide = (100 * (wilson(size / 2, size)[1] - 0.5) for size in (sizes.max(), sizes.min()))
    reach = f"± {narrow:.0f}" + ("" if sizes.max() == sizes.min() else f" to ± {wide:.0f}")
    return f"95% Wilson interval of a share of one half: {reach} points"


def level_name(by: str, key: object) -> str:
    """How a kind or a level is called in a legend."""
    return f"level {key}" if by == "level" else str(key) or "(none)"


def largest(table: pd.DataFrame, by: str, size: str, most: int) -> tuple[list[Any], str]:
    """The ``most`` largest keys of ``table[by]`` by the sum of column ``size``, sorted, and words if some were left."""
    sizes = table.groupby(by)[size].sum().sort_values(ascending=False, kind="stable")
    keys = sorted(sizes.index[:most])
    return keys, f" (the {len(keys)} largest of {len(sizes)})" if len(keys) < len(sizes) else ""


def queries_words(run: Path) -> str:
    """How many queries an episode has, for a caption."""
    try:
        table = diagnostics.vanishing(run)
    except FileNotFoundError:
        return "number of queries unknown: no rollout files"
    low, high = int(table["queries"].min()), int(table["queries"].max())
    return f"n = {low if low == high else f'{low} to {high}'} queries per episode"


def unanimous_words(run: Path) -> str:
    """What a query gives whose first responses are all right or all wrong, with or without a price of tokens."""
    settings = load_settings(run)
    names = [stage["name"] for stage in settings.get("stages") or []]
    priced = [name for name in names if stage_settings(settings, name)["reward"]["token_price"]]
    rest = f" (in {' and '.join(priced)} only one by length, as tokens have a price there)" if priced else ""
    return f"A query whose first responses are all right or all wrong gives no gradient{rest}"
