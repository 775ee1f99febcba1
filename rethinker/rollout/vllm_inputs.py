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
        places = placeholders(self.policy, prompt.ids, [pixels for pixels, _ in found])
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
                self._items[path] = pixels, image_item(self.policy, pixels)
                self.bytes += pixels.values.nbytes
            self._users[path] += 1


def vllm_seed(request: Request) -> int:
    """vLLM gives sample i of a request the seed s + i: hashed, or neighbouring requests would share their noise."""
    return int(np.random.SeedSequence(request.seed).generate_state(1, np.uint64)[0] >> np.uint64(2)) + request.first


def image_item(policy: Policy, pixels: Pixels) -> Any:
    """One preprocessed image as vLLM's processor of the policy's family gives it."""
    from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems

    values, flat = policy.family.vllm_values(pixels, policy.image_id)
    fields = {
        name: MultiModalFieldConfig.flat_from_sizes("image", torch.tensor([len(pixels.values)]))
        if name in flat
        else MultiModalFieldConfig.batched("image", keep_on_cpu=True)
        for name in values
    }
    return MultiModalKwargsItems.from_hf_inputs(values, fields)["image"][0]


def placeholders(policy: Policy, ids: Sequence[int], images: Sequence[Pixels]) -> list[Any]:
    """Where in the prompt ``ids`` the tokens of each image stand: from the first to the last of them."""
    from vllm.multimodal.inputs import PlaceholderRange

    places, start = [], 0
    shown = torch.tensor(ids) == policy.image_id
    where = shown.nonzero()[:, 0].tolist()
    for pixels in images:
        count = int(pixels.grid.prod()) // policy.merge_size**2
        offset, last = where[start], where[start + count - 1]
        length = last + 1 - offset
        mask = None if length == count else shown[offset : last + 1]  # SmolVLM names its tiles in between
        places.append(PlaceholderRange(offset=offset, length=length, is_embed=mask))
        start += count
    return places
