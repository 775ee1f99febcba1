"""A model's weights as others read them: under their modules' or their checkpoint's names, LoRA adapters added in, and
never more of them at a time than one; of a sharded model too, where all ranks take part.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from rethinker.policy.lora import adapted_layers

FILE_BYTES = 5 * 10**9  # of a file of weights, as the hub has them
TYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16"}  # in safetensors' names


def merged_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, weight) of every weight under its module's name, LoRA adapters added in; one at a time.

    A tied weight comes under both of its names: vLLM on a CPU has a prepacked copy of a tied head, which it makes anew
    only where ``lm_head.weight`` is among what it loads.
    """
    adapted = adapted_layers(model)
    for name, own, owner in _own_weights(model):
        weight = own.detach()
        if owner in adapted and name == f"{owner}.weight":
            layer = adapted[owner]
            for adapter in layer.active_adapters:
                # Added in the adapter's float32 and rounded once.
                weight = (weight + layer.get_delta_weight(adapter).detach()).to(weight.dtype)
        yield name, weight


def trained_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """(name, parameter) of what is trained, each once; of a sharded model the shards, also between its passes, when
    ``named_parameters`` may give whole weights."""
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if isinstance(value, nn.Parameter) and value.requires_grad:
            found.setdefault(id(value), (name, value))
    return list(found.values())


def save_weights(folder: str | Path, model: nn.Module) -> None:
    """``merged_weights`` as a file that vLLM reloads from: every name, which ``save_pretrained`` would not write."""
    _write(Path(folder), model, {name: name for name, _, _ in _own_weights(model)}, 2**63, True)


def save_merged(
    folder: str | Path, model: PreTrainedModel, *, file_bytes: int = FILE_BYTES, writer: bool = True
) -> None:
    """What ``model.save_pretrained(folder)`` writes, with LoRA adapters added in: the same names, and of tied weights
    the first; files of ``file_bytes`` (more where a single weight is larger) and, where there are several, an index.

    Collective where the model is sharded; the rank that is the ``writer`` holds one weight at a time. Raises OSError,
    there alone and at the end, where the files cannot be written.
    """
    distinct: dict[int, str] = {}
    for name, weight, _ in _own_weights(model):
        distinct.setdefault(id(weight), name)
    own = list(distinct.values())
    # Numbers in place of weights: transformers' own renaming tells which name each gets.
    saved = revert_weight_conversion(model, {name: torch.tensor([i]) for i, name in enumerate(own)})
    names = {own[int(number)]: name for name, number in saved.items()}
    _write(Path(folder), model, names, file_bytes, writer)


def _own_weights(model: nn.Module) -> Iterator[tuple[str, Tensor, str]]:
    """(name, weight without adapters, name of the adapted layer or ""), in the order of ``merged_weights``; a tied
    weight is the same object twice."""
    for name, value in model.state_dict(keep_vars=True).items():
        if ".lora_" not in name:
            owner, _, rest = name.rpartition(".base_layer.")
            yield f"{owner}.{rest}" if owner else name, value, owner


def _write(folder: Path, model: nn.Module, names: Mapping[str, str], file_bytes: int, writer: bool) -> None:
    """The merged weights ``names`` (a module's: the file's) in safetensors files, front to back."""
    files = _plan(model, names, file_bytes)
    paths = [folder / _file_name(number, len(files)) for number in range(len(files))]
    failed: OSError | None = None
    file: BinaryIO | None = None
    number = 0
    for name, weight in merged_weights(model):
        if name not in names:
            continue
        whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
        if not writer or failed:  # the other ranks wait for this one's shards, whatever happens to the files
            continue
        try:
            file = file or _start(paths[number], files[number])
            file.write(whole.cpu().flatten().view(torch.uint8).numpy().data)
            if names[name] == next(reversed(files[number])):
                file.close()
                file, number = None, number + 1
        except OSError as error:
            failed = error
            if file:
                with suppress(OSError):
                    file.close()
    if failed:
        raise failed
    if writer and len(files) > 1:
        places = {name: path.name for path, held in zip(paths, files, strict=True) for name in held}
        size = sum(next(reversed(held.values()))["data_offsets"][1] for held in files)
        index = {"metadata": {"total_size": size}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def _plan(model: nn.Module, names: Mapping[str, str], file_bytes: int) -> list[dict[str, Any]]:
    """The weights of each file: their types, shapes and places in it."""
    files: list[dict[str, Any]] = [{}]
    end = 0
    for name, weight, _ in _own_weights(model):
        if name in names:
            size = weight.numel() * weight.element_size()
            if end and end + size > file_bytes:
                files.append({})
                end = 0
            place = [end, end := end + size]
            facts = {"dtype": TYPES[weight.dtype], "shape": list(weight.shape), "data_offsets": place}
            files[-1][names[name]] = facts
    return files


def _file_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def _start(path: Path, held: Mapping[str, Any]) -> BinaryIO:
    """A file with its header: the type, shape and place of each weight. Their bytes are to follow."""
    text = json.dumps({"__metadata__": {"format": "pt"}} | dict(held)).encode()
    text += b" " * (-len(text) % 8)
    file = path.open("wb")
    file.write(len(text).to_bytes(8, "little") + text)
    return file
