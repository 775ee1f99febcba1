"""The order in which queries are visited: shuffled epochs, no query twice in a call, resumable."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set

import numpy as np

from rethinker.types import Query


class QueryOrder:
    """Visits all queries once an epoch, in an order that depends on (seed, epoch) only.

    ``usable``: whether each of some queries can be used, where that is found out when they are drawn; those that cannot
    are passed over. It must give a query the same verdict always.
    """

    def __init__(
        self, queries: Sequence[Query], seed: int, usable: Callable[[Sequence[Query]], list[bool]] | None = None
    ) -> None:
        if not queries:
            raise ValueError("no training queries: every row was dropped or the file is empty")
        self.queries = list(queries)
        self.seed = seed
        self.usable = usable
        self.epoch = 0
        self.position = 0
        self._order = self._permutation()

    def take(self, n: int, exclude: frozenset[str] = frozenset()) -> list[Query]:
        """The next ``n`` queries, none of them in ``exclude`` (qids) and none twice.

        Queries that are passed over because they were taken already in this call or are excluded wait for the next
        epoch. Fewer than ``n`` are returned only if the data set has no more.
        """
        taken: dict[str, Query] = {}
        start_epoch = self.epoch
        while len(taken) < n and self.epoch <= start_epoch + 1:
            drawn = self._draw(n - len(taken), exclude | taken.keys(), start_epoch + 1)
            usable = self.usable(drawn) if self.usable else [True] * len(drawn)
            taken |= {query.qid: query for query, good in zip(drawn, usable, strict=True) if good}
        if n and not taken and not exclude:
            raise ValueError("no training queries: every row that was drawn had to be dropped")
        return list(taken.values())

    def _draw(self, n: int, exclude: Set[str], last_epoch: int) -> list[Query]:
        """The next ``n`` queries that are not in ``exclude``, none twice, or what there is to the end of an epoch."""
        drawn: dict[str, Query] = {}
        while len(drawn) < n and self.epoch <= last_epoch:
            if self.position == len(self._order):
                self.epoch, self.position = self.epoch + 1, 0
                self._order = self._permutation()
                continue
            query = self.queries[self._order[self.position]]
            self.position += 1
            if query.qid not in exclude:
                drawn.setdefault(query.qid, query)
        return list(drawn.values())

    def state_dict(self) -> dict[str, int]:
        """Where the next query comes from."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume from ``state_dict()``, with the same queries and seed."""
        self.epoch, self.position = state["epoch"], state["position"]
        self._order = self._permutation()

    def _permutation(self) -> np.ndarray:
        return np.random.default_rng([self.seed, self.epoch]).permutation(len(self.queries))
