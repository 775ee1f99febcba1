"""What differs between families of vision-language models: where a model's parts are, how an image becomes pixels and
tokens, which positions tokens have. Everything else is common.

An adapter has no state; ``processor`` and ``model`` are transformers' own.
"""

from __future__ import annotations

from typing import Any

from rethinker.policy.families.qwen import Family, Pixels, patches
from rethinker.policy.families.tiled import Gemma3, InternVL, SmolVLM

__all__ = ["FAMILIES", "Family", "Pixels", "check_family", "family_of", "patches"]

FAMILIES: dict[str, Family] = {
    "qwen2_vl": Family("apply_liger_kernel_to_qwen2_vl"),
    "qwen2_5_vl": Family("apply_liger_kernel_to_qwen2_5_vl"),
    "qwen3_vl": Family("apply_liger_kernel_to_qwen3_vl"),
    "smolvlm": SmolVLM(),
    "idefics3": SmolVLM(),
    "internvl": InternVL(),
    "gemma3": Gemma3(),
}
REFUSED = {
    "internvl_chat": "is InternVL's own format, which needs remote code: take the checkpoint whose name ends in -hf",
}


def family_of(model: Any) -> Family:
    """The adapter of a loaded model."""
    return FAMILIES[model.config.model_type]


def check_family(path: str, model_type: str) -> None:
    """Raises ValueError for a family without an adapter, with the reason where it is known."""
    if model_type in REFUSED:
        raise ValueError(f"{path}: model type {model_type!r} {REFUSED[model_type]}")
    if model_type not in FAMILIES:
        raise ValueError(f"{path}: model type {model_type!r} is not supported; supported: {', '.join(FAMILIES)}")
