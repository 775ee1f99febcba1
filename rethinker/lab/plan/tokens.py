"""Tokens of an episode, and how they are cut into forward passes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rethinker.config import RunConfig
from rethinker.lab.plan.case import Case

KEPT = 0.5  # of forced second looks, at most rethink.max_per_query a query (ours)


@dataclass(frozen=True)
class Tokens:
    """An episode's tokens. ``packed``: what one training pass over all samples reads; ``scored``: through the output
    layer; ``context``: mean length of a sample; ``images``: through the vision tower in such a pass."""

    prompts: float  # of distinct prompts
    responses: float  # sampled as y1
    second_looks: float  # sampled behind a trigger
    packed: float
    scored: float
    context: float
    images: float


def episode_tokens(case: Case, stage: RunConfig, packing: str) -> Tokens:
    """Tokens of an episode of ``stage``. Every sample is taken as trained on and distinct, which is an upper bound: of
    samples that are drawn again, and without an advantage in ``filter``, none is computed."""
    queries, group = stage.queries_per_episode, stage.rollout.group_size
    prompt, response = case.prompt_tokens, case.response_tokens
    samples = queries * group
    forced = stage.rethink.fraction * samples
    kept = min(KEPT * forced, stage.rethink.max_per_query * queries)
    written = samples * response + kept * response
    prompts = queries if packing == "shared" else samples
    return Tokens(
        prompts=queries * prompt,
        responses=samples * response,
        second_looks=forced * response,
        packed=prompts * prompt + written,
        scored=written,
        context=prompt + written / samples,
        images=queries if case.image_tokens else 0,
    )


def micro_batches(case: Case, stage: RunConfig, tokens: Tokens) -> tuple[int, int]:
    """Steps of an episode, and micro-batches of a GPU in each."""
    steps = stage.batches(stage.samples_per_episode)
    return steps, math.ceil(tokens.packed / steps / case.trainers / stage.optim.micro_batch_tokens)


def row_tokens(case: Case) -> float:
    """Packed tokens of a query with its responses (shared), or of one response with its prompt (plain)."""
    if case.config.model.forward == "plain":
        return case.prompt_tokens + case.response_tokens
    return case.prompt_tokens + case.config.rollout.group_size * case.response_tokens


def accumulates(case: Case) -> bool:
    """Whether a GPU has several micro-batches in a step of some stage."""
    packing = case.config.model.forward
    return any(micro_batches(case, stage, episode_tokens(case, stage, packing))[1] > 1 for stage in case.stages)
