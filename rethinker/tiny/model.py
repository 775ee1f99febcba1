"""The tiny VLM: Qwen2.5-VL's architecture, tokenizer rules, chat format and processor at 0.9 million parameters, or
another of ``SIZES``.

It is built so that whatever works with it works with the real models: the folder that ``save_policy`` writes opens with
``AutoProcessor``, ``Qwen2_5_VLForConditionalGeneration`` and vLLM. Sizes are ours (measured: the smallest that learns
the visual-math world in minutes on two CPU cores).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

VOCABULARY = 512  # at most, byte-level pieces; the visual-math world uses fewer
PATCH = 8  # pixels
MERGE = 2  # patches a side that become one token
CONTEXT = 1024  # tokens
MIN_PIXELS, MAX_PIXELS = 32 * 32, 128 * 128


@dataclass(frozen=True, slots=True)
class Size:
    """Widths and depths of the two towers: of the language model ("text") and of the vision tower.

    Heads have 32 dimensions everywhere, and half as many key-value heads as heads, so that M-RoPE's sections and vLLM's
    kernels are the same for all sizes.
    """

    text_layers: int
    text_width: int
    text_inner: int  # of the feed-forward layers
    vision_layers: int
    vision_width: int
    vision_inner: int


HEAD = 32  # dimensions
SIZES = {  # by their parameters: 0.29, 0.92, 4.5 and 15 million
    "250k": Size(2, 64, 128, 2, 64, 128),
    "1m": Size(3, 128, 256, 2, 96, 192),  # that of data/tiny-vlm
    "4m": Size(4, 256, 512, 3, 192, 384),
    "15m": Size(6, 384, 1024, 4, 288, 576),
}

_MEAN = np.array(OPENAI_CLIP_MEAN, np.float32)
_STD = np.array(OPENAI_CLIP_STD, np.float32)

# Qwen2.5-VL's own, in its order; the ids follow the vocabulary's, as there.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# Qwen2.5-VL's format without its default system turn, which would cost the tiny model a fifth of its prompt.
CHAT_TEMPLATE = """\
{% for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}\
{% for content in message['content'] %}\
{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}\
<|vision_start|><|image_pad|><|vision_end|>\
{% elif content['type'] == 'video' or 'video' in content %}\
<|vision_start|><|video_pad|><|vision_end|>\
{% elif 'text' in content %}{{ content['text'] }}{% endif %}\
{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def train_tokenizer(corpus: Iterable[str]) -> Qwen2Tokenizer:
    """A byte-level BPE tokenizer with Qwen's splitting rule and special tokens; the same corpus gives the same ids."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(corpus, trainer)
    model = json.loads(bpe.to_str())["model"]
    pieces: dict[str, int] = model["vocab"]
    specials = {token: len(pieces) + index for index, token in enumerate(SPECIAL_TOKENS)}
    end, pad = "<|im_end|>", "<|endoftext|>"
    tokenizer = Qwen2Tokenizer(
        vocab={**pieces, **specials},
        merges=[tuple(pair) for pair in model["merges"]],
        eos_token=end,
        pad_token=pad,
        extra_special_tokens=[token for token in SPECIAL_TOKENS if token not in (end, pad)],
        model_max_length=CONTEXT,
        padding_side="left",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_processor(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLProcessor:
    """Qwen2.5-VL's processor with 8-pixel patches: a 64x64 image becomes 16 tokens."""
    sizes = {
        "patch_size": PATCH,
        "merge_size": MERGE,
        "size": {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
    }
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**sizes),
        chat_template=CHAT_TEMPLATE,
    )


def tiny_model(tokenizer: Qwen2Tokenizer, seed: int, size: str = "1m") -> Qwen2_5_VLForConditionalGeneration:
    """A new model (float32, weights drawn from ``seed``) of one of ``SIZES`` for ``tokenizer``.

    Raises:
        ValueError: no such size.
    """
    if size not in SIZES:
        raise ValueError(f"size={size!r}: must be one of {', '.join(SIZES)}")
    shape = SIZES[size]
    token_id = tokenizer.convert_tokens_to_ids
    ids = {
        "bos_token_id": token_id("<|endoftext|>"),
        "eos_token_id": token_id("<|im_end|>"),
        "pad_token_id": token_id("<|endoftext|>"),
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": shape.text_width,
        "intermediate_size": shape.text_inner,
        "num_hidden_layers": shape.text_layers,
        "num_attention_heads": shape.text_width // HEAD,
        "num_key_value_heads": shape.text_width // HEAD // 2,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-6,
        # The three sections share half of a head's dimensions: time, height, width.
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
        **ids,
    }
    vision = {
        "depth": shape.vision_layers,
        "hidden_size": shape.vision_width,
        "num_heads": shape.vision_width // HEAD,
        "intermediate_size": shape.vision_inner,
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "spatial_merge_size": MERGE,
        "window_size": 64,
        "out_hidden_size": shape.text_width,
        "fullatt_block_indexes": list(range(shape.vision_layers)),
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config).float()
    model.generation_config = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, **ids)
    return model


def save_policy(folder: Path, model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor) -> None:
    """Write a plain Hugging Face folder: weights (safetensors), configuration, tokenizer, processor, chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def image_tokens(image: Image.Image) -> int:
    """How many tokens an image of a size that needs no resizing takes."""
    return (image.width // (PATCH * MERGE)) * (image.height // (PATCH * MERGE))


def equal_size_pixels(images: Sequence[Image.Image]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the image processor returns for RGB images of one size that needs no resizing, in one go (much faster).

    Returns:
        pixel_values, float32 [images * patches, 3 * 2 * 8 * 8], and image_grid_thw, int64 [images, 3].

    Raises:
        ValueError: the sizes differ, or the processor would resize.
    """
    height, width = images[0].height, images[0].width
    side = PATCH * MERGE
    if any((image.height, image.width) != (height, width) or image.mode != "RGB" for image in images):
        raise ValueError("equal_size_pixels needs RGB images of one size")
    if height % side or width % side or not MIN_PIXELS <= height * width <= MAX_PIXELS:
        raise ValueError(f"{width}x{height} pixels: the processor would resize such an image")
    pixels = (np.stack([np.asarray(image) for image in images]).astype(np.float32) / 255 - _MEAN) / _STD
    rows, columns = height // side, width // side
    # [N, rows, MERGE, PATCH, columns, MERGE, PATCH, C] -> [N, rows, columns, MERGE, MERGE, C, time, PATCH, PATCH]
    blocks = pixels.reshape(len(images), rows, MERGE, PATCH, columns, MERGE, PATCH, 3).transpose(0, 1, 4, 2, 5, 7, 3, 6)
    twice = np.repeat(blocks[:, :, :, :, :, :, None], 2, axis=6)  # a still image is two equal frames
    grid = torch.tensor([[1, height // PATCH, width // PATCH]] * len(images))
    return torch.from_numpy(twice.reshape(len(images) * rows * columns * MERGE * MERGE, -1)), grid
