"""What a published rule says of one response, and the few readings that several benchmarks share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

BARE_ANSWER_WORDS = 5  # MMMU's rule takes a response of up to five words for an answer and nothing else


class Outcome(NamedTuple):
    """``guessed``: the score that the published rule gives by guessing where nothing was extracted (``score`` is 0
    then), in expectation where it draws; None where it does not guess."""

    score: float
    extracted: str | None
    reason: str
    guessed: float | None = None


def letters(options: Sequence[object]) -> str:
    """A, B, C, ... for the options."""
    return "".join(chr(ord("A") + index) for index in range(len(options)))


def to_float(text: str) -> float | None:
    """What Python's `float` reads ("1e3", "inf", "1_000", spaces around), as the published rules do; or None."""
    try:
        return float(text)
    except ValueError:
        return None


def is_bare(text: str) -> bool:
    """Whether a response without any marker is short enough to be an answer itself."""
    return 0 < len(text.split()) <= BARE_ANSWER_WORDS
