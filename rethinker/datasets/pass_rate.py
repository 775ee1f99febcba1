"""The rows of a data set that a reference model got right sometimes, e.g. neither always nor never."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rethinker.datasets.columns import Row


@dataclass
class PassRateFilter:
    """Keeps rows whose number in ``column`` is at least ``low`` and at most ``high``, and counts; a row without a
    number is left out."""

    column: str
    low: float
    high: float
    read: int = 0
    kept: int = 0
    unrated: int = 0

    def __call__(self, row: Row) -> bool:
        """Whether the row is kept. Raises ValueError where its value is no number."""
        self.read += 1
        value = row.get(self.column)
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise ValueError(f"data.pass_rate: {self.column} of {row.get('qid')!r} is {value!r}, not a number")
        if (rate := pass_rate(value)) is None:
            self.unrated += 1
            return False
        inside = self.low <= rate <= self.high
        self.kept += inside
        return inside

    def __str__(self) -> str:
        """How many rows it kept."""
        without = f", {self.unrated:,} have no rate" if self.unrated else ""
        return f"{self.column} from {self.low:g} to {self.high:g}: {self.kept:,} of {self.read:,} rows kept{without}"


def pass_rate(rate: float | None) -> float | None:
    """``rate``, or None where there is none: null, not a number, or below 0 (ViRL39K has -1 for what it has not
    measured)."""
    return None if rate is None or math.isnan(rate) or rate < 0 else rate
