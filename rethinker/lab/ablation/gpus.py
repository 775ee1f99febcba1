"""The GPUs of a machine, divided among the slots of a grid."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path

import yaml

from rethinker.config import RunConfig
from rethinker.config.schema import ConfigError
from rethinker.lab.jobs.claim import check_accelerate_file


def visible_gpus() -> list[str]:
    """The GPUs that CUDA would show, as CUDA_VISIBLE_DEVICES names them; [] where it shows none.

    As CUDA does, the list is read up to its first entry that names no GPU ("-1" hides them all).
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        import torch  # here: it takes seconds

        return [str(index) for index in range(torch.cuda.device_count())]
    return list(takewhile(_names_a_gpu, (item.strip() for item in named.split(","))))


def _names_a_gpu(item: str) -> bool:
    return item.isdecimal() or item.startswith(("GPU-", "MIG-"))


def slot_environments(gpus: Sequence[str], slots: int) -> list[dict[str, str]]:
    """The variables of each of ``slots`` slots: GPUs of its own, equal and disjoint parts; {} without GPUs.

    Raises ConfigError where there are GPUs, but fewer than slots: two runs in one GPU's memory end one another.
    """
    if slots < 1:
        raise ConfigError(f"slots={slots}: needs at least 1")
    if slots == 1 or not gpus:
        return [{} for _ in range(slots)]
    share = len(gpus) // slots
    if not share:
        raise ConfigError(f"slots={slots}, but {len(gpus)} GPUs are visible: at most one slot a GPU")
    return [{"CUDA_VISIBLE_DEVICES": ",".join(gpus[slot * share : (slot + 1) * share])} for slot in range(slots)]


def check_processes(configs: Iterable[RunConfig], gpus: Sequence[str], slots: int) -> None:
    """Raises ConfigError for a run that has more processes than its slot has GPUs: it would end when they start."""
    share = len(gpus) // slots
    for config in configs:
        count, source = config.launch.processes, "launch.processes"
        if config.launch.accelerate:
            check_accelerate_file(config.launch.accelerate)
            settings = yaml.safe_load(Path(config.launch.accelerate).read_text(encoding="utf-8"))
            count, source = settings.get("num_processes", 1), f"{config.launch.accelerate}: num_processes"
        if gpus and count > share:
            raise ConfigError(
                f"run {config.name}: {source}={count}, but each of {slots} slots has {share} of {len(gpus)} GPUs: "
                "make it smaller, or slots"
            )
