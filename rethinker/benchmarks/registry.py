"""The benchmarks by the names of the command line."""

from __future__ import annotations

from rethinker.benchmarks.base import Benchmark
from rethinker.benchmarks.emma import EMMA
from rethinker.benchmarks.mathverse import MathVerse
from rethinker.benchmarks.mathvision import MathVision
from rethinker.benchmarks.mathvista import MathVista
from rethinker.benchmarks.mega import MegaBench
from rethinker.benchmarks.mmmu import MMMU, MMMUPro

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        MathVista(),
        MathVerse(),
        MathVision(),
        MMMUPro(),
        MMMU(),
        EMMA(),
        MegaBench(),
    )
}


def find(text: str) -> tuple[Benchmark, str]:
    """Benchmark and split of ``name`` or ``name:split``; without one the split that the paper reports.

    Raises ValueError for another name or split, listing those there are.
    """
    name, colon, split = text.partition(":")
    if name not in BENCHMARKS:
        raise ValueError(f"no benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
    benchmark = BENCHMARKS[name]
    split = split if colon else next(iter(benchmark.splits))
    if split not in benchmark.splits:
        raise ValueError(f"{name}: no split {split!r}; there are {', '.join(benchmark.splits)}")
    return benchmark, split
