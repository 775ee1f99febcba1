"""What a vLLM engine is told of the machine (where its workers run, how much memory it takes), and the caller's process
kept as it was while the engine is made. Nothing here imports vllm.
"""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from rethinker.config.schema import ConfigError
from rethinker.policy.policy import Policy

CPU_KV_BYTES = 2**30  # KV cache on a CPU, at most: its pages are written when the engine starts, 2.6 s a GiB
CPU_BLOCK_TOKENS = 32  # KV-cache block on a CPU: the smallest that its attention takes; 128, its default, shares little
CPU_SEQUENCES = 256  # parallel sequences that the KV cache on a CPU is made for (vLLM's default maximum)
USUAL_TEXT_TOKENS = 256  # text of a prompt that the KV cache on a CPU is made for; longer ones run fewer at a time
PREFILL_TOKENS = 4096  # prompt tokens of one engine step on a CPU
TEXT_TOKENS = 2048  # room in a prompt beside its images


def check_attention(policy: Policy, *, gpu: bool, engine: str) -> None:
    """Raises ConfigError for a family whose attention vLLM does not compute there."""
    if policy.family.bidirectional and not gpu:
        raise ConfigError(
            f"rollout.engine={engine}: the tokens of an image of {policy.model.config.model_type} see each other, "
            "which vLLM's attention on CPUs does not compute: set rollout.engine=transformers"
        )


def engine_arguments(
    policy: Policy,
    *,
    gpu: bool,
    dtype: str,
    max_images: int,
    max_prompt: int,
    max_new_tokens: int,
    gpu_memory_utilization: float,
    tensor_parallel_size: int,
) -> dict[str, Any]:
    """vLLM's arguments for an engine or a server of this policy's model; see ``VllmEngine``. ``gpu``: whether it runs
    there. The policy's weights are not looked at.

    Raises ValueError for a ``tensor_parallel_size`` above 1 in several processes.
    """
    context = _context(policy, max_images, max_prompt, max_new_tokens)
    arguments = {
        "max_model_len": context,
        "dtype": dtype,
        "limit_mm_per_prompt": {"image": max_images, "video": 0},
        "mm_processor_cache_gb": 0,  # the trainer's image store holds what is preprocessed
        "mm_device_do_normalize": False,  # the store's pixels are normalised
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",  # or the checkpoint's repetition penalty would slip in
        **policy.family.vllm_arguments(policy.processor),
        **placement(gpu, tensor_parallel_size),
    }
    if gpu:
        return {**arguments, "gpu_memory_utilization": gpu_memory_utilization}
    return {
        **arguments,
        "enforce_eager": True,
        "block_size": CPU_BLOCK_TOKENS,
        "kv_cache_memory_bytes": _kv_bytes(policy, dtype, context, max_images, max_new_tokens),
        # A seeded request whose prefill is split ends vLLM 0.32 on a CPU ("CPU Generator does not use offset").
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(PREFILL_TOKENS, context),
    }


def placement(gpu: bool, tensor_parallel_size: int) -> dict[str, Any]:
    """vLLM's arguments that say where the engine's workers run, in one or in several (torchrun's) processes.

    Left to itself every engine would take cuda:0; the external launcher's executor takes cuda:LOCAL_RANK. Engines of
    one worker stay independent: vLLM makes a group of its own of each rank.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1:
        return {"tensor_parallel_size": tensor_parallel_size}
    if tensor_parallel_size > 1:
        raise ValueError(
            f"rollout.tensor_parallel_size={tensor_parallel_size} in {processes} processes: every process has an "
            "engine of its own on its own GPU; set rollout.tensor_parallel_size=1, or start one process"
        )
    return {"tensor_parallel_size": 1} | ({"distributed_executor_backend": "external_launcher"} if gpu else {})


def _context(policy: Policy, max_images: int, max_prompt: int, max_new_tokens: int) -> int:
    """Tokens of the longest prompt with response, within what the model takes."""
    prompt = max(max_images * policy.family.most_tokens(policy.processor) + TEXT_TOKENS, max_prompt)
    return min(policy.context, prompt + max_new_tokens)


def _kv_bytes(policy: Policy, dtype: str, context: int, max_images: int, max_new_tokens: int) -> int:
    """Bytes of the KV cache on a CPU: room for CPU_SEQUENCES usual sequences and one of the longest, up to a bound.

    Where it is too small for what runs in parallel, vLLM runs some of it later.
    """
    config: Any = policy.model.config
    text = config.get_text_config()
    head = int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    token = 2 * text.num_hidden_layers * text.num_key_value_heads * head * getattr(torch, dtype).itemsize
    usual = max_images * policy.family.most_tokens(policy.processor) + USUAL_TEXT_TOKENS + max_new_tokens
    longest = context + 2 * CPU_BLOCK_TOKENS  # begun blocks, and vLLM's empty one
    return token * max(longest, min(CPU_SEQUENCES * usual + longest, CPU_KV_BYTES // token))


@contextmanager
def unchanged_process() -> Iterator[None]:
    """Restore what making an engine changes here: torch's threads, its CPU backend's *replacement of
    torch.set_num_threads by a function that only warns*, and the global random states."""
    threads, set_threads = torch.get_num_threads(), torch.set_num_threads
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of vLLM's own imports
            yield
    finally:
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
