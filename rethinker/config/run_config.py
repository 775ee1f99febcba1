"""The settings of a whole run: what goes together and what does not, and what a stage changes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rethinker.config.schema import ConfigError, build, option, plain
from rethinker.config.settings import (
    BudgetConfig,
    DataConfig,
    EvaluationConfig,
    GrpoConfig,
    LaunchConfig,
    ModelConfig,
    OptimConfig,
    ReplayConfig,
    RethinkConfig,
    RewardConfig,
    RolloutConfig,
    StageConfig,
    TrackingConfig,
)


@dataclass(frozen=True)
class RunConfig:
    """One run, resolved."""

    name: str = "run"
    runs_dir: str = "runs"  # relative to the working directory, also where relative_to is another
    # Where relative paths start: model.path, data.train, data.validation, data.test, launch.accelerate. On the command
    # line they start in the working directory always.
    relative_to: Literal["working_directory", "repository"] = "working_directory"
    seed: int = option(0, min=0)
    queries_per_episode: int = option(1024, min=1)  # over all ranks (paper)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    grpo: GrpoConfig = field(default_factory=GrpoConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    rethink: RethinkConfig = field(default_factory=RethinkConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    stages: tuple[StageConfig, ...] = (StageConfig(),)

    def __post_init__(self) -> None:
        if self.samples_per_episode % self.optim.train_batch_size:
            raise ConfigError(
                f"optim.train_batch_size={self.optim.train_batch_size} does not divide the {self.samples_per_episode} "
                f"samples of an episode (queries_per_episode {self.queries_per_episode} x rollout.group_size "
                f"{self.rollout.group_size})"
            )
        if self.grpo.objective == "cispo" and self.grpo.dual_clip is not None:
            raise ConfigError(
                f"grpo.dual_clip={self.grpo.dual_clip} with grpo.objective='cispo', which bounds its weights by "
                "clip_low and clip_high alone: set grpo.dual_clip=null, or grpo.objective=clip"
            )
        self._check_rethinking()
        self._check_model()
        self._check_overlap()
        if self.data.pass_rate and self.data.pass_rate[0] > self.data.pass_rate[1]:
            raise ConfigError(f"data.pass_rate={list(self.data.pass_rate)}: the lower bound comes first")
        if not self.evaluation.modes:
            raise ConfigError("evaluation.modes=[]: needs at least one of plain, forced and bound")
        if 1.0 in self.optim.betas:
            raise ConfigError(f"optim.betas={list(self.optim.betas)}: each must be below 1")
        self._check_names()

    def _check_rethinking(self) -> None:
        options, tokens = self.rethink, self.rollout.max_new_tokens
        if self.grpo.policy_coef == 0 and not (options.fraction and options.nll_coef):
            raise ConfigError(
                "grpo.policy_coef=0 leaves the imitation of kept second looks, which needs rethink.fraction and "
                f"rethink.nll_coef above 0, got {options.fraction} and {options.nll_coef}: nothing would be trained"
            )
        if options.fraction == 1.0:
            raise ConfigError("rethink.fraction=1.0: Forced Rethinking needs q < 1, so that y1 is trained too")
        if options.fraction and tokens <= options.min_second_look_tokens:
            raise ConfigError(
                f"rollout.max_new_tokens={tokens} leaves no first response "
                f"rethink.min_second_look_tokens={options.min_second_look_tokens} for a second look: nothing could be "
                "forced"
            )
        most = min(tokens - 1, options.max_kept_tokens or tokens)  # y1 has a token or more
        if options.fraction and options.min_kept_tokens > most:
            raise ConfigError(
                f"rethink.min_kept_tokens={options.min_kept_tokens} with rethink.max_kept_tokens="
                f"{options.max_kept_tokens} and rollout.max_new_tokens={tokens}: no second look could be kept"
            )

    def _check_model(self) -> None:
        model = self.model
        if model.min_pixels and model.max_pixels and model.min_pixels > model.max_pixels:
            raise ConfigError(f"model.min_pixels={model.min_pixels} is above model.max_pixels={model.max_pixels}")
        if model.lora_rank and not model.lora_targets:
            raise ConfigError("model.lora_targets=[] with model.lora_rank above 0: nothing would be trained")
        if model.vision_attention != "sdpa" and model.dtype != "bfloat16":
            raise ConfigError(
                f"model.vision_attention={model.vision_attention!r} with model.dtype={model.dtype!r}: its kernels know "
                "16 bits only; set model.dtype=bfloat16 (with model.lora_rank), or model.vision_attention=sdpa"
            )
        if model.offload and model.sharding == "none":
            raise ConfigError(
                "model.offload=true with model.sharding='none': only shards are offloaded; set model.sharding=full"
            )
        if model.sharding != "none" and model.compile and model.gradient_checkpointing:
            raise ConfigError(
                f"model.sharding={model.sharding!r} with model.compile and model.gradient_checkpointing: the first "
                "training pass fails (torch 2.13, seen on CPUs); set model.compile=false"
            )
        if self.rollout.engine == "transformers":
            check_own_weights(self)

    def _check_overlap(self) -> None:
        if not self.rollout.overlap:
            return
        if self.rollout.engine != "server":
            raise ConfigError(
                f"rollout.overlap=true with rollout.engine={self.rollout.engine!r}: an engine in the trainer's own "
                "process cannot generate while it trains; set rollout.engine=server"
            )
        if self.grpo.importance_cap is None:
            raise ConfigError(
                "rollout.overlap=true with grpo.importance_cap=null: the importance weights are what corrects for "
                "rollouts that are one episode old; set grpo.importance_cap=2.0"
            )
        if self.replay.mode == "dynamic_sampling":
            raise ConfigError(
                "rollout.overlap=true with replay.mode='dynamic_sampling', whose rollouts depend on those before; "
                "choose one of them"
            )

    def _check_names(self) -> None:
        check_name("name", self.name)
        names = [stage.name for stage in self.stages]
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"stages: needs at least one stage and distinct names, got {names}")
        for index, name in enumerate(names):
            check_name(f"stages[{index}].name", name)
            if name in RESERVED_STAGES or name.startswith(("previous", "step-")):
                taken = f"{', '.join(RESERVED_STAGES)}, previous* and step-*"
                raise ConfigError(f"stages[{index}].name={name!r}: {taken} are taken")

    @property
    def folder(self) -> Path:
        """``runs/<name>``."""
        return Path(self.runs_dir) / self.name

    @property
    def samples_per_episode(self) -> int:
        """First responses of an episode's groups, over all ranks."""
        return self.queries_per_episode * self.rollout.group_size

    def batches(self, samples: int) -> int:
        """Raw batches, and so steps, of an episode with ``samples`` samples; see ``OptimConfig``."""
        size = self.optim.train_batch_size
        return min(self.samples_per_episode // size, -(-samples // size))

    @property
    def episodes(self) -> int:
        """Episodes of all stages."""
        return sum(stage.episodes for stage in self.stages)

    def for_stage(self, index: int) -> RunConfig:
        """The settings of stage ``index``: this config with the stage's overrides."""
        stage = self.stages[index]
        where = f"stages[{index}].overrides (stage {stage.name!r})"
        try:
            return build(RunConfig, _merge(plain(self), stage.overrides))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None


RESERVED_STAGES = ("last", "best", "start")  # names of links and labels of a run
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


def check_name(key: str, name: str) -> None:
    """Raises ConfigError for a ``name`` that cannot name a file everywhere."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{key}={name!r}: allowed are letters, digits, '_', '-' and '.', which cannot come first")


# What a stage can set is for its training; held-out tests keep the run's own settings (see EvaluationConfig).
STAGE_SECTIONS = ("budget", "grpo", "optim", "replay", "rethink", "reward")
STAGE_KEYS = {  # of other sections: what is not built once for the whole run
    "evaluation": ("every",),
    "rollout": ("group_size", "temperature", "top_p", "canary"),
    "tracking": ("save_every",),
}


def _merge(base: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for section, values in overrides.items():
        if section not in STAGE_SECTIONS and section not in STAGE_KEYS:
            allowed = ", ".join(sorted([*STAGE_SECTIONS, *STAGE_KEYS]))
            raise ConfigError(f"a stage can set {allowed}, not {section!r}")
        if not isinstance(values, dict):
            raise ConfigError(f"{section}={values!r}: expected a section of settings")
        for key in values:
            if section in STAGE_KEYS and key not in STAGE_KEYS[section]:
                allowed = ", ".join(f"{section}.{name}" for name in STAGE_KEYS[section])
                raise ConfigError(f"'{section}.{key}' is for the whole run; a stage can set {allowed}")
        merged[section] = {**base[section], **values}
    return merged


def check_trainable(config: RunConfig) -> None:
    """Raises ConfigError for settings that can be evaluated but not trained."""
    if config.model.dtype == "bfloat16" and not config.model.lora_rank:
        raise ConfigError(
            "model.dtype='bfloat16' with model.lora_rank=0: an update below 2^-9 of a weight is rounded away; "
            "train all weights in float32, or set model.lora_rank (adapters are float32)"
        )


def check_own_weights(config: RunConfig) -> None:
    """Raises ConfigError for a ``rollout.dtype`` that the transformers engine cannot have: it runs the policy's own
    weights, in their type."""
    if config.rollout.dtype not in ("auto", config.model.dtype):
        raise ConfigError(
            f"rollout.dtype={config.rollout.dtype!r} with the transformers engine, which generates with the trained "
            f"weights themselves (model.dtype={config.model.dtype!r}): set rollout.dtype=auto, or use vLLM"
        )
