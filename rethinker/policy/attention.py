"""Attention over a packed row of prefix trees: a token sees its prompt, its own response, and nothing else.

Registered with transformers as one more attention function, so that the models' own code runs around it; without a
layout it is transformers' SDPA. A layout computes the attention of the tokens it describes:

- ``SdpaLayout`` (CPUs; on GPUs what the transformers engine reads): prompts as causal batches, responses as batches
  whose keys are their prompt's and their own. The work is that of the responses alone, not the square of the row's
  length.
- ``FlexLayout`` (the trainer on GPUs): flex_attention on the row as it stands, with a block mask. It must be compiled:
  without that it makes the S * S scores of every head. Not run by us on a GPU; its outputs were compared with the first
  one's on a CPU.

Shapes: S packed tokens, P prompts, L longest prompt, N distinct responses, T longest response, K = L + T keys,
H heads (of queries, or of keys and values), D head size. Of a batch: n rows, t queries, k keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rethinker.policy.families import family_of

NAME = "rethinker_shared_prefix"
BLOCK = 128  # tokens of a block of flex_attention's mask
ENTRIES = 2**24  # scores of a batch, and so entries of its mask (64 MiB in float32)


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

    Raises ValueError for a model with sliding-window layers, but for Gemma 3.
    """
    config = model.config.get_text_config()
    sliding = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    if sliding and not family_of(model).bidirectional:
        raise ValueError("a model with sliding-window attention is not supported: its layers do not see whole prompts")
    AttentionInterface.register(NAME, shared_prefix_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    family_of(model).language_model(model).config._attn_implementation = NAME  # some have a copy of ``config``


@dataclass(frozen=True)
class PrefixTrees:
    """A packed row, described.

    ``ends_S``: a token is seen by the tokens from itself up to this one (exclusive). ``prompts_PL`` and
    ``responses_NT``: packed index of each token of a prompt, of a response with what it shares (right-padded with 0).
    ``lengths_P``, ``lengths_N``: their tokens; ``owner_N``: prompt of a response. ``place_S``: where a packed token
    stands in the flattened prompts followed by the flattened responses. ``images_S``, where the tokens of an image see
    each other: the number of a token's image, or -1.
    """

    ends_S: Tensor
    prompts_PL: Tensor
    lengths_P: Tensor
    responses_NT: Tensor
    lengths_N: Tensor
    owner_N: Tensor
    place_S: Tensor
    images_S: Tensor | None = None

    def to(self, device: torch.device) -> PrefixTrees:
        """The same on ``device``."""
        return replace(self, **{name: value.to(device) for name, value in vars(self).items() if value is not None})

    def layout(self, dtype: torch.dtype = torch.float32) -> Layout:
        """The trainer's layout for the device that this is on; ``dtype``: of the model's arithmetic."""
        return FlexLayout(self) if self.ends_S.is_cuda and self.images_S is None else SdpaLayout(self, dtype)


def image_runs(ids_S: Tensor, image_id: int) -> Tensor:
    """The number of the run of image tokens that a token is in, or -1."""
    shown_S = ids_S == image_id
    starts_S = shown_S.clone()
    starts_S[1:] &= ~shown_S[:-1]
    return torch.where(shown_S, starts_S.cumsum(0) - 1, -1)


class SdpaLayout:
    """Prompts, and responses behind them, in batches of rows of like length: a long one does not pad many short ones.

    ``entries`` bounds the scores of a batch (rows x queries x keys, padding included) and so its mask; one response
    that has more is computed in slices of its queries. Where all rows fit they are one batch. ``dtype``: of the model's
    arithmetic. Batches and masks are made once for all layers; without gradients large masks are made layer by layer.
    """

    def __init__(self, trees: PrefixTrees, dtype: torch.dtype = torch.float32, entries: int = ENTRIES) -> None:
        # On CUDA, fewer heads of keys than of queries beside a mask or in float32 would leave torch the one kernel that
        # makes all scores.
        self.grouped = not trees.ends_S.is_cuda
        prompts, responses = trees.lengths_P.tolist(), trees.lengths_N.tolist()
        before = [prompts[owner] for owner in trees.owner_N.tolist()]  # keys ahead of a response's own
        parts_P = like_rows(prompts, [0] * len(prompts), entries)
        parts_N = like_rows(responses, before, entries)
        self.prompts = [trees.prompts_PL[rows, : max(prompts[row] for row in rows)] for rows in parts_P]
        self.images_S = trees.images_S
        self.responses = [_Responses(trees, rows, dtype, entries) for rows in parts_N]
        if torch.is_grad_enabled() or sum(part.scores for part in self.responses) <= entries:
            for part in self.responses:
                part.keep_masks()
        # Where each token of the padded tables stands in the batches' outputs, one behind the other.
        starts_P, end = _starts(parts_P, self.prompts, 0)
        starts_N, _ = _starts(parts_N, [part.index_NT for part in self.responses], end)
        places = [
            (starts[:, None] + torch.arange(table.shape[1])).flatten()
            for starts, table in ((starts_P, trees.prompts_PL), (starts_N, trees.responses_NT))
        ]
        self.place_S = torch.cat(places).to(trees.place_S.device)[trees.place_S]

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """See ``Layout``; there is one row."""
        query_SHD, key_SHD, value_SHD = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        if not self.grouped:
            repeats = query_SHD.shape[1] // key_SHD.shape[1]
            key_SHD, value_SHD = (tensor.repeat_interleave(repeats, dim=1) for tensor in (key_SHD, value_SHD))
        options: dict[str, Any] = {"scale": scaling, "enable_gqa": self.grouped}
        outputs = []
        window = int(module.sliding_window or 0) if self.images_S is not None else 0  # type: ignore[arg-type]
        for index_PL in self.prompts:
            # Prompts are padded on the right: causal order hides the padding from every token that counts.
            mask = None if self.images_S is None else _image_mask(self.images_S[index_PL], window)
            outputs.append(
                scaled_dot_product_attention(
                    pick(query_SHD, index_PL),
                    pick(key_SHD, index_PL),
                    pick(value_SHD, index_PL),
                    attn_mask=mask,
                    is_causal=mask is None,
                    **options,
                )
            )
        for part in self.responses:
            query_NHTD = pick(query_SHD, part.index_NT)
            key_NHKD, value_NHKD = pick(key_SHD, part.keys_NK), pick(value_SHD, part.keys_NK)
            for start, stop, mask in part.slices():
                keys = part.before + stop
                if window:
                    mask = mask.masked_fill(part.beyond(start, stop, window), -torch.inf)
                outputs.append(
                    scaled_dot_product_attention(
                        query_NHTD[:, :, start:stop],
                        key_NHKD[:, :, :keys],
                        value_NHKD[:, :, :keys],
                        attn_mask=mask,
                        **options,
                    )
                )
        flat = torch.cat([output.transpose(1, 2).flatten(0, 1) for output in outputs])
        return flat.index_select(0, self.place_S)[None]


class _Responses:
    """Responses that are computed together: their tokens ``index_NT`` and keys ``keys_NK``, of which ``before`` are
    those of their prompts (right-padded)."""

    def __init__(self, trees: PrefixTrees, rows: Sequence[int], dtype: torch.dtype, entries: int) -> None:
        owners = trees.owner_N[rows]
        before, tokens = int(trees.lengths_P[owners].max()), int(trees.lengths_N[rows].max())
        self.before, self.dtype = before, dtype
        self.index_NT = trees.responses_NT[rows, :tokens]
        self.keys_NK = torch.cat([trees.prompts_PL[owners, :before], self.index_NT], dim=1)
        self.length_N = trees.lengths_P[owners]
        self.seen_NL = torch.arange(before, device=owners.device) < trees.lengths_P[owners, None]
        self.scores = len(rows) * tokens * (before + tokens)
        step = max(1, entries * tokens // self.scores) if len(rows) == 1 else tokens
        self.bounds = [(start, min(start + step, tokens)) for start in range(0, tokens, step)]
        self.masks: list[Tensor] = []

    def keep_masks(self) -> None:
        """Make the masks of all slices, for all layers."""
        self.masks = [self._mask(start, stop) for start, stop in self.bounds]

    def slices(self) -> Iterator[tuple[int, int, Tensor]]:
        """First query, end (exclusive) and mask [n, 1, queries, keys] of every slice."""
        for index, (start, stop) in enumerate(self.bounds):
            yield start, stop, self.masks[index] if self.masks else self._mask(start, stop)

    def beyond(self, start: int, stop: int, window: int) -> Tensor:
        """Which keys [n, 1, queries, keys] are ``window`` tokens or more behind a query."""
        tokens_T = torch.arange(stop, device=self.length_N.device)
        own_NT = self.length_N[:, None] + tokens_T
        prompt_NL = torch.arange(self.before, device=self.length_N.device).expand(len(own_NT), -1)
        keys_NK = torch.cat([prompt_NL, own_NT], dim=-1)
        return (own_NT[:, start:, None] - keys_NK[:, None] >= window)[:, None]

    def _mask(self, start: int, stop: int) -> Tensor:
        """0 where a query sees a key, else minus infinity. (From a boolean one torch would make this in every layer,
        and keep each for the backward pass.)"""
        rows, tokens = len(self.index_NT), stop - start
        causal_TT = torch.ones(tokens, stop, dtype=torch.bool, device=self.seen_NL.device).tril(start)
        seen = [self.seen_NL[:, None].expand(-1, tokens, -1), causal_TT.expand(rows, -1, -1)]
        hidden = torch.cat(seen, dim=-1)[:, None].logical_not_()
        return torch.zeros(hidden.shape, dtype=self.dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)


def _image_mask(images_PL: Tensor, window: int) -> Tensor:
    """Which token of a prompt sees which, [P, 1, L, L]: what is before it, the rest of its image, and of both what is
    less than ``window`` (0: none) tokens behind it."""
    place_L = torch.arange(images_PL.shape[1], device=images_PL.device)
    behind_LL = place_L[:, None] - place_L
    same_PLL = (images_PL[:, :, None] == images_PL[:, None]) & (images_PL[:, :, None] >= 0)
    seen_PLL = same_PLL | (behind_LL >= 0)
    return (seen_PLL & (behind_LL < window) if window else seen_PLL)[:, None]


def like_rows(queries: Sequence[int], before: Sequence[int], entries: int) -> list[list[int]]:
    """Rows of so many ``queries`` behind so many keys, in batches of at most ``entries`` scores with padding (a row
    alone may have more).

    All together where they fit. Else rows share a batch whose queries, and whose keys, agree in their power of two:
    padding at most doubles either.
    """
    if not queries:
        return []

    def scores(rows: Sequence[int]) -> int:
        longest = max(queries[row] for row in rows)
        return len(rows) * longest * (longest + max(before[row] for row in rows))

    everything = sorted(range(len(queries)), key=lambda row: (-queries[row], -before[row]))
    if scores(everything) <= entries:
        return [list(range(len(queries)))]
    alike: dict[tuple[int, int], list[int]] = {}
    for row in everything:
        alike.setdefault((queries[row].bit_length(), (queries[row] + before[row]).bit_length()), []).append(row)
    batches = []
    for rows in alike.values():
        size = max(1, entries * len(rows) // scores(rows))
        batches += [rows[start : start + size] for start in range(0, len(rows), size)]
    return batches


def _starts(batches: Sequence[Sequence[int]], tables: Sequence[Tensor], start: int) -> tuple[Tensor, int]:
    """Where each row starts if the ``tables`` of the ``batches`` are flattened one behind the other, and where they
    end."""
    starts = torch.empty(sum(map(len, batches)), dtype=torch.long)
    for rows, table in zip(batches, tables, strict=True):
        starts[list(rows)] = start + table.shape[1] * torch.arange(len(rows))
        start += table.numel()
    return starts, start


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
