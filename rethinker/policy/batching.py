"""Which samples share a forward pass: the samples of a query together, micro-batches within a token budget, ranks with
about equal work.

Everything here depends on the whole batch only, so every rank plans the same; and as the loss's denominators are those
of the whole batch, the plan changes the speed and not the gradient.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from rethinker.policy.packing import Packing
from rethinker.policy.prefix_tree import common_prefix
from rethinker.types import Query, Sample


def plan(samples: Sequence[Sample], ranks: int, budget: int, packing: Packing) -> list[list[list[Sample]]]:
    """For each rank its micro-batches, each of at most ``budget`` packed tokens (one sample may exceed it alone).

    The samples in ``arrange``'s order are cut into consecutive runs of about equal packed tokens, so that at most one
    query a cut is computed twice. A rank can have no micro-batch where samples are few.
    """
    ordered = arrange(samples)
    tokens = np.array(added_tokens(ordered, packing))
    middles = np.cumsum(tokens) - tokens / 2
    owners = np.minimum(middles * ranks // max(tokens.sum(), 1), ranks - 1)
    parts = [[sample for sample, owner in zip(ordered, owners, strict=True) if owner == rank] for rank in range(ranks)]
    return [micro_batches(part, budget, packing) for part in parts]


def arrange(samples: Sequence[Sample]) -> list[Sample]:
    """Queries in the order of their first sample; within a query by tokens, so that common prefixes are neighbours."""
    order: dict[Query, int] = {}
    for sample in samples:
        order.setdefault(sample.query, len(order))
    return sorted(samples, key=lambda s: (order[s.query], s.response.token_ids, s.sample_id, s.replayed))


def micro_batches(ordered: Sequence[Sample], budget: int, packing: Packing) -> list[list[Sample]]:
    """Consecutive runs of ``ordered`` samples of at most ``budget`` packed tokens each, padding included.

    A query that fits into a run of its own is not split, or its prompt and images would be computed twice.
    """
    alone = [_length(sample) for sample in ordered]
    behind = np.cumsum([0, *added_tokens(ordered, packing)])

    def size(start: int, stop: int) -> int:
        if packing == "plain":
            return (stop - start) * max(alone[start:stop])
        return int(alone[start] + behind[stop] - behind[start + 1])

    cuts = [0]
    stop = 0
    for _, group in itertools.groupby(ordered, key=lambda sample: sample.query):
        first, stop = stop, stop + len(list(group))
        if size(cuts[-1], stop) <= budget:
            continue
        if cuts[-1] < first:
            cuts.append(first)
        for index in range(first, stop):
            adds = behind[index + 1] > behind[index]  # a sample that was drawn again costs nothing
            if cuts[-1] < index and adds and size(cuts[-1], index + 1) > budget:
                cuts.append(index)
    return [list(ordered[start:end]) for start, end in itertools.pairwise([*cuts, stop]) if end > start]


def added_tokens(ordered: Sequence[Sample], packing: Packing) -> list[int]:
    """Packed tokens that each sample takes behind the one before it: the prompt where the query changes, and what its
    response does not share."""
    if packing == "plain":
        return [_length(sample) for sample in ordered]
    added = []
    before: Sample | None = None
    for sample in ordered:
        tokens = np.asarray(sample.response.token_ids)
        if before is None or before.query != sample.query:
            added.append(_length(sample))
        else:
            added.append(len(tokens) - common_prefix(np.asarray(before.response.token_ids), tokens))
        before = sample
    return added


def _length(sample: Sample) -> int:
    return sample.prompt_tokens + len(sample.response.token_ids)
