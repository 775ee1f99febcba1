"""Qwen's families, and what any family says of itself: Qwen2-VL, Qwen2.5-VL, Qwen3-VL have patches of any number and
three axes of positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rethinker.config.settings import ModelConfig


class Pixels(NamedTuple):
    """One preprocessed image.

    ``values``, float32: of Qwen's [patches, channels * temporal patch * patch * patch], of the others [tiles, channels,
    height, width]. ``grid`` [3]: of Qwen's the patches in time, height and width (before merging), of the others
    [tiles, 1, tokens of a tile]. ``text``: what stands for the image in the prompt; "": the placeholder, repeated.
    """

    values: Tensor
    grid: Tensor
    text: str = ""


def patches(image_processor: Any, image: Any) -> Pixels:
    """The pixels of a PIL image by Qwen's image processor. Raises ValueError for one that it does not take."""
    batch = image_processor(images=[image], return_tensors="pt")
    return Pixels(batch["pixel_values"].to(torch.float32), batch["image_grid_thw"][0].to(torch.long))


def pixel_limits(image_processor: Any, config: ModelConfig) -> dict[str, int]:
    """Pixels an image has at least (``shortest_edge``) and at most (``longest_edge``), in Qwen's names."""
    size = image_processor.size
    return {
        "shortest_edge": config.min_pixels or int(size["shortest_edge"]),
        "longest_edge": config.max_pixels or int(size["longest_edge"]),
    }


class Family:
    """Qwen's families; the methods say what others override.

    ``language``, ``tower`` and ``blocks``: names of the language model, of all that turns pixels into its inputs, and
    of the tower's layers, below the whole model. ``liger``: Liger's function for the whole model, if any.
    ``sized``: images keep their shape within limits of their pixels (``model.min_pixels``, ``max_pixels``).
    ``interleaved``: other tokens may stand between those of one image. ``bidirectional``: the tokens of an image see
    each other, and layers may have sliding windows.
    """

    sized = True
    interleaved = False
    bidirectional = False

    language = "model.language_model"
    tower: tuple[str, ...] = ("model.visual",)
    blocks = "model.visual.blocks"

    def __init__(self, liger: str = "") -> None:
        self.liger = liger

    def language_model(self, model: nn.Module) -> Any:
        """The decoder, without the head."""
        return model.get_submodule(self.language)

    def tower_parts(self, model: nn.Module) -> list[nn.Module]:
        """What turns pixels into the language model's inputs."""
        return [model.get_submodule(name) for name in self.tower]

    def tower_blocks(self, model: nn.Module) -> list[nn.Module]:
        """The layers of the tower."""
        return list(model.get_submodule(self.blocks).children())

    # -- images --------------------------------------------------------------------------------------------------------

    def limit_pixels(self, processor: Any, config: ModelConfig) -> None:
        """Apply ``model.min_pixels`` and ``max_pixels``. Raises ValueError where they contradict each other,
        ConfigError where the family has no such limits."""
        size = pixel_limits(processor.image_processor, config)
        if size["shortest_edge"] > size["longest_edge"]:
            raise ValueError(
                f"model.min_pixels={size['shortest_edge']} is above model.max_pixels={size['longest_edge']}"
            )
        processor.image_processor.size = size

    def prepare(self, processor: Any, image: Any) -> Pixels:
        """The pixels of a PIL image. Raises ValueError for one that the processor does not take."""
        return patches(processor.image_processor, image)

    def blank(self, processor: Any) -> Pixels:
        """The smallest picture, black: what a rank without images sends through its vision tower."""
        images = processor.image_processor
        side = int(images.merge_size)
        patch = 3 * images.temporal_patch_size * images.patch_size**2
        return Pixels(torch.zeros(side * side, patch), torch.tensor([1, side, side]))

    def merge_size(self, processor: Any) -> int:
        """An image has as many tokens as its grid has cells, divided by the square of this."""
        return int(processor.image_processor.merge_size)

    def tokens_of(self, processor: Any, height: int, width: int) -> int:
        """Tokens of an image of this size, without preparing it."""
        patches = processor.image_processor.get_number_of_image_patches(height, width)
        return int(patches) // self.merge_size(processor) ** 2

    def most_tokens(self, processor: Any) -> int:
        """Tokens of the largest image."""
        images = processor.image_processor
        return int(int(images.size["longest_edge"]) // (images.patch_size * images.merge_size) ** 2)

    def rows(self, grids: Tensor) -> list[int]:
        """How many of the concatenated pixels' rows each image has."""
        return [int(size) for size in grids.prod(-1)]

    def encode(self, model: Any, values: Tensor, grids: Tensor) -> list[tuple[Tensor, ...]]:
        """For each image its features, then those of the DeepStack layers (Qwen3-VL); with a graph where trained."""
        output = model.model.get_image_features(values, grids, return_dict=True)
        layers = output.deepstack_features if "deepstack_features" in output else ()
        return list(zip(output.pooler_output, *layers, strict=True))

    def pooled(self, features: Sequence[Tensor]) -> Any:
        """The features of images in reading order, as the model's own forward takes them."""
        return tuple(features)

    # -- prompts -------------------------------------------------------------------------------------------------------

    def placeholder(self, model: Any, processor: Any) -> int:
        """The token that stands for an image in the chat template's text."""
        return int(model.config.image_token_id)

    def expand(self, processor: Any, text: str, ids: Sequence[int], placeholder: int, images: Sequence[Pixels]) -> Any:
        """The prompt's ids with the tokens of its images, from its ``text`` and the ``ids`` of that."""
        lengths = iter(int(image.grid.prod()) // self.merge_size(processor) ** 2 for image in images)
        expanded: list[int] = []
        for token in ids:
            expanded.extend([token] * next(lengths) if token == placeholder else [token])
        return expanded

    def positions(self, model: Any, ids: Sequence[int], image_id: int, grids: Sequence[Tensor]) -> Tensor:
        """Positions [3, tokens] in time, height and width; the response continues behind the largest."""
        row = torch.tensor([list(ids)])
        positions, _ = model.model.get_rope_index(
            row, (row == image_id).int(), image_grid_thw=torch.stack(list(grids)) if grids else None
        )
        return positions[:, 0]

    def inputs(self, ids_RS: Tensor, positions_3RS: Tensor, image_id: int, layout: bool) -> dict[str, Any]:
        """Keyword arguments that say where tokens stand and what they see; with a ``layout`` attention asks that."""
        return {"position_ids": positions_3RS}

    def vision_ids(self, model: Any, processor: Any) -> set[int]:
        """Tokens that belong to images: never sampled."""
        config = model.config
        return {
            config.image_token_id,
            config.video_token_id,
            config.vision_start_token_id,
            config.vision_end_token_id,
        }

    # -- vLLM ----------------------------------------------------------------------------------------------------------

    def vllm_arguments(self, processor: Any) -> dict[str, Any]:
        """Engine arguments of this family: vLLM makes room for the largest image."""
        size = processor.image_processor.size
        size = {"shortest_edge": int(size["shortest_edge"]), "longest_edge": int(size["longest_edge"])}
        return {"mm_processor_kwargs": {"size": size}}

    def vllm_values(self, pixels: Pixels, image_id: int) -> tuple[dict[str, Any], set[str]]:
        """One image in the names of vLLM's processor, and those with a row for each row of its pixels."""
        return {"pixel_values": pixels.values, "image_grid_thw": pixels.grid[None]}, {"pixel_values"}
