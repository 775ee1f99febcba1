"""Sizes of families for which ``shapes`` has no formulas: counted in transformers' own modules, made without memory.

Gemma 3's windows are taken as whole contexts, which is an upper bound of attention and KV cache.
"""

from __future__ import annotations

import math
from typing import Any

from rethinker.config.schema import ConfigError
from rethinker.lab.sizes.shapes import Shape, Tower


def count_shape(config: dict[str, Any], where: str) -> Shape:
    """The sizes of a config.json. Raises ConfigError where transformers cannot make a model of it, and for a language
    model whose layers have other parts than ``Shape`` knows."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from rethinker.policy.families import family_of

    try:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**config))
    except (ValueError, TypeError, AttributeError, KeyError, AssertionError) as error:
        raise ConfigError(f"{where}: transformers makes no model of it ({error})") from error
    family = family_of(model)
    text = model.config.get_text_config()
    layer = family.language_model(model).layers[0]
    parts = dict(layer.named_parameters())
    shape = Shape(
        width=text.hidden_size,
        mlp=text.intermediate_size,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        vocab=text.vocab_size,
        tied=model.lm_head.weight is family.language_model(model).embed_tokens.weight,
        tower=_tower(model, family, text.hidden_size),
        head=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        biases="self_attn.q_proj.bias" in parts,
        qk_norm="self_attn.q_norm.weight" in parts,
        norms=sum(name.count(".") == 1 for name in parts),  # input_layernorm.weight and its like
    )
    total = sum(parameter.numel() for parameter in model.parameters())
    if shape.total != total:
        raise ConfigError(
            f"{where}: its layers have parts that are not known here ({shape.total:,} of {total:,} weights)"
        )
    return shape


def _tower(model: Any, family: Any, out: int) -> Tower:
    config, vision = model.config, model.config.vision_config
    patch, tokens = _side(vision.patch_size), None
    if config.model_type == "qwen2_vl":
        width, mlp, merge = vision.embed_dim, int(vision.embed_dim * vision.mlp_ratio), vision.spatial_merge_size
    else:
        width, mlp = vision.hidden_size, vision.intermediate_size
        across = _side(vision.image_size) // patch
        if config.model_type == "gemma3":
            tokens = config.mm_tokens_per_image
            merge = across // math.isqrt(tokens)
        else:
            tokens = 0
            merge = config.scale_factor if hasattr(config, "scale_factor") else round(1 / config.downsample_ratio)
    parameters = (parameter for part in family.tower_parts(model) for parameter in part.parameters())
    return Tower(
        depth=len(family.tower_blocks(model)),
        width=width,
        mlp=mlp,
        out=out,
        patch=patch,
        merge=merge,
        tokens=tokens,
        counted=sum(parameter.numel() for parameter in parameters),
    )


def _side(pixels: Any) -> int:
    return int(pixels[0] if isinstance(pixels, (list, tuple)) else pixels)
