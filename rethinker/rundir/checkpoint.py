"""Save and resume: the policy as a Hugging Face folder, everything else as safetensors, JSON and parquet; no pickle.

``checkpoints/step-000016/`` holds ``model/`` (``from_pretrained`` and ``vllm serve`` open it),
``optimizer.safetensors``, ``trainer.json`` and ``replay.parquet``; with LoRA also ``adapter.safetensors`` (``model/``
then has the adapters merged in). A checkpoint is written under a temporary name and renamed when it is whole;
``pointers`` says which one is ``last``, ``best`` or the end of a stage.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from rethinker.policy.loading import Policy, save_model
from rethinker.rundir.atomic import atomic_write_text, sync_folder
from rethinker.rundir.paths import BEST, LAST
from rethinker.rundir.pointers import free_name, point, prune, start_file
from rethinker.rundir.samples import read_samples, write_samples


def save_checkpoint(
    checkpoints: Path,
    step: int,
    *,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    selector_state: Mapping[str, Any],
    trainer_state: Mapping[str, Any],
    best: bool = False,
) -> Path:
    """Write ``checkpoints/step-<step>``, point ``last`` at it, with ``best`` that too, and remove what has no name.

    An older folder of the same step (episodes without an update do not count steps) stays until the new one, which is
    then ``step-<step>.1``, is named. A kill at any moment leaves the old names or the new ones, all of them whole.
    """
    folder = free_name(checkpoints, f"step-{step:06d}")
    temporary = checkpoints / f".{folder.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_model(policy, temporary / "model")
    if any("lora_" in name for name, _ in policy.model.named_parameters()):
        save_file(_trained(policy), temporary / "adapter.safetensors")
    tensors, layout = flatten_optimizer(optimizer)
    save_file(tensors, temporary / "optimizer.safetensors")
    selector = dict(selector_state)
    write_samples(temporary / "replay.parquet", selector.pop("entries", []))
    state = {"optimizer": layout, "selector": selector, "trainer": dict(trainer_state)}
    atomic_write_text(temporary / "trainer.json", json.dumps(state, indent=1))
    _sync_all(temporary)
    start_file(checkpoints)
    os.replace(temporary, folder)
    sync_folder(checkpoints)
    point(checkpoints, [LAST, BEST] if best else [LAST], folder)
    prune(checkpoints)
    return folder


def load_trainer_state(folder: Path) -> dict[str, Any]:
    """The ``trainer_state`` that was saved. Raises FileNotFoundError if ``folder`` holds no checkpoint."""
    return json.loads((folder / "trainer.json").read_text(encoding="utf-8"))["trainer"]


def load_selector_state(folder: Path) -> dict[str, Any]:
    """The ``selector_state`` that was saved, with its samples."""
    state = json.loads((folder / "trainer.json").read_text(encoding="utf-8"))["selector"]
    return state | {"entries": read_samples(folder / "replay.parquet")}


def load_optimizer(folder: Path, optimizer: torch.optim.Optimizer) -> None:
    """Give ``optimizer`` the state that was saved. Raises ValueError if it has other parameters."""
    layout = json.loads((folder / "trainer.json").read_text(encoding="utf-8"))["optimizer"]
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in load_file(folder / "optimizer.safetensors").items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": layout["param_groups"]})


def load_adapter(folder: Path, policy: Policy) -> None:
    """Give a LoRA policy, built from the base checkpoint, the adapters that were saved."""
    missing, unexpected = policy.model.load_state_dict(load_file(folder / "adapter.safetensors"), strict=False)
    assert not unexpected and not any("lora_" in name for name in missing), "check_settings lets no other adapters pass"


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors by "<parameter>.<key>", and the parameter groups."""
    state = optimizer.state_dict()
    tensors = {
        f"{index}.{key}": torch.as_tensor(value).detach().cpu().contiguous().clone()
        for index, values in state["state"].items()
        for key, value in values.items()
    }
    return tensors, {"param_groups": state["param_groups"]}


def _sync_all(folder: Path) -> None:
    """fsync everything in ``folder``: after a power cut its new name must not be there without its content."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _trained(policy: Policy) -> dict[str, torch.Tensor]:
    return {
        name: parameter.detach().cpu().contiguous()
        for name, parameter in policy.model.named_parameters()
        if parameter.requires_grad
    }
