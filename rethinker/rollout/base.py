"""The protocol that every rollout engine obeys."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from rethinker.types import Request, Response, Sampling

Arrived = Callable[[Mapping[str, tuple[Response, ...]]], None]  # what has been finished since the last call


class Responder(Protocol):
    """What first and second looks need."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Mapping[str, tuple[Response, ...]]:
        """``n`` responses per request, keyed by ``request_id``. Request ids are unique within a call."""
        ...


class RolloutEngine(Responder, Protocol):
    """Turns requests into responses with the weights it was last given."""

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, arrived: Arrived | None = None
    ) -> Mapping[str, tuple[Response, ...]]:
        """See Responder.

        ``arrived``: told in the calling thread of every request whose responses are there, as soon as the engine has
        them, and of each once; in parts of the result.
        """
        ...

    def sync_weights(self, model: Any) -> None:
        """Take the weights of ``model`` (the unwrapped policy) and forget everything computed with the old ones."""
        ...

    def sleep(self) -> None:
        """Free what generation needs and training does not. The next call must be ``sync_weights``: an engine may have
        dropped its weights too."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...
