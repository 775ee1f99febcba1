"""What test_checkpoint_ranks.py runs in several processes: ``torchrun tests/checkpoint_ranks.py FUNCTION FOLDER``.

Gradients are random and equal whatever the number of ranks, so that AdamW, which works by element, has to give equal
bits on all of them.
"""

from __future__ import annotations

import errno
import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from rethinker.rundir import shards

TINY = Path(__file__).parents[1] / "data" / "tiny-vlm"
SHAPES = {"matrix": (37, 6), "odd": (3, 5), "one": (1,), "vector": (16,), "half": (9, 2)}  # of save_eight's tensors


def make(path: Path = TINY, sharded: bool = True, **model: Any):
    """A policy, on all ranks in shards, and its optimiser."""
    from rethinker.config import ModelConfig
    from rethinker.policy.forward import PolicyForward
    from rethinker.policy.loading import load_policy
    from rethinker.policy.sharding import make_mesh, shard
    from rethinker.policy.weights import trained_parameters

    torch.manual_seed(0)
    policy = load_policy(ModelConfig(path=str(path), **model))
    if sharded:
        ranks = dist.get_world_size()
        shard(PolicyForward(policy.model, policy.encoder), make_mesh("full", "cpu", ranks, ranks))
    return policy, torch.optim.AdamW(trained_parameters(policy.model), lr=1e-3, betas=(0.9, 0.98), fused=True)


def steps(optimizer: torch.optim.Optimizer, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                grad = torch.randn(parameter.shape, generator=generator)
                if isinstance(parameter, DTensor):
                    grad = distribute_tensor(grad, parameter.device_mesh, parameter.placements, src_data_rank=None)
                parameter.grad = grad
        optimizer.step()
        optimizer.zero_grad()


def trained(policy) -> dict[str, torch.Tensor]:
    """Whole weights by name. Collective."""
    from rethinker.policy.sharding import whole
    from rethinker.policy.weights import trained_parameters

    return {name: whole(parameter.detach()).clone() for name, parameter in trained_parameters(policy.model)}


def save(folder: Path, step: int, policy, optimizer, **options: Any) -> Path:
    from rethinker.rundir.checkpoint import save_checkpoint

    state = {"selector_state": {"mode": "grpo"}, "trainer_state": {"progress": {"episode": step}}}
    return save_checkpoint(folder, step, policy=policy, optimizer=optimizer, **state, **options)


def save_and_go_on(folder: Path, sharded: bool = True) -> None:
    """A checkpoint after three steps, and the weights after five."""
    policy, optimizer = make(sharded=sharded)
    steps(optimizer, 3, seed=0)
    save(folder, 3, policy, optimizer, file_bytes=200_000)
    steps(optimizer, 2, seed=1)
    weights = trained(policy)
    if not dist.is_initialized() or dist.get_rank() == 0:
        save_file(weights, folder / "after.safetensors")
    if dist.is_initialized():
        dist.barrier()


def goes_on(folder: Path, sharded: bool = True) -> bool:
    """Whether a run resumed from that checkpoint has the same weights, bit for bit."""
    from rethinker.rundir.checkpoint import load_optimizer

    place = folder / "step-000003"
    policy, optimizer = make(place / "model", sharded=sharded)
    load_optimizer(place, optimizer)
    steps(optimizer, 2, seed=1)
    expected, found = load_file(folder / "after.safetensors"), trained(policy)
    return expected.keys() == found.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def failing(where: Any, name: str, rank: int, calls: int = 0):
    """``where.name`` raises on ``rank`` from call ``calls`` on as a full disk makes it."""
    original, done = getattr(where, name), iter(range(10**9))

    def call(*arguments, **options):
        if dist.get_rank() == rank and next(done) >= calls:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*arguments, **options)

    return patch.object(where, name, call)


def two_ranks(folder: Path) -> dict[str, Any]:
    from rethinker.policy import weights
    from rethinker.policy.lora import save_adapters
    from rethinker.rundir import checkpoint, checksums, pointers
    from rethinker.rundir.fallback import whole_checkpoint
    from rethinker.rundir.paths import RunDir

    results: dict[str, Any] = {}
    save_and_go_on(folder / "two")
    results["two to two"] = goes_on(folder / "two")
    results["one to two"] = goes_on(folder / "one")
    results["two to whole ones"] = goes_on(folder / "two", sharded=False)
    save_and_go_on(folder / "whole ones", sharded=False)
    results["whole ones to two"] = goes_on(folder / "whole ones")

    policy, optimizer = make(lora_rank=4)
    steps(optimizer, 2, seed=0)
    place = save(folder / "lora", 2, policy, optimizer)
    again, other = make(lora_rank=4, sharded=False)
    checkpoint.load_adapter(place, again)
    save_adapters(folder / f"adapter-{dist.get_rank()}", again.model)
    names = ("adapter_model.safetensors", "adapter_config.json")
    alone = [(place / "adapter" / name, folder / f"adapter-{dist.get_rank()}" / name) for name in names]
    results["adapters alone"] = all(one.read_bytes() == other.read_bytes() for one, other in alone)
    checkpoint.load_optimizer(place, other)
    for one in (optimizer, other):
        steps(one, 1, seed=1)
    mine, theirs = trained(policy), trained(again)
    results["adapters"] = len(mine) > 20 and all(torch.equal(mine[name], theirs[name]) for name in mine)

    results["errors"] = []
    for where, name, rank, calls in (
        (weights, "_start", 0, 0),
        (weights, "_start", 0, 1),
        (shards.HuggingFaceStorageWriter, "write_data", 1, 0),
        (shards.HuggingFaceStorageWriter, "write_data", 0, 0),
        (checksums, "measure", 1, 2),
        (checkpoint, "write_samples", 0, 0),
        (pointers, "_write", 0, 0),
    ):
        with failing(where, name, rank, calls):
            try:
                save(folder / "lora", 3, policy, optimizer, file_bytes=200_000)
            except checkpoint.NotSaved as error:
                results["errors"].append(str(error))
        dist.barrier()
        left = sorted(path.name for path in (folder / "lora").iterdir())
        assert left == ["last", pointers.FILE, "step-000002"], left
        dist.barrier()
    last = save(folder / "lora", 3, policy, optimizer)
    dist.barrier()
    if dist.get_rank() == 1:
        samples = last / "replay.parquet"
        samples.write_bytes(samples.read_bytes()[::-1])
    dist.barrier()
    run = RunDir(folder / "run")
    if dist.get_rank() == 0:
        run.folder.mkdir()
        run.checkpoints.symlink_to(folder / "lora")
    dist.barrier()
    found, warning = whole_checkpoint(run)
    results["fallback"] = [found.name, warning]
    return results


def whole_tensors() -> dict[str, torch.Tensor]:
    found = {}
    for number, (name, shape) in enumerate(SHAPES.items()):
        tensor = torch.randn(shape, generator=torch.Generator().manual_seed(number))
        found[name] = tensor.bfloat16() if name == "half" else tensor
    return found


def save_many(folder: Path) -> dict[str, Any]:
    """Shards of every tensor, and one that all ranks have whole; files of 100 bytes."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    tensors = {n: distribute_tensor(t, mesh, [Shard(0)], src_data_rank=None) for n, t in whole_tensors().items()}
    shards.save_shards(folder / "many", tensors | {"same": torch.arange(5.0)}, file_bytes=100)
    return {}


def load_many(folder: Path) -> dict[str, Any]:
    """What another number of ranks saved."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    expected = {n: distribute_tensor(t, mesh, [Shard(0)], src_data_rank=None) for n, t in whole_tensors().items()}
    found = {name: torch.full_like(tensor, -1.0) for name, tensor in expected.items()}
    same = torch.zeros(5)
    shards.load_shards(folder / "many", {**found, "same": same})
    equal = [torch.equal(found[name].to_local(), expected[name].to_local()) for name in expected]
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, all(equal) and torch.equal(same, torch.arange(5.0)))
    return {"equal": every}


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    function, folder = sys.argv[1], Path(sys.argv[2])
    results = globals()[function](folder)
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, results)
    if dist.get_rank() == 0:
        (folder / f"{function}.json").write_text(json.dumps(every))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
