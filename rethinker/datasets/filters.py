"""Which rows are trained on: the named subsets of ``filters.yaml`` (``data.filter``) and bounds on a pass rate."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from rethinker.config import DataConfig
from rethinker.datasets.columns import Row
from rethinker.datasets.pass_rate import PassRateFilter


@dataclass(frozen=True)
class NamedFilter:
    """An entry of ``filters.yaml``. ``paper_rows``: how many the paper has, about; ``ours``: what it does not say."""

    name: str
    pass_rate_column: str
    pass_rate: tuple[float, float]
    paper_rows: int
    source: str
    ours: str
    images: bool = False
    without: tuple[str, ...] = ()

    def fits(self, row: Row) -> bool:
        """Whether a row has the images and the category; its pass rate is left to a ``PassRateFilter``."""
        return (not self.images or bool(row.get("image"))) and row.get("category") not in self.without


@cache
def named_filters() -> Mapping[str, NamedFilter]:
    """Those of ``filters.yaml``, by name."""
    entries: dict[str, dict[str, Any]] = yaml.safe_load(files(__package__).joinpath("filters.yaml").read_text("utf-8"))
    return {
        name: NamedFilter(name, **entry | {key: tuple(entry.get(key, ())) for key in ("pass_rate", "without")})
        for name, entry in entries.items()
    }


def find_filter(name: str) -> NamedFilter:
    """The filter of this name. Raises ValueError, with the names there are."""
    known = named_filters()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"data.filter={name!r}: there are {', '.join(known)}{hint}")
    return known[name]


@dataclass
class RowFilter:
    """Keeps the rows that pass all ``rates`` and the named filter, and counts, by category too."""

    rates: list[PassRateFilter]
    named: NamedFilter | None = None
    read: Counter[str] = field(default_factory=Counter)  # rows, by category
    kept: Counter[str] = field(default_factory=Counter)

    def __call__(self, row: Row) -> bool:
        """Whether the row is kept. Raises ValueError where a pass rate is no number."""
        category = str(row.get("category") or "")
        self.read[category] += 1
        keep = (self.named is None or self.named.fits(row)) and all(rate(row) for rate in self.rates)
        self.kept[category] += keep
        return keep

    def __str__(self) -> str:
        """How many rows it kept, of each category."""
        lines = [str(rate) for rate in self.rates]
        if self.named:
            kept, read = self.kept.total(), self.read.total()
            paper = f"the paper has about {self.named.paper_rows:,}"
            lines.insert(0, f"data.filter={self.named.name}: {kept:,} of {read:,} rows kept ({paper})")
        if len(self.read) > 1 or "" not in self.read:
            lines += [
                f"  {category or '(none)'}: {self.kept[category]:,} of {count:,} kept"
                for category, count in self.read.most_common()
            ]
        return "\n".join(lines)


def filter_of(named: NamedFilter) -> RowFilter:
    """What the named filter keeps."""
    return RowFilter([PassRateFilter(named.pass_rate_column, *named.pass_rate)], named)


def training_filter(data: DataConfig) -> RowFilter | None:
    """What ``data.filter`` and ``data.pass_rate`` keep of the training rows; None: all. Raises ValueError for an
    unknown name."""
    keep = filter_of(find_filter(data.filter)) if data.filter else RowFilter([])
    if data.pass_rate is not None:
        keep.rates.append(PassRateFilter(data.pass_rate_column, *data.pass_rate))
    return keep if keep.rates else None
