"""What every engine checks before it generates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rethinker.types import Request, Sampling


def token_budget(request: Request, sampling: Sampling) -> int:
    """Tokens that may still be generated: ``max_new_tokens`` is for the whole response, its prefix included."""
    return sampling.max_new_tokens - len(request.prefix_ids)


def check_requests(requests: Sequence[Request], sampling: Sampling) -> None:
    """Raise ValueError for repeated request ids, fewer than one sample, or a prefix that leaves no room."""
    repeated = [name for name, count in Counter(request.request_id for request in requests).items() if count > 1]
    if repeated:
        raise ValueError(f"request ids must be unique within a call; repeated: {repeated[:5]}")
    for request in requests:
        where = f"request {request.request_id!r} (query {request.query.qid!r})"
        if request.n < 1:
            raise ValueError(f"{where}: n={request.n}, at least 1 response is needed")
        if token_budget(request, sampling) < 1:
            raise ValueError(
                f"{where}: its prefix of {len(request.prefix_ids)} tokens leaves no room within "
                f"max_new_tokens={sampling.max_new_tokens}"
            )
