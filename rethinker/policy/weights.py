"""A model's weights as others read them: under their modules' or their checkpoint's names, LoRA adapters added in, and
never more of them at a time than one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from rethinker.policy.lora import adapted_layers

TYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16"}  # in safetensors' names


def merged_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, weight) of every weight under its module's name, LoRA adapters added in; one at a time.

    A tied weight comes under both of its names: vLLM on a CPU has a prepacked copy of a tied head, which it makes anew
    only where ``lm_head.weight`` is among what it loads.
    """
    adapted = adapted_layers(model)
    for name, weight, owner in _own_weights(model):
        if owner in adapted and name == f"{owner}.weight":
            layer = adapted[owner]
            for adapter in layer.active_adapters:
                # Added in the adapter's float32 and rounded once.
                weight = (weight + layer.get_delta_weight(adapter).detach()).to(weight.dtype)
        yield name, weight


def save_weights(folder: str | Path, model: nn.Module) -> None:
    """``merged_weights`` as a file that vLLM reloads from: every name, which ``save_pretrained`` would not write."""
    _write(folder, model, {name: name for name, _, _ in _own_weights(model)})


def save_merged(folder: str | Path, model: PreTrainedModel) -> None:
    """``model.save_pretrained(folder)`` with LoRA adapters added in: the same names, and of tied weights the first."""
    model.save_pretrained(folder, state_dict={})  # the configs
    distinct: dict[int, tuple[str, Tensor]] = {}
    for name, weight, _ in _own_weights(model):
        distinct.setdefault(weight.data_ptr(), (name, weight))
    saved = revert_weight_conversion(model, dict(distinct.values()))
    names = {weight.data_ptr(): name for name, weight in saved.items()}
    _write(folder, model, {name: names[place] for place, (name, _) in distinct.items()})


def _own_weights(model: nn.Module) -> Iterator[tuple[str, Tensor, str]]:
    """(name, weight without adapters, name of the adapted layer or ""), in the order of ``merged_weights``."""
    for name, value in model.state_dict().items():
        if ".lora_" not in name:
            owner, _, rest = name.rpartition(".base_layer.")
            yield f"{owner}.{rest}" if owner else name, value.detach(), owner


def _write(folder: str | Path, model: nn.Module, names: Mapping[str, str]) -> None:
    """The merged weights ``names`` (a module's: the file's) as ``model.safetensors``, front to back: a header with the
    type, shape and place of each, then their bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, weight, _ in _own_weights(model):
        if name in names:
            place = [end, end := end + weight.nbytes]
            facts = {"dtype": TYPES[weight.dtype], "shape": list(weight.shape), "data_offsets": place}
            header[names[name]] = facts
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (Path(folder) / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, weight in merged_weights(model):
            if name in names:
                file.write(weight.cpu().flatten().view(torch.uint8).numpy().data)
