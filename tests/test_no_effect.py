"""Settings without effect are found, in the run and in its stages, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from rethinker.config import load_config
from rethinker.config.no_effect import RULES, without_effect

ROOT = Path(__file__).parents[1]
SECOND_STAGE = "stages=[{name: a}, {name: b, overrides: {%s}}]"


def keys(*overrides: str, vllm: bool = True) -> list[str]:
    return [text.partition("=")[0] for text in without_effect(load_config(None, overrides), vllm=vllm)]


def test_the_default_and_the_shipped_runs():
    assert keys() == [] == keys(vllm=False)
    assert without_effect(load_config(ROOT / "experiments" / "tiny.yaml"), vllm=True) == []


@pytest.mark.parametrize("override", ["alpha=0", "lifetime=2", "capacity=9"])
def test_replay_without_replay(override):
    name = f"replay.{override.partition('=')[0]}"
    assert keys(f"replay.{override}") == []
    for mode in ("grpo", "filter", "dynamic_sampling"):
        assert keys(f"replay.{override}", f"replay.mode={mode}") == [name]


@pytest.mark.parametrize(
    ("idle", "used"),
    [
        (["replay.max_rollouts=3"], ["replay.mode=dynamic_sampling"]),
        (["rethink.placement=append"], ["rethink.fraction=0.5"]),
        (["rethink.skip_reflective=true"], ["rethink.fraction=0.5"]),
        (["rethink.temperature=0.5"], ["rethink.fraction=0.5"]),
        (["rethink.temperature=0.5"], ["data.test=x"]),
        (["rethink.nll_on=trajectory", "rethink.nll_coef=0.5"], ["rethink.fraction=0.5"]),
        (["rethink.nll_scale=kept"], ["rethink.fraction=0.5"]),
        (["grpo.kl_estimator=k1"], ["grpo.kl_coef=0.1"]),
        (["model.lora_alpha=8"], ["model.lora_rank=8"]),
        (["evaluation.every=2", "evaluation.every_tokens=9"], ["data.validation=x"]),
        (["data.pass_rate_column=PassRate_32BTrained"], ["data.pass_rate=[0,0.9]"]),
        (["evaluation.samples=2", "evaluation.modes=[plain]", "data.test_limit=3"], ["data.test=x"]),
        (["grpo.clip_high=0.3", "optim.train_batch_size=8192"], ["replay.lifetime=2"]),
        (["grpo.objective=cispo", "optim.train_batch_size=8192"], ["replay.lifetime=2"]),
    ],
)
def test_what_a_setting_needs(idle, used):
    names = {item.partition("=")[0] for item in idle} - {"optim.train_batch_size"}
    assert set(keys(*idle)) == names
    assert keys(*idle, *used) == []


def test_imitation_alone_has_no_ratios():
    changed = ["grpo.ratio=sequence", "grpo.objective=cispo", "grpo.clip_high=0.5", "rethink.fraction=0.5"]
    assert keys(*changed) == []
    assert set(keys(*changed, "grpo.policy_coef=0")) == {"grpo.ratio", "grpo.objective", "grpo.clip_high"}


def test_adapters_freeze_the_tower_anyway():
    assert keys("model.freeze_vision=true") == []
    assert keys("model.freeze_vision=true", "model.lora_rank=8") == ["model.freeze_vision"]


def test_tests_know_plain_answers_only():
    assert keys("rethink.temperature=0.5", "data.test=x", "evaluation.modes=[plain]") == ["rethink.temperature"]


def test_one_stage_that_uses_it_is_enough():
    assert keys("rethink.placement=append", SECOND_STAGE % "rethink: {fraction: 0.5}") == []
    assert keys("replay.mode=filter", "replay.alpha=0", SECOND_STAGE % "replay: {mode: ssr}") == []
    assert keys("data.validation=x", SECOND_STAGE % "evaluation: {every: 1}") == []


def test_what_only_a_stage_sets():
    assert keys(SECOND_STAGE % "rethink: {placement: append}") == ["rethink.placement"]
    # Held-out tests have the run's own temperature.
    assert keys("data.test=x", SECOND_STAGE % "rethink: {temperature: 0.5}") == ["rethink.temperature"]


def test_engines():
    assert keys("rollout.tensor_parallel_size=2") == [] and keys("rollout.batch_size=2", vllm=False) == []
    assert keys("rollout.tensor_parallel_size=2", vllm=False) == ["rollout.tensor_parallel_size"]
    assert keys("rollout.batch_size=2") == ["rollout.batch_size"]


def test_the_words():
    config = load_config(None, ["replay.mode=filter", "replay.lifetime=4", SECOND_STAGE % "replay: {lifetime: 2}"])
    assert without_effect(config, vllm=True) == ["replay.lifetime=4 and 2 (needs replay.mode=ssr)"]


def test_every_rule_names_settings():
    """A key that is renamed must be renamed there: an attribute that is missing raises."""
    names = [key for rule in RULES for key in rule.keys]
    assert len(names) == len(set(names))
    for name in names:
        section, _, field = name.partition(".")
        assert hasattr(getattr(load_config(), section), field)
