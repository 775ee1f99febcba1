"""What a run is built from: its process, policy and reference, and the optimiser and selector of a stage."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from rethinker.config import RunConfig, to_yaml
from rethinker.policy.forward import BaseForward, PolicyForward
from rethinker.policy.loading import Weights, load_policy
from rethinker.policy.policy import Policy
from rethinker.policy.sharding import is_sharded, shard_loaded
from rethinker.processes import (
    check_accelerator,
    check_machines,
    keep_freed_memory,
    on_several_machines,
    process_group_options,
    use_deterministic_algorithms,
)
from rethinker.replay import Selector, make_selector
from rethinker.rundir import checkpoint, pointers
from rethinker.rundir.fallback import whole_checkpoint
from rethinker.rundir.folder import check_folder, check_not_lost
from rethinker.rundir.paths import BEST, LAST, RunDir
from rethinker.rundir.together import on_main
from rethinker.seeding import stable_seed


def start_process(config: RunConfig) -> Accelerator:
    """Threads, algorithms and seed of this process, and its place among the others. Raises RuntimeError as
    ``check_accelerator`` and ``check_machines`` do."""
    torch.set_num_threads(config.launch.threads)
    if config.launch.deterministic:
        use_deterministic_algorithms()
    if not torch.cuda.is_available():
        keep_freed_memory()
    torch.manual_seed(config.seed)
    # Without ``cpu`` several CPU processes would each be a world of one.
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[process_group_options()])
    check_accelerator(accelerator)
    if on_several_machines():
        same = replace(config, launch=replace(config.launch, machine_rank=None))
        check_machines(accelerator, config.folder, to_yaml(same))
    return accelerator


def find_checkpoint(
    config: RunConfig, accelerator: Accelerator, resume: bool
) -> tuple[Path, str | None] | tuple[None, None]:
    """The checkpoint to resume from, the folder as ``pointers.repair`` leaves it, and a warning where it is not the
    last one. Raises RunExists as ``check_folder``, ``check_not_lost`` and ``whole_checkpoint`` do."""
    folder = RunDir(config.folder)
    saved = check_folder(config, resume=resume)
    if resume:
        check_not_lost(folder)
    accelerator.wait_for_everyone()  # every rank has looked before anything is changed
    if saved and accelerator.is_main_process:
        pointers.repair(folder.checkpoints, [LAST, BEST, *(stage.name for stage in config.stages)])
    accelerator.wait_for_everyone()
    if not on_main(lambda: saved is not None):  # rank 0's answer: another machine may see an older state of the folder
        return None, None
    return whole_checkpoint(folder)


def load_start(config: RunConfig, accelerator: Accelerator, saved: Path | None) -> Policy:
    """The policy at the start of the run, or from the checkpoint; for a sharded run its weights wait on rank 0."""
    model, data = config.model, config.data
    if saved and not model.lora_rank:
        model = replace(model, path=os.fspath(saved / "model"))
    weights = _weights(config, accelerator)
    policy = load_policy(
        model, accelerator.device, prompt_suffix=data.prompt_suffix, prompt_hint=data.prompt_hint, weights=weights
    )
    if saved and model.lora_rank and weights != "none":
        checkpoint.load_adapter(saved, policy)
    return policy


def make_forward(config: RunConfig, policy: Policy, accelerator: Accelerator) -> torch.nn.Module:
    """The policy's ``PolicyForward``, in shards over this run's processes or, without ``model.sharding``, whole on
    each."""
    forward = PolicyForward(policy.model, policy.encoder, autocast=config.model.autocast)
    if shards(config, accelerator):
        shard_loaded(forward, config.model, accelerator.device)
        return forward
    prepared: torch.nn.Module = accelerator.prepare(forward)
    return prepared


def load_reference(
    config: RunConfig, policy: Policy, forward: torch.nn.Module, accelerator: Accelerator
) -> torch.nn.Module | None:
    """The policy before training; None if no stage has a KL term. With LoRA it is the policy itself without its
    adapters, else a frozen copy, sharded as the policy is. ``forward``: the policy's, of ``make_forward``."""
    stages = [config.for_stage(index) for index in range(len(config.stages))]
    if not any(stage.grpo.kl_coef for stage in stages):
        return None
    autocast = config.model.autocast
    if config.model.lora_rank:
        # A sharded pass goes through the root; DDP's wrapper would wait for gradients.
        own = PolicyForward(policy.model, policy.encoder, autocast=autocast)
        return BaseForward(forward if is_sharded(forward) else own)
    model = load_policy(config.model, accelerator.device, weights=_weights(config, accelerator)).model
    reference = PolicyForward(model.requires_grad_(False), autocast=autocast).eval()
    if shards(config, accelerator):
        shard_loaded(reference, config.model, accelerator.device)
    return reference


def shards(config: RunConfig, accelerator: Accelerator) -> bool:
    """Whether the model is in shards: not in a single process, which holds everything in any case."""
    return config.model.sharding != "none" and accelerator.num_processes > 1


def _weights(config: RunConfig, accelerator: Accelerator) -> Weights:
    if not shards(config, accelerator):
        return "here"
    return "waiting" if accelerator.is_main_process else "none"


def make_optimizer(
    config: RunConfig, trained: Sequence[tuple[str, torch.nn.Parameter]]
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """A fresh optimiser of the ``trained`` parameters by name, as a checkpoint has their states, and its scheduler."""
    options = config.optim
    optimizer = torch.optim.AdamW(
        trained, lr=options.lr, betas=options.betas, weight_decay=options.weight_decay, fused=True
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / max(options.warmup_steps, 1))
    )
    return optimizer, scheduler


def make_stage_selector(config: RunConfig, index: int) -> Selector:
    """An empty buffer for stage ``index``, whose settings ``config`` holds."""
    replay = config.replay
    mode: Any = "filter" if replay.mode == "dynamic_sampling" else replay.mode
    return make_selector(
        mode,
        alpha=replay.alpha,
        seed=stable_seed(config.seed, "replay", index),
        lifetime=replay.lifetime,
        capacity=replay.capacity,
    )
