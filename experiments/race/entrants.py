"""Who races, from where, and the config that all are told: experiments/tiny.yaml with the entrant's lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rethinker.config import RunConfig, load_config

CONFIG = Path(__file__).parents[1] / "tiny.yaml"
ENDLESS = 1_000_000  # episodes: the clock ends a run
REFLECTING = 0.25  # share of an episode's responses, at which the start "reflecting" is there


@dataclass(frozen=True)
class Entrant:
    """A method: its name in tables, the script that runs it, its lines of config."""

    title: str
    script: str
    overrides: tuple[str, ...]


OURS, FORCED = "run_ours.py", "rethink.fraction=0.5"
GRPO, SSR = ("replay.mode=grpo", "rollout.engine=transformers"), ("replay.mode=ssr", "rollout.engine=transformers")
ENTRANTS = {
    "trl-grpo": Entrant("TRL GRPO", "run_trl.py", GRPO),
    "grpo": Entrant("GRPO", OURS, GRPO),
    "ssr": Entrant("GRPO-SSR", OURS, SSR),
    "grpo-rethink": Entrant("GRPO + Forced Rethinking", OURS, (*GRPO, FORCED)),
    "ssr-rethink": Entrant("GRPO-SSR + Forced Rethinking", OURS, (*SSR, FORCED)),
    "ssr-rethink-vllm": Entrant(
        "GRPO-SSR + Forced Rethinking, vLLM", OURS, ("replay.mode=ssr", "rollout.engine=vllm", FORCED)
    ),
}


@dataclass(frozen=True)
class Start:
    """Weights that a race begins from, and who races from there."""

    title: str
    model: str  # the folder, from the repository's root
    methods: tuple[str, ...]


STARTS = {
    "base": Start("From the base", "data/tiny-vlm", ("trl-grpo", "grpo", "ssr", "grpo-rethink", "ssr-rethink")),
    # Where plain GRPO can learn to think twice: made by start.py.
    "reflecting": Start("From a start that reflects", "data/generated/race-start", ("trl-grpo", "grpo", "ssr")),
}


def race_config(
    name: str, seed: int, lr: float, folder: str, overrides: Sequence[str] = (), start: str = "base"
) -> RunConfig:
    """What the entrant ``name`` is told. ``overrides``: lines for every entrant, after its own."""
    config = load_config(
        CONFIG,
        [
            f"runs_dir={folder}",
            f"name={name}",
            f"seed={seed}",
            f"optim.lr={lr}",
            f"model.path={CONFIG.parents[1] / STARTS[start].model}",
            "launch.processes=1",
            "launch.threads=1",
            "evaluation.every=0",  # the race has its own, with its clock stopped
            "tracking.save_every=0",
            *ENTRANTS[name].overrides,
            *overrides,
        ],
    )
    return replace(config, stages=(replace(config.stages[0], episodes=ENDLESS),))
