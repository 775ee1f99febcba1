"""Seconds of an episode by part, by rooflines. Formulas; nothing here was run on GPUs.

A part takes as long as the slowest of what it needs: arithmetic, reading memory, exchanging weights, or the longest
response. The sum is multiplied by ``OVERHEAD``, which is what whole published steps took beyond such a sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rethinker.config import RunConfig
from rethinker.lab.plan.case import Case
from rethinker.lab.plan.hardware import NETWORK
from rethinker.lab.plan.memory import kv_tokens, longest
from rethinker.lab.plan.tokens import Tokens, episode_tokens, micro_batches

# Of the peak, in training: torchtitan reports 33 to 39 % for Llama-3.1-8B under FSDP2 on 8 and 128 H100.
MFU = 0.35
# Of the peaks, while generating: these give 10,970 tokens/s for Llama-3.1-8B at 1,000 tokens of context on one H100;
# about 12,500 are published.
ENGINE_FLOPS, ENGINE_BANDWIDTH = 0.5, 0.6
STEP = 2e-3  # seconds of a decoding step beside the GPU's work: vLLM with CUDA graphs
EAGER_STEP = 30e-3  # the same of the transformers engine (ours)
REDUCE = 12e-6  # seconds of an all-reduce between the GPUs of one engine, two a layer (ours)
SEQUENCES = 1024  # of one engine at once, at most
TAIL_SEQUENCES = 16  # of one engine, while the longest responses are still written
LINK = 0.7  # of the links' peak, in exchanges of weights and gradients (ours)
# Bytes/s of a weight synchronisation: 7B in under 0.3 s in one place (verl), 32B in 2.3 s to 16 servers (TRL#7131).
SYNC_HERE, SYNC_SERVERS = 50e9, 28e9
# Whole steps of NeMo-RL v0.4 on H100 took 97.7 s (Llama-3.1-8B, 16 GPUs) and 393 s (Qwen3-32B, 32 GPUs): 1.25 and 1.29
# times the sum of the parts below.
OVERHEAD = 1.3


@dataclass(frozen=True)
class Seconds:
    """A part of an episode, in seconds, and what bounds it."""

    name: str
    seconds: float
    bound: str


def forward_flops(case: Case, tokens: float, scored: float, context: float) -> float:
    """FLOP of one forward pass of the language model."""
    shape = case.shape
    body = shape.layers * sum(inputs * outputs for inputs, outputs in shape.linears.values())
    return 2 * body * tokens + 2 * shape.lm_head * scored + 4 * shape.layers * shape.queries * tokens * context / 2


def trainer_flops(case: Case) -> float:
    """FLOP/s of all trainers."""
    peak = case.gpu.bfloat16 if case.computed == 2 else case.gpu.float32
    return case.trainers * peak * MFU


def exchange(case: Case, passes: float, *, backward: bool) -> float:
    """Seconds in which a GPU gathers weights and reduces gradients, ``passes`` times."""
    if case.trainers == 1:
        return 0.0
    reduced = 4 * case.trained if backward else 0
    if case.shards == 1:
        return 2 * reduced / _rate(case, case.trainers)  # DDP: once a step
    gathered = case.computed * case.shape.language * (2 if backward else 1)
    seconds = passes * (gathered + reduced) * (1 - 1 / case.shards) / _rate(case, case.shards)
    if case.shards < case.trainers:
        seconds += passes * 2 * reduced / case.shards / _rate(case, case.trainers)
    return seconds


def _rate(case: Case, ranks: int) -> float:
    return LINK * (case.gpu.link if ranks <= case.per_node else NETWORK)


def train(case: Case, stage: RunConfig, tokens: Tokens) -> Seconds:
    """Forward, backward and, where layers are checkpointed, their second forward pass; exchanges overlap with it."""
    again = int(case.config.model.gradient_checkpointing)
    factor = (2 if case.lora else 3) + again  # frozen weights have no gradient of their own
    flops = factor * forward_flops(case, tokens.packed, tokens.scored, tokens.context)
    tower = 2 * case.shape.vision * case.patches * tokens.images
    flops += tower * (3 + again if case.trains_tower else 1)
    steps, rounds = micro_batches(case, stage, tokens)
    exchanged = steps * exchange(case, rounds, backward=True)
    return _slower("train", flops / trainer_flops(case), exchanged, "exchanging weights and gradients")


def score(case: Case, stage: RunConfig, tokens: Tokens) -> Seconds:
    """The behaviour log-probs: one forward pass, none where an episode makes one update."""
    if stage.batches(stage.samples_per_episode) <= 1 and not stage.replay.outlives:
        return Seconds("behaviour log-probs", 0.0, "those of the one update")
    flops = forward_flops(case, tokens.packed, tokens.scored, tokens.context)
    flops += 2 * case.shape.vision * case.patches * tokens.images * case.trains_tower
    steps, rounds = micro_batches(case, stage, tokens)
    exchanged = exchange(case, steps * rounds, backward=False)
    return _slower("behaviour log-probs", flops / trainer_flops(case), exchanged, "gathering weights")


def _slower(name: str, arithmetic: float, exchanged: float, what: str) -> Seconds:
    if exchanged > arithmetic:
        return Seconds(name, exchanged, what)
    return Seconds(name, arithmetic, "arithmetic")


def decoding_step(case: Case, sequences: float, context: float) -> tuple[float, str]:
    """Seconds in which one engine writes a token of every sequence, and what bounds it."""
    shape, parallel = case.shape, case.parallel
    weights = shape.layers * shape.layer + shape.lm_head
    read = case.engine_bytes * weights + sequences * context * shape.kv_token(case.engine_bytes)
    reading = read / (parallel * case.gpu.bandwidth * ENGINE_BANDWIDTH)
    peak = case.gpu.bfloat16 if case.engine_bytes == 2 else case.gpu.float32
    computing = 2 * weights * sequences / (parallel * peak * ENGINE_FLOPS)
    waiting = (STEP if case.vllm else EAGER_STEP) + 2 * shape.layers * REDUCE * (parallel > 1)
    return max(reading, computing) + waiting, "reading memory" if reading > computing else "arithmetic"


def sequences(case: Case, context: float) -> float:
    """Sequences of ``context`` tokens that one engine writes at once; a group shares the KV cache of its prompt."""
    if not case.vllm:
        return min(case.config.rollout.batch_size, SEQUENCES)
    own = context - case.prompt_tokens * (1 - 1 / case.config.rollout.group_size)
    return min(kv_tokens(case) / own, SEQUENCES)


def generate(case: Case, name: str, written: float, prompts: float, context: float) -> Seconds:
    """All engines together write ``written`` tokens, and read ``prompts`` tokens once."""
    if not written:
        return Seconds(name, 0.0, "nothing to write")
    if case.vllm and kv_tokens(case) < longest(case):
        return Seconds(name, math.inf, "no room for the KV cache")
    most = written / case.response_tokens / case.engines
    together = min(sequences(case, context), most)
    step, bound = decoding_step(case, together, context)
    steady = written / case.engines / together * step
    most_tokens = case.config.rollout.max_new_tokens
    middle = case.prompt_tokens + most_tokens / 2
    tail = most_tokens * decoding_step(case, min(together, TAIL_SEQUENCES), middle)[0]
    peak = case.gpu.bfloat16 if case.engine_bytes == 2 else case.gpu.float32
    flops = forward_flops(case, prompts, 0, case.prompt_tokens)
    flops += 2 * case.shape.vision * case.patches * prompts / case.prompt_tokens
    prefill = flops / (case.engines * case.parallel * peak * ENGINE_FLOPS)
    if tail > steady:
        return Seconds(name, tail + prefill, "the longest response")
    return Seconds(name, steady + prefill, bound)


def synchronise(case: Case) -> Seconds:
    """New weights in every engine."""
    rate = SYNC_SERVERS if case.servers else SYNC_HERE
    return Seconds("sync", case.engine_bytes * case.shape.total / rate, "moving weights")


def episode(case: Case, stage: RunConfig, packing: str) -> list[Seconds]:
    """The parts of an episode of ``stage``, in order, with ``OVERHEAD``."""
    tokens = episode_tokens(case, stage, packing)
    context = case.prompt_tokens + case.response_tokens
    parts = [
        generate(case, "generate", tokens.responses, tokens.prompts, context),
        generate(case, "second looks", tokens.second_looks, 0.0, context + case.response_tokens),
        score(case, stage, tokens),
        train(case, stage, tokens),
        synchronise(case),
    ]
    return [Seconds(part.name, OVERHEAD * part.seconds, part.bound) for part in parts]


def total(parts: list[Seconds]) -> float:
    """Seconds of an episode, one part after the other."""
    return sum(part.seconds for part in parts)


def overlapped(parts: list[Seconds]) -> float:
    """Seconds of an episode where servers write the next one while this one is trained on."""
    writing = sum(part.seconds for part in parts if part.name in ("generate", "second looks"))
    syncing = sum(part.seconds for part in parts if part.name == "sync")
    return max(writing, total(parts) - writing - syncing) + syncing
