"""Token by token behind shared prompts: the keys and values of a prompt are held once for all samples of its query.

Shapes: P prompts, L longest prompt, g rows per prompt, N = P * g rows, C tokens held per row, H query heads, Hk key
heads, D head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rethinker.grpo import at_least_float32
from rethinker.policy.attention import Layout, SdpaLayout
from rethinker.policy.packing import Item, pack_trees
from rethinker.policy.policy import Policy

GROWTH = 64  # tokens by which the rows' keys and values grow


class _Recorder:
    """The prefill's layout; keeps the keys and values [Hk, S, D] of every layer."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.held: list[tuple[Tensor, Tensor]] = []

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        self.held.append((key[0], value[0]))
        return self.layout.attend(module, query, key, value, scaling)


class Decoder:
    """The state of rows that are being written; ``logits_NV`` are those of their next tokens.

    ``items``: a query and the response tokens that stand already, one per item. Every distinct prompt with its images
    is read once, and so is what the items of a query have in common. After the constructor the rows are the items and
    ``owners`` their prompts, of which there are ``prompts``; ``select`` arranges them for writing.
    """

    def __init__(self, policy: Policy, items: Sequence[Item]) -> None:
        self.model: Any = policy.model
        self.family, self.image_id = policy.family, policy.image_id
        device = policy.device
        packed = pack_trees(policy, items)
        features = policy.encoder(packed.vision.to(device))
        trees = packed.trees.to(device)
        # Not the trainer's layout of a GPU, which has to be compiled: here prompts have another length each time.
        recorder = _Recorder(SdpaLayout(trees, self.model.get_input_embeddings().weight.dtype))
        ids_RS, positions_3RS = packed.ids_S[None].to(device), packed.positions_3S[:, None].to(device)
        hidden = self.model.model(
            input_ids=ids_RS,
            **self.family.inputs(ids_RS, positions_3RS, policy.image_id, layout=True),
            mm_encoder_outputs=None if features is None else {"image": features},
            use_cache=False,
            layout=recorder,
        ).last_hidden_state[0]
        self.hidden_PL = torch.arange(trees.prompts_PL.shape[1], device=device) >= trees.lengths_P[:, None]
        # What stands already is right-aligned, so that all rows write their next token to the same column.
        self.size = max(len(path) for path in packed.paths)
        tokens = torch.zeros(len(items), self.size, dtype=torch.long)
        self.hidden_NC = torch.ones(len(items), self.size, dtype=torch.bool)
        for row, path in enumerate(packed.paths):
            if len(path):
                tokens[row, -len(path) :] = torch.from_numpy(path)
                self.hidden_NC[row, -len(path) :] = False
        tokens, self.hidden_NC = tokens.to(device), self.hidden_NC.to(device)
        self.shared: list[tuple[Tensor, Tensor]] = []
        self.own: list[tuple[Tensor, Tensor]] = []
        for key, value in recorder.held:
            self.shared.append((_pick(key, trees.prompts_PL), _pick(value, trees.prompts_PL)))
            self.own.append((_pick(key, tokens), _pick(value, tokens)))
        self.padded_prompts = self.padded_rows = True
        self.owners = packed.owners
        self.prompts = len(trees.lengths_P)
        ends = [int(path[-1]) if len(path) else last for path, last in zip(packed.paths, packed.lasts, strict=True)]
        last_N = torch.tensor(ends)
        self.next_N = packed.positions_3S.amax(0)[last_N].to(device) + 1
        self.logits_NV: Tensor = self.model.lm_head(hidden[last_N.to(device)])

    def select(self, prompts: Sequence[int], rows: Sequence[int]) -> None:
        """Continue with these, by their present indices; either may repeat.

        Prompt p owns the rows p * g to (p + 1) * g - 1, where g is the number of rows by that of prompts.
        """
        device = self.next_N.device
        chosen_P, chosen_N = torch.tensor(prompts, device=device), torch.tensor(rows, device=device)
        self.shared = [(key[chosen_P], value[chosen_P]) for key, value in self.shared]
        self.own = [(key[chosen_N], value[chosen_N]) for key, value in self.own]
        self.prompts, self.hidden_PL = len(prompts), self.hidden_PL[chosen_P]
        self.hidden_NC, self.next_N = self.hidden_NC[chosen_N], self.next_N[chosen_N]
        self.logits_NV = self.logits_NV[chosen_N]
        self.padded_prompts, self.padded_rows = bool(self.hidden_PL.any()), bool(self.hidden_NC.any())

    def advance(self, tokens_N: Tensor) -> None:
        """Read one token a row."""
        if self.size == self.own[0][0].shape[2]:
            self.own = [(_grow(key), _grow(value)) for key, value in self.own]
        self.hidden_NC = torch.cat([self.hidden_NC, self.hidden_NC.new_zeros(len(tokens_N), 1)], dim=1)
        self.size += 1
        ids_NT, positions_3NT = tokens_N[:, None], self.next_N.expand(3, -1)[..., None]
        hidden = self.family.language_model(self.model)(
            input_ids=ids_NT,
            **self.family.inputs(ids_NT, positions_3NT, self.image_id, layout=True),
            use_cache=False,
            layout=self,
        ).last_hidden_state
        self.next_N = self.next_N + 1
        self.logits_NV = self.model.lm_head(hidden[:, -1])

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """See ``Layout``: one query a row, over its prompt's keys (as one product a prompt) and its own."""
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        prompt_keys, prompt_values = self.shared[layer]
        own_keys, own_values = self.own[layer]
        own_keys[:, :, self.size - 1], own_values[:, :, self.size - 1] = key[:, :, 0], value[:, :, 0]
        own_keys, own_values = own_keys[:, :, : self.size], own_values[:, :, : self.size]
        rows, heads, _, width = query.shape
        prompts, key_heads, length, _ = prompt_keys.shape
        group, repeats = rows // prompts, heads // key_heads
        query_NkrD = query.view(rows, key_heads, repeats, width) * (width**-0.5 if scaling is None else scaling)
        query_PkmD = query_NkrD.unflatten(0, (prompts, group)).transpose(1, 2).flatten(2, 3)  # m: a prompt's queries
        to_prompt = at_least_float32(torch.matmul(query_PkmD, prompt_keys.transpose(2, 3)))
        to_own = at_least_float32(torch.matmul(query_NkrD, own_keys.transpose(2, 3)))
        if self.padded_prompts:
            to_prompt = to_prompt.masked_fill(self.hidden_PL[:, None, None], -torch.inf)
        if self.padded_rows:
            to_own = to_own.masked_fill(self.hidden_NC[:, None, None], -torch.inf)
        to_prompt = to_prompt.unflatten(2, (group, repeats)).transpose(1, 2).flatten(0, 1)
        window = int(module.sliding_window or 0) if self.family.bidirectional else 0  # type: ignore[arg-type]
        if window:
            columns_L = torch.arange(length, device=query.device)
            far_NL = self.next_N[:, None] - columns_L >= window  # such a family counts along the text
            to_prompt = to_prompt.masked_fill(far_NL[:, None, None], -torch.inf)
            far_C = torch.arange(self.size - 1, -1, -1, device=query.device) >= window
            to_own = to_own.masked_fill(far_C, -torch.inf)
        weights = torch.cat([to_prompt, to_own], dim=-1).softmax(-1).to(value.dtype)
        on_prompt, on_own = weights.split([length, self.size], dim=-1)
        on_prompt = on_prompt.unflatten(0, (prompts, group)).transpose(1, 2).flatten(2, 3)
        output = torch.matmul(on_prompt, prompt_values).unflatten(2, (group, repeats)).transpose(1, 2).flatten(0, 1)
        return (output + torch.matmul(on_own, own_values)).reshape(rows, 1, heads, width)


def _pick(held_kSD: Tensor, index_BT: Tensor) -> Tensor:
    """Tokens as a batch, [B, Hk, T, D], contiguous."""
    return (
        held_kSD.transpose(0, 1)
        .index_select(0, index_BT.flatten())
        .unflatten(0, index_BT.shape)
        .transpose(1, 2)
        .contiguous()
    )


def _grow(held_NkCD: Tensor) -> Tensor:
    return torch.nn.functional.pad(held_NkCD, (0, 0, 0, GROWTH))
