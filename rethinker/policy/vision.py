"""Images on their way through the vision tower: each distinct image once per forward pass, and once per episode where
the tower is frozen.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rethinker.policy.families import Family, family_of
from rethinker.policy.images import ImageStore
from rethinker.types import Query

FEATURE_BYTES = 2**30  # features of a frozen tower that are kept at once


@dataclass(frozen=True)
class Vision:
    """Distinct images and where they appear.

    ``pixels`` of the distinct images, one after another; ``grid_thw`` [distinct images, 3]: their grids. ``order``:
    for each image of the prompts, in reading order, its index among the distinct ones. ``paths`` name the distinct
    ones.
    """

    pixels: Tensor | None = None
    grid_thw: Tensor | None = None
    order: tuple[int, ...] = ()
    paths: tuple[str, ...] = ()

    def to(self, device: torch.device) -> Vision:
        """The same images on ``device``."""
        if self.pixels is None or self.grid_thw is None:
            return self
        return Vision(self.pixels.to(device), self.grid_thw.to(device), self.order, self.paths)


def gather_images(store: ImageStore, queries: Sequence[Query]) -> Vision:
    """The distinct images of ``queries``, each once, and the order in which the queries show them."""
    index: dict[str, int] = {}
    order: list[int] = []
    found = []
    for query in queries:
        for path in query.images:
            if path not in index:
                index[path] = len(index)
                found.append(store.get(path, query.qid))
            order.append(index[path])
    if not found:
        return Vision()
    grids = torch.stack([image.grid for image in found])
    return Vision(torch.cat([image.values for image in found]), grids, tuple(order), tuple(index))


def blank_image(family: Family, processor: Any) -> Vision:
    """The smallest picture, black: what a rank without images sends through its vision tower."""
    pixels = family.blank(processor)
    return Vision(pixels.values, pixels.grid[None], (0,), ("",))


@dataclass(frozen=True)
class Features:
    """What the language model reads of the images of its prompts, in reading order, in transformers' names.

    ``pooler_output``: [tokens, H] an image, or one [tiles, tokens, H] where the family has tiles.
    ``deepstack_features``: the same once a DeepStack layer (Qwen3-VL only).
    """

    pooler_output: tuple[Tensor, ...] | Tensor
    deepstack_features: tuple[tuple[Tensor, ...], ...] = ()

    def zero(self) -> Tensor:
        """0, with a graph through every feature."""
        features = [*self.pooler_output, *itertools.chain(*self.deepstack_features)]
        return 0.0 * torch.stack([feature.float().sum() for feature in features]).sum()


class ImageEncoder:
    """The vision tower of ``model`` behind a counter, and behind a cache while none of its weights is trained.

    ``encoded`` counts images that went through the tower. The cache is bounded by ``capacity`` bytes; ``forget``
    empties it at the start of an episode, so that a resumed run meets the same features as one that went through.
    """

    def __init__(self, model: Any, capacity: int = FEATURE_BYTES) -> None:
        self.model = model
        self.capacity = capacity
        self.encoded = 0
        self._held: OrderedDict[tuple[str, bool], tuple[Tensor, ...]] = OrderedDict()  # by path and precision

    @property
    def family(self) -> Family:
        """The adapter of the model."""
        return family_of(self.model)

    @property
    def trained(self) -> bool:
        """Whether gradients reach the tower."""
        parts = self.family.tower_parts(self.model)
        return any(parameter.requires_grad for part in parts for parameter in part.parameters())

    def __call__(self, vision: Vision) -> Features | None:
        """The features of ``vision``, each distinct image encoded once; None without images."""
        if vision.pixels is None or vision.grid_thw is None:
            return None
        encoded = self._encode(vision.pixels, vision.grid_thw) if self.trained else self._recall(vision)
        pooled, *layers = zip(*(encoded[index] for index in vision.order), strict=True)
        return Features(self.family.pooled(pooled), tuple(layers))

    def forget(self) -> None:
        """Drop the cached features."""
        self._held.clear()

    def _encode(self, pixels: Tensor, grid_thw: Tensor) -> list[tuple[Tensor, ...]]:
        """For each image its features [tokens, H], then those of the DeepStack layers."""
        self.encoded += len(grid_thw)
        return self.family.encode(self.model, pixels, grid_thw)

    def _recall(self, vision: Vision) -> list[tuple[Tensor, ...]]:
        """As ``_encode``, but only images that are not held go through the tower."""
        assert vision.pixels is not None and vision.grid_thw is not None
        # The transformers engine generates without the trainer's autocast.
        autocast = torch.is_autocast_enabled(vision.pixels.device.type)
        keys = [(path, autocast) for path in vision.paths]
        missing = [index for index, key in enumerate(keys) if key not in self._held]
        found: dict[tuple[str, bool], tuple[Tensor, ...]] = {}
        if missing:
            pixels = vision.pixels.split(self.family.rows(vision.grid_thw))
            with torch.no_grad():
                encoded = self._encode(torch.cat([pixels[i] for i in missing]), vision.grid_thw[missing])
            found = {keys[index]: features for index, features in zip(missing, encoded, strict=True)}
        for key in keys:
            # Own copies: a view would keep the features of its whole batch alive.
            self._held.setdefault(key, tuple(part.clone() for part in found.get(key, ())))
            self._held.move_to_end(key)
        features = [self._held[key] for key in keys]
        while len(self._held) > 1 and sum(map(_bytes, self._held.values())) > self.capacity:
            self._held.popitem(last=False)
        return features


def _bytes(features: tuple[Tensor, ...]) -> int:
    return sum(part.nbytes for part in features)
