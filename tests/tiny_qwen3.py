"""A tiny Qwen3-VL (DeepStack features at two depths) with the processor of the tiny Qwen2.5-VL."""

from __future__ import annotations

from conftest import random_weights
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from rethinker.policy.loading import make_policy
from rethinker.policy.policy import Policy


def tiny_qwen3(policy: Policy, seed: int = 0) -> Policy:
    old = policy.model.config
    text = {
        "vocab_size": len(policy.tokenizer), "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 5, 5]},
    }  # fmt: skip
    vision = {
        "depth": 3, "hidden_size": 64, "intermediate_size": 96, "num_heads": 2, "patch_size": 8,
        "temporal_patch_size": 2, "spatial_merge_size": 2, "out_hidden_size": 64, "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    ids = {key: getattr(old, key) for key in ("image_token_id", "video_token_id")}
    ends = {key: getattr(old, key) for key in ("vision_start_token_id", "vision_end_token_id")}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids, **ends)
    model = Qwen3VLForConditionalGeneration(config).float().eval()
    random_weights(model, seed)
    return make_policy(model, policy.processor)
