"""Rows whose images, gold answer and prompt are checked when an episode draws them (``data.checks: when_drawn``).

A row that fails is reported and passed over, and the next one in the order takes its place, so that an episode is as
large as ever. Which rows fail depends on the data alone: a run that is resumed passes over the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rethinker.datasets.checks import image_fault
from rethinker.datasets.io import CheckGolds, CheckQuery, Dropped
from rethinker.grading import check_golds, plausible_golds
from rethinker.types import Query

Gather = Callable[[list[Any]], list[Any]]  # of the lists of all ranks, in their order
LEFT_TO_THE_DRAW: dict[str, Any] = {"read_images": False, "check_golds": plausible_golds}  # of load_queries' arguments


class DrawnChecks:
    """Whether queries can be used; each is looked at once, by one of ``ranks`` processes, which all hear of it.

    ``check_query``: as for ``load_queries``. ``report``: told of every row that failed, on all ranks alike.
    """

    def __init__(
        self,
        check_query: CheckQuery | None,
        report: Callable[[list[Dropped]], None],
        *,
        rank: int = 0,
        ranks: int = 1,
        gather: Gather = list,
        check_golds: CheckGolds = check_golds,
    ) -> None:
        self.check_query = check_query
        self.report = report
        self.rank, self.ranks, self.gather = rank, ranks, gather
        self.check_golds = check_golds
        self.usable: dict[str, bool] = {}  # by qid

    def __call__(self, queries: Sequence[Query]) -> list[bool]:
        """Whether each can be used. All ranks ask for the same ones."""
        new = [query for query in queries if query.qid not in self.usable]
        found = self.gather(self.faults(new[self.rank :: self.ranks])) if new else []
        failed = {fault.qid: fault for fault in found}
        self.usable.update((query.qid, query.qid not in failed) for query in new)
        if failed:
            self.report([failed[query.qid] for query in new if query.qid in failed])
        return [self.usable[query.qid] for query in queries]

    def faults(self, queries: Sequence[Query]) -> list[Dropped]:
        """What is wrong with those that cannot be used."""
        golds = self.check_golds([query.answer for query in queries])
        faults = [self._fault(query, gold) for query, gold in zip(queries, golds, strict=True)]
        return [Dropped(query.qid, *fault) for query, fault in zip(queries, faults, strict=True) if fault]

    def _fault(self, query: Query, gold: str | None) -> tuple[str, str] | None:
        if gold:
            return "unparsable gold answer", gold
        for path in query.images:
            if fault := image_fault(Path(path)):
                return fault
        return self.check_query(query) if self.check_query else None
