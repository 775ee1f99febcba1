"""What all ranks do together: each learns what the others found, and none waits for one that has failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


class OtherRankFailed(RuntimeError):
    """Another rank could not do its part; the message is its error."""


def rank() -> int:
    """The number of this process among those of the run."""
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    """How many processes the run has."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(value: T) -> list[T]:
    """The values of all ranks. Collective."""
    if not dist.is_initialized():
        return [value]
    found: list[T] = [value] * ranks()
    dist.all_gather_object(found, value)
    return found


def on_all(act: Callable[[], T]) -> list[T]:
    """What ``act`` returns on every rank. Collective: where it raises on one rank, every rank raises, that one its own
    error, the others OtherRankFailed."""
    result: T | None = None
    own: Exception | None = None
    try:
        result = act()
    except Exception as error:
        own = error
    found = gather((result, None if own is None else describe(own)))
    if own is not None:
        raise own
    for number, (_, failure) in enumerate(found):
        if failure is not None:
            raise OtherRankFailed(f"rank {number}: {failure}")
    return [part for part, _ in found]  # type: ignore[misc]


def on_main(act: Callable[[], T]) -> T:
    """``on_all`` of what the main process alone does; its result, on every rank."""
    return on_all(lambda: act() if rank() == 0 else None)[0]  # type: ignore[return-value]


def describe(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
