"""The next episode's rollouts while this episode is trained on (``rollout.overlap``): one episode off-policy.

Episode k is written with the weights after episode k - 2. The policy loss takes the log-probs of the weights that its
updates start from as its denominator, and the truncated importance weights correct for what the rollouts were sampled
with: lag and engine together (the decoupled objective of AReaL; ours here, not in arXiv:2504.08837).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from rethinker.types import Query, Sample


class Ahead:
    """At most one piece of work, on a thread of its own.

    ``queries`` of the next episode; ``order``: where the order of queries stood before them. A checkpoint holds that:
    what was rolled out ahead is not saved, and a resumed run rolls it out again, with the weights of the checkpoint.
    """

    def __init__(self) -> None:
        self.queries: list[Query] | None = None
        self.order: dict[str, int] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="next episode")
        self._work: Future[Any] | None = None

    def start(self, queries: list[Query], order: dict[str, int], work: Callable[[], Any]) -> None:
        """Begin ``work`` for ``queries``."""
        assert self._work is None
        self.queries, self.order, self._work = queries, order, self._thread.submit(work)

    def wait(self) -> float:
        """Until the work is done, if there is any; returns the seconds of waiting. Raises what it raised."""
        started = time.perf_counter()
        if self._work is not None:
            self._work.result()
        return time.perf_counter() - started

    def take(self) -> Any:
        """The result."""
        assert self._work is not None
        result, self.queries, self.order, self._work = self._work.result(), None, None, None
        return result


def overlap_metrics(samples: Sequence[Sample], cap: float, lag: int, waited: float) -> dict[str, float | None]:
    """The metrics of glossary.OVERLAP. ``samples`` with behaviour log-probs (of the trainer's weights at the start of
    the episode's updates) and rollout log-probs; forced tokens do not count."""
    ratios = [
        np.exp(np.subtract(sample.behavior_logprobs, sample.response.logprobs))[list(sample.sampled_mask)]
        for sample in samples
        if len(sample.behavior_logprobs)
    ]
    weights = np.minimum(np.concatenate(ratios), cap) if ratios else np.empty(0)
    effective = weights.sum() ** 2 / (weights**2).sum() if len(weights) else 0.0
    return {
        "overlap/weight_lag": float(lag),
        "overlap/effective_sample_size": float(effective / len(weights)) if len(weights) else None,
        "overlap/truncated": float((weights >= cap).mean()) if len(weights) else None,
        "overlap/waited": waited,
    }
