"""The paper's numbers: its tables of results, its ablations and Fig. 7, with their footnotes and oddities.

The files are ``data/paper.csv`` and ``data/paper.yaml``. Values are percent as printed. No value has an interval: the
paper gives none.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

DATA = Path(__file__).with_name("data")
SETS: dict[str, tuple[str, ...]] = {  # name -> groups of rows
    "7b": ("base", "reasoning, small", "VL-Rethinker"),
    "32b": ("base", "VL-Rethinker"),
    "72b": ("base", "open, large", "VL-Rethinker"),
    "small": ("open, small",),
    "proprietary": ("proprietary",),
    "ablations": ("ablation",),
    "fig7": ("rethinking",),
}
_SIZES = {"7b": ("7B", "8B"), "32b": ("32B",), "72b": ("72B", "78B", "109B")}


@dataclass(frozen=True, slots=True)
class PaperRow:
    """One row of a table: percent by benchmark; ``marks``: footnote by benchmark; ``source``: e.g. "Table 2"."""

    model: str
    group: str
    size: str
    source: str
    values: dict[str, float]
    marks: dict[str, str]


@cache
def rows() -> tuple[PaperRow, ...]:
    """All rows, in the paper's order."""
    found: dict[tuple[str, str], PaperRow] = {}
    with (DATA / "paper.csv").open(encoding="utf-8", newline="") as lines:
        for line in csv.DictReader(lines):
            key = line["source"], line["model"]
            row = found.setdefault(key, PaperRow(line["model"], line["group"], line["size"], line["source"], {}, {}))
            assert line["benchmark"] not in row.values, f"two values: {line}"
            row.values[line["benchmark"]] = float(line["value"])
            if line["mark"]:
                row.marks[line["benchmark"]] = line["mark"]
    return tuple(found.values())


@cache
def about() -> dict[str, Any]:
    """``title``, ``protocol``, ``columns`` and ``splits`` by benchmark, ``marks`` and ``notes`` of the numbers."""
    content: dict[str, Any] = yaml.safe_load((DATA / "paper.yaml").read_text(encoding="utf-8"))
    return content


def choose(names: Iterable[str]) -> list[PaperRow]:
    """The rows of the sets ``names`` ("7b", "72b", "ablations", ...; see `SETS`) and of models so called, in the
    paper's order. Raises ValueError for another name."""
    wanted = [name.strip() for name in names]
    models = {row.model for row in rows()}
    for name in wanted:
        if name.lower() not in SETS and name not in models:
            known = f"{', '.join(SETS)}, or a model: {', '.join(sorted(models))}"
            raise ValueError(f"{name!r} is no row of the paper; there are {known}")
    return [row for row in rows() if any(_belongs(row, name) for name in wanted)]


def _belongs(row: PaperRow, name: str) -> bool:
    kind = name.lower()
    if kind not in SETS:
        return row.model == name and row.group != "rethinking"
    return row.group in SETS[kind] and (kind not in _SIZES or row.size in _SIZES[kind])
