"""Loading a policy: checkpoints in Hugging Face's layout, whole or with LoRA adapters on the language model; of which
families, ``families`` says."""

from __future__ import annotations

import importlib.util
import warnings
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import init_empty_weights
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import is_flash_attn_2_available

from rethinker.config.schema import ConfigError
from rethinker.config.settings import ModelConfig
from rethinker.policy.attention import use_shared_prefix_attention
from rethinker.policy.cpu import check_bfloat16, keep_compiled_code_apart
from rethinker.policy.families import FAMILIES, check_family, family_of
from rethinker.policy.images import ImageStore
from rethinker.policy.lora import add_lora
from rethinker.policy.policy import Policy
from rethinker.policy.response_ends import response_ends
from rethinker.policy.vision import ImageEncoder
from rethinker.policy.weights import FILE_BYTES, save_merged

Weights = Literal["here", "waiting", "none"]
LIGER = {  # Liger's functions for language models, by model_type
    "qwen2": "apply_liger_kernel_to_qwen2",
    "qwen3": "apply_liger_kernel_to_qwen3",
    "llama": "apply_liger_kernel_to_llama",
    "gemma3_text": "apply_liger_kernel_to_gemma3_text",
}


def load_policy(
    config: ModelConfig,
    device: torch.device | str = "cpu",
    *,
    prompt_suffix: str = "",
    prompt_hint: str = "",
    weights: Weights = "here",
) -> Policy:
    """The policy of ``config`` on ``device``, in training mode only after ``.model.train()``.

    ``weights``: on the device, "waiting" in the CPU's memory for ``sharding.shard_loaded`` or to be sent to servers, or
    "none" (a shape without memory) on the ranks to which shards are sent.

    Raises ValueError for a model family without an adapter, ConfigError for a LoRA target that the language model has
    not, for bfloat16 where the processor's kernels have none and for FlashAttention where it cannot run, OSError where
    there is no checkpoint.
    """
    on_cpu = torch.device(device).type == "cpu"
    if on_cpu and (config.autocast or config.dtype == "bfloat16"):
        check_bfloat16("model.autocast" if config.autocast else "model.dtype=bfloat16")
    if config.vision_attention != "sdpa":
        _check_flash_attention(config.vision_attention, device)
    shape = _supported(config.path)
    options: dict[str, Any] = {
        "dtype": getattr(torch, config.dtype),
        "attn_implementation": {"": "sdpa", "text_config": "sdpa", "vision_config": config.vision_attention},
    }
    if weights == "none":
        with init_empty_weights(include_buffers=False):
            model = AutoModelForImageTextToText.from_config(shape, **options)
        model.tie_weights()
        model.generation_config = GenerationConfig.from_pretrained(config.path)
    else:
        model = AutoModelForImageTextToText.from_pretrained(config.path, **options)
    if weights == "here":
        model = model.to(device)
    if config.lora_rank:
        add_lora(model, config)
    elif config.freeze_vision:
        for part in family_of(model).tower_parts(model):
            part.requires_grad_(False)
    if config.gradient_checkpointing:
        # The reentrant variant runs hooks twice under DDP and drops the gradient of frozen inputs.
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if config.lora_rank:
            model.enable_input_require_grads()
    if config.liger and not on_cpu and importlib.util.find_spec("liger_kernel"):
        use_liger(model)
    if config.compile:
        if on_cpu:
            keep_compiled_code_apart()
        for layer in family_of(model).language_model(model).layers:
            layer.compile(dynamic=True)  # one graph for all layers and lengths; names of weights stay
    processor = load_processor(config)
    return make_policy(
        model.eval(), processor, device=torch.device(device), prompt_suffix=prompt_suffix, prompt_hint=prompt_hint
    )


def load_outline(config: ModelConfig, *, prompt_suffix: str = "", prompt_hint: str = "") -> Policy:
    """``load_policy`` without weights: for prompts, lengths and sizes. Raises as ``load_policy`` does for the path."""
    shape = _supported(config.path)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(shape)
    model.generation_config = GenerationConfig.from_pretrained(config.path)
    return make_policy(model, load_processor(config), prompt_suffix=prompt_suffix, prompt_hint=prompt_hint)


def _supported(path: str) -> Any:
    """The checkpoint's config. Raises ValueError for a family without an adapter."""
    raw, _ = PreTrainedConfig.get_config_dict(path)  # AutoConfig's own errors would come first
    check_family(path, str(raw.get("model_type")))
    return AutoConfig.from_pretrained(path)


def _check_flash_attention(name: str, device: torch.device | str) -> None:
    """Raises ConfigError where transformers could not run the vision tower on it."""
    missing = None
    if torch.device(device).type != "cuda":
        missing = f"a GPU, and the policy is on {torch.device(device)}"
    elif not is_flash_attn_2_available():
        missing = "the package flash-attn (pip install flash-attn), which is not installed for this GPU"
    if missing:
        raise ConfigError(f"model.vision_attention={name!r} needs {missing}; or set model.vision_attention=sdpa")


def use_liger(model: PreTrainedModel) -> None:
    """Liger's fused norms and MLPs in place: of Qwen's families in the whole model, of others in its language model.
    Needs liger-kernel; not run by us on a GPU. Warns where Liger has none for a model.

    Its fused cross-entropy is left out: the log-probs here have a temperature and a ban, and are computed in chunks.
    """
    from liger_kernel.transformers import monkey_patch

    family = family_of(model)
    kind = model.config.get_text_config().model_type
    name, target = (family.liger, model) if family.liger else (LIGER.get(kind, ""), family.language_model(model))
    patch = getattr(monkey_patch, name, None)
    if patch is None:
        warnings.warn(f"model.liger: liger-kernel has nothing for {kind!r}; trained without it", stacklevel=2)
        return
    patch(model=target, rope=False, cross_entropy=False, fused_linear_cross_entropy=False)


def load_processor(config: ModelConfig) -> Any:
    """The checkpoint's processor with the config's pixel limits applied to its image processor."""
    processor = AutoProcessor.from_pretrained(config.path)
    FAMILIES[_supported(config.path).model_type].limit_pixels(processor, config)
    return processor


def make_policy(
    model: PreTrainedModel,
    processor: Any,
    *,
    device: torch.device | None = None,
    prompt_suffix: str = "",
    prompt_hint: str = "",
) -> Policy:
    """A policy around a loaded ``model`` and ``processor``. ``device``: where it computes; None: where the model is."""
    use_shared_prefix_attention(model)
    tokenizer = processor.tokenizer
    eos_ids = response_ends(model, processor)
    config: Any = model.config
    family = family_of(model)
    vision = family.vision_ids(model, processor)
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    nameless = set(range(config.get_text_config().vocab_size)).difference(tokenizer.get_vocab().values())
    pad_id = tokenizer.pad_token_id
    return Policy(
        model=model,
        processor=processor,
        tokenizer=tokenizer,
        images=ImageStore(processor.image_processor, prepare=partial(family.prepare, processor)),
        encoder=ImageEncoder(model),
        device=device or model.device,
        banned_ids=tuple(sorted((special | vision | nameless | set(tokenizer.all_special_ids)).difference(eos_ids))),
        eos_ids=eos_ids,
        pad_id=eos_ids[0] if pad_id is None else int(pad_id),
        image_id=int(config.image_token_id),
        prompt_suffix=prompt_suffix,
        prompt_hint=prompt_hint,
    )


def save_model(
    policy: Policy,
    folder: str | Path,
    model: PreTrainedModel | None = None,
    *,
    file_bytes: int = FILE_BYTES,
    writer: bool = True,
) -> None:
    """A plain Hugging Face folder (weights, tokenizer, processor) that ``from_pretrained`` and vLLM open.

    ``model``: save its weights instead of the policy's own. ``file_bytes``, ``writer`` and what is collective: as for
    ``save_merged``.
    """
    source = policy.model if model is None else model
    failed: Exception | None = None
    if writer:
        try:
            source.save_pretrained(folder, state_dict={})  # the configs
            policy.processor.save_pretrained(folder)
        except Exception as error:  # whatever tokenizers makes of a full disk; the other ranks wait for the weights
            failed = error
    save_merged(folder, source, file_bytes=file_bytes, writer=writer and not failed)
    if failed:
        raise failed
