"""Writing an export: what goes into its folder, and the README beside it that says what could not be carried over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from rethinker.config import BudgetConfig, RunConfig
from rethinker.lab.export import prime_rl, verl
from rethinker.lab.export.data import Say, Splits, read_splits

Target = Literal["verl", "prime-rl"]
WRITERS: dict[Target, Callable[[RunConfig, Splits, Path], None]] = {"verl": verl.write, "prime-rl": prime_rl.write}


def export(config: RunConfig, to: Target, folder: Path, say: Say) -> None:
    """Write ``config`` for another trainer into ``folder``, which must not hold anything.

    Raises ValueError for a folder that is not empty and for data without a usable row.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--out {folder}: there is something already; give a new folder")
    splits = read_splits(config, say)
    folder.mkdir(parents=True, exist_ok=True)
    WRITERS[to](config, splits, folder)
    (folder / "README.md").write_text(readme(config, to, splits), encoding="utf-8")


def readme(config: RunConfig, to: Target, splits: Splits) -> str:
    """What the export is, how it is started, what it has not."""
    counts = ", ".join(f"{name} {len(queries):,}" for name, queries in splits.items())
    return "\n".join(
        [
            f"# {config.name} for {to}",
            "",
            f"Written by `rethinker export`: queries ({counts}) with their images, the grader as a reward, and the",
            f"numbers of the config. The training itself was not run in {to} by the authors of Rethinker.",
            "",
            *START[to],
            "",
            "Not carried over:",
            "",
            *(f"- {item}" for item in (*left_out(config), *LEFT_OUT[to])),
            "",
        ]
    )


START: dict[Target, tuple[str, ...]] = {
    "verl": (
        "    pip install verl==0.9.1 qwen-vl-utils math-verify && pip install --no-deps PATH/TO/RETHINKER",
        "    bash train.sh trainer.n_gpus_per_node=8   # more overrides may follow",
        "",
        "`train.parquet` and its neighbours are rows of verl's RLHFDataset, `reward.py` is its custom reward function,",
        "`train.sh` holds its overrides. A step of verl is an episode of Rethinker: `data.train_batch_size` queries,",
        "and an update for each `ppo_mini_batch_size` of them.",
    ),
    "prime-rl": (
        "    uv pip install math-verify && uv pip install --no-deps PATH/TO/RETHINKER -e .   # in its environment",
        "    uv run rl @ rl.toml --dry-run   # prime-rl checks every key; then without --dry-run",
        "",
        "`rethinker_tasks` is a taskset of verifiers 0.4 that reads `data/`. `rl.toml` has the layout of prime-rl's",
        "examples of 2026 (`orchestrator.train.source`); its keys change often, and the dry run names those that did.",
        "prime-rl trains the vision-language models of its own list only (its docs: multimodal).",
    ),
}
LEFT_OUT: dict[Target, tuple[str, ...]] = {
    "verl": (
        "the ban on special tokens in responses",
        "prompts computed once for all responses (shared-prefix forward); equal results, more time",
    ),
    "prime-rl": (
        "the policy loss: prime-rl's own (masked importance ratios, its KL term) with its own advantages, not `grpo.*`",
        "`rollout.top_p` (1 there in training) and the warm-up of the learning rate",
        "limits of an image's pixels: set min_pixels and max_pixels in the checkpoint's preprocessor_config.json",
        "episodes of one behaviour policy: its rollouts run ahead of training, by `max_off_policy_steps`",
        "the vision tower, which stays frozen there, and weights in float32: it trains these models in bfloat16",
    ),
}


def left_out(config: RunConfig) -> Iterator[str]:
    """What no other trainer has, of what this config uses."""
    stages = [config.for_stage(index) for index in range(len(config.stages))]
    if any(stage.replay.mode == "ssr" for stage in stages):
        yield "Selective Sample Replay (`replay.*`); its rule is in rethinker/replay.py, pure and importable"
    if any(stage.replay.mode == "filter" for stage in stages):
        yield "leaving out samples with zero advantage without a refill (`replay.mode=filter`)"
    if any(stage.rethink.fraction for stage in stages):
        yield (
            "Forced Rethinking and its NLL loss (`rethink.*`); choosing, splicing and keeping are in "
            "rethinker/rethink.py, pure and importable"
        )
    if any(stage.reward.token_price for stage in stages):
        yield "the price of a token (`reward.token_price`): the reward there is correctness"
    if any(stage.grpo.policy_coef != 1 for stage in stages):
        yield "the weight of the policy loss (`grpo.policy_coef`)"
    if any(stage.budget != BudgetConfig() for stage in stages):
        yield "ends by generated tokens, updates or seconds (`budget.*`): it trains for the episodes of all stages"
    if any(stage.evaluation.every_tokens for stage in stages):
        yield "validations by generated tokens (`evaluation.every_tokens`)"
    if config.rollout.engine == "server":
        yield "servers on GPUs of their own (`rollout.engine=server`): how GPUs are shared out is the other trainer's"
    if config.rollout.overlap:
        yield "the next episode's rollouts during training, one episode off-policy (`rollout.overlap`)"
    if len(stages) > 1:
        rest = ", ".join(stage.name for stage in config.stages[1:])
        yield f"stages: all steps have the settings of the first, {config.stages[0].name}; not those of {rest}"
    if config.data.test:
        yield "the evaluation on the test split (pass@k, forced and bound second looks): `rethinker evaluate` does it"
    yield "the canary, which compares engine and trainer after every synchronisation of weights"
