"""Weights, gradients and optimiser states in shards over the ranks: torch's ``fully_shard`` (FSDP2). Ours.

``PolicyForward`` is the root: every pass over the policy goes through it, and every rank makes the same number of
passes, because each gathers its weights from all. A unit is a decoder layer, a block of a trained vision tower, and,
where they are two matrices, the embedding and the head (their gradients are the largest tensors of a pass). A frozen
tower is whole on every rank, so that it needs no collective: ranks may have images or not.

Run on CPUs by gloo, where the tests compare it with the unsharded model; not run on GPUs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from rethinker.policy.forward import PolicyForward

Sharding = Literal["none", "full", "hybrid"]


def make_mesh(sharding: Sharding, device: str, ranks: int, ranks_here: int) -> DeviceMesh:
    """The ranks that share a copy of the weights: all of them ("full"), or those of a machine ("hybrid").

    ``ranks_here``: processes on this machine. Raises ValueError where the machines of "hybrid" differ in size.
    """
    if sharding == "full":
        return init_device_mesh(device, (ranks,), mesh_dim_names=("shard",))
    if ranks % ranks_here:
        raise ValueError(
            f"model.sharding=hybrid: {ranks} processes are not a multiple of the {ranks_here} on this machine; start "
            "the same number on every machine, or use model.sharding=full"
        )
    return init_device_mesh(device, (ranks // ranks_here, ranks_here), mesh_dim_names=("replicate", "shard"))


def shard(forward: PolicyForward, mesh: DeviceMesh, *, bfloat16: bool = False, offload: bool = False) -> None:
    """Shard the weights of ``forward`` over ``mesh``, in place. Collective.

    ``bfloat16``: layers are gathered and computed in bfloat16 (the shards, gradients and states stay as they are).
    ``offload``: shards, gradients and optimiser states rest in the CPU's memory.
    """
    model = forward.model
    visual, language = model.model.visual, model.model.language_model
    frozen_tower = not forward.encoder.trained
    options: dict[str, Any] = {
        "mesh": mesh,
        "offload_policy": CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if offload else OffloadPolicy(),
        "mp_policy": MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bfloat16 else MixedPrecisionPolicy(),
        "ignored_params": set(visual.parameters()) if frozen_tower else set(),
    }
    units = [*language.layers, *([] if frozen_tower else visual.blocks)]
    if model.lm_head.weight is not language.embed_tokens.weight:
        units += [language.embed_tokens, model.lm_head]
    for unit in units:
        fully_shard(unit, **options)
    fully_shard(forward, **options)


def is_sharded(forward: nn.Module) -> bool:
    """Whether ``shard`` was applied."""
    return isinstance(forward, FSDPModule)


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be a shard. Collective where it is one."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread_weights(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Give a sharded model, made without weights on all ranks but the first, those of rank 0's ``state``. Collective.

    Tensor by tensor: no rank but the first ever holds the whole.
    """
    whole_state: dict[str, Any] = dict(state)
    set_model_state_dict(model, whole_state, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))


@contextmanager
def gathered(forward: nn.Module) -> Iterator[None]:
    """All weights whole on every rank for the time of the block: for an engine that calls the model's own modules.

    Needs the memory that sharding saves; nothing where nothing is sharded. Collective.
    """
    units = [module for module in forward.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(unit is not forward, recurse=False)
            unit.reshard()


def check_equal_over_ranks(model: nn.Module) -> None:
    """Raise RuntimeError if the ranks' trained weights differ before they are sharded. Collective.

    Each rank would keep its own part of its own draw (LoRA's adapters), and every gradient would be wrong, silently.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not parameter.is_meta:
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    found: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(found, digest.hexdigest())
    if len(set(found)) > 1:
        raise RuntimeError(f"the trained weights differ over the ranks before they are sharded: hashes {found}")
