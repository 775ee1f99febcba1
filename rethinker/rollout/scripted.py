"""An engine without a model: a function says what every response is. For tests, in microseconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rethinker.rollout.base import Arrived
from rethinker.rollout.requests import check_requests, token_budget
from rethinker.types import Request, Response, Sampling


class ScriptedEngine:
    """Responds with ``respond(request, index)`` for each of the request's samples.

    ``tokenizer`` needs ``encode(text, add_special_tokens=False)`` and ``eos_token_id``. Every token has log-prob
    ``logprob``. A text beyond the token budget is cut and unfinished, as with a real engine.
    ``calls`` (requests and sampling of each ``generate``), ``syncs`` (the models given), ``asleep`` and ``closed`` say
    what was done with the engine.
    """

    def __init__(self, respond: Callable[[Request, int], str], tokenizer: Any, logprob: float = -0.5) -> None:
        self.respond = respond
        self.tokenizer = tokenizer
        self.logprob = logprob
        self.calls: list[tuple[tuple[Request, ...], Sampling]] = []
        self.syncs: list[Any] = []
        self.asleep = False
        self.closed = False

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, arrived: Arrived | None = None
    ) -> Mapping[str, tuple[Response, ...]]:
        """The scripted responses, keyed by request id."""
        check_requests(requests, sampling)
        self.calls.append((tuple(requests), sampling))
        self.asleep = False
        done = {}
        for request in requests:
            indices = range(request.first, request.first + request.n)
            done[request.request_id] = tuple(self._response(request, index, sampling) for index in indices)
            if arrived:
                arrived({request.request_id: done[request.request_id]})
        return done

    def _response(self, request: Request, index: int, sampling: Sampling) -> Response:
        budget = token_budget(request, sampling)
        ids = [*self.tokenizer.encode(self.respond(request, index), add_special_tokens=False)]
        finished = len(ids) < budget
        ids = [*ids, self.tokenizer.eos_token_id] if finished else ids[:budget]
        text = self.tokenizer.decode(ids[:-1] if finished else ids, skip_special_tokens=True)
        return Response(tuple(ids), (self.logprob,) * len(ids), finished, str(text))

    def sync_weights(self, model: Any) -> None:
        """Remember that ``model`` was given."""
        self.syncs.append(model)

    def sleep(self) -> None:
        """Be asleep until the next ``generate``."""
        self.asleep = True

    def close(self) -> None:
        """Be closed."""
        self.closed = True
