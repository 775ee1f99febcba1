"""What the tiny VLM is pretrained on: cycles of traces of the visual-math world, as tensors. Not from the paper."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import Qwen2_5_VLProcessor, Qwen2Tokenizer

from rethinker.datasets.world.puzzles import KINDS, LEVELS, Puzzle, bare_answer, make_puzzle
from rethinker.datasets.world.traces import Loss, Part, plain_trace, rethinking_trace
from rethinker.policy.prompt import prompt_text
from rethinker.rethink import TRIGGERS
from rethinker.tiny.model import equal_size_pixels, image_tokens
from rethinker.types import Query

IGNORED = -100  # a label without loss (PyTorch's convention)


@dataclass(frozen=True, slots=True)
class Cycle:
    """Steps with optimisers of their own and a learning rate that rises, stays and falls; and what they draw."""

    begin: int  # the steps before it
    rethinking_share: float  # of the batch: rethinking traces
    weights: tuple[tuple[str, float], ...]  # of kinds; 1 where not named
    levels: tuple[int, ...] = LEVELS  # drawn from these in equal shares
    learning_rate: float = 3e-3  # of both optimisers; Muon's update is scaled to AdamW's
    hold_decision: float | None = None  # nats at which to hold -log p(the decision to continue); None: no loss on it


# Counting and reading a table are learned last. The second cycle has more of what was weak after the first; the third
# keeps that, and holds the decision to continue just below what sampling shows (10 nats: once in 22,000 answers).
_FIRST = Cycle(0, 0.7, (("count", 1.5), ("table", 1.5)))
_SECOND = Cycle(2600, 0.8, (("count", 2.0), ("bars", 2.0), ("sum", 2.0), ("clock", 0.5)), levels=(1, 2, 2, 3, 3))
CYCLES = (_FIRST, _SECOND, replace(_SECOND, begin=3800, learning_rate=1e-3, hold_decision=10.0))


@dataclass(frozen=True, slots=True)
class PretrainSettings:
    """All ours. Defaults are those of the committed checkpoint."""

    size: str = "1m"  # one of tiny.model.SIZES
    steps: int = 4000  # of all cycles
    cycles: tuple[Cycle, ...] = CYCLES
    seed: int = 0
    batch_size: int = 64  # traces a step
    wrong_share: float = 0.6  # of the rethinking traces: their first answer is wrong
    warmup_steps: int = 40
    flat_share: float = 0.5  # of a cycle at full rate, then linear decay
    final_rate: float = 0.03  # of the learning rate, at the end of a cycle
    clip_norm: float = 1.0
    tokenizer_traces: int = 20_000
    save_every: int = 100  # steps


def cycle_ends(settings: PretrainSettings) -> list[tuple[Cycle, int]]:
    """The cycles that begin before the last step, each with the step at which it ends."""
    begun = [cycle for cycle in settings.cycles if cycle.begin < settings.steps]
    return list(zip(begun, [*(cycle.begin for cycle in begun[1:]), settings.steps], strict=True))


class TraceBatches:
    """Endless batches of traces from a seed, as tensors for the model."""

    def __init__(self, processor: Qwen2_5_VLProcessor, settings: PretrainSettings) -> None:
        self._processor = processor
        self._tokenizer: Qwen2Tokenizer = processor.tokenizer
        self._settings = settings
        self._rng = random.Random(f"pretrain/{settings.seed}")
        answers = [[Part(bare_answer(digit), Loss.TOKENS)] for digit in range(10)]
        self._answer_ids = torch.tensor(
            sorted({i for parts in answers for i in tokenize_trace(self._tokenizer, parts)[0]})
        )
        self._prompts: dict[str, str] = {}

    @property
    def random_state(self) -> tuple[Any, ...]:
        """All that the next batches depend on beside the settings."""
        return self._rng.getstate()

    @random_state.setter
    def random_state(self, state: tuple[Any, ...]) -> None:
        self._rng.setstate(state)

    def step(self, cycle: Cycle) -> list[dict[str, torch.Tensor]]:
        """One optimiser step's micro-batches as ``cycle`` wants them.

        They are the plain traces and the rethinking ones, apart because the latter are twice as long (less padding).
        Each holds input_ids, labels and decisions [B, T] (right-padded), pixel_values and image_grid_thw. Labels are
        ``IGNORED`` if there is no loss; decisions is true where they name a decision to continue, which a cycle that
        does not hold it ignores. answer_ids are the tokens of bare answers, that may stand in a decision's place.
        """
        thinking = round(self._settings.batch_size * cycle.rethinking_share)
        sizes = (self._settings.batch_size - thinking, thinking)
        return [self._batch(count, bool(index), cycle) for index, count in enumerate(sizes) if count]

    def _batch(self, count: int, rethinking: bool, cycle: Cycle) -> dict[str, torch.Tensor]:
        puzzles = [draw_puzzle(self._rng, cycle) for _ in range(count)]
        rows = [self._row(puzzle, self._parts(puzzle, rethinking)) for puzzle in puzzles]
        labels = _right_padded([labels for _, labels, _ in rows], IGNORED)
        decisions = _right_padded([decisions for _, _, decisions in rows], False)
        if cycle.hold_decision is None:
            labels, decisions = labels.masked_fill(decisions, IGNORED), torch.zeros_like(decisions)
        pixels, grid = equal_size_pixels([puzzle.image for puzzle in puzzles])
        return {
            "input_ids": _right_padded([ids for ids, _, _ in rows], self._tokenizer.pad_token_id),
            "labels": labels,
            "decisions": decisions,
            "answer_ids": self._answer_ids,
            "pixel_values": pixels,
            "image_grid_thw": grid,
        }

    def _parts(self, puzzle: Puzzle, rethinking: bool) -> list[Part]:
        if rethinking:
            return rethinking_trace(puzzle, list(TRIGGERS.values()), self._settings.wrong_share, self._rng)
        return plain_trace(puzzle)

    def _row(self, puzzle: Puzzle, parts: Sequence[Part]) -> tuple[list[int], list[int], list[bool]]:
        """Prompt and response: token ids, labels, and which of these is a decision."""
        prompt = self._tokenizer(self._prompt(puzzle))["input_ids"]
        ids, losses = tokenize_trace(self._tokenizer, parts)
        labels = [IGNORED if loss is Loss.NONE else token for token, loss in zip(ids, losses, strict=True)]
        decisions = [loss is Loss.DECISION for loss in losses]
        return prompt + ids, [IGNORED] * len(prompt) + labels, [False] * len(prompt) + decisions

    def _prompt(self, puzzle: Puzzle) -> str:
        """With the image's placeholder expanded; kept, as few questions are distinct and templates are slow."""
        if puzzle.question not in self._prompts:
            token = self._processor.image_token
            text = prompt_text(self._processor, puzzle_query(puzzle))
            self._prompts[puzzle.question] = text.replace(token, token * image_tokens(puzzle.image))
        return self._prompts[puzzle.question]


def tokenize_trace(tokenizer: Qwen2Tokenizer, parts: Sequence[Part]) -> tuple[list[int], list[Loss]]:
    """Ids of a whole trace, EOS included, and the loss of each.

    The text is tokenised in one, as a model would write it: the end of an answer and a blank line may be one token. A
    token carries the loss of its last character's part; EOS is supervised.
    """
    by_character = [part.loss for part in parts for _ in part.text]
    encoded = tokenizer("".join(part.text for part in parts), return_offsets_mapping=True)
    losses = [by_character[end - 1] for _, end in encoded["offset_mapping"]]
    assert losses.count(Loss.DECISION) <= 1, "the decision to continue is one token"
    return [*encoded["input_ids"], tokenizer.eos_token_id], [*losses, Loss.TOKENS]


def draw_puzzle(rng: random.Random, cycle: Cycle) -> Puzzle:
    """One puzzle of what ``cycle`` is trained on."""
    weights = dict(cycle.weights)
    kind = rng.choices(KINDS, [weights.get(kind, 1.0) for kind in KINDS])[0]
    return make_puzzle(kind, rng.choice(cycle.levels), rng)


def puzzle_query(puzzle: Puzzle, qid: str = "", image: str = "drawn") -> Query:
    """``puzzle`` as the record that prompts are made of; ``image`` is where its picture lies."""
    return Query(qid or puzzle.kind, puzzle.question, puzzle.answer, (image,), puzzle.kind, "visual-math", puzzle.level)


def tokenizer_corpus(traces: int, seed: int) -> Iterator[str]:
    """The texts that the tokenizer is trained on: whole turns, and Qwen's usual system turn."""
    rng = random.Random(f"tokenizer/{seed}")
    for _ in range(traces):
        puzzle = draw_puzzle(rng, CYCLES[0])
        yield f"user\n{puzzle.question.removeprefix('<image>')}"
        yield "assistant\n"
        yield "".join(part.text for part in rethinking_trace(puzzle, list(TRIGGERS.values()), 0.5, rng))
    yield from ["system\nYou are a helpful assistant."] * (traces // 40)


def _right_padded(rows: Sequence[list[Any]], value: float) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])
