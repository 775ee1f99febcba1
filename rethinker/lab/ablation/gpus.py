"""The GPUs of a machine, divided among the slots of a grid."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rethinker.config import RunConfig
from rethinker.config.schema import ConfigError
from rethinker.lab.jobs.accelerate import read_accelerate_file


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
