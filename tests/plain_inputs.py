"""A query's pixels as the Hugging Face model's own forward pass takes them: a reference without our packing."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rethinker.policy.policy import Policy
from rethinker.types import Query


def image_inputs(policy: Policy, query: Query, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Keyword arguments for ``ids`` [1, T], which show the query's images; none for a text-only query."""
    if not query.images:
        return {}
    return {
        "pixel_values": torch.cat([policy.images.get(path).values for path in query.images]),
        "image_grid_thw": torch.stack([policy.images.get(path).grid for path in query.images]),
        "mm_token_type_ids": (ids == policy.image_id).int(),
    }


def random_items(policy: Policy, queries: Sequence[Query]) -> list[tuple[Query, list[int]]]:
    """Every query, some twice, with responses of 1 to 12 allowed tokens."""
    generator = torch.Generator().manual_seed(0)
    allowed = torch.tensor([i for i in range(len(policy.tokenizer)) if i not in policy.banned_ids])
    lengths = [5, 12, 1, 7, 9, 3, 4]
    return [
        (query, allowed[torch.randint(len(allowed), (length,), generator=generator)].tolist())
        for query, length in zip([*queries, queries[1], queries[2]], lengths, strict=True)
    ]
