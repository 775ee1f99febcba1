"""Records by hand: what a test does not say is plain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rethinker.types import Grade, Group, Query, Response, Sample


def make_query(qid: str = "q", answer: str = "1", **changes: Any) -> Query:
    return Query(qid, "?", answer, **changes)


def make_response(
    tokens: Sequence[int], *, logprobs: Sequence[float] | None = None, finished: bool = True, text: str = "\\boxed{1}"
) -> Response:
    """Every token of it has a log-prob of its own."""
    if logprobs is None:
        logprobs = [-0.1 * (position + 1) for position in range(len(tokens))]
    return Response(tuple(tokens), tuple(logprobs), finished, text)


def make_sample(
    sample_id: str = "1/q/0",
    *,
    tokens: Sequence[int] = (5, 6),
    correct: bool = True,
    finished: bool = True,
    text: str = "\\boxed{1}",
    **changes: Any,
) -> Sample:
    """A first response of the episode and query that its id names; ``changes`` are fields of ``Sample``."""
    episode, _, rest = sample_id.partition("/") if sample_id.count("/") > 1 else ("1", "", "q/")
    response = make_response(tokens, finished=finished, text=text)
    fields = {
        "query": make_query(rest.rpartition("/")[0]),
        "grade": Grade(correct, "1" if correct else "2", "exact"),
        "reward": float(correct),
        "episode": int(episode),
        "sampled_mask": (True,) * len(response.token_ids),
        "behavior_logprobs": tuple(value - 0.01 for value in response.logprobs),
    }
    return Sample(sample_id, response=response, **(fields | changes))


def make_group(correct: Sequence[bool], qid: str = "q", **changes: Any) -> Group:
    """First responses of one query; ``changes`` are arguments of ``make_sample``."""
    samples = tuple(make_sample(f"1/{qid}/{index}", correct=right, **changes) for index, right in enumerate(correct))
    return Group(samples[0].query, samples, tuple(correct))
