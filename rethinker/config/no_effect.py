"""Settings that were changed and change nothing: a grid over them would compare a run with itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from rethinker.config.run_config import RunConfig
from rethinker.config.settings import RethinkConfig

Condition = Callable[[RunConfig], bool]


def _never(config: RunConfig) -> bool:
    return False


@dataclass(frozen=True)
class Rule:
    """Settings and what they need to have an effect: ``stage`` asks a stage's settings (its training), ``run`` the
    run's own (its evaluations; see ``EvaluationConfig``)."""

    needs: str
    keys: tuple[str, ...]
    stage: Condition = _never
    run: Condition = _never


def without_effect(config: RunConfig, *, vllm: bool) -> list[str]:
    """``key=value (needs ...)`` of every setting, of the run or of a stage, that differs from its default and changes
    neither training nor evaluation. ``vllm``: whether vLLM generates, here or in servers.

    Known are the settings of the method's parts, of LoRA, of the evaluation and of the engine. Settings of
    ``tracking`` and ``launch`` never change a result and are not checked.
    """
    stages = [config.for_stage(index) for index in range(len(config.stages))]
    default = RunConfig()
    found = []
    for rule in [*RULES, *_engine_rules(vllm)]:
        for key in rule.keys:
            changed = [stage for stage in stages if _value(stage, key) != _value(default, key)]
            works = any(rule.stage(stage) for stage in changed)
            works = works or (_value(config, key) != _value(default, key) and rule.run(config))
            if changed and not works:
                values = dict.fromkeys(str(_value(stage, key)) for stage in changed)
                found.append(f"{key}={' and '.join(values)} (needs {rule.needs})")
    return found


def _value(config: RunConfig, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


def _rethinks(config: RunConfig) -> bool:
    return config.rethink.fraction > 0


def _tests_second_looks(config: RunConfig) -> bool:
    return config.data.test is not None and bool({"forced", "bound"} & set(config.evaluation.modes))


def _off_policy(config: RunConfig) -> bool:
    """Whether a ratio can differ from 1: an update after another one, or on samples of earlier episodes."""
    return config.batches(config.samples_per_episode) > 1 or config.replay.outlives


_ALSO_TESTED = ("rethink.min_second_look_tokens", "rethink.temperature", "rethink.seam")
_NLL = ("rethink.nll_on", "rethink.nll_scale")
_TRAINED = tuple(
    key
    for key in (f"rethink.{field.name}" for field in fields(RethinkConfig))
    if key not in (*_ALSO_TESTED, "rethink.fraction", *_NLL)
)

RULES = (
    Rule(
        "replay.mode=ssr",
        ("replay.alpha", "replay.lifetime", "replay.capacity"),
        stage=lambda config: config.replay.mode == "ssr",
    ),
    Rule(
        "replay.mode=dynamic_sampling",
        ("replay.max_rollouts",),
        stage=lambda config: config.replay.mode == "dynamic_sampling",
    ),
    Rule("rethink.fraction above 0", _TRAINED, stage=_rethinks),
    Rule(
        "rethink.fraction above 0, or data.test and a mode of second looks",
        _ALSO_TESTED,
        stage=_rethinks,
        run=_tests_second_looks,
    ),
    Rule(
        "rethink.fraction and rethink.nll_coef above 0",
        _NLL,
        stage=lambda config: _rethinks(config) and config.rethink.nll_coef > 0,
    ),
    Rule("grpo.kl_coef above 0", ("grpo.kl_estimator",), stage=lambda config: config.grpo.kl_coef > 0),
    Rule("grpo.policy_coef above 0", ("grpo.ratio",), stage=lambda config: config.grpo.policy_coef > 0),
    Rule(
        "grpo.policy_coef above 0, and several updates per episode or samples of earlier ones: else every ratio is 1",
        ("grpo.objective", "grpo.clip_low", "grpo.clip_high", "grpo.dual_clip"),
        stage=lambda config: config.grpo.policy_coef > 0 and _off_policy(config),
    ),
    Rule(
        "model.lora_rank above 0",
        ("model.lora_alpha", "model.lora_targets"),
        run=lambda config: config.model.lora_rank > 0,
    ),
    Rule(
        "model.lora_rank=0: with adapters the tower is frozen anyway",
        ("model.freeze_vision",),
        run=lambda config: config.model.lora_rank == 0,
    ),
    Rule("data.pass_rate", ("data.pass_rate_column",), run=lambda config: config.data.pass_rate is not None),
    Rule("data.columns", ("data.columns_of",), run=lambda config: bool(config.data.columns)),
    Rule(
        "data.validation",
        ("evaluation.every", "evaluation.every_tokens"),
        stage=lambda config: config.data.validation is not None,
    ),
    Rule(
        "data.test",
        ("data.test_limit", "evaluation.samples", "evaluation.modes"),
        run=lambda config: config.data.test is not None,
    ),
    Rule(
        "rollout.engine=server",
        ("rollout.servers", "rollout.weight_transfer", "rollout.server_timeout", "rollout.server_patience"),
        run=lambda config: config.rollout.engine == "server",
    ),
)


def _engine_rules(vllm: bool) -> Iterator[Rule]:
    if vllm:
        yield Rule("the transformers engine", ("rollout.batch_size",))
    else:
        yield Rule("the vLLM engine", ("rollout.gpu_memory_utilization", "rollout.tensor_parallel_size"))
