"""Setup of every process: check accelerate's settings, deterministic algorithms, tune glibc malloc (ours)."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import DistributedType

# glibc's mallopt(3): parameters, and the largest threshold that it takes on 64-bit machines.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_THRESHOLD = 2**25
KEPT = 2**31 - 1  # bytes


def check_accelerator(accelerator: Any) -> None:
    """Raises RuntimeError if the processes were started in a way that cannot train or would change the loss."""
    started, here = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if started != accelerator.num_processes:
        raise RuntimeError(
            f"{started} processes were started but accelerate sees {accelerator.num_processes}: each would "
            "train alone; start the run with `rethinker train` or `accelerate launch`"
        )
    if "LOCAL_WORLD_SIZE" in os.environ and here != started:
        raise RuntimeError(f"{here} of {started} processes are on this machine: a run must use a single machine")
    kind, plain = accelerator.distributed_type, ("NO", "MULTI_CPU", "MULTI_GPU")
    if kind not in [DistributedType[name] for name in plain]:
        raise RuntimeError(f"accelerate: distributed_type {kind.value} is not supported, only {', '.join(plain)}")
    if accelerator.mixed_precision != "no":
        raise RuntimeError(
            f"accelerate: mixed_precision {accelerator.mixed_precision} would change the loss; set it to no "
            "(model.dtype sets the type of the weights)"
        )
    if accelerator.gradient_accumulation_steps != 1:
        raise RuntimeError(
            f"accelerate: gradient_accumulation_steps {accelerator.gradient_accumulation_steps} would change the loss; "
            "set it to 1 (optim.micro_batch_tokens splits a batch)"
        )


def use_deterministic_algorithms() -> None:
    """From now on this process computes the same bits from the same input every time, or raises RuntimeError for an
    operation that has no such algorithm. To be called before the first kernel runs and before vLLM is imported.

    On CUDA the default algorithms add in the order in which threads come: the gradient of ``index_select`` with
    repeated indices (shared prefixes have them), attention's gradient, matrix products on several streams. cuBLAS,
    flash-attention and vLLM read what they are to do from the environment; what a user has set there stays. Not run by
    us on a GPU.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("FLASH_ATTENTION_DETERMINISTIC", "1")
    if torch.cuda.is_available():
        os.environ.setdefault("VLLM_BATCH_INVARIANT", "1")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


@contextmanager
def warn_of_nondeterminism() -> Iterator[None]:
    """For code of others (vLLM's sampler): operations without a deterministic algorithm warn instead of raising."""
    on, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(on, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(on, warn_only=warn_only)


def keep_freed_memory() -> bool:
    """Let this process keep up to 2 GiB of freed memory; returns whether malloc could be tuned (glibc only).

    A training step frees and allocates the same memory over and over; otherwise the kernel would return and zero it
    page by page each time.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_THRESHOLD) and mallopt(M_TRIM_THRESHOLD, KEPT))
