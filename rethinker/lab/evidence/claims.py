"""The claims of ``experiments/evidence/evidence.yaml``: what is claimed, how it is measured, the computed verdict."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from rethinker.config.schema import ConfigError, build
from rethinker.lab.evidence.bootstrap import Effect, all_of, verdict
from rethinker.lab.evidence.effects import effect, parse
from rethinker.lab.evidence.tables import Tables


@dataclass(frozen=True)
class Part:
    """One measured statement: an effect lies above or below a bound."""

    grid: str = ""
    measure: str = ""
    of: str = ""  # variant
    against: str | None = None  # variant that it is compared with, seed by seed
    minus: str | None = None  # the measure that is subtracted; None: the same
    relative: bool = False  # the ratio instead of the difference
    beyond: tuple[str, ...] = ()  # another pair (variant, compared with), whose difference is subtracted
    above: float | None = None
    below: float | None = None
    not_below: float | None = None
    says: str = ""  # the statement in words

    @property
    def bounds(self) -> dict[str, float]:
        """The bounds that are given."""
        all_bounds = {"above": self.above, "below": self.below, "not_below": self.not_below}
        return {name: value for name, value in all_bounds.items() if value is not None}

    def effect(self, tables: Tables) -> Effect:
        """The measured effect, with its interval."""
        pair = (self.grid, self.of, self.against)
        return effect(tables, self.measure, *pair, minus=self.minus, relative=self.relative, beyond=self.beyond)

    def planned(self, tables: Tables) -> int:
        """Seeds that the effect will have when all of the grid's runs are finished."""
        others = [self.against, *self.beyond] if self.against else []
        variants = [(self.grid, self.of), *(parse(name, self.grid) for name in others)]
        return min(tables.of("runs", *variant)["seed"].nunique() for variant in variants)


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, or of this project; it holds if all of its parts do."""

    id: str = ""
    title: str = ""
    source: str = ""  # where the paper says it, or "this project"
    saw: str = ""  # what they saw, with its numbers
    parts: tuple[Part, ...] = ()


def read_claims(values: Sequence[dict[str, Any]], grids: Collection[str]) -> list[Claim]:
    """Claims from plain values; ``grids``: the names that there are.

    Raises ConfigError for an unknown key, two claims of one id, a part of no grid or without exactly one bound.
    """
    claims = [build(Claim, dict(item), str(item.get("id", "claims"))) for item in values]
    ids = [claim.id for claim in claims]
    for claim in claims:
        if ids.count(claim.id) > 1 or not claim.id:
            raise ConfigError(f"every claim needs an id of its own, {claim.id!r} is none")
        for part in claim.parts:
            if len(part.bounds) != 1:
                raise ConfigError(f"claim {claim.id}, {part.says!r}: give one of above, below and not_below")
            if part.beyond and (len(part.beyond) != 2 or not part.against):
                raise ConfigError(f"claim {claim.id}, {part.says!r}: beyond is a second pair, and needs against")
            if part.grid not in grids:
                raise ConfigError(f"claim {claim.id}, {part.says!r}: no grid {part.grid!r}")
    return claims


def judge(tables: Tables, claims: Sequence[Claim]) -> pd.DataFrame:
    """A row per part: claim, title, says, the effect (value, low, high, seeds, queries), planned seeds, bound, verdict
    of the part, and ``claim_verdict``, of the whole claim."""
    rows: list[dict[str, Any]] = []
    for claim in claims:
        effects = [part.effect(tables) for part in claim.parts]
        verdicts = [verdict(found, **part.bounds) for found, part in zip(effects, claim.parts, strict=True)]
        for part, found, says in zip(claim.parts, effects, verdicts, strict=True):
            ((side, bound),) = part.bounds.items()
            row: dict[str, Any] = {"claim": claim.id, "title": claim.title, "source": claim.source, "saw": claim.saw}
            row |= {"says": part.says, "grid": part.grid, "measure": part.measure, "of": part.of}
            row["planned"] = part.planned(tables)
            row |= {
                "against": part.against or "",
                "minus": part.minus or "",
                "relative": part.relative,
                "beyond": part.beyond,
                **found.__dict__,
            }
            rows.append(row | {"side": side, "bound": bound, "verdict": says, "claim_verdict": all_of(verdicts)})
    return pd.DataFrame(rows)
