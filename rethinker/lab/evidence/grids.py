"""How a grid of ``evidence.yaml`` is shown: its variants, their order, and what is measured of them."""

from __future__ import annotations

from dataclasses import dataclass

from rethinker.lab.evidence.effects import variants_of
from rethinker.lab.evidence.tables import Tables

HEADINGS = {
    "validation/end": "validation, end",
    "validation/area": "validation, area",
    "validation/end@updates": "end, equal updates",
    "test/plain/accuracy": "test, plain",
    "test/forced/accuracy": "forced",
    "test/bound/accuracy": "bound",
    "test/plain/tokens": "tokens a response",
    "test/plain/reflection": "reflection",
    "test/plain/accuracy@vl-reasoner": "after stage 1: plain",
    "test/forced/accuracy@vl-reasoner": "after stage 1: forced",
    "test/bound/accuracy@vl-reasoner": "after stage 1: bound",
    "test/plain/second": "second looks",
    "choice/wrong": "second looks on wrong first ones",
    "choice/right": "on right ones",
    "choice/auc": "AUC",
    "choice/auc_within": "AUC within",
    "choice/over_rule": "over rule",
}
MEASURES = (
    "validation/end",
    "validation/area",
    "test/plain/accuracy",
    "test/forced/accuracy",
    "test/bound/accuracy",
    "test/plain/tokens",
    "test/plain/reflection",
)


@dataclass(frozen=True)
class GridPage:
    """How a grid is shown: which variants, in which order, against which one, with which figures."""

    title: str = ""
    against: str | None = None
    variants: tuple[str, ...] = ()  # in figures, and first in tables; (): all, by name
    figures: tuple[str, ...] = ()  # keys of drawings.FIGURES
    measures: tuple[str, ...] = MEASURES
    paired: tuple[str, ...] = ()  # further measures, of differences only


def shown(tables: Tables, name: str, grid: GridPage, *, every: bool = False) -> list[str]:
    """The variants of a grid that have a finished run: those that figures show, in the plan's order (and ``every``
    other one behind them)."""
    there = variants_of(tables, name)
    first = [variant for variant in grid.variants if variant in there] if grid.variants else there
    return first + [variant for variant in there if every and variant not in first]
