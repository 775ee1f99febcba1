"""Setup of every process: check accelerate's settings, deterministic algorithms, tune glibc malloc (ours)."""

from __future__ import annotations

import ctypes
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, InitProcessGroupKwargs, broadcast_object_list, gather_object

# glibc's mallopt(3): parameters, and the largest threshold that it takes on 64-bit machines.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_THRESHOLD = 2**25
KEPT = 2**31 - 1  # bytes

TIMEOUT = timedelta(hours=2)  # of the process group
PROBE_PATIENCE = 90.0  # seconds; NFS keeps what it knows of a folder for up to 60 (acdirmax)


def process_group_options() -> InitProcessGroupKwargs:
    """How accelerate starts the process group. A rank may wait hours for the others: for their rollouts, and for the
    main process while it saves and tests.

    On GPUs objects are gathered by gloo, beside NCCL (not run by us on a GPU): NCCL alone pads those of all ranks to
    the longest one, in the GPU's memory. torch takes the CPU's backend for objects where there is one.
    """
    if torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        return InitProcessGroupKwargs(backend="cuda:nccl,cpu:gloo", timeout=TIMEOUT)
    return InitProcessGroupKwargs(timeout=TIMEOUT)


def check_accelerator(accelerator: Any) -> None:
    """Raises RuntimeError if the processes were started in a way that cannot train or would change the loss."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:
        raise RuntimeError(
            f"{started} processes were started but accelerate sees {accelerator.num_processes}: each would "
            "train alone; start the run with `rethinker train` or `accelerate launch`"
        )
    kind, plain = accelerator.distributed_type, ("NO", "MULTI_CPU", "MULTI_GPU")
    if kind == DistributedType.DEEPSPEED:
        raise RuntimeError(
            "accelerate: DeepSpeed is not supported. It steps inside backward, so that a gradient that is not finite "
            "could not leave the weights as they were; its optimiser cannot be made anew for a stage; and its "
            "checkpoints are pickles. Shard the policy by torch instead: model.sharding=full"
        )
    if kind not in [DistributedType[name] for name in plain]:
        raise RuntimeError(
            f"accelerate: distributed_type {kind.value} is not supported, only {', '.join(plain)} (model.sharding puts "
            "the model in shards without it)"
        )
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


def on_several_machines() -> bool:
    """Whether processes of this run are on other machines."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) < int(os.environ.get("WORLD_SIZE", "1"))


def check_machines(accelerator: Any, folder: Path, settings: str, patience: float = PROBE_PATIENCE) -> None:
    """Raises RuntimeError, on all ranks, if those on other machines see another folder of the run or have other
    ``settings``. Rank 0 writes a word into the folder, which every rank has to read within ``patience`` seconds (a
    network file system may show a new file late)."""
    probe = folder / f".probe-{secrets.token_hex(8)}"
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text(probe.name, encoding="utf-8")
    said = [(os.fspath(probe), settings)]
    broadcast_object_list(said)  # from rank 0
    name, its_settings = said[0]
    where = f"{socket.gethostname()} (rank {accelerator.process_index})"
    problem = ""
    if settings != its_settings:
        problem = f"{where} has other settings than rank 0"
    elif not _is_read(folder / Path(name).name, patience):
        problem = f"{where} does not see in {folder.absolute()} what rank 0 has written there"
    problems = [each for each in gather_object([problem]) if each]
    if accelerator.is_main_process:
        probe.unlink()
    if problems:
        raise RuntimeError(
            f"{'; '.join(problems)}: a run of several machines needs the same config on all of them, and its runs_dir "
            "on a file system that they share"
        )


def _is_read(probe: Path, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while True:
        with suppress(OSError):
            os.close(os.open(probe.parent, os.O_RDONLY))  # NFS looks again at a folder that is opened
            if probe.read_text(encoding="utf-8") == probe.name:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)


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


def return_freed_memory() -> bool:
    """Give freed memory back to the kernel; returns whether malloc could be asked (glibc only).

    Arrays of preprocessed images come and go below glibc's threshold for blocks of their own, and leave holes that are
    not returned by themselves: over 1,500 images of 800 x 800 pixels a process grew by 2 GB without having more in use.
    """
    if sys.platform != "linux":
        return False
    try:
        malloc_trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # another C library
        return False
    malloc_trim(0)
    return True
