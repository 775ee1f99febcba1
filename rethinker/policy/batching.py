"""Which samples share a forward pass: the samples of a query together, micro-batches within a token budget, ranks with
about equal work, each as far as possible on the queries whose images it holds.

Everything here depends on the whole batch only, so every rank plans the same; and as the loss's denominators are those
of the whole batch, the plan changes the speed and not the gradient.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from rethinker.policy.packing import Packing
from rethinker.policy.prefix_tree import common_prefix
from rethinker.types import Query, Sample


def plan(
    samples: Sequence[Sample], ranks: int, budget: int, packing: Packing, homes: Mapping[str, int] | None = None
) -> list[list[list[Sample]]]:
    """For each rank its micro-batches, each of at most ``budget`` packed tokens (one sample may exceed it alone).

    ``homes``: the rank that holds the images of a query, by its qid. A rank takes the samples that are at home with it
    until it has its share of the packed tokens. The others, in ``arrange``'s order, are cut into consecutive runs that
    fill what room is left, so that about one query a cut is computed twice. A rank can have no micro-batch where
    samples are few.
    """
    ordered = arrange(samples)
    tokens = np.array(added_tokens(ordered, packing), dtype=np.int64)
    owners, room = _at_home(ordered, tokens, ranks, homes or {})
    owners[owners < 0] = _spread(tokens[owners < 0], room)
    parts = [[sample for sample, owner in zip(ordered, owners, strict=True) if owner == rank] for rank in range(ranks)]
    return [micro_batches(part, budget, packing) for part in parts]


def _at_home(
    ordered: Sequence[Sample], tokens: np.ndarray, ranks: int, homes: Mapping[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The rank of each sample that stays at home, -1 for the others, and the tokens that each rank has room for."""
    owners, room = np.full(len(ordered), -1), np.full(ranks, tokens.sum() / ranks)
    for query, group in itertools.groupby(range(len(ordered)), key=lambda index: ordered[index].query):
        home = homes.get(query.qid)
        for index in group if home is not None else ():
            if tokens[index] and tokens[index] / 2 > room[home]:
                break  # with the rest of its query, which shares its prompt
            owners[index] = home
            room[home] -= tokens[index]
    return owners, np.maximum(room, 0)


def _spread(tokens: np.ndarray, room: np.ndarray) -> np.ndarray:
    """The rank of each of a row of samples of ``tokens``: the ranks' rooms laid end to end, scaled to what there is to
    hold, it is the one in whose room the sample's middle falls."""
    room_ends = np.cumsum(room)
    middles = (np.cumsum(tokens) - tokens / 2) * (room_ends[-1] / max(tokens.sum(), 1))
    return np.minimum(np.searchsorted(room_ends, middles, side="right"), len(room) - 1)


def arrange(samples: Sequence[Sample]) -> list[Sample]:
    """Queries in the order of their first sample; within a query by tokens, so that common prefixes are neighbours."""
    order: dict[Query, int] = {}
    for sample in samples:
        order.setdefault(sample.query, len(order))
    return sorted(samples, key=lambda s: (order[s.query], _comparable(s), s.sample_id, s.replayed))


def micro_batches(ordered: Sequence[Sample], budget: int, packing: Packing) -> list[list[Sample]]:
    """Consecutive runs of ``ordered`` samples of at most ``budget`` packed tokens each, padding included.

    A query that fits into a run of its own is not split, or its prompt and images would be computed twice.
    """
    alone = [_length(sample) for sample in ordered]
    added_before = np.cumsum([0, *added_tokens(ordered, packing)])

    def size(start: int, stop: int) -> int:
        if packing == "plain":
            return (stop - start) * max(alone[start:stop])
        # The first sample brings its whole prompt, each of the others what it adds to the one before it.
        return int(alone[start] + added_before[stop] - added_before[start + 1])

    cuts = [0]
    stop = 0
    for _, group in itertools.groupby(ordered, key=lambda sample: sample.query):
        first, stop = stop, stop + len(list(group))
        if size(cuts[-1], stop) <= budget:
            continue
        if cuts[-1] < first:
            cuts.append(first)
        for index in range(first, stop):
            adds = added_before[index + 1] > added_before[index]  # a sample that was drawn again costs nothing
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


def _comparable(sample: Sample) -> bytes:
    """Orders samples as their token ids do, which are slower to compare."""
    return np.asarray(sample.response.token_ids).astype(">u4").tobytes()


def _length(sample: Sample) -> int:
    return sample.prompt_tokens + len(sample.response.token_ids)
