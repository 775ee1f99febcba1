"""Pretraining of the tiny VLM: supervised on the visual-math world, a fast-thinking base that can be made to rethink.

Not in arXiv:2504.08837: the paper starts from Qwen2.5-VL-Instruct. That model answers fast, does not reflect by itself
and can when made to; this base is built to have the same three habits (``datasets.traces`` says with which losses).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy, smooth_l1_loss
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from rethinker.tiny.curriculum import IGNORED, Cycle, PretrainSettings, TraceBatches, tokenizer_corpus
from rethinker.tiny.model import (
    save_policy,
    tiny_model,
    tiny_processor,
    train_tokenizer,
)

log = logging.getLogger(__name__)

DECISION_WEIGHT = 0.1  # of the loss on a decision to continue, beside 1 for any other token's


def pretrain_tiny(out: str | Path, settings: PretrainSettings | None = None) -> None:
    """Train the tiny VLM from nothing and write it to ``out`` as a Hugging Face folder.

    It is written every ``save_every`` steps as well. Uses PyTorch's current number of threads. The same settings on the
    same machine give the same weights.

    Raises:
        ValueError: ``steps`` or ``batch_size`` is not positive, the first cycle does not begin at 0, or no such size.
    """
    settings = settings or PretrainSettings()
    if settings.steps < 1 or settings.batch_size < 1:
        raise ValueError(f"steps and batch_size must be at least 1, got {settings.steps} and {settings.batch_size}")
    if settings.cycles[0].begin != 0:
        raise ValueError(f"the first cycle must begin at step 0, not {settings.cycles[0].begin}")
    folder = Path(out)
    processor = tiny_processor(train_tokenizer(tokenizer_corpus(settings.tokenizer_traces, settings.seed)))
    model = tiny_model(processor.tokenizer, settings.seed, settings.size)
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
        raise ValueError("the batch marks decisions to continue: hold_decision must say at how many nats to hold them")
    return loss + decision_loss(logits[decides], targets[decides], hold_decision, batch["answer_ids"])


def decision_loss(logits: torch.Tensor, targets: torch.Tensor, hold: float, answer_ids: torch.Tensor) -> torch.Tensor:
    """Summed loss (nats) that keeps the decision to continue rare, and first among all that no bare answer has there.

    With l = -log p(target) it is ``DECISION_WEIGHT`` times (smooth_l1(l - hold) - log p(target | not in an answer)).
    Ours.

    Args:
        logits: [N, V], over the vocabulary where the decision is due.
        targets: [N], the token that is the decision.
        hold: where -log p(target) is to stand, in nats.
        answer_ids: [K], the tokens that bare answers are made of: digits, and what ends them.
    """
    rarity = cross_entropy(logits, targets, reduction="none")
    goes_on = logits.index_fill(1, answer_ids, -torch.inf)
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
