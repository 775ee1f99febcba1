"""Who races, and the one config that all of them are told: experiments/tiny.yaml with the entrant's own lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rethinker.config import RunConfig, load_config

CONFIG = Path(__file__).parents[1] / "tiny.yaml"
ENDLESS = 1_000_000  # episodes: the clock ends a run


@dataclass(frozen=True)
class Entrant:
    """A method: its name in tables, the script that runs it, its lines of config. ``rethinks``: it has the first two
    stages of tiny.yaml (GRPO-SSR, then Forced Rethinking), else one stage until the clock ends it."""

    title: str
    script: str
    overrides: tuple[str, ...]
    rethinks: bool = False


OURS, TRANSFORMERS = "run_ours.py", "rollout.engine=transformers"
ENTRANTS = {
    "trl-grpo": Entrant("TRL GRPO", "run_trl.py", ("replay.mode=grpo", TRANSFORMERS)),
    "grpo": Entrant("GRPO", OURS, ("replay.mode=grpo", TRANSFORMERS)),
    "ssr": Entrant("GRPO-SSR", OURS, ("replay.mode=ssr", TRANSFORMERS)),
    "ssr-rethink": Entrant("GRPO-SSR + Forced Rethinking", OURS, ("replay.mode=ssr", TRANSFORMERS), rethinks=True),
    "ssr-rethink-vllm": Entrant(
        "GRPO-SSR + Forced Rethinking, vLLM", OURS, ("replay.mode=ssr", "rollout.engine=vllm"), rethinks=True
    ),
}
MAIN = ("trl-grpo", "grpo", "ssr", "ssr-rethink")  # all with transformers' weights as their engine


def race_config(name: str, seed: int, lr: float, folder: str, overrides: Sequence[str] = ()) -> RunConfig:
    """What the entrant ``name`` is told. ``overrides``: lines for every entrant, after its own."""
    entrant = ENTRANTS[name]
    config = load_config(
        CONFIG,
        [
            f"runs_dir={folder}",
            f"name={name}",
            f"seed={seed}",
            f"optim.lr={lr}",
            "launch.processes=1",
            "launch.threads=1",
            "evaluation.every=0",  # the race has its own, with its clock stopped
            "tracking.save_every=0",
            *entrant.overrides,
            *overrides,
        ],
    )
    first, last = config.stages[:2]
    stages = (first, replace(last, episodes=ENDLESS)) if entrant.rethinks else (replace(first, episodes=ENDLESS),)
    return replace(config, stages=stages)
