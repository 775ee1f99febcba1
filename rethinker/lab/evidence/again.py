"""Is a run that was made again that of the committed tables? Its rows, column by column; seconds are not compared."""

from __future__ import annotations

import pandas as pd

from rethinker.lab.evidence.tables import Tables

SKIPPED = ("seconds", "commit", "versions", "settings")  # clocks, code and company may differ
LATER = ("advantages", "words")  # tables that runs collected before them are not in
COMPARED = ("runs", "episodes", "validations", "tests", "queries", *LATER)


def differences(committed: Tables, again: Tables, grid: str, variant: str, seed: int) -> list[str]:
    """What differs, in words; [] if nothing does. Numbers are equal up to 1e-5 of their size (float32 in files)."""
    words = []
    for name in COMPARED:
        first, second = (tables.of(name, grid, variant, seed).reset_index(drop=True) for tables in (committed, again))
        if first.empty and (second.empty or name in LATER):
            continue
        if len(first) != len(second):
            words.append(f"{name}: {len(first)} rows committed, {len(second)} made again")
            continue
        for column in first.columns.difference(SKIPPED):
            if not _equal(first[column], second[column]):
                rows = range(len(first))
                at = next(row for row in rows if not _equal(first[column].iloc[[row]], second[column].iloc[[row]]))
                words.append(
                    f"{name}.{column}: from row {at}, {first[column][at]} committed, {second[column][at]} again"
                )
    if not words and committed.of("runs", grid, variant, seed).empty:
        words.append(f"the tables have no run of {grid}, {variant}, seed {seed}")
    return words


def _equal(first: pd.Series, second: pd.Series) -> bool:
    """Whether all values are equal, numbers up to rounding."""
    try:
        pd.testing.assert_series_equal(first, second, check_dtype=False, rtol=1e-5, atol=1e-6)
    except AssertionError:
        return False
    return True
