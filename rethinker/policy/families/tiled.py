"""Families that cut an image into squares of one size and count tokens along the text: SmolVLM, Idefics3, InternVL,
Gemma 3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from rethinker.config.schema import ConfigError
from rethinker.config.settings import ModelConfig
from rethinker.policy.families.qwen import Family, Pixels


class Tiled(Family):
    """Squares of one size, each so many tokens; in the prompt an image is a text of its own.

    ``options``: of the image processor, where the whole processor sets them.
    """

    sized = False
    options: ClassVar[Mapping[str, Any]] = {}

    def limit_pixels(self, processor: Any, config: ModelConfig) -> None:
        if config.min_pixels or config.max_pixels:
            raise ConfigError(
                f"model.min_pixels, model.max_pixels: {type(processor).__name__} cuts images into tiles of one size; "
                "set both to null, and the size or number of tiles in the checkpoint's preprocessor_config.json"
            )

    def tile_tokens(self, processor: Any) -> int:
        """Tokens of a tile."""
        return int(processor.image_seq_length)

    def layout(self, processor: Any, height: int, width: int) -> dict[str, Any]:
        """Of an image of this size, what the processor needs to write its text."""
        raise NotImplementedError

    def largest(self, processor: Any) -> dict[str, Any]:
        """The same of the image with the most tiles."""
        raise NotImplementedError

    def tiles(self, batch: Any) -> Tensor:
        """The tiles [tiles, channels, height, width] of the one image that was prepared."""
        return batch["pixel_values"]

    def prepare(self, processor: Any, image: Any) -> Pixels:
        batch = processor.image_processor(images=[image], return_tensors="pt", **self.options)
        values = self.tiles(batch).to(torch.float32)
        grid = torch.tensor([len(values), 1, self.tile_tokens(processor)])
        return Pixels(values, grid, str(processor.replace_image_token(batch, image_idx=0)))

    def blank(self, processor: Any) -> Pixels:
        """One black tile."""
        pixels = self.prepare(processor, Image.new("RGB", (8, 8)))
        return Pixels(pixels.values[:1], pixels.grid.clamp(max=torch.tensor([1, 1, 2**31])), pixels.text)

    def merge_size(self, processor: Any) -> int:
        return 1

    def _text_ids(self, processor: Any, layout: dict[str, Any]) -> list[int]:
        text = processor.replace_image_token(layout, image_idx=0)
        return list(processor.tokenizer(text, add_special_tokens=False)["input_ids"])

    def tokens_of(self, processor: Any, height: int, width: int) -> int:
        return len(self._text_ids(processor, self.layout(processor, height, width)))

    def most_tokens(self, processor: Any) -> int:
        return len(self._text_ids(processor, self.largest(processor)))

    def rows(self, grids: Tensor) -> list[int]:
        return [int(size) for size in grids[:, 0]]

    def encode(self, model: Any, values: Tensor, grids: Tensor) -> list[tuple[Tensor, ...]]:
        output = model.model.get_image_features(values, return_dict=True)
        return [(tiles,) for tiles in output.pooler_output.split(self.rows(grids))]

    def pooled(self, features: Sequence[Tensor]) -> Any:
        return torch.cat(list(features))

    def placeholder(self, model: Any, processor: Any) -> int:
        return int(processor.tokenizer.convert_tokens_to_ids(processor.image_token))

    def expand(self, processor: Any, text: str, ids: Sequence[int], placeholder: int, images: Sequence[Pixels]) -> Any:
        if not images:
            return list(ids)
        # As text: byte-pair tokens may reach over the edges of what an image becomes.
        texts, _ = processor.get_text_with_replacements([text], images_replacements=[image.text for image in images])
        return processor.tokenizer(texts[0], add_special_tokens=False)["input_ids"]

    def positions(self, model: Any, ids: Sequence[int], image_id: int, grids: Sequence[Tensor]) -> Tensor:
        return torch.arange(len(ids)).expand(3, -1)

    def inputs(self, ids_RS: Tensor, positions_3RS: Tensor, image_id: int, layout: bool) -> dict[str, Any]:
        # With a mask of four dimensions the model makes none, whose size would be the square of the row's.
        mask = torch.ones(1, 1, 1, 1, device=ids_RS.device) if layout else None
        return {"position_ids": positions_3RS[0], "attention_mask": mask}

    def vision_ids(self, model: Any, processor: Any) -> set[int]:
        """The image token, and the other added tokens of the largest image's text."""
        added = processor.tokenizer.added_tokens_decoder
        found = self._text_ids(processor, self.largest(processor))
        own = {int(model.config.image_token_id), self.placeholder(model, processor)}
        return own | {token for token in found if token in added}

    def vllm_arguments(self, processor: Any) -> dict[str, Any]:
        return {}


class SmolVLM(Tiled):
    """SmolVLM and Idefics3: tiles of an image of at most so many pixels a side, row by row, then the whole image."""

    language = "model.text_model"
    tower = ("model.vision_model", "model.connector")
    blocks = "model.vision_model.encoder.layers"
    options: ClassVar[Mapping[str, Any]] = {"return_row_col_info": True}
    interleaved = True  # a tile's place

    def tile_tokens(self, processor: Any) -> int:
        return int(processor.image_seq_len)

    def layout(self, processor: Any, height: int, width: int) -> dict[str, Any]:
        _, rows, columns = processor.image_processor.get_number_of_image_patches(height, width)
        return {"rows": [[rows]], "cols": [[columns]]}

    def largest(self, processor: Any) -> dict[str, Any]:
        edge = int(processor.image_processor.size["longest_edge"])
        return self.layout(processor, edge, edge)

    def tiles(self, batch: Any) -> Tensor:
        if not bool(batch["pixel_attention_mask"].all()):  # the model is given no mask of padding
            raise ValueError("the image processor pads images: set do_resize and do_image_splitting to true")
        return batch["pixel_values"][0]

    def encode(self, model: Any, values: Tensor, grids: Tensor) -> list[tuple[Tensor, ...]]:
        return super().encode(model, values[None], grids)

    def vllm_values(self, pixels: Pixels, image_id: int) -> tuple[dict[str, Any], set[str]]:
        count, _, height, width = pixels.values.shape
        mask = torch.ones(count, height, width, dtype=torch.int64)
        values = {"pixel_values": pixels.values, "pixel_attention_mask": mask, "num_patches": torch.tensor([count])}
        return values, {"pixel_values", "pixel_attention_mask"}


class InternVL(Tiled):
    """InternVL in transformers' format (the "-hf" checkpoints): the tiles whose shape together is nearest to the
    image's, then the whole image."""

    tower = ("model.vision_tower", "model.multi_modal_projector")
    blocks = "model.vision_tower.encoder.layer"
    options: ClassVar[Mapping[str, Any]] = {"crop_to_patches": True}  # InternVLProcessor's default

    def layout(self, processor: Any, height: int, width: int) -> dict[str, Any]:
        count = processor.image_processor.get_number_of_image_patches(height, width, dict(self.options))
        return {"num_patches": [count]}

    def largest(self, processor: Any) -> dict[str, Any]:
        most = int(processor.image_processor.max_patches)
        return {"num_patches": [most + 1 if most > 1 else 1]}

    def vllm_values(self, pixels: Pixels, image_id: int) -> tuple[dict[str, Any], set[str]]:
        count = torch.tensor([len(pixels.values)])
        values = {"pixel_values": pixels.values, "image_num_patches": count, "image_token_id": torch.tensor([image_id])}
        return values, {"pixel_values"}


class Gemma3(Tiled):
    """Gemma 3: an image is one square of so many tokens, which all see each other; most layers have sliding windows.
    (Pan and scan, which cuts long images, is off, as it is in its processor.)"""

    bidirectional = True
    tower = ("model.vision_tower", "model.multi_modal_projector")
    blocks = "model.vision_tower.encoder.layers"
    options: ClassVar[Mapping[str, Any]] = {"do_pan_and_scan": False}

    def layout(self, processor: Any, height: int, width: int) -> dict[str, Any]:
        return {"num_crops": [0]}

    def largest(self, processor: Any) -> dict[str, Any]:
        return {"num_crops": [0]}

    def inputs(self, ids_RS: Tensor, positions_3RS: Tensor, image_id: int, layout: bool) -> dict[str, Any]:
        if layout:
            none = {"full_attention": None, "sliding_attention": None}
            return {"position_ids": positions_3RS[0], "attention_mask": none}
        return {"position_ids": positions_3RS[0], "token_type_ids": (ids_RS == image_id).long()}

    def vllm_values(self, pixels: Pixels, image_id: int) -> tuple[dict[str, Any], set[str]]:
        count = torch.tensor([len(pixels.values)])
        return {"pixel_values": pixels.values, "num_patches": count}, {"pixel_values"}
