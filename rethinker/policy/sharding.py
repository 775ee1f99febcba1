"""Weights, gradients and optimiser states in shards over the ranks: torch's ``fully_shard`` (FSDP2). Ours.

``PolicyForward`` is the root: every pass over the policy goes through it, and every rank makes the same number of
passes, because each gathers its weights from all. A unit is a decoder layer, a block of a trained vision tower, and,
where they are two matrices, the embedding and the head (their gradients are the largest tensors of a pass). A frozen
tower is whole on every rank, so that it needs no collective: ranks may have images or not.

Run on CPUs by gloo, where the tests compare it with the unsharded model; not run on GPUs.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from rethinker.config.settings import ModelConfig, Sharding
from rethinker.policy.forward import PolicyForward
from rethinker.policy.weights import merged_weights

BUCKET_BYTES = 2**30  # of whole weights at once, about, beside the largest one


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
    family = forward.encoder.family
    language = family.language_model(model)
    tower = {parameter for part in family.tower_parts(model) for parameter in part.parameters()}
    frozen_tower = not forward.encoder.trained
    options: dict[str, Any] = {
        "mesh": mesh,
        "offload_policy": CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if offload else OffloadPolicy(),
        "mp_policy": MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bfloat16 else MixedPrecisionPolicy(),
        "ignored_params": tower if frozen_tower else set(),
    }
    units = [*language.layers, *([] if frozen_tower else family.tower_blocks(model))]
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


def shard_loaded(forward: PolicyForward, config: ModelConfig, device: torch.device) -> None:
    """``shard`` as ``config`` says, where rank 0 has the weights and the others were made ``without_weights``: each is
    sent its part. Collective. Raises ValueError as ``make_mesh`` does.
    """
    state = dict(forward.model.state_dict()) if dist.get_rank() == 0 else {}
    ranks = dist.get_world_size()
    mesh = make_mesh(config.sharding, device.type, ranks, int(os.environ.get("LOCAL_WORLD_SIZE", ranks)))
    shard(forward, mesh, bfloat16=config.autocast, offload=config.offload)
    spread_weights(forward.model, state, device, rest="cpu" if config.offload else device)
    check_equal_over_ranks(forward.model)


def spread_weights(
    model: nn.Module, state: dict[str, Tensor], device: torch.device | str, rest: torch.device | str
) -> None:
    """Give a sharded model, made without weights on all ranks but the first, those of rank 0's ``state``. Collective.

    Tensor by tensor over ``device``: no rank but the first ever holds the whole. Shards then stay at ``rest``.
    """
    parts: dict[str, Tensor] = {}
    placed: dict[int, Tensor] = {}  # a tied weight stays one
    for name, own in model.state_dict(keep_vars=True).items():
        if id(own) not in placed:
            if dist.get_rank() == 0:
                sent = state.pop(name).detach().to(device).contiguous()
            else:
                sent = torch.empty(own.shape, dtype=own.dtype, device=device)
            dist.broadcast(sent, 0)
            part = _part(sent, own, rest)
            placed[id(own)] = nn.Parameter(part, own.requires_grad) if isinstance(own, nn.Parameter) else part
        parts[name] = placed[id(own)]
    model.load_state_dict(parts, assign=True)


def _part(sent: Tensor, own: Tensor, rest: torch.device | str) -> Tensor:
    """What this rank keeps of a whole tensor."""
    if not isinstance(own, DTensor):
        return sent
    mesh, places = own.device_mesh, own.placements
    local = distribute_tensor(sent, mesh, places, src_data_rank=None).to_local().clone().to(rest)
    return DTensor.from_local(local, mesh, places, shape=own.shape, stride=own.stride())


def full_weights(
    model: nn.Module, *, dtype: torch.dtype | None = None, bucket_bytes: int = BUCKET_BYTES
) -> Iterator[tuple[str, Tensor]]:
    """``merged_weights`` with every tensor whole, of a model that may be sharded: what an engine and a server load.
    Collective: all ranks have to read it to its end.

    ``dtype``: cast to it before the gather. Gathered by ``bucket_bytes`` at a time, and finished before the first of a
    bucket is yielded: whoever reads may do so on a stream of his own, on which no rank may wait for a gather.
    """
    bucket: list[tuple[str, Tensor]] = []
    size = 0
    for name, weight in merged_weights(model):
        cast = weight.to(dtype) if dtype else weight
        del weight
        if isinstance(cast, DTensor):
            bucket.append((name, whole(cast)))
            size += bucket[-1][1].nbytes
            if size >= bucket_bytes:
                yield from _finished(bucket)
                size = 0
        else:  # whole already; merged with its adapters it is a copy, of which none may wait
            yield from _finished(bucket)
            size = 0
            yield name, cast
        del cast
    yield from _finished(bucket)


def _finished(bucket: list[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    if any(tensor.is_cuda for _, tensor in bucket):
        torch.cuda.current_stream().synchronize()
    while bucket:
        yield bucket.pop(0)


def gather(forward: nn.Module) -> None:
    """Make all weights whole on every rank, until ``release``: for an engine that calls the model's own modules.

    Needs the memory that sharding saves; nothing where nothing is sharded. Collective. ``state_dict`` releases too.
    """
    for index, unit in enumerate(_units(forward)):
        if index == 0:  # the root; a layer that runs first would take its place. torch has no public name for this.
            fully_shard.state(unit)._lazy_init()  # type: ignore[attr-defined]
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()


def release(forward: nn.Module) -> None:
    """Undo ``gather``: every rank holds its shards alone."""
    for unit in _units(forward):
        unit.set_reshard_after_forward(unit is not forward, recurse=False)
        unit.reshard()


def _units(forward: nn.Module) -> list[FSDPModule]:
    return [module for module in forward.modules() if isinstance(module, FSDPModule)]


@contextmanager
def gathered(forward: nn.Module) -> Iterator[None]:
    """``gather`` for the time of the block."""
    gather(forward)
    try:
        yield
    finally:
        release(forward)


def check_equal_over_ranks(model: nn.Module) -> None:
    """Raise RuntimeError if ranks that should hold the same trained weights, or the same shards of them, do not.
    Collective.

    fully_shard believes that they do (LoRA's adapters are drawn), and every gradient would be wrong, silently.
    """
    digest = hashlib.blake2b(digest_size=8)
    place: tuple[int, ...] = ()  # of this rank's shards
    alone = False
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        if isinstance(parameter, DTensor):
            sizes, own = parameter.device_mesh.shape, parameter.device_mesh.get_coordinate() or ()
            axes = [axis for axis, placed in enumerate(parameter.placements) if placed.is_shard()]
            place = tuple(own[axis] for axis in axes)
            alone = math.prod(sizes) == math.prod(sizes[axis] for axis in axes)
        if alone:
            break  # every rank has shards of its own: nothing to compare
        if not local.is_meta:
            digest.update(name.encode())
            digest.update(local.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, (place, "" if alone else digest.hexdigest()))
    if len(set(found)) > len({place for place, _ in found}):
        raise RuntimeError(f"the trained weights differ over the ranks: (place of the shards, hash) {found}")
