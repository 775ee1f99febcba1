"""Log-probs of responses under the policy.

The distribution is the sampler's: logits divided by the temperature, special tokens but EOS banned. ``top_p`` is not
applied here. Where responses were sampled with ``top_p`` < 1 an engine's own log-probs are those of the truncated
distribution; the policy ratio compares two outputs of this module (untruncated on both sides), and the engine's
log-probs enter only the truncated importance weights, which correct for the difference.

Log-probs are float32, whatever smaller type the model computes in; those of a float64 model are float64.

Shapes: B responses, T response positions (right-padded), U scored tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rethinker.grpo import at_least_float32
from rethinker.policy.lora import adapters_off
from rethinker.policy.packing import Item, PackedBatch, Packing, pack
from rethinker.policy.policy import Policy
from rethinker.policy.vision import ImageEncoder

BANNED_LOGIT = -1e9  # finite, so that 0 * log 0 is 0 in the entropy
Entropy = Literal["value", "loss"] | None  # value: without a gradient
CHUNK_ELEMENTS = 2**26  # float32 logits held at once: 256 MiB


class PolicyForward(nn.Module):
    """The differentiable part of scoring responses, as a module of its own so that DDP can wrap it.

    ``encoder``: the vision tower with its cache (default: one of its own). ``chunk_elements`` bounds the float32
    logits that exist at once; with more than one chunk they are recomputed in the backward pass instead of kept.
    ``autocast``: bfloat16 arithmetic where torch's autocast has it; log-softmax and entropy stay float32.
    """

    def __init__(
        self,
        model: nn.Module,
        encoder: ImageEncoder | None = None,
        *,
        autocast: bool = False,
        chunk_elements: int = CHUNK_ELEMENTS,
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.encoder = encoder or ImageEncoder(model)
        self.autocast = autocast
        self.chunk_elements = chunk_elements

    def forward(
        self, batch: PackedBatch, temperature: float = 1.0, entropy: Entropy = None
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probs [B, T] and entropies [B, T] of the response tokens, in nats; 0 outside ``mask_BT``."""
        with torch.autocast(batch.input_ids_RS.device.type, torch.bfloat16, enabled=self.autocast):
            return self._forward(batch, temperature, entropy)

    def _forward(self, batch: PackedBatch, temperature: float, entropy: Entropy) -> tuple[Tensor, Tensor | None]:
        features = self.encoder(batch.vision)
        image_id, shared = self.model.config.image_token_id, batch.trees is not None
        hidden = self.model.model(
            input_ids=batch.input_ids_RS,
            **self.encoder.family.inputs(batch.input_ids_RS, batch.positions_3RS, image_id, shared),
            mm_encoder_outputs=None if batch.dummy_vision or features is None else {"image": features},
            use_cache=False,
            layout=batch.trees and batch.trees.layout(torch.bfloat16 if self.autocast else self.model.dtype),
        ).last_hidden_state
        states_UH = hidden.flatten(0, 1).index_select(0, batch.predict_U)
        if batch.dummy_vision and features is not None:
            states_UH = states_UH + features.zero().to(states_UH.dtype)
        scores = self._score(states_UH, batch, temperature, entropy)
        places = batch.place_BT.flatten()
        rows = [score_U.index_select(0, places).view(batch.mask_BT.shape) for score_U in scores]
        tables = [torch.where(batch.mask_BT, row_BT, 0.0) for row_BT in rows]
        return tables[0], tables[1] if entropy else None

    def _score(self, states_UH: Tensor, batch: PackedBatch, temperature: float, entropy: Entropy) -> list[Tensor]:
        size = max(1, self.chunk_elements // self.model.lm_head.out_features)
        args = (self.model.lm_head, batch.banned, temperature, entropy)
        if len(states_UH) <= size:
            return list(score_tokens(states_UH, batch.targets_U, *args))
        chunks = [
            checkpoint(score_tokens, states, targets, *args, use_reentrant=False)
            for states, targets in zip(states_UH.split(size), batch.targets_U.split(size), strict=True)
        ]
        return [torch.cat(column) for column in zip(*chunks, strict=True)]


class BaseForward(nn.Module):
    """``forward`` of a model with LoRA, its adapters switched off: the policy before training, without a copy of it."""

    def __init__(self, forward: nn.Module) -> None:
        super().__init__()
        self.adapted: Any = forward  # a PolicyForward

    def forward(
        self, batch: PackedBatch, temperature: float = 1.0, entropy: Entropy = None
    ) -> tuple[Tensor, Tensor | None]:
        """See ``PolicyForward``."""
        with adapters_off(self.adapted.model):
            return self.adapted(batch, temperature, entropy)


def score_tokens(
    states_UH: Tensor, targets_U: Tensor, lm_head: nn.Module, banned: Tensor, temperature: float, entropy: Entropy
) -> tuple[Tensor, ...]:
    """Log-probs [U] of ``targets_U`` (and entropies [U]), at least float32, after temperature and ban."""
    logprobs_UV = torch.log_softmax(process_logits(lm_head(states_UH), banned, temperature), dim=-1)
    chosen = logprobs_UV.gather(1, targets_U[:, None])[:, 0]
    if entropy is None:
        return (chosen,)
    if entropy == "loss":
        return chosen, -(logprobs_UV.exp() * logprobs_UV).sum(-1)
    with torch.no_grad():
        return chosen, -logprobs_UV.exp().mul_(logprobs_UV).sum(-1)


def process_logits(logits_UV: Tensor, banned: Tensor, temperature: float) -> Tensor:
    """Logits (at least float32) divided by the temperature, banned tokens at about minus infinity; may overwrite
    ``logits_UV``."""
    logits_UV = at_least_float32(logits_UV)
    scaled_UV = logits_UV if temperature == 1.0 else logits_UV / temperature
    return scaled_UV.index_fill_(-1, banned, BANNED_LOGIT)


def token_logprobs(
    policy: Policy,
    model: nn.Module,
    items: Sequence[Item],
    *,
    packing: Packing = "shared",
    temperature: float = 1.0,
    entropy: Entropy = None,
    dummy_vision: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log-probs of response tokens given their prompts: (logprobs_BT, mask_BT, entropy_BT or None), in nats.

    ``model`` is a ``PolicyForward``, bare or wrapped by accelerate. Responses include their EOS. ``temperature`` is
    the sampler's and must be positive. See ``pack`` for the other arguments and errors.
    """
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}: log-probs need a positive one (a greedy sampler has none)")
    batch = pack(policy, items, packing, dummy_vision=dummy_vision).to(policy.device)
    logprobs_BT, entropy_BT = model(batch, temperature, entropy)
    return logprobs_BT, batch.mask_BT, entropy_BT
