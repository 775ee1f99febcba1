"""Pretraining of the tiny VLM: supervised on the visual-math world, a fast-thinking base that can be made to rethink.

Not in arXiv:2504.08837: the paper starts from Qwen2.5-VL-Instruct. That model answers fast, does not reflect by itself
and can when made to; this base is built to have the same three habits (``datasets.traces`` says with which losses).
"""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy, smooth_l1_loss
from transformers import Qwen2_5_VLForConditionalGeneration

from rethinker.rundir.atomic import atomic_write_bytes
from rethinker.tiny.curriculum import IGNORED, Cycle, PretrainSettings, TraceBatches, cycle_ends, tokenizer_corpus
from rethinker.tiny.model import (
    save_policy,
    tiny_model,
    tiny_processor,
    train_tokenizer,
)
from rethinker.tiny.muon import Muon

log = logging.getLogger(__name__)

STATE = "pretraining.pt"  # in the folder, until the model is there: what a stopped training needs to go on
DECISION_WEIGHT = 0.1  # of the loss on a decision to continue, beside 1 for any other token's


def pretrain_tiny(out: str | Path, settings: PretrainSettings | None = None, resume: bool = False) -> float:
    """Train the tiny VLM from nothing and write it to ``out`` as a Hugging Face folder; the seconds that took in all.

    It is written at the end, and ``STATE`` every ``save_every`` steps: a training is resumed from it, and gives the
    weights of one that was not stopped. Uses PyTorch's current number of threads. The same settings on the same machine
    with the same number of threads give the same weights.

    Raises:
        ValueError: ``steps`` or ``batch_size`` is not positive, the first cycle does not begin at 0, no such size, or
            what is to be resumed has other settings.
    """
    settings = settings or PretrainSettings()
    if settings.steps < 1 or settings.batch_size < 1:
        raise ValueError(f"steps and batch_size must be at least 1, got {settings.steps} and {settings.batch_size}")
    if settings.cycles[0].begin != 0:
        raise ValueError(f"the first cycle must begin at step 0, not {settings.cycles[0].begin}")
    training = Pretraining(Path(out), settings)
    log.info("%d parameters", training.model.num_parameters())
    if resume and training.state_file.exists():
        training.resume()
        log.info("resumed after step %d", training.step)
    for cycle, end in cycle_ends(settings):
        if training.step < end:
            training.train_cycle(cycle, end)
    save_policy(training.folder, training.model, training.processor)
    return training.seconds


class Pretraining:
    """The model, what it is trained on, and how far it is."""

    def __init__(self, folder: Path, settings: PretrainSettings) -> None:
        self.folder = folder
        self.settings = settings
        self.processor = tiny_processor(train_tokenizer(tokenizer_corpus(settings.tokenizer_traces, settings.seed)))
        self.model = tiny_model(self.processor.tokenizer, settings.seed, settings.size)
        self.batches = TraceBatches(self.processor, settings)
        self.step = 0  # those done
        self.seconds = 0.0  # of training, before it was stopped too
        self._optimizers: list[torch.optim.Optimizer] = []
        self._optimizer_states: list[dict[str, Any]] = []  # as read from a file

    @property
    def state_file(self) -> Path:
        return self.folder / STATE

    def train_cycle(self, cycle: Cycle, end: int) -> None:
        """The steps of ``cycle`` that are left up to ``end``, saved every ``save_every`` steps and at the end."""
        begin, settings = cycle.begin, self.settings
        self._optimizers = make_optimizers(self.model, cycle.learning_rate)
        if self.step > begin:
            for optimizer, state in zip(self._optimizers, self._optimizer_states, strict=True):
                optimizer.load_state_dict(state)
        started, smooth = time.monotonic() - self.seconds, None
        self.model.train()
        while self.step < end:
            self.step += 1
            rate = cycle.learning_rate * rate_factor(self.step - begin, end - begin, settings)
            for group in (group for optimizer in self._optimizers for group in optimizer.param_groups):
                group["lr"] = rate
            batches = self.batches.step(cycle)
            loss = train_step(self.model, self._optimizers, batches, settings.clip_norm, cycle.hold_decision)
            self.seconds = time.monotonic() - started
            first, smooth = smooth is None, loss if smooth is None else 0.95 * smooth + 0.05 * loss
            if first or self.step % 50 == 0:
                log.info("step %d loss %.3f rate %.1e seconds %.0f", self.step, smooth, rate, self.seconds)
            if self.step % settings.save_every == 0 or self.step == end:
                self.save()

    def save(self) -> None:
        """Write all that is needed to go on from here."""
        state = {
            "settings": _settings_record(self.settings),
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "random": self.batches.random_state,
        }
        file = io.BytesIO()
        torch.save(state, file)
        atomic_write_bytes(self.state_file, file.getvalue())

    def resume(self) -> None:
        """Go back to what ``save`` wrote. Raises ValueError if that had other settings."""
        state = torch.load(self.state_file, weights_only=True)
        before, now = json.loads(state["settings"]), json.loads(_settings_record(self.settings))
        other = [
            f"{name} was {before.get(name)}, now {value}" for name, value in now.items() if before.get(name) != value
        ]
        if other:
            raise ValueError(
                f"{self.state_file} has other settings: {'; '.join(other)}; resume with those, or remove it"
            )
        self.model.load_state_dict(state["model"])
        self.batches.random_state = state["random"]
        self.step, self.seconds, self._optimizer_states = state["step"], state["seconds"], state["optimizers"]


def _settings_record(settings: PretrainSettings) -> str:
    """What decides the weights, as JSON."""
    record = dataclasses.asdict(settings)
    del record["save_every"]
    return json.dumps(record)


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
        Muon(hidden, lr=learning_rate, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(rest, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate_factor(step: int, steps: int, settings: PretrainSettings) -> float:
    """Share of the learning rate at ``step`` of a cycle of ``steps`` (from 1): warm-up, flat, linear decay."""
    warm = min(1.0, step / settings.warmup_steps)
    done = (step - 1) / steps
    if done < settings.flat_share:
        return warm
    return warm * max(settings.final_rate, (1 - done) / (1 - settings.flat_share))
