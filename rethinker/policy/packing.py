"""Prompts and responses as what one forward pass reads.

``shared`` packs one row of prefix trees: every prompt with its images once, every common beginning of its responses
once. ``plain`` packs a row for each response, as is usual; it is the reference that ``shared`` is tested against, and
an option.

Shapes: B responses, T response positions (right-padded), R packed rows of length S, U scored tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rethinker.policy.attention import PrefixTrees, image_runs
from rethinker.policy.policy import Policy
from rethinker.policy.prefix_tree import merge
from rethinker.policy.vision import Vision, blank_image, gather_images
from rethinker.types import Query

Packing = Literal["shared", "plain"]
Item = tuple[Query, Sequence[int]]  # a query and the token ids of a response to it


@dataclass(frozen=True)
class PackedBatch:
    """What one forward pass reads.

    ``trees``: which token of the one row sees which; None: rows are causal. ``predict_U``: index into R * S of the
    position that predicts a token, ``targets_U`` that token. ``place_BT``: index into U of each response token, where
    ``mask_BT``.
    ``dummy_vision``: the pixels are a stand-in whose features enter with weight zero.
    """

    input_ids_RS: Tensor
    positions_3RS: Tensor
    trees: PrefixTrees | None
    vision: Vision
    predict_U: Tensor
    targets_U: Tensor
    place_BT: Tensor
    mask_BT: Tensor
    banned: Tensor
    dummy_vision: bool = False

    def to(self, device: torch.device) -> PackedBatch:
        """The same batch on ``device``."""
        moved: dict[str, Any] = {
            item.name: value.to(device)
            for item in fields(self)
            if isinstance(value := getattr(self, item.name), Tensor | Vision | PrefixTrees)
        }
        return replace(self, **moved)


def pack(
    policy: Policy, items: Sequence[Item], packing: Packing = "shared", *, dummy_vision: bool = False
) -> PackedBatch:
    """``items`` as one batch on the CPU.

    ``dummy_vision``: where no item has an image, put a blank one through the vision tower with weight zero, so that
    data-parallel ranks without images take part in its gradient exchange.

    Raises ValueError (with the qid) for no items, an empty response, a banned token in a response, or pixels whose
    number does not fit the prompt's image tokens.
    """
    if not items:
        raise ValueError("no responses to score")
    _check(policy, items)
    batch = _pack_shared(policy, items) if packing == "shared" else _pack_plain(policy, items)
    if dummy_vision and batch.vision.pixels is None:
        return replace(batch, vision=blank_image(policy.family, policy.processor), dummy_vision=True)
    return batch


def _pack_plain(policy: Policy, items: Sequence[Item]) -> PackedBatch:
    prompts = [policy.prompt(query) for query, _ in items]
    width = max(len(p.ids) + len(response) for p, (_, response) in zip(prompts, items, strict=True))
    input_ids_RS = torch.full((len(items), width), policy.pad_id)
    positions_3RS = torch.zeros((3, len(items), width), dtype=torch.long)
    predict = []
    for row, (prompt, (_, response)) in enumerate(zip(prompts, items, strict=True)):
        start, length = len(prompt.ids), len(response)
        input_ids_RS[row, : start + length] = torch.tensor([*prompt.ids, *response])
        positions_3RS[:, row, :start] = prompt.positions
        positions_3RS[:, row, start : start + length] = torch.arange(length) + prompt.next_position
        predict.append(torch.arange(length) + row * width + start - 1)
    places, total = [], 0
    for _, response in items:
        places.append(np.arange(len(response)) + total)
        total += len(response)
    place_BT, mask_BT = _padded(places)
    return PackedBatch(
        input_ids_RS=input_ids_RS,
        positions_3RS=positions_3RS,
        trees=None,
        vision=gather_images(policy.images, [query for query, _ in items]),
        predict_U=torch.cat(predict),
        targets_U=torch.tensor([token for _, response in items for token in response]),
        place_BT=place_BT,
        mask_BT=mask_BT,
        banned=torch.tensor(policy.banned_ids),
    )


def _pack_shared(policy: Policy, items: Sequence[Item]) -> PackedBatch:
    # The last token of a response predicts nothing: it is scored, but does not go through the model.
    row = pack_trees(policy, [(query, response[:-1]) for query, response in items])
    pairs = [
        np.stack([np.concatenate([[last], path]), np.asarray(response)])
        for last, path, (_, response) in zip(row.lasts, row.paths, items, strict=True)
    ]
    # Where responses continue alike, the pair of a position and the token behind it is scored once.
    scored, inverse = np.unique(np.concatenate(pairs, axis=1), axis=1, return_inverse=True)
    edges = np.cumsum([len(response) for _, response in items])[:-1]
    place_BT, mask_BT = _padded(np.split(inverse.reshape(-1), edges))
    return PackedBatch(
        input_ids_RS=row.ids_S[None],
        positions_3RS=row.positions_3S[:, None],
        trees=row.trees,
        vision=row.vision,
        predict_U=torch.from_numpy(scored[0]),
        targets_U=torch.from_numpy(scored[1]),
        place_BT=place_BT,
        mask_BT=mask_BT,
        banned=torch.tensor(policy.banned_ids),
    )


@dataclass(frozen=True)
class TreeRow:
    """One packed row on the CPU: each query's prompt, then the tree of its responses.

    For each item: ``paths``, the packed indices of its response; ``owners``, its prompt among the distinct ones;
    ``lasts``, the packed index of that prompt's last token.
    """

    ids_S: Tensor
    positions_3S: Tensor
    trees: PrefixTrees
    vision: Vision
    paths: tuple[np.ndarray, ...]
    owners: tuple[int, ...]
    lasts: tuple[int, ...]


def pack_trees(policy: Policy, items: Sequence[Item]) -> TreeRow:
    """``items`` in one row, depth first; responses may be empty, then their prompt stands alone."""
    members: dict[Query, list[int]] = {}
    for index, (query, _) in enumerate(items):
        members.setdefault(query, []).append(index)
    ids, positions, ends = [], [], []
    prompt_tokens: list[np.ndarray] = []
    distinct: dict[tuple[int, ...], int] = {}  # responses by their packed tokens -> their prompt
    paths, owners = [np.empty(0, np.int64)] * len(items), [0] * len(items)
    start = 0
    for number, (query, indices) in enumerate(members.items()):
        prompt = policy.prompt(query)
        tree = merge([items[index][1] for index in indices])
        first = start + len(prompt.ids)  # packed index of the tree's first token
        end = first + len(tree.ids)
        ids += [np.array(prompt.ids), tree.ids]
        positions += [prompt.positions.long().numpy(), np.tile(tree.depths + prompt.next_position, (3, 1))]
        ends += [np.full(len(prompt.ids), end), tree.ends + first]
        prompt_tokens.append(np.arange(start, first))
        for index, path in zip(indices, tree.paths, strict=True):
            paths[index], owners[index] = path + first, number
            if len(path):
                distinct.setdefault(tuple(path + first), number)
        start = end
    prompts_PL, real_PL = _padded(prompt_tokens)
    responses_NT, real_NT = _padded([np.array(path) for path in distinct])
    # A token that several responses share is taken from the last of them; they all computed the same.
    place_S = np.zeros(start, np.int64)
    place_S[prompts_PL[real_PL].numpy()] = np.flatnonzero(real_PL)
    place_S[responses_NT[real_NT].numpy()] = np.flatnonzero(real_NT) + prompts_PL.numel()
    return TreeRow(
        ids_S=torch.from_numpy(np.concatenate(ids)),
        positions_3S=torch.from_numpy(np.concatenate(positions, axis=1)),
        trees=PrefixTrees(
            ends_S=torch.from_numpy(np.concatenate(ends)),
            prompts_PL=prompts_PL,
            lengths_P=torch.tensor([len(tokens) for tokens in prompt_tokens]),
            responses_NT=responses_NT,
            lengths_N=torch.tensor([len(path) for path in distinct], dtype=torch.long),
            owner_N=torch.tensor(list(distinct.values()), dtype=torch.long),
            place_S=torch.from_numpy(place_S),
            images_S=image_runs(torch.from_numpy(np.concatenate(ids)), policy.image_id)
            if policy.family.bidirectional
            else None,
        ),
        vision=gather_images(policy.images, list(members)),
        paths=tuple(paths),
        owners=tuple(owners),
        lasts=tuple(int(prompt_tokens[owner][-1]) for owner in owners),
    )


def _padded(rows: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Integer rows as one matrix, right-padded with 0, and where it is real."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    real = np.arange(lengths.max(initial=0))[None] < lengths[:, None]
    matrix = np.zeros(real.shape, np.int64)
    matrix[real] = np.concatenate([np.empty(0, np.int64), *rows])
    return torch.from_numpy(matrix), torch.from_numpy(real)


def _check(policy: Policy, items: Sequence[Item]) -> None:
    banned = set(policy.banned_ids)
    for query, response in items:
        if not len(response):
            raise ValueError(f"query {query.qid!r}: an empty response has no log-probs; drop it before training")
        if found := banned.intersection(response):
            raise ValueError(
                f"query {query.qid!r}: the response holds banned tokens {sorted(found)} "
                f"({policy.tokenizer.convert_ids_to_tokens(sorted(found))}); the engine did not apply the ban"
            )
    for query in {query: None for query, _ in items}:
        ids = policy.prompt(query).ids
        grids = [policy.images.get(path, query.qid).grid for path in query.images]
        features = sum(int(grid.prod()) for grid in grids) // policy.merge_size**2
        if ids.count(policy.image_id) != features:
            raise ValueError(
                f"query {query.qid!r}: {ids.count(policy.image_id)} image tokens in the prompt but {features} image "
                f"features; did a file change during the run? {list(query.images)}"
            )
