"""A query's pixels as the Hugging Face model's own forward pass takes them: a reference without our packing."""

from __future__ import annotations

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
