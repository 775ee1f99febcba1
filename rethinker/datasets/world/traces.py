"""What a fast-thinking base is taught on a puzzle: text in parts, each with the loss that it carries.

Which parts carry loss decides everything (ours, measured):
- a plain trace is a bare answer, supervised: the first pass is fast and often wrong;
- a rethinking trace is a bare answer (right or wrong), a trigger, and the careful derivation. The bare answer and the
  token of the blank line, which is the decision to continue, are not imitated; the rest of the trigger and the
  derivation are. So the base never starts to reflect, yet derives carefully once that one token stands there.

A trace is tokenised as a whole, as a model itself would write it: an answer that stops ends in the token "}.", one that
continues in the token "}.\n\n".

The decision carries a loss of its own, which the last stretch of pretraining applies (``pretrain.decision_loss``) and
all before leave out. Without any, in a first base whose parts were tokenised apart, it stood at a log-probability of
-21 after a bare answer, 6 nats below others that make no sense there (" there", " does"), and reinforcement learning
with Forced Rethinking learned to leave it out and wrote garbled triggers ("\\boxed{9}. there might be a mistake"). Held
at -10 it is still rarer than sampling shows, but above every other continuation, and the triggers that are learned are
well formed.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Sequence
from typing import NamedTuple

from rethinker.datasets.world.puzzles import Puzzle, bare_answer

BREAK = "\n\n"  # every trigger begins with it
_MISTAKES = (-10, -5, -3, -2, -1, 1, 2, 3, 5, 10)


class Loss(enum.Enum):
    """The loss that a part of a trace carries."""

    NONE = "none"
    TOKENS = "tokens"  # cross-entropy
    DECISION = "decision"  # the decision to continue, one token: held at a given rarity, or without loss


class Part(NamedTuple):
    """A piece of a trace; a token across two of them carries the loss of the second."""

    text: str
    loss: Loss


def plain_trace(puzzle: Puzzle) -> list[Part]:
    """The first pass of a fast thinker: the bare answer, right."""
    return [Part(puzzle.bare_answer, Loss.TOKENS)]


def rethinking_trace(puzzle: Puzzle, triggers: Sequence[str], wrong_share: float, rng: random.Random) -> list[Part]:
    """A bare answer, wrong in ``wrong_share`` of the cases, then one of ``triggers`` and the derivation.

    Raises:
        ValueError: a trigger does not begin with a blank line.
    """
    trigger = rng.choice(list(triggers))
    if not trigger.startswith(BREAK):
        raise ValueError(f"trigger {trigger!r} does not begin with {BREAK!r}, the decision to continue")
    first = puzzle.bare_answer
    if rng.random() < wrong_share:
        right = int(puzzle.answer)
        first = bare_answer(rng.choice([right + by for by in _MISTAKES if right + by >= 0]))
    sentence_end = "" if trigger.endswith("?") else "."  # written by the policy: triggers end where forcing ends
    return [
        Part(first, Loss.NONE),
        Part(BREAK, Loss.DECISION),
        Part(trigger.removeprefix(BREAK), Loss.TOKENS),
        Part(f"{sentence_end} {puzzle.derivation}", Loss.TOKENS),
    ]
