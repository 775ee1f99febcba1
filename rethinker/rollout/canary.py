"""A canary for the weight synchronisation: do engine and trainer still agree on what was just sampled?

An engine that keeps generating with old weights, or with stale vision features, shows here immediately.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from rethinker.policy.forward import token_logprobs
from rethinker.policy.loading import Policy
from rethinker.rollout.base import RolloutEngine
from rethinker.types import Request, Sampling

PROBE_TOKENS = 16  # stale weights or features show at the first one; a long tail of few rows costs an engine most


@torch.no_grad()
def canary_gap(
    engine: RolloutEngine, policy: Policy, forward: nn.Module, probes: Sequence[Request], sampling: Sampling
) -> float | None:
    """Mean over freshly sampled tokens of abs(engine's log-prob - trainer's), in nats.

    ``forward`` is the trainer's ``PolicyForward``, bare or wrapped; where it is wrapped every rank must call. ``top_p``
    is left out of the probe's sampling, since the trainer does not apply it. About 1e-6 in float32; an engine in
    bfloat16 differs by rounding alone (2e-3 for the tiny VLM, 0.01 and more for large models), and so needs a larger
    ``rollout.canary``. None if the engine sampled no token at all.

    Raises ValueError without probes or for greedy sampling.
    """
    if not probes:
        raise ValueError("the canary needs at least one probe request")
    tokens = PROBE_TOKENS + max(len(probe.prefix_ids) for probe in probes)
    short = replace(sampling, top_p=1.0, max_new_tokens=min(sampling.max_new_tokens, tokens))
    answers = engine.generate(probes, short)
    pairs = [(request, response) for request in probes for response in answers[request.request_id]]
    pairs = [(request, response) for request, response in pairs if response.token_ids]
    if not pairs:
        return None
    items = [(request.query, (*request.prefix_ids, *response.token_ids)) for request, response in pairs]
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
    return gap / count
