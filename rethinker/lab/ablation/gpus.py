"""The GPUs of a machine, divided among the slots of a grid."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import takewhile

from rethinker.config import RunConfig
from rethinker.config.schema import ConfigError
from rethinker.lab.jobs.accelerate import read_accelerate_file


def visible_gpus() -> list[str]:
    """The GPUs that CUDA would show, as CUDA_VISIBLE_DEVICES names them; [] if it shows none.

    As CUDA does, the list is read up to its first entry that names no GPU ("-1" hides them all).
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        import torch  # here: it takes seconds

        return [str(index) for index in range(torch.cuda.device_count())]
    items = (item.strip() for item in named.split(","))
    return list(takewhile(lambda item: item.isdecimal() or item.startswith(("GPU-", "MIG-")), items))


def slot_gpus(gpus: Sequence[str], slots: int) -> list[str]:
    """CUDA_VISIBLE_DEVICES of each of ``slots`` slots: equal and disjoint parts of ``gpus``; "" without GPUs.

    Raises ConfigError if there are GPUs, but fewer than slots: two runs in one GPU's memory end one another.
    """
    if slots < 1:
        raise ConfigError(f"slots={slots}: needs at least 1")
    share = len(gpus) // slots
    if gpus and not share:
        raise ConfigError(f"slots={slots}, but {len(gpus)} GPUs are visible: at most one slot per GPU")
    return [",".join(gpus[slot * share : (slot + 1) * share]) for slot in range(slots)]


def check_processes(configs: Iterable[RunConfig], gpus: Sequence[str], slots: int) -> None:
    """Raises ConfigError for a run that has more processes than its slot has GPUs: it would end when they start."""
    share = len(gpus) // slots
    for config in configs:
        count, source = config.launch.processes, "launch.processes"
        if config.launch.accelerate:
            count = read_accelerate_file(config.launch.accelerate).get("num_processes", 1)
            source = f"{config.launch.accelerate}: num_processes"
        if gpus and count > share:
            raise ConfigError(
                f"run {config.name}: {source}={count}, but each of {slots} slots has {share} of {len(gpus)} GPUs: "
                "make it smaller, or slots"
            )
