"""The configuration of a run: frozen dataclasses, filled from YAML and ``key=value`` overrides.

Every field says its unit and where its default comes from: "paper" (arXiv 2504.08837), "official code" or "ours".
Unknown keys and bad values are errors that name the key, the value, what is allowed and the nearest valid key.
Two-stage runs (the paper's VL-Reasoner, then VL-Rethinker) are one file: ``stages`` holds overrides a stage.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rethinker.schema import ConfigError, build, option


@dataclass(frozen=True)
class ModelConfig:
    """The policy: a Qwen2.5-VL or Qwen3-VL checkpoint in Hugging Face's layout."""

    path: str = "data/tiny-vlm"  # folder or hub id
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the trained weights
    min_pixels: int | None = option(None, min=1)  # an image; None: the checkpoint's own (official code: 256*28*28)
    max_pixels: int | None = option(None, min=1)  # (official code: 1280*28*28)
    freeze_vision: bool = False
    forward: Literal["shared", "plain"] = "shared"  # shared: a query's prompt and images once for all its samples
    autocast: bool = False  # bfloat16 arithmetic on float32 weights in the trainer's forward and backward
    compile: bool = False  # torch.compile of the decoder layers, in the trainer's forward and backward
    liger: bool = True  # Liger's kernels, on GPUs where liger-kernel is installed
    gradient_checkpointing: bool = False
    lora_rank: int = option(0, min=0)  # 0: all weights are trained (paper)
    lora_alpha: float = option(32.0, min=0, exclusive=True)
    lora_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class DataConfig:
    """ViRL39K's schema: a parquet or JSON lines file, a folder of them, or a Hugging Face data set ("owner/name").

    Image paths are relative to the file. ``path:split`` names a file of a folder or a split of a data set, e.g.
    ``owner/name:train``. The prompt's two texts hold for the whole run: a stage cannot set them.
    """

    train: str = "data/generated/visual_math/train.parquet"
    validation: str | None = None
    test: str | None = None
    train_limit: int | None = option(None, min=1)  # queries
    test_limit: int | None = option(None, min=1)  # queries
    prompt_suffix: str = ""  # put behind every question (the official code's is in experiments/vl_rethinker_7b.yaml)
    prompt_hint: str = ""  # the paper's reflection hint, an option of Forced Rethinking


@dataclass(frozen=True)
class RolloutConfig:
    """How responses are generated."""

    engine: Literal["auto", "transformers", "vllm"] = "auto"  # auto: vLLM where installed
    group_size: int = option(8, min=2)  # G responses a query (paper)
    temperature: float = option(1.0, min=0, exclusive=True)  # (official code)
    top_p: float = option(1.0, min=0, max=1, exclusive=True)  # (official code: 0.95)
    max_new_tokens: int = option(2048, min=1)  # a response, forced rethinking included (official code)
    batch_size: int = option(64, min=1)  # prompts generated at once by the transformers engine
    canary: float = option(1e-2, min=0)  # nats: largest mean gap engine-trainer after a weight sync; 0: no check
    gpu_memory_utilization: float = option(0.5, min=0, max=1, exclusive=True)  # vLLM on a GPU
    tensor_parallel_size: int = option(1, min=1)  # vLLM on GPUs


@dataclass(frozen=True)
class GrpoConfig:
    """Group advantages and the policy loss; see rethinker/grpo.py for the formulas."""

    advantage_scale: Literal["std", "none"] = "std"  # paper; none: Dr. GRPO, official code
    ratio: Literal["token", "sequence"] = "token"  # sequence: GSPO
    objective: Literal["clip", "cispo"] = "clip"
    aggregation: Literal["sequence_mean", "token_mean", "constant"] = "sequence_mean"
    clip_low: float = option(0.2, min=0, exclusive=True)  # (official code)
    clip_high: float = option(0.35, min=0, exclusive=True)  # (official code)
    dual_clip: float | None = option(None, min=1, exclusive=True)
    kl_coef: float = option(0.0, min=0)  # 0: no reference model is loaded (official code)
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    entropy_coef: float = option(0.0, min=0)
    importance_cap: float | None = option(
        2.0, min=1
    )  # truncated importance sampling, engine against trainer; None: off


@dataclass(frozen=True)
class ReplayConfig:
    """What a step trains on; see rethinker/replay.py."""

    mode: Literal["grpo", "filter", "ssr", "dynamic_sampling"] = "ssr"
    alpha: float = option(1.0, min=0)  # exponent of abs(advantage) (official code)
    lifetime: int = option(1, min=1)  # episodes that a sample stays (paper: 1, cleared at the start of each)
    capacity: int | None = option(None, min=1)  # samples; None: no bound
    max_rollouts: int = option(10, min=1)  # dynamic_sampling: roll-outs an episode before it goes on with what it has


@dataclass(frozen=True)
class RethinkConfig:
    """Forced Rethinking; see rethinker/rethink.py."""

    fraction: float = option(0.0, min=0, max=1)  # q of the eligible first responses; 0: off (stage 1)
    max_per_query: int = option(2, min=1)  # kept trajectories (paper)
    temperature: float = option(0.9, min=0, exclusive=True)  # of the second look (official code)
    room_tokens: int = option(32, min=1)  # smallest budget for a second look
    placement: Literal["replace", "append"] = "replace"
    trigger_choice: Literal["blind", "by_correctness"] = "blind"  # by_correctness: official code
    skip_reflective: bool = False  # leave first responses alone that reflect by themselves (ours)
    nll_coef: float = option(0.05, min=0)  # (official code)
    nll_on: Literal["rethinking", "trajectory"] = "rethinking"
    forced_tokens: Literal["on_policy", "behavior", "mask"] = "on_policy"  # ratio of trigger tokens, ours


@dataclass(frozen=True)
class OptimConfig:
    """AdamW; a step is one optimiser update on ``train_batch_size`` samples."""

    lr: float = option(1e-6, min=0, exclusive=True)  # (official code)
    betas: tuple[float, float] = option((0.9, 0.98), min=0, max=1)
    weight_decay: float = option(0.0, min=0)
    warmup_steps: int = option(0, min=0)
    max_grad_norm: float = option(1.0, min=0, exclusive=True)
    train_batch_size: int = option(512, min=1)  # samples, over all ranks (paper)
    micro_batch_tokens: int = option(16384, min=1)  # tokens a forward pass on one rank; a single sample may exceed it


@dataclass(frozen=True)
class EvaluationConfig:
    """Validation during training and the final evaluation on the test split."""

    every: int = option(5, min=0)  # episodes between validations; 0: only at the ends of stages
    samples: int = option(4, min=1)  # sampled responses a test query (pass@k)
    modes: tuple[Literal["plain", "forced", "bound"], ...] = ("plain", "forced", "bound")


@dataclass(frozen=True)
class TrackingConfig:
    """Where a run is written besides its folder."""

    wandb: bool = False  # the key comes from WANDB_API_KEY or `wandb login`; it is never written to a file
    wandb_project: str = "rethinker"
    wandb_mode: Literal["online", "offline"] = "offline"  # offline: sent later by `rethinker sync`
    wandb_group: str | None = None  # runs that belong together, e.g. an ablation's seeds (ours)
    wandb_tags: tuple[str, ...] = ()  # (ours)
    wandb_responses: int = option(64, min=0)  # rows with images in an episode's table; 0: no tables (ours)
    wandb_checkpoints: bool = False  # the best and the last one become artifacts when the run ends or stops (ours)
    save_every: int = option(10, min=0)  # episodes between checkpoints; 0: only at the ends of stages


@dataclass(frozen=True)
class LaunchConfig:
    """How ``rethinker train`` starts processes, on one machine; the result does not depend on it, up to rounding."""

    accelerate: str | None = None  # a file of `accelerate config`; None: processes on this machine
    processes: int = option(1, min=1)  # on this machine, where no accelerate file is given
    threads: int = option(1, min=1)  # CPU threads a process


@dataclass(frozen=True)
class StageConfig:
    """A part of the run with settings of its own, e.g. ``overrides: {rethink: {fraction: 0.5}}``."""

    name: str = "train"
    episodes: int = option(1, min=1)
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunConfig:
    """One run, resolved."""

    name: str = "run"
    runs_dir: str = "runs"
    seed: int = option(0, min=0)
    queries_per_episode: int = option(1024, min=1)  # over all ranks (paper)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    grpo: GrpoConfig = field(default_factory=GrpoConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    rethink: RethinkConfig = field(default_factory=RethinkConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    stages: tuple[StageConfig, ...] = (StageConfig(),)

    def __post_init__(self) -> None:
        samples = self.queries_per_episode * self.rollout.group_size
        if samples % self.optim.train_batch_size:
            raise ConfigError(
                f"optim.train_batch_size={self.optim.train_batch_size} does not divide the {samples} samples of an "
                f"episode (queries_per_episode {self.queries_per_episode} x rollout.group_size "
                f"{self.rollout.group_size})"
            )
        self._check_rethinking()
        self._check_model()
        if not self.evaluation.modes:
            raise ConfigError("evaluation.modes=[]: needs at least one of plain, forced and bound")
        if 1.0 in self.optim.betas:
            raise ConfigError(f"optim.betas={list(self.optim.betas)}: each must be below 1")
        self._check_names()

    def _check_rethinking(self) -> None:
        options, tokens = self.rethink, self.rollout.max_new_tokens
        if options.fraction == 1.0:
            raise ConfigError("rethink.fraction=1.0: Forced Rethinking needs q < 1, so that y1 is trained too")
        if options.fraction and tokens <= options.room_tokens:
            raise ConfigError(
                f"rollout.max_new_tokens={tokens} leaves no first response rethink.room_tokens={options.room_tokens} "
                "for a second look: nothing could be forced"
            )

    def _check_model(self) -> None:
        model = self.model
        if model.min_pixels and model.max_pixels and model.min_pixels > model.max_pixels:
            raise ConfigError(f"model.min_pixels={model.min_pixels} is above model.max_pixels={model.max_pixels}")

    def _check_names(self) -> None:
        check_name("name", self.name)
        names = [stage.name for stage in self.stages]
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"stages: needs at least one stage and distinct names, got {names}")
        for index, name in enumerate(names):
            check_name(f"stages[{index}].name", name)
            if name in RESERVED_STAGES or name.startswith("step-"):
                raise ConfigError(f"stages[{index}].name={name!r}: {', '.join(RESERVED_STAGES)} and step-* are taken")

    @property
    def folder(self) -> Path:
        """``runs/<name>``."""
        return Path(self.runs_dir) / self.name

    @property
    def episodes(self) -> int:
        """Episodes of all stages."""
        return sum(stage.episodes for stage in self.stages)

    def for_stage(self, index: int) -> RunConfig:
        """The settings of stage ``index``: this config with the stage's overrides."""
        stage = self.stages[index]
        where = f"stages[{index}].overrides (stage {stage.name!r})"
        try:
            return _build(_merge(to_dict(self), stage.overrides))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None


RESERVED_STAGES = ("last", "best", "start")  # names of links and labels of a run
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


def check_name(key: str, name: str) -> None:
    """Raises ConfigError for a ``name`` that cannot name a file everywhere."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{key}={name!r}: allowed are letters, digits, '_', '-' and '.', which cannot come first")


def data_source(text: str) -> tuple[str, str | None]:
    """Path (or name on the hub) and split of an entry of ``data``: "owner/name:train" has both, "a.parquet" none."""
    path, colon, split = text.rpartition(":")
    if not (path and colon and _NAME.fullmatch(split)) or Path(text).exists():
        return text, None
    return path, split


STAGE_SECTIONS = ("grpo", "optim", "replay", "rethink")
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


def _build(values: dict[str, Any]) -> RunConfig:
    return build(RunConfig, values)


def check_trainable(config: RunConfig) -> None:
    """Raises ConfigError for settings that can be evaluated but not trained."""
    if config.model.dtype == "bfloat16" and not config.model.lora_rank:
        raise ConfigError(
            "model.dtype='bfloat16' with model.lora_rank=0: an update below 2^-9 of a weight is rounded away; "
            "train all weights in float32, or set model.lora_rank (adapters are float32)"
        )


def load_config(path: str | Path | None = None, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """The config of a YAML file with ``section.key=value`` overrides; every stage's settings are checked too.

    Raises ConfigError for an unreadable file, an unknown key or a bad value.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        loaded = OmegaConf.load(path) if path else OmegaConf.create({})
        for item in overrides:
            _override(loaded, item)
        values = OmegaConf.to_container(loaded, resolve=True)
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path or 'overrides'}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds no mapping of settings")
    config = _build({str(key): value for key, value in values.items()})
    for index in range(len(config.stages)):
        config.for_stage(index)
    return config


def _override(loaded: Any, item: str) -> None:
    """Apply ``key=value``; keys may point into lists (stages.0.episodes=2), which a dotlist of OmegaConf's may not."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    key, equals, text = item.partition("=")
    if not (key and equals):
        raise ConfigError(f"{item!r}: an override is written key=value, e.g. optim.lr=5e-5")
    try:
        OmegaConf.update(loaded, key, OmegaConf.from_dotlist([f"value={text}"])["value"], merge=True)
    except (OmegaConfBaseException, YAMLError, ValueError, TypeError) as error:
        raise ConfigError(f"{item!r}: {' '.join(str(error).split())}") from error


def to_dict(config: Any) -> dict[str, Any]:
    """Plain dicts and lists, ready for YAML and JSON."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return value

    return plain(dataclasses.asdict(config))


def to_yaml(config: RunConfig) -> str:
    """The resolved config as YAML; ``load_config`` reads it back to an equal config."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(to_dict(config)))
