"""From measured steps to the numbers of the table: medians, shares, ratios and growth."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from world import Point

Step = Mapping[str, Any]  # what a worker answers


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


SHARES = ("generation", "logprobs", "forward", "backward")  # parts that are matrix products for the most part


def measures(step: Step, point: Point, flops: Mapping[str, int] | None = None) -> dict[str, float]:
    """All figures of a step: seconds, counts, MB and rates.

    ``orchestration_s`` is what is neither generation nor forward, backward or optimiser. ``flops``: the operations of
    each part of such a step, of which ``<part>_gflop`` and the part's rate as a share of the machine's own
    (``<part>_percent``) come, by CPU seconds.
    """
    parts: Mapping[str, float] = step["parts"]
    orchestration = step["wall"] - sum(parts.values())
    return {
        "step_s": step["wall"],
        "cpu_s": step["cpu"],
        **{f"{part}_s": seconds for part, seconds in parts.items()},
        "orchestration_s": orchestration,
        "orchestration_percent": 100 * orchestration / step["wall"],
        "peak_mb": step["peak_mb"],
        "images_encoded": sum(step["images"].values()),
        "vision_calls": sum(step["vision_calls"].values()),
        "images_preprocessed": step["preprocessed"],
        "samples_per_s": point.samples / step["wall"],
        "tokens_per_s": point.samples * point.tokens / parts["generation"],
        **(shares(step, flops) if flops else {}),
    }


def shares(step: Step, flops: Mapping[str, int]) -> dict[str, float]:
    """What each part makes of the rate at which this process multiplied large matrices just after the step, in the type
    of the part's arithmetic; GFLOP/s.
    """
    rates: Mapping[str, float] = step["rates"]
    found = {f"{name}_gflops": rates[name] / 1e9 for name in ("large", "training", "large_decoding", "decoding")}
    for part in SHARES:
        seconds, rate = step["parts_cpu"][part], rates["large_decoding" if part == "generation" else "large"]
        found[f"{part}_gflop"] = flops[part] / 1e9
        found[f"{part}_percent"] = 100 * flops[part] / seconds / rate if seconds else 0.0
    return found


def summarise(
    steps: Sequence[Step], point: Point, flops: Mapping[str, int] | None = None
) -> dict[str, dict[str, float]]:
    """The spread of every figure over the steps; ``flops``: see ``measures``. Raises ValueError without steps."""
    if not steps:
        raise ValueError(f"{point.name}: no measured steps")
    rows = [measures(step, point, flops) for step in steps]
    return {name: spread([row[name] for row in rows]) for name in rows[0]}


def compare(theirs: Sequence[Step], ours: Sequence[Step], point: Point) -> dict[str, dict[str, float] | None]:
    """How many times our figure theirs is: of the medians, and the smallest and largest of the steps that were made
    one after the other. None where a figure of ours is 0. Raises ValueError where the numbers of steps differ.
    """
    pairs = [(measures(their, point), measures(our, point)) for their, our in zip(theirs, ours, strict=True)]
    their_spread, our_spread = summarise(theirs, point), summarise(ours, point)
    ratios: dict[str, dict[str, float] | None] = {}
    for name in our_spread:
        if not all(our[name] for _, our in pairs):
            ratios[name] = None
            continue
        paired = [their[name] / our[name] for their, our in pairs]
        of_medians = their_spread[name]["median"] / our_spread[name]["median"]
        ratios[name] = {"of_medians": of_medians, "paired_min": min(paired), "paired_max": max(paired)}
    return ratios


def growth(sizes: Sequence[float], seconds: Sequence[float]) -> list[dict[str, float]]:
    """From each size to the next: how many times the size and how many times the seconds."""
    return [
        {"from": sizes[i], "to": sizes[i + 1], "size": sizes[i + 1] / sizes[i], "time": seconds[i + 1] / seconds[i]}
        for i in range(len(sizes) - 1)
    ]
