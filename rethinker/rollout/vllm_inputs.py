"""What vLLM is given: the trainer's prompt ids and the pixels of its image store, finished."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rethinker.policy.images import Pixels
from rethinker.policy.policy import Policy
from rethinker.types import Query, Request, Sampling


class VllmInputs:
    """Makes the inputs of a call, and knows the images of the requests that are not finished: one item each, however
    many requests show it.

    ``max_images``: of a prompt; ``context``: tokens of a prompt with its response. ``bytes``: of the pixels in use.
    """

    def __init__(self, policy: Policy, max_images: int, context: int) -> None:
        self.policy = policy
        self.max_images = max_images
        self.context = context
        self.bytes = 0
        self._items: dict[str, tuple[Pixels, Any]] = {}  # by image
        self._users: Counter[str] = Counter()  # requests by image
        self._images: dict[str, tuple[str, ...]] = {}  # distinct ones by request id

    def make(self, request: Request, sampling: Sampling) -> Any:
        """vLLM's input. Raises ValueError for a prompt that is too long or has too many images."""
        from vllm.inputs.engine import mm_input, tokens_input

        query, prompt = request.query, self.policy.prompt(request.query)
        if len(query.images) > self.max_images:
            raise ValueError(
                f"query {query.qid!r}: {len(query.images)} images, this engine takes {self.max_images} a prompt"
            )
        if len(prompt.ids) + sampling.max_new_tokens > self.context:
            raise ValueError(
                f"query {query.qid!r}: a prompt of {len(prompt.ids)} tokens and a response of "
                f"{sampling.max_new_tokens} exceed the engine's context of {self.context}; lower "
                "rollout.max_new_tokens or model.max_pixels"
            )
        ids = [*prompt.ids, *request.prefix_ids]
        if not query.images:
            return tokens_input(ids)
        self._take(request.request_id, query)
        found = [self._items[path] for path in query.images]
        places = placeholders(
            prompt.ids, self.policy.image_id, [pixels.grid for pixels, _ in found], self.policy.merge_size
        )
        return mm_input(
            ids,
            {"image": [item for _, item in found]},
            {"image": [*query.images]},
            {"image": places},
        )

    def release(self, request_id: str) -> None:
        """The request is finished: what no other shows is not in use any more."""
        for path in self._images.pop(request_id, ()):
            self._users[path] -= 1
            if not self._users[path]:
                self.bytes -= self._items.pop(path)[0].values.nbytes

    def _take(self, request_id: str, query: Query) -> None:
        self._images[request_id] = tuple(dict.fromkeys(query.images))
        for path in self._images[request_id]:
            if path not in self._items:
                pixels = self.policy.images.get(path, query.qid)
                self._items[path] = pixels, image_item(pixels)
                self.bytes += pixels.values.nbytes
            self._users[path] += 1


def vllm_seed(request: Request) -> int:
    """vLLM gives sample i of a request the seed s + i: hashed, or neighbouring requests would share their noise."""
    return int(np.random.SeedSequence(request.seed).generate_state(1, np.uint64)[0] >> np.uint64(2))


def image_item(pixels: Pixels) -> Any:
    """One preprocessed image as vLLM's processors of Qwen's families give it."""
    from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems

    fields = {
        "pixel_values": MultiModalFieldConfig.flat_from_sizes("image", torch.tensor([len(pixels.values)])),
        "image_grid_thw": MultiModalFieldConfig.batched("image", keep_on_cpu=True),
    }
    values: Any = {"pixel_values": pixels.values, "image_grid_thw": pixels.grid[None]}
    return MultiModalKwargsItems.from_hf_inputs(values, fields)["image"][0]


def placeholders(ids: Sequence[int], image_id: int, grids: Sequence[torch.Tensor], merge_size: int) -> list[Any]:
    """Where in the prompt ``ids`` the tokens of each image stand."""
    from vllm.multimodal.inputs import PlaceholderRange

    places, start = [], 0
    for grid in grids:
        offset, length = ids.index(image_id, start), int(grid.prod()) // merge_size**2
        places.append(PlaceholderRange(offset=offset, length=length))
        start = offset + length
    return places
