"""Engines tell of responses as they have them, and give the samples of a seed also one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rethinker.rollout.base import RolloutEngine
from rethinker.types import Request, Response, Sampling

Found = Mapping[str, tuple[Response, ...]]


def check_arrivals(engine: RolloutEngine, requests: Sequence[Request], sampling: Sampling) -> list[Found]:
    """What arrives is what is returned, each once, and the same where each sample is a request of its own. Returns the
    parts in which it arrived."""
    whole = engine.generate(requests, sampling)
    singles = [
        replace(request, request_id=f"{request.request_id}#{number}", n=1, first=number)
        for request in requests
        for number in range(request.n)
    ]
    parts: list[Found] = []
    found = engine.generate(singles, sampling, parts.append)
    assert list(found) == [request.request_id for request in singles]
    names = [name for part in parts for name in part]
    assert len(names) == len(set(names)) == len(singles)
    for part in parts:
        assert part and all(found[name] is responses for name, responses in part.items())
    for request in requests:
        expected = [(response.token_ids, response.finished, response.text) for response in whole[request.request_id]]
        alone = [found[f"{request.request_id}#{number}"][0] for number in range(request.n)]
        assert [(response.token_ids, response.finished, response.text) for response in alone] == expected
    return parts
