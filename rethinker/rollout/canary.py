"""A canary for the weight synchronisation: do engine and trainer still agree on what was just sampled?

An engine that keeps generating with old weights, or with stale vision features, shows here immediately.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt
from typing import Any

import torch
from torch import nn

from rethinker.config import RunConfig
from rethinker.policy.forward import token_logprobs
from rethinker.policy.policy import Policy
from rethinker.rollout.base import RolloutEngine
from rethinker.types import Query, Request, Sampling

PROBE_TOKENS = 16  # stale weights or features show at the first one; a long tail of few rows costs an engine most
LOGIT = 10.0  # nats, about: how far the logits of a language model spread
STEPS = 10  # of a decoder layer that round: six matrix products, attention, two norms, the residual


def gap_bound(config: RunConfig, policy: Policy) -> float:
    """The mean abs log-prob difference, in nats, above which engine and trainer do not run the same model.

    What rounding alone makes of it. A forward pass rounds about ``STEPS`` times a layer; independent errors add up as a
    random walk, and a log-prob is a difference of logits that spread by ``LOGIT`` over a temperature of 1. So each side
    is off by about LOGIT * sqrt(STEPS * layers) * unit, and their difference by sqrt(2) times that, where unit, the
    mean relative error of a rounding, is that of the less precise side:

    - bfloat16 (as ``model.dtype``, ``model.autocast`` or ``rollout.dtype``): eps / 4 with eps = 2^-7, because sums are
      accumulated in float32 and rounded once. 0.15 nats with 3 layers, 0.46 with the 28 of the 7B model;
    - float32 on a CPU: sqrt(n) * eps / 2 with eps = 2^-23 and sums of n products (n: width of the MLP) in another
      order. 7e-5 nats with the tiny model's 3 layers of 256, 2e-3 with the 7B model's 28 of 18,944;
    - float32 on a GPU: eps / 4 with eps = 2^-10, that of the TF32 which cuDNN uses in the image patches' convolution.

    A right engine stays far below (measured with the tiny model: 1e-6 in float32, 2e-3 in bfloat16). Wrong weights,
    prompts or images make 1e-3 nats to several: not all of that is above the bound, so a run also warns of three times
    the gap that it had at its start.
    """
    text: Any = policy.model.config.get_text_config()
    engine = config.model.dtype if config.rollout.dtype == "auto" else config.rollout.dtype
    if config.model.autocast or "bfloat16" in (config.model.dtype, engine):
        unit = 2**-7 / 4
    elif policy.device.type == "cuda":
        unit = 2**-10 / 4
    else:
        unit = sqrt(text.intermediate_size) * 2**-23 / 2
    return LOGIT / min(config.rollout.temperature, 1.0) * sqrt(2 * STEPS * text.num_hidden_layers) * unit


@torch.no_grad()
def canary_gap(
    engine: RolloutEngine, policy: Policy, forward: nn.Module, probes: Sequence[Request], sampling: Sampling
) -> float | None:
    """Mean over freshly sampled tokens of abs(engine's log-prob - trainer's), in nats.

    ``forward`` is the trainer's ``PolicyForward``, bare or wrapped; where it is wrapped every rank must call. ``top_p``
    is left out of the probe's sampling, since the trainer does not apply it. None if the engine sampled no token at
    all.

    Raises ValueError without probes or for greedy sampling.
    """
    if not probes:
        raise ValueError("the canary needs at least one probe request")
    tokens = PROBE_TOKENS + max(len(probe.prefix_ids) for probe in probes)
    short = replace(sampling, top_p=1.0, max_new_tokens=min(sampling.max_new_tokens, tokens))
    answers = engine.generate(probes, short)
    pairs = [(request, response) for request in probes for response in answers[request.request_id]]
    pairs = [(request, response) for request, response in pairs if response.token_ids]
    # Each rank makes the pass, or a sharded policy's other ranks would wait: also one whose engine sampled nothing.
    items = [(request.query, (*request.prefix_ids, *response.token_ids)) for request, response in pairs]
    items = items or [(probes[0].query, (policy.eos_id,))]
    training = forward.training
    forward.eval()
    logprobs_BT, _, _ = token_logprobs(policy, forward, items, temperature=sampling.temperature, dummy_vision=True)
    forward.train(training)
    gap, count = 0.0, 0
    for row, (request, response) in enumerate(pairs):
        start = len(request.prefix_ids)
        own = logprobs_BT[row, start : start + len(response.token_ids)].double().cpu()
        gap += float((own - torch.tensor(response.logprobs, dtype=torch.float64)).abs().sum())
        count += len(response.token_ids)
    return gap / count if count else None


def checked_gap(
    engine: RolloutEngine,
    policy: Policy,
    forward: nn.Module,
    queries: Sequence[Query],
    sampling: Sampling,
    config: RunConfig,
    *,
    seed: int,
    when: str,
) -> float | None:
    """``canary_gap`` on one sample of each of ``queries``; None where ``rollout.canary`` is 0.

    Raises RuntimeError, saying ``when``, for a gap above ``rollout.canary``, or ``gap_bound`` where that is None.
    """
    limit = gap_bound(config, policy) if config.rollout.canary is None else config.rollout.canary
    if not limit:
        return None
    gap = canary_gap(engine, policy, forward, [Request(query.qid, query, seed) for query in queries], sampling)
    if gap is not None and not gap <= limit:  # NaN is far apart too
        raise RuntimeError(
            f"after the weight sync {when} engine and trainer differ by {gap:.3g} nats per token, more than "
            f"{'their types explain' if config.rollout.canary is None else 'rollout.canary'} ({limit:.2g}): the engine "
            "does not run the trainer's weights or prompts. If you know that it does, raise rollout.canary"
        )
    return gap
