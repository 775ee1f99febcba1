"""The order in which queries are visited: shuffled epochs, no query twice in a call, resumable."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rethinker.types import Query


class QueryOrder:
    """Visits all queries once an epoch, in an order that depends on (seed, epoch) only."""

    def __init__(self, queries: Sequence[Query], seed: int) -> None:
        if not queries:
            raise ValueError("no training queries: every row was dropped or the file is empty")
        self.queries = list(queries)
        self.seed = seed
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
            if self.position == len(self._order):
                self.epoch, self.position = self.epoch + 1, 0
                self._order = self._permutation()
                continue
            query = self.queries[self._order[self.position]]
            self.position += 1
            if query.qid not in exclude:
                taken.setdefault(query.qid, query)
        return list(taken.values())

    def state_dict(self) -> dict[str, int]:
        """Where the next query comes from."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume from ``state_dict()``, with the same queries and seed."""
        self.epoch, self.position = state["epoch"], state["position"]
        self._order = self._permutation()

    def _permutation(self) -> np.ndarray:
        return np.random.default_rng([self.seed, self.epoch]).permutation(len(self.queries))
