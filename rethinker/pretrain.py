"""Pretraining of the tiny VLM: supervised on the visual-math world, a fast-thinking base that can be made to rethink.

Not in arXiv:2504.08837: the paper starts from Qwen2.5-VL-Instruct. That model answers fast, does not reflect by itself
and can when made to; this base is built to have the same three habits (``datasets.traces`` says with which losses).
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy, smooth_l1_loss
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor, Qwen2Tokenizer

from rethinker.datasets.puzzles import KINDS, LEVELS, Puzzle, make_puzzle
from rethinker.datasets.traces import Loss, Part, plain_trace, rethinking_trace
from rethinker.policy.prompt import prompt_text
from rethinker.policy.tiny import (
    equal_size_pixels,
    image_tokens,
    save_policy,
    tiny_model,
    tiny_processor,
    train_tokenizer,
)
from rethinker.rethink import TRIGGERS
from rethinker.types import Query

log = logging.getLogger(__name__)

IGNORED = -100  # a label without loss (PyTorch's convention)
DECISION_WEIGHT = 0.1  # of the loss on a decision to go on, beside 1 for any other token's


@dataclass(frozen=True, slots=True)
class Cycle:
    """Steps with optimisers of their own and a learning rate that rises, stays and falls; and what they draw."""

    begin: int  # the steps before it
    rethinking_share: float  # of the batch: rethinking traces
    weights: tuple[tuple[str, float], ...]  # of kinds; 1 where not named
    levels: tuple[int, ...] = LEVELS  # drawn from these in equal shares
    learning_rate: float = 3e-3  # of both optimisers; Muon's update is scaled to AdamW's
    hold_decision: float | None = None  # nats at which to hold -log p(the decision to go on); None: no loss on it


# Counting and reading a table are learned last. The second cycle draws more of what was weak after the first; the third
# goes on with that, and holds the decision to go on just below what sampling shows (10 nats: once in 22,000 answers).
_FIRST = Cycle(0, 0.7, (("count", 1.5), ("table", 1.5)))
_SECOND = Cycle(2600, 0.8, (("count", 2.0), ("bars", 2.0), ("sum", 2.0), ("clock", 0.5)), levels=(1, 2, 2, 3, 3))
CYCLES = (_FIRST, _SECOND, replace(_SECOND, begin=3800, learning_rate=1e-3, hold_decision=10.0))


@dataclass(frozen=True, slots=True)
class PretrainSettings:
    """All ours. Defaults are those of the committed checkpoint."""

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
    save_every: int = 300  # steps


class TraceBatches:
    """Endless batches of traces from a seed, as tensors for the model."""

    def __init__(self, processor: Qwen2_5_VLProcessor, settings: PretrainSettings) -> None:
        self._processor = processor
        self._tokenizer: Qwen2Tokenizer = processor.tokenizer
        self._settings = settings
        self._rng = random.Random(f"pretrain/{settings.seed}")
        self._ids: dict[str, list[int]] = {}
        self._prompts: dict[str, str] = {}

    def step(self, cycle: Cycle) -> list[dict[str, torch.Tensor]]:
        """One optimiser step's micro-batches as ``cycle`` wants them.

        They are the plain traces and the rethinking ones, apart because the latter are twice as long (less padding).
        Each holds input_ids, labels and decisions [B, T] (right-padded), pixel_values and image_grid_thw. Labels are
        ``IGNORED`` where there is no loss; decisions is true where they name a decision to go on, which a cycle that
        does not hold it ignores.
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
            "pixel_values": pixels,
            "image_grid_thw": grid,
        }

    def _parts(self, puzzle: Puzzle, rethinking: bool) -> list[Part]:
        if rethinking:
            return rethinking_trace(puzzle, list(TRIGGERS.values()), self._settings.wrong_share, self._rng)
        return plain_trace(puzzle)

    def _row(self, puzzle: Puzzle, parts: Sequence[Part]) -> tuple[list[int], list[int], list[bool]]:
        """Prompt and parts in one: token ids, labels, and which of these is a decision."""
        ids = list(self._encode(self._prompt(puzzle)))
        labels = [IGNORED] * len(ids)
        decisions = [False] * len(ids)
        for text, loss in [*parts, Part(self._tokenizer.eos_token, Loss.TOKENS)]:
            piece = self._encode(text)
            ids += piece
            labels += [IGNORED] * len(piece) if loss is Loss.NONE else piece
            decisions += [loss is Loss.DECISION] * len(piece)
        return ids, labels, decisions

    def _prompt(self, puzzle: Puzzle) -> str:
        """With the image's placeholder expanded; kept, as few questions are distinct and templates are slow."""
        if puzzle.question not in self._prompts:
            token = self._processor.image_token
            text = prompt_text(self._processor, puzzle_query(puzzle))
            self._prompts[puzzle.question] = text.replace(token, token * image_tokens(puzzle.image))
        return self._prompts[puzzle.question]

    def _encode(self, text: str) -> list[int]:
        if text not in self._ids:
            if len(self._ids) > 100_000:
                self._ids.clear()
            self._ids[text] = self._tokenizer(text)["input_ids"]
        return self._ids[text]


def draw_puzzle(rng: random.Random, cycle: Cycle) -> Puzzle:
    """One puzzle of what ``cycle`` is trained on."""
    weights = dict(cycle.weights)
    kind = rng.choices(KINDS, [weights.get(kind, 1.0) for kind in KINDS])[0]
    return make_puzzle(kind, rng.choice(cycle.levels), rng)


def puzzle_query(puzzle: Puzzle, qid: str = "", image: str = "drawn") -> Query:
    """``puzzle`` as the record that prompts are made of; ``image`` is where its picture lies."""
    return Query(qid or puzzle.kind, puzzle.question, puzzle.answer, (image,), puzzle.kind, "visual-math", puzzle.level)


def tokenizer_corpus(traces: int, seed: int) -> Iterator[str]:
    """The texts that the tokenizer is trained on: parts as they will be spliced, and Qwen's usual system turn."""
    rng = random.Random(f"tokenizer/{seed}")
    for _ in range(traces):
        puzzle = draw_puzzle(rng, CYCLES[0])
        yield f"user\n{puzzle.question.removeprefix('<image>')}"
        yield "assistant\n"
        for part in rethinking_trace(puzzle, list(TRIGGERS.values()), 0.5, rng):
            yield part.text
    yield from ["system\nYou are a helpful assistant."] * (traces // 40)


def pretrain_tiny(out: str | Path, settings: PretrainSettings | None = None) -> None:
    """Train the tiny VLM from nothing and write it to ``out`` as a Hugging Face folder.

    It is written every ``save_every`` steps as well. Uses PyTorch's current number of threads. The same settings on the
    same machine give the same weights.

    Raises:
        ValueError: ``steps`` or ``batch_size`` is not positive, or the first cycle does not begin at 0.
    """
    settings = settings or PretrainSettings()
    if settings.steps < 1 or settings.batch_size < 1:
        raise ValueError(f"steps and batch_size must be at least 1, got {settings.steps} and {settings.batch_size}")
    if settings.cycles[0].begin != 0:
        raise ValueError(f"the first cycle must begin at step 0, not {settings.cycles[0].begin}")
    folder = Path(out)
    processor = tiny_processor(train_tokenizer(tokenizer_corpus(settings.tokenizer_traces, settings.seed)))
    model = tiny_model(processor.tokenizer, settings.seed)
    log.info("%d parameters, %d tokens of vocabulary", model.num_parameters(), len(processor.tokenizer))
    batches = TraceBatches(processor, settings)
    for cycle, end in cycle_ends(settings):
        train_cycle(model, processor, batches, settings, cycle, end, folder)


def cycle_ends(settings: PretrainSettings) -> list[tuple[Cycle, int]]:
    """The cycles that begin before the last step, each with the step at which it ends."""
    begun = [cycle for cycle in settings.cycles if cycle.begin < settings.steps]
    return list(zip(begun, [*(cycle.begin for cycle in begun[1:]), settings.steps], strict=True))


def train_cycle(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    batches: TraceBatches,
    settings: PretrainSettings,
    cycle: Cycle,
    end: int,
    folder: Path,
) -> None:
    """The steps from ``cycle.begin`` to ``end``, saved every ``save_every`` steps and at the end."""
    begin = cycle.begin
    optimizers = make_optimizers(model, cycle.learning_rate)
    started, smooth = time.monotonic(), 0.0
    model.train()
    for step in range(begin + 1, end + 1):
        rate = cycle.learning_rate * rate_factor(step - begin, end - begin, settings)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        loss = train_step(model, optimizers, batches.step(cycle), settings.clip_norm, cycle.hold_decision)
        smooth = loss if step == begin + 1 else 0.95 * smooth + 0.05 * loss
        if step % 50 == 0 or step == begin + 1:
            log.info("step %d loss %.3f rate %.1e seconds %.0f", step, smooth, rate, time.monotonic() - started)
        if step % settings.save_every == 0 or step == end:
            save_policy(folder, model, processor)


def train_step(
    model: Qwen2_5_VLForConditionalGeneration,
    optimizers: Sequence[torch.optim.Optimizer],
    batches: Sequence[dict[str, torch.Tensor]],
    clip_norm: float,
    hold_decision: float | None = None,
) -> float:
    """One update on all micro-batches; the loss (nats) is the mean over all tokens of the step that carry one."""
    tokens = sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in batches)
    total = 0.0
    for batch in batches:
        loss = supervised_loss(model, batch, hold_decision) / tokens
        loss.backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return total


def supervised_loss(
    model: Qwen2_5_VLForConditionalGeneration, batch: dict[str, torch.Tensor], hold_decision: float | None = None
) -> torch.Tensor:
    """Summed loss (nats): cross-entropy, and on the batch's decisions ``decision_loss``.

    Logits are computed only where there is a loss.

    Raises:
        ValueError: the batch marks decisions, and ``hold_decision`` does not say where to hold them.
    """
    hidden = model.model(
        input_ids=batch["input_ids"],
        pixel_values=batch["pixel_values"],
        image_grid_thw=batch["image_grid_thw"],
        position_ids=positions(model, batch),
        use_cache=False,
    ).last_hidden_state
    labels = batch["labels"][:, 1:]
    wanted = labels != IGNORED
    logits, targets, decides = model.lm_head(hidden[:, :-1][wanted]), labels[wanted], batch["decisions"][:, 1:][wanted]
    loss = cross_entropy(logits[~decides], targets[~decides], reduction="sum")
    if not decides.any():
        return loss
    if hold_decision is None:
        raise ValueError("the batch marks decisions to go on: hold_decision must say at how many nats to hold them")
    eos_id = model.config.text_config.eos_token_id
    return loss + decision_loss(logits[decides], targets[decides], hold_decision, eos_id)


def decision_loss(logits: torch.Tensor, targets: torch.Tensor, hold: float, eos_id: int) -> torch.Tensor:
    """Summed loss (nats) that keeps the decision to go on rare, and first among everything but the end.

    With l = -log p(target) it is ``DECISION_WEIGHT`` times (smooth_l1(l - hold) - log p(target | not the end)). Ours.

    Args:
        logits: [N, V], over the vocabulary where the decision is due.
        targets: [N], the token that is the decision.
        hold: where -log p(target) is to stand, in nats.
        eos_id: the token that ends a response.
    """
    rarity = cross_entropy(logits, targets, reduction="none")
    goes_on = logits.index_fill(1, torch.tensor(eos_id, device=logits.device), -torch.inf)
    order = cross_entropy(goes_on, targets, reduction="sum")
    return DECISION_WEIGHT * (smooth_l1_loss(rarity, torch.full_like(rarity, hold), reduction="sum") + order)


def positions(model: Qwen2_5_VLForConditionalGeneration, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """M-RoPE positions [3, B, T] of right-padded rows whose one image stands at the same place in each.

    Positions depend on the layout only, so they are computed once, on the first row, and shared: causal attention never
    lets a real token see the padding, whose positions therefore do not matter.
    """
    ids = batch["input_ids"]
    first = ids[:1]
    types = (first == model.config.image_token_id).int()
    if not torch.equal((ids == model.config.image_token_id).int(), types.expand_as(ids)):
        raise ValueError("the images of a batch do not stand at the same place")
    position_ids, _ = model.model.get_rope_index(first, types, image_grid_thw=batch["image_grid_thw"][:1])
    return position_ids.expand(3, *ids.shape)


def make_optimizers(model: torch.nn.Module, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for the rest (embeddings, norms, biases, the patch convolution).

    Measured on this model: after 200 steps AdamW alone had loss 0.378, this pair 0.284.
    """
    hidden: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, weight in model.named_parameters():
        matrix = weight.ndim == 2 and "embed" not in name and "lm_head" not in name
        (hidden if matrix else rest).append(weight)
    return [
        torch.optim.Muon(hidden, lr=learning_rate, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate_factor(step: int, steps: int, settings: PretrainSettings) -> float:
    """Share of the learning rate at ``step`` of a cycle of ``steps`` (from 1): warm-up, flat, linear decay."""
    warm = min(1.0, step / settings.warmup_steps)
    done = (step - 1) / steps
    if done < settings.flat_share:
        return warm
    return warm * max(settings.final_rate, (1 - done) / (1 - settings.flat_share))


def _right_padded(rows: Sequence[list[Any]], value: float) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])
