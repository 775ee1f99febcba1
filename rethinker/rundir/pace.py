"""How long a run still takes: its episodes or a budget, whichever ends first. Nothing here is from the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

RECENT = 10  # episodes that the pace is taken from


def seconds_left(episodes: Sequence[Mapping[str, Any]], planned: int, budget: Mapping[str, Any]) -> float | None:
    """Seconds until ``planned`` episodes have ended or the run's ``budget`` (a config's section) is used up, at the
    pace of the last ones; None from fewer than two. ``episodes``: all their lines of metrics.jsonl so far."""
    recent = episodes[-RECENT - 1 :]
    if len(recent) < 2:
        return None
    first, last = recent[0], recent[-1]
    count = last["episode"] - first["episode"]
    left = planned - last["episode"]
    spent = sum(line.get("time/episode") or 0.0 for line in episodes)
    uses = {
        "tokens": (last.get("tokens/generated"), first.get("tokens/generated")),
        "steps": (last.get("step"), first.get("step")),
        "seconds": (spent, spent - sum(line.get("time/episode") or 0.0 for line in recent[1:])),
    }
    for name, (now, before) in uses.items():
        limit = budget.get(name)
        if limit is not None and now is not None and before is not None and now > before:
            left = min(left, (limit - now) * count / (now - before))
    return float(max(0.0, left * (last["seconds"] - first["seconds"]) / count))
