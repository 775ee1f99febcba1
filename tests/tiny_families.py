"""A tiny random model of each family, with a processor built from parts that need no hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from conftest import random_weights
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    GenerationConfig,
    GotOcr2ImageProcessor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from rethinker.tiny.model import SPECIAL_TOKENS, tiny_processor, train_tokenizer

CORPUS = ["user\nHow many red circles are there?", "assistant\nThe answer is \\boxed{23}.", "\n\nWait, let's see."] * 20
CONTEXT = 1024
TEXT = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": CONTEXT,
}  # fmt: skip


def extended(specials: list[str], named: dict[str, str], template: str, end: str) -> PreTrainedTokenizerFast:
    """The tiny VLM's byte-pair tokenizer with the special tokens of another family; ``named``: its attributes."""
    base = train_tokenizer(CORPUS).backend_tokenizer
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=base, eos_token=end, pad_token="<|endoftext|>", extra_special_tokens=named,
        model_max_length=CONTEXT, padding_side="left",
    )  # fmt: skip
    tokenizer.add_special_tokens({"additional_special_tokens": [*SPECIAL_TOKENS, *specials]}, False)
    tokenizer.chat_template = template
    return tokenizer


def ids_of(tokenizer: Any, end: str) -> dict[str, int]:
    pad = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    return {"bos_token_id": pad, "eos_token_id": tokenizer.convert_tokens_to_ids(end), "pad_token_id": pad}


def qwen2_vl() -> tuple[Any, Any]:
    tokenizer = train_tokenizer(CORPUS)
    parts = tiny_processor(tokenizer)
    processor = Qwen2VLProcessor(parts.image_processor, tokenizer, parts.video_processor, parts.chat_template)
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 5, 5]}
    text = {key: value for key, value in TEXT.items() if key != "head_dim"}
    vision = {"depth": 2, "embed_dim": 64, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2, "patch_size": 8}
    token = tokenizer.convert_tokens_to_ids
    config = Qwen2VLConfig(
        text_config={**text, "vocab_size": len(tokenizer), "rope_parameters": rope, **ids_of(tokenizer, "<|im_end|>")},
        vision_config=vision,
        image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )  # fmt: skip
    return Qwen2VLForConditionalGeneration(config), processor


def qwen3_vl() -> tuple[Any, Any]:
    tokenizer = train_tokenizer(CORPUS)
    parts = tiny_processor(tokenizer)
    processor = Qwen3VLProcessor(parts.image_processor, tokenizer, parts.video_processor, parts.chat_template)
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    vision = {
        "depth": 3, "hidden_size": 64, "intermediate_size": 96, "num_heads": 2, "patch_size": 8,
        "temporal_patch_size": 2, "spatial_merge_size": 2, "out_hidden_size": 64, "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    token = tokenizer.convert_tokens_to_ids
    config = Qwen3VLConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer), "rope_parameters": rope, **ids_of(tokenizer, "<|im_end|>")},
        vision_config=vision,
        image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )  # fmt: skip
    return Qwen3VLForConditionalGeneration(config), processor


# As SmolVLM2's: a turn's content is a list of pieces.
SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def smolvlm() -> tuple[Any, Any]:
    """Tiles of 32 pixels, 2 x 2 tokens each; images of up to 64 pixels a side."""
    tokenizer, sizes = tiled_by_rows()
    processor = SmolVLMProcessor(
        SmolVLMImageProcessor(**sizes), tokenizer, SmolVLMVideoProcessor(**sizes),
        image_seq_len=4, chat_template=SMOLVLM_TEMPLATE,
    )  # fmt: skip
    return SmolVLMForConditionalGeneration(SmolVLMConfig(**rows_config(tokenizer))), processor


def idefics3() -> tuple[Any, Any]:
    """As ``smolvlm``."""
    tokenizer, sizes = tiled_by_rows()
    processor = Idefics3Processor(
        Idefics3ImageProcessor(**sizes), tokenizer, image_seq_len=4, chat_template=SMOLVLM_TEMPLATE
    )
    return Idefics3ForConditionalGeneration(Idefics3Config(**rows_config(tokenizer))), processor


def tiled_by_rows() -> tuple[Any, dict[str, Any]]:
    """Tokenizer and sizes of SmolVLM and Idefics3."""
    end, fake, whole = "<end_of_utterance>", "<fake_token_around_image>", "<global-img>"
    places = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    tokenizer = extended([end, fake, "<image>", whole, *places], {}, SMOLVLM_TEMPLATE, end)
    return tokenizer, {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}


def rows_config(tokenizer: Any) -> dict[str, Any]:
    ids = ids_of(tokenizer, tokenizer.eos_token)
    return {
        "text_config": {
            **TEXT, "model_type": "llama", "vocab_size": len(tokenizer), "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, **ids,
        },
        "vision_config": {
            "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 32, "patch_size": 8,
        },
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"), "scale_factor": 2, "tie_word_embeddings": True,
        "pad_token_id": ids["pad_token_id"],
    }  # fmt: skip


INTERNVL_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def internvl() -> tuple[Any, Any]:
    """Tiles of 32 pixels, 2 x 2 tokens each, at most four and the whole image."""
    end = "<|im_end|>"
    named = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }  # fmt: skip
    tokenizer = extended([], named, INTERNVL_TEMPLATE, end)
    sizes: dict[str, Any] = {"size": {"height": 32, "width": 32}}
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(**sizes, max_patches=4), tokenizer, InternVLVideoProcessor(**sizes),
        image_seq_length=4, chat_template=INTERNVL_TEMPLATE,
    )  # fmt: skip
    text = {key: value for key, value in TEXT.items() if key != "head_dim"}
    config = InternVLConfig(
        text_config={
            **text, "model_type": "qwen2", "vocab_size": len(tokenizer), "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, **ids_of(tokenizer, end),
        },
        vision_config={
            "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 32, "patch_size": 8,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"), image_seq_length=4, tie_word_embeddings=True,
    )  # fmt: skip
    return InternVLForConditionalGeneration(config), processor


GEMMA3_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
    "{% for item in message['content'] %}{% if item['type'] == 'image' %}{{ '<start_of_image>' }}"
    "{% elif item['type'] == 'text' %}{{ item['text'] | trim }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def gemma3() -> tuple[Any, Any]:
    """Images of 32 pixels, 2 x 2 tokens; two layers with windows of 12 tokens, shorter than any prompt."""
    end = "<end_of_turn>"
    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = extended(["<start_of_turn>", end], named, GEMMA3_TEMPLATE, end)
    tokenizer.bos_token = "<|endoftext|>"
    processor = Gemma3Processor(
        Gemma3ImageProcessor(size={"height": 32, "width": 32}), tokenizer, GEMMA3_TEMPLATE, image_seq_length=4
    )
    token = tokenizer.convert_tokens_to_ids
    config = Gemma3Config(
        text_config={
            **TEXT, "vocab_size": len(tokenizer), "tie_word_embeddings": True, "query_pre_attn_scalar": 32,
            "sliding_window": 12, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            **ids_of(tokenizer, end),
        },
        vision_config={
            "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 32, "patch_size": 8, "vision_use_head": False,
        },
        mm_tokens_per_image=4, image_token_index=token("<image_soft_token>"),
        boi_token_index=token("<start_of_image>"), eoi_token_index=token("<end_of_image>"), tie_word_embeddings=True,
    )  # fmt: skip
    return Gemma3ForConditionalGeneration(config), processor


BUILDERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "qwen2_vl": qwen2_vl,
    "qwen3_vl": qwen3_vl,
    "smolvlm": smolvlm,
    "idefics3": idefics3,
    "internvl": internvl,
    "gemma3": gemma3,
}


def save_tiny(family: str, folder: Path, seed: int = 0) -> Path:
    """A checkpoint folder of a tiny model of ``family`` with random weights that matter."""
    torch.manual_seed(seed)
    model, processor = BUILDERS[family]()
    model = model.float().eval()
    random_weights(model, seed)
    tokenizer = processor.tokenizer
    ids = ids_of(tokenizer, tokenizer.eos_token)
    model.generation_config = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, **ids)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
