"""Rollout engines behind one protocol: transformers, vLLM in process, vLLM servers, and a scripted one for tests."""

from __future__ import annotations

import torch

from rethinker.config import RunConfig, check_own_weights
from rethinker.policy.policy import Policy
from rethinker.rollout.base import RolloutEngine
from rethinker.rollout.canary import canary_gap, checked_gap, gap_bound
from rethinker.rollout.scripted import ScriptedEngine
from rethinker.rollout.transformers import TransformersEngine
from rethinker.rollout.vllm import VllmEngine, vllm_available

__all__ = [
    "RolloutEngine",
    "ScriptedEngine",
    "TransformersEngine",
    "VllmEngine",
    "canary_gap",
    "checked_gap",
    "engine_name",
    "gap_bound",
    "make_engine",
    "vllm_available",
]


def engine_name(config: RunConfig) -> str:
    """The engine that ``config.rollout.engine`` names; ``auto``: vLLM if it is installed, else transformers."""
    if config.rollout.engine == "auto":
        return "vllm" if vllm_available() else "transformers"
    return config.rollout.engine


def make_engine(
    config: RunConfig,
    policy: Policy,
    max_images: int = 8,
    max_prompt: int = 0,
    forward: torch.nn.Module | None = None,
) -> RolloutEngine:
    """The engine of ``engine_name``.

    ``max_images``: the most images of a query, ``max_prompt``: tokens of the longest prompt, where that is known
    (vLLM's context has room for either). vLLM in process starts from ``config.model.path``: call ``sync_weights`` first
    where the policy has other weights by now, and with servers always.
    ``forward``: the trainer's ``PolicyForward``, which may be sharded.
    Raises ImportError if vLLM is asked for and not installed, ConfigError for a ``rollout.dtype`` other than the
    policy's without vLLM.
    """
    rollout, name = config.rollout, engine_name(config)
    if name == "transformers":
        check_own_weights(config)
        return TransformersEngine(policy, rollout.batch_size, forward)
    if name == "server":
        from rethinker.rollout.server.engine import ServerEngine

        return ServerEngine.connect(config, policy, max_images=max_images, max_prompt=max_prompt)
    return VllmEngine(
        policy,
        config.model.path,
        max_new_tokens=rollout.max_new_tokens,
        dtype=config.model.dtype if rollout.dtype == "auto" else rollout.dtype,
        gpu_memory_utilization=rollout.gpu_memory_utilization,
        tensor_parallel_size=rollout.tensor_parallel_size,
        max_images=max_images,
        max_prompt=max_prompt,
    )
