"""The memory that torch's own allocator hands out, counted by its profiler, and tensors that are still alive: the same
numbers each time.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
from torch.profiler import ProfilerActivity, profile


def peak_bytes(act: Callable[[], object]) -> int:
    """The most bytes that ``act`` holds at once beyond what there was before, on the CPU."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        act()
    held = peak = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def watch_merged(patch: pytest.MonkeyPatch, module: Any) -> list[int]:
    """Filled while ``module`` reads a model's ``merged_weights``: how many merged ones existed after each of them."""
    merged_weights = module.merged_weights
    alive: list[weakref.ref] = []
    counts: list[int] = []

    def watch(model: Any) -> Any:
        own = {value.data_ptr() for value in model.state_dict().values()}
        for name, weight in merged_weights(model):
            if weight.data_ptr() not in own:
                alive.append(weakref.ref(weight))
                counts.append(sum(reference() is not None for reference in alive))
            yield name, weight
            del weight

    patch.setattr(module, "merged_weights", watch)
    return counts
