"""How long a run still takes: each stage its episodes or a budget, whichever ends first. Nothing here is from the
paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rethinker.rundir.reader import stage_settings

RECENT = 10  # episodes that the pace is taken from


def seconds_left(episodes: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> float | None:
    """Seconds until the stages of the run have had their episodes or have used up their budgets, at the pace of the
    last episodes; None from fewer than two. ``episodes``: all their lines of metrics.jsonl so far; ``settings``: the
    run's config as a plain dict."""
    recent = episodes[-RECENT - 1 :]
    if len(recent) < 2:
        return None
    first, last = recent[0], recent[-1]
    count = last["episode"] - first["episode"]
    spent = sum(line.get("time/episode") or 0.0 for line in episodes)
    uses = {
        "tokens": (last.get("tokens/generated"), first.get("tokens/generated")),
        "steps": (last.get("step"), first.get("step")),
        "seconds": (spent, spent - sum(line.get("time/episode") or 0.0 for line in recent[1:])),
    }
    left = 0.0  # episodes
    stages = list(settings.get("stages") or [])
    names = [stage.get("name") for stage in stages]
    current = names.index(last["stage"]) if last["stage"] in names else 0
    for stage in stages[current:]:
        budget = stage_settings(settings, stage.get("name"))["budget"]  # counted from the start of the run
        most = stage.get("episodes", 1) - sum(line.get("stage") == stage.get("name") for line in episodes)
        for name, (now, before) in uses.items():
            limit = budget[name]
            if limit is not None and now is not None and before is not None and now > before:
                most = min(most, (limit - now) * count / (now - before) - left)
        left += max(0.0, most)
    return float(left * (last["seconds"] - first["seconds"]) / count)
