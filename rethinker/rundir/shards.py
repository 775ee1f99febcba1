"""Named tensors in safetensors files, written by all ranks, each its own shards, and read on any number of ranks.

torch's own format (``HuggingFaceStorageWriter``): a file says where in the whole tensor each of its pieces starts, so
that nothing is gathered and nothing pickled. A tensor that is whole on several ranks is written by one of them. Run on
CPUs by gloo; not run on GPUs.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from rethinker.rundir.together import describe, ranks

FILE_BYTES = 10**9  # of a rank's file: while it is written its bytes are in memory twice


def save_shards(folder: Path, tensors: Mapping[str, Tensor], file_bytes: int = FILE_BYTES) -> None:
    """Write ``tensors`` (DTensors or plain ones, on all ranks the same names) into ``folder``. Collective.

    Raises OSError on every rank where one could not write. Scalars are refused: the format has no pieces of them.
    """
    assert all(tensor.dim() for tensor in tensors.values())
    if not tensors:
        return
    files: dict[str, int] = {}
    number, size = 1, 0
    for name, tensor in tensors.items():
        own = tensor.numel() * tensor.element_size() // ranks()
        if size and size + own > file_bytes:
            number, size = number + 1, 0
        files[name] = number
        size += own
    writer = HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=files, save_distributed=True)
    try:
        with _quiet():
            dcp.save(dict(tensors), storage_writer=writer, no_dist=not dist.is_initialized())
    except CheckpointException as error:  # of all ranks, and no Exception
        failures = {rank: describe(failure) for rank, (failure, _) in error.failures.items()}
        raise OSError("; ".join(f"rank {rank}: {words}" for rank, words in sorted(failures.items()))) from error


def saved_tensors(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """The whole shape and the type of each tensor that was saved in ``folder``."""
    found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata if folder.is_dir() else {}
    facts = {name: meta for name, meta in found.items() if isinstance(meta, TensorStorageMetadata)}
    return {name: (meta.size, meta.properties.dtype) for name, meta in facts.items()}


def load_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill ``tensors`` in place, of a DTensor this rank's part, from what was saved in ``folder`` by any number of
    ranks. Every rank reads for itself: not collective."""
    if tensors:
        with _quiet():
            dcp.load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warning that a single process is a single process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
