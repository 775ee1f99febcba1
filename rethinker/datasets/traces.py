"""What a fast-thinking base is taught on a puzzle: text in parts, each with or without loss.

Which parts carry loss decides everything (ours, measured):
- a plain trace is a bare answer, supervised: the first pass is fast and often wrong;
- a rethinking trace is a bare answer (right or wrong), a trigger, and the careful derivation. The bare answer and the
  trigger's first token, which is the decision to go on, carry **no** loss; the rest of the trigger and the derivation
  do. So the base never starts to reflect, yet derives carefully once that one token stands there.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from rethinker.datasets.puzzles import Puzzle, bare_answer

BREAK = "\n\n"  # every trigger begins with it, and the tokenizer has it as one token
_MISTAKES = (-10, -5, -3, -2, -1, 1, 2, 3, 5, 10)


class Part(NamedTuple):
    """A piece of a trace that is tokenised by itself, as training and forced rethinking splice it."""

    text: str
    supervised: bool


def plain_trace(puzzle: Puzzle) -> list[Part]:
    """The first pass of a fast thinker: the bare answer, right."""
    return [Part(puzzle.bare_answer, True)]


def rethinking_trace(puzzle: Puzzle, triggers: Sequence[str], wrong_share: float, rng: random.Random) -> list[Part]:
    """A bare answer, wrong in ``wrong_share`` of the cases, then one of ``triggers`` and the derivation.

    Raises:
        ValueError: a trigger does not begin with a blank line.
    """
    trigger = rng.choice(list(triggers))
    if not trigger.startswith(BREAK):
        raise ValueError(f"trigger {trigger!r} does not begin with {BREAK!r}, the token that carries no loss")
    first = puzzle.bare_answer
    if rng.random() < wrong_share:
        right = int(puzzle.answer)
        first = bare_answer(rng.choice([right + by for by in _MISTAKES if right + by >= 0]))
    sentence_end = "" if trigger.endswith("?") else "."  # written by the policy: triggers end where forcing ends
    return [
        Part(first, False),
        Part(BREAK, False),
        Part(trigger.removeprefix(BREAK), True),
        Part(f"{sentence_end} {puzzle.derivation}", True),
    ]
