"""LoRA adapters on the language model: added in place, switched off for a while, and saved alone."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from rethinker.config.schema import ConfigError
from rethinker.config.settings import ModelConfig
from rethinker.policy.families import family_of


def add_lora(model: PreTrainedModel, config: ModelConfig) -> None:
    """Adapters on the language model's named linear layers, in place; everything else is frozen.

    Adapters are float32 whatever the model's type: AdamW's step at a usual learning rate is less than half a unit in
    the last place of most bfloat16 weights, and would be rounded away. The layers cast their input and their output.
    Raises ConfigError for a target that no layer has.
    """
    from peft import LoraConfig, inject_adapter_in_model

    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    layers = sorted({name.rpartition(".")[2] for name in linear if re.fullmatch(_pattern(model, [r"\w+"]), name)})
    for target in config.lora_targets:  # peft asks only that one of them is found
        if target not in layers:
            near = difflib.get_close_matches(target, layers, n=1) or layers
            raise ConfigError(
                f"model.lora_targets: {config.path} has no linear layer {target!r} in its language model; did you mean "
                f"{' or '.join(map(repr, near))}?"
            )
    adapters = LoraConfig(
        r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=_pattern(model, config.lora_targets)
    )
    inject_adapter_in_model(adapters, model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def save_adapters(folder: Path, model: PreTrainedModel, *, writer: bool = True) -> None:
    """The adapters alone in PEFT's layout, for ``PeftModel.from_pretrained(base, folder)``. Collective where the model
    is sharded; ``writer``: the rank that writes. Raises OSError there."""
    from peft import LoraConfig

    tensors: dict[str, Tensor] = {}
    for name, weight in model.state_dict().items():
        if ".lora_" in name:
            whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
            # PEFT's names: within its own wrapper, and without the adapter's
            tensors[f"base_model.model.{name.replace('.default.', '.')}"] = whole.cpu().contiguous()
    if writer:
        layers = adapted_layers(model)
        layer = next(iter(layers.values()))
        LoraConfig(
            r=layer.r["default"],
            lora_alpha=layer.lora_alpha["default"],
            target_modules=_pattern(model, sorted({name.rpartition(".")[2] for name in layers})),
            base_model_name_or_path=model.config._name_or_path,
            inference_mode=True,
        ).save_pretrained(str(folder))
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _pattern(model: nn.Module, targets: Sequence[str]) -> str:
    """The names of the language model's layers ``targets``, as PEFT matches them: the vision tower's MLP has layers of
    the same names."""
    start = family_of(model).language.rpartition(".")[2]
    return rf".*{start}\..*\.({'|'.join(targets)})"


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """The layers with adapters, by name; empty for a model without LoRA."""
    from peft.tuners.lora import LoraLayer

    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Inside, ``model`` computes what it computed before LoRA, bit for bit."""
    layers = adapted_layers(model).values()
    for layer in layers:
        # peft's enable_adapters would also freeze the adapters, whose backward pass may be still to come.
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False
