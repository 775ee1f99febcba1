"""Log-probs of samples under the current weights, without a gradient: the behaviour policy's. Ours."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate.utils import gather_object

from rethinker.arrays import Floats
from rethinker.policy.batching import arrange, micro_batches
from rethinker.policy.forward import token_logprobs
from rethinker.policy.packing import Packing
from rethinker.policy.policy import Policy
from rethinker.policy.sharding import is_sharded
from rethinker.types import Sample


@torch.no_grad()
def score(
    policy: Policy,
    forward: torch.nn.Module,
    samples: Sequence[Sample],
    *,
    temperature: float,
    packing: Packing,
    micro_batch_tokens: int,
    filler: Sample | None = None,
) -> dict[str, Floats]:
    """The log-probs of each response's tokens by sample id; empty responses have none.

    ``packing``, ``micro_batch_tokens``: of ``batching.micro_batches``. Every rank of a sharded policy makes the same
    number of passes, on ``filler``, the same everywhere, where it has no more samples of its own: collective there.
    """
    found: dict[str, Floats] = {}
    sharded = is_sharded(forward)
    passes = micro_batches(arrange([s for s in samples if s.response.token_ids]), micro_batch_tokens, packing)
    if sharded and filler:
        passes += [[filler]] * (max(gather_object([len(passes)])) - len(passes))
    forward.eval()
    for part in passes:
        logprobs_BT, _, _ = token_logprobs(
            policy,
            forward,
            [(sample.query, sample.response.token_ids) for sample in part],
            packing=packing,
            temperature=temperature,
            dummy_vision=sharded and policy.encoder.trained,
        )
        for sample, row in zip(part, logprobs_BT.cpu().numpy(), strict=True):
            found[sample.sample_id] = Floats(row[: len(sample.response.token_ids)])
    return found
