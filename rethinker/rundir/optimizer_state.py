"""An optimiser's state under the names of its parameters: tensors for ``shards``, the rest for JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rethinker.rundir.shards import load_shards, saved_tensors

PREFIX = "optimizer."  # of a tensor's name: "optimizer.<parameter>.<key>"


def named(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The parameters by name: the optimiser was made from (name, parameter)."""
    groups = optimizer.param_groups
    return {n: p for group in groups for n, p in zip(group["param_names"], group["params"], strict=True)}


def split(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state's tensors by name, none of them copied, and what JSON holds: the parameter groups and, by parameter,
    the scalars (AdamW's ``step``: a count, exact in float32)."""
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, float]] = {}
    for name, parameter in named(optimizer).items():
        for key, value in optimizer.state.get(parameter, {}).items():
            value = torch.as_tensor(value)
            if value.dim():
                tensors[f"{PREFIX}{name}.{key}"] = value.detach()
            else:
                scalars.setdefault(name, {})[key] = float(value)
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    return tensors, {"groups": groups, "scalars": scalars}


def load(folder: Path, saved: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Give ``optimizer`` the state that ``split`` took: tensors from the shards in ``folder``, ``saved`` from JSON.

    Raises ValueError, with their names, if it has other parameters, or ones of other shapes.
    """
    parameters = named(optimizer)
    before = [name for group in saved["groups"] for name in group["param_names"]]
    if set(before) != parameters.keys():
        raise ValueError(
            f"the optimiser in {folder.parent} has other parameters: {_few(set(before) - parameters.keys())} only "
            f"there, {_few(parameters.keys() - set(before))} only in this run"
        )
    state: dict[str, dict[str, Any]] = {name: dict(values) for name, values in saved["scalars"].items()}
    tensors: dict[str, Tensor] = {}
    for place, (shape, dtype) in saved_tensors(folder).items():
        if not place.startswith(PREFIX):
            continue
        name, _, key = place.removeprefix(PREFIX).rpartition(".")
        if shape != parameters[name].shape:
            raise ValueError(
                f"the optimiser in {folder.parent} has {name} in the shape {list(shape)}, this run in "
                f"{list(parameters[name].shape)}"
            )
        tensors[place] = torch.empty_like(parameters[name], dtype=dtype, requires_grad=False)
        state.setdefault(name, {})[key] = tensors[place]
    load_shards(folder, tensors)
    numbers = {name: number for number, name in enumerate(parameters)}
    groups = [group | {"params": [numbers[n] for n in group["param_names"]]} for group in saved["groups"]]
    by_number = {
        numbers[name]: {key: torch.as_tensor(value) for key, value in values.items()} for name, values in state.items()
    }
    optimizer.load_state_dict({"state": by_number, "param_groups": groups})


def _few(names: set[str]) -> str:
    """The first of some names, for an error."""
    first = sorted(names)[:3]
    return f"{', '.join(first)}{f' and {len(names) - 3} more' if len(names) > 3 else ''}" if names else "none"
