"""Attention over a packed row of prefix trees: a token sees its prompt, its own response, and nothing else.

Registered with transformers as one more attention function, so that the models' own code runs around it; without a
layout it is transformers' SDPA. A layout computes the attention of the tokens it describes:

- ``SdpaLayout`` (CPUs): prompts as one causal batch, responses as another whose keys are their prompt's and their own.
  The work is that of the responses alone, not the square of the row's length.
- ``FlexLayout`` (GPUs): flex_attention on the row as it stands, with a block mask. Not run by us on a GPU; its outputs
  were compared with the first one's on a CPU.

Shapes: S packed tokens, P prompts, L longest prompt, N distinct responses, T longest response, K = L + T keys,
H heads (of queries, or of keys and values), D head size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "rethinker_shared_prefix"
BLOCK = 128  # tokens of a block of flex_attention's mask


class Layout(Protocol):
    """Which token sees which, and how that is computed."""

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """Query, key and value [rows, H, tokens, D] of one layer (``module.layer_idx``) to output
        [rows, tokens, H, D]."""


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    layout: Layout | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """transformers' attention function: what ``layout`` says, or SDPA with ``attention_mask``."""
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    return layout.attend(module, query, key, value, scaling), None


def use_shared_prefix_attention(model: PreTrainedModel) -> None:
    """Make ``model``'s language model run on this module's attention; without a layout nothing changes.

    Raises ValueError for a model with sliding-window layers.
    """
    config = model.config.get_text_config()
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise ValueError("a model with sliding-window attention is not supported: its layers do not see whole prompts")
    AttentionInterface.register(NAME, shared_prefix_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    config._attn_implementation = NAME


@dataclass(frozen=True)
class PrefixTrees:
    """A packed row, described.

    ``ends_S``: a token is seen by the tokens from itself up to this one (exclusive). ``prompts_PL`` and
    ``responses_NT``: packed index of each token of a prompt, of a response with what it shares (right-padded with 0).
    ``lengths_P``: tokens of a prompt; ``owner_N``: prompt of a response. ``place_S``: where a packed token stands in
    the flattened prompts followed by the flattened responses.
    """

    ends_S: Tensor
    prompts_PL: Tensor
    lengths_P: Tensor
    responses_NT: Tensor
    owner_N: Tensor
    place_S: Tensor

    def to(self, device: torch.device) -> PrefixTrees:
        """The same on ``device``."""
        return replace(self, **{name: value.to(device) for name, value in vars(self).items()})

    def layout(self) -> Layout:
        """The layout for the device that this is on."""
        return FlexLayout(self) if self.ends_S.is_cuda else SdpaLayout(self)


class SdpaLayout:
    """Two batches a layer; the keys of the responses and their boolean mask are made once for all layers."""

    def __init__(self, trees: PrefixTrees) -> None:
        self.trees = trees
        prompt_NL = trees.prompts_PL[trees.owner_N]
        rows, length = prompt_NL.shape
        tokens = trees.responses_NT.shape[1]
        device = trees.ends_S.device
        seen_NL = torch.arange(length, device=device) < trees.lengths_P[trees.owner_N, None]
        causal_TT = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()
        parts = [seen_NL[:, None].expand(-1, tokens, -1), causal_TT.expand(rows, -1, -1)]
        self.mask_N1TK = torch.cat(parts, dim=-1)[:, None]
        self.keys_NK = torch.cat([prompt_NL, trees.responses_NT], dim=1)

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """See ``Layout``; there is one row."""
        query_SHD, key_SHD, value_SHD = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        options: dict[str, Any] = {"scale": scaling, "enable_gqa": True}
        prompts_PL, responses_NT = self.trees.prompts_PL, self.trees.responses_NT
        # Prompts are padded on the right: causal order hides the padding from every token that counts.
        parts = [
            scaled_dot_product_attention(
                pick(query_SHD, prompts_PL),
                pick(key_SHD, prompts_PL),
                pick(value_SHD, prompts_PL),
                is_causal=True,
                **options,
            )
        ]
        if len(responses_NT):
            parts.append(
                scaled_dot_product_attention(
                    pick(query_SHD, responses_NT),
                    pick(key_SHD, self.keys_NK),
                    pick(value_SHD, self.keys_NK),
                    attn_mask=self.mask_N1TK,
                    **options,
                )
            )
        flat = torch.cat([part.transpose(1, 2).flatten(0, 1) for part in parts])
        return flat.index_select(0, self.trees.place_S)[None]


def pick(rows_SHD: Tensor, index_BT: Tensor) -> Tensor:
    """Tokens as a batch, [B, H, T, D]."""
    # index_select, because the gradient of plain indexing adds element by element on a CPU.
    return rows_SHD.index_select(0, index_BT.flatten()).unflatten(0, index_BT.shape).transpose(1, 2)


class FlexLayout:
    """One call a layer; the block mask is made once for all layers, from blocks and not from S * S entries."""

    def __init__(self, trees: PrefixTrees) -> None:
        from torch.nn.attention.flex_attention import BlockMask

        ends_S = trees.ends_S
        size = len(ends_S)
        blocks = -(-size // BLOCK)
        ends = torch.nn.functional.pad(ends_S, (0, blocks * BLOCK - size)).view(blocks, BLOCK)
        start_Q = torch.arange(blocks, device=ends.device)[:, None] * BLOCK
        start_K = start_Q.T
        stop_Q = (start_Q + BLOCK).clamp(max=size)
        # A block of keys counts where its longest-lived token does, and is full where its shortest-lived one does.
        full = (start_K < start_Q) & (ends.amin(1) >= stop_Q)
        partial = (start_K <= start_Q) & (ends.amax(1) > start_Q) & ~full

        def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key <= query) & (query < ends_S[key])

        self.block_mask = BlockMask.from_kv_blocks(
            *_ordered(partial), *_ordered(full), BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(size, size)
        )

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """See ``Layout``; there is one row."""
        output, _ = flex_attention_forward(module, query, key, value, self.block_mask, scaling=scaling)
        return output


def _ordered(blocks_QK: Tensor) -> tuple[Tensor, Tensor]:
    """For each block of queries how many blocks of keys, and which, those first; [1, 1, Q] and [1, 1, Q, K]."""
    first = blocks_QK.int().argsort(dim=-1, descending=True, stable=True)
    return blocks_QK.sum(-1, dtype=torch.int32)[None, None], first.int()[None, None]
