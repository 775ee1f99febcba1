"""LoRA adapters on the language model: added in place, and switched off for a while."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from rethinker.config.schema import ConfigError
from rethinker.config.settings import ModelConfig


def add_lora(model: PreTrainedModel, config: ModelConfig) -> None:
    """Adapters on the language model's named linear layers, in place; everything else is frozen.

    Adapters are float32 whatever the model's type: AdamW's step at a usual learning rate is less than half a unit in
    the last place of most bfloat16 weights, and would be rounded away. The layers cast their input and their output.
    Raises ConfigError for a target that no layer has.
    """
    from peft import LoraConfig, inject_adapter_in_model

    # The vision tower's MLP has layers of the same names: the pattern starts at the language model.
    start = r".*language_model\..*\."
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    layers = sorted({name.rpartition(".")[2] for name in linear if re.fullmatch(rf"{start}\w+", name)})
    for target in config.lora_targets:  # peft asks only that one of them is found
        if target not in layers:
            near = difflib.get_close_matches(target, layers, n=1) or layers
            raise ConfigError(
                f"model.lora_targets: {config.path} has no linear layer {target!r} in its language model; did you mean "
                f"{' or '.join(map(repr, near))}?"
            )
    pattern = rf"{start}({'|'.join(config.lora_targets)})"
    inject_adapter_in_model(
        LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=pattern),
        model,
    )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


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
