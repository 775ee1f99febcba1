"""The sections of a run's config, with every default and where it comes from; ``config.RunConfig`` holds them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from rethinker.config.schema import option

Sharding = Literal["none", "full", "hybrid"]
Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class ModelConfig:
    """The policy: a checkpoint in Hugging Face's layout, of one of the families in docs/families.md."""

    path: str = "data/tiny-vlm"  # folder (RunConfig.relative_to says where a relative one starts) or hub id
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the trained weights
    min_pixels: int | None = option(None, min=1)  # an image; None: the checkpoint's own (official code: 256*28*28)
    max_pixels: int | None = option(None, min=1)  # (official code: 1280*28*28)
    freeze_vision: bool = False  # the vision tower; adapters (lora_rank) leave it frozen in any case
    forward: Literal["shared", "plain"] = "shared"  # shared: a query's prompt and images once for all its samples
    # Of the vision tower; flash_attention_2: all images of a pass in one call, bfloat16 on GPUs only (not run by us)
    vision_attention: Literal["sdpa", "flash_attention_2"] = "sdpa"
    autocast: bool = False  # bfloat16 arithmetic on float32 weights in the trainer's forward and backward
    compile: bool = False  # torch.compile of the decoder layers, in the trainer's forward and backward
    liger: bool = True  # Liger's kernels, on GPUs where liger-kernel is installed
    gradient_checkpointing: bool = False
    # Weights, gradients and optimiser states in shards (torch's fully_shard): full over all processes, hybrid over
    # those of a machine; none: whole on each (DDP). With autocast layers are then gathered in bfloat16 too. One process
    # has nothing to share. Not run on GPUs
    sharding: Sharding = "none"
    offload: bool = False  # what is sharded rests in the CPU's memory and is updated there; not run on GPUs
    lora_rank: int = option(0, min=0)  # 0: all weights are trained (paper)
    lora_alpha: float = option(32.0, min=0, exclusive=True)
    lora_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class DataConfig:
    """ViRL39K's schema: a parquet or JSON lines file, a folder of them, or a Hugging Face data set ("owner/name").

    ``RunConfig.relative_to`` says where relative paths start; image paths are relative to the file. ``path:split``
    names a file of a folder or a split of a data set, e.g. ``owner/name:train``. The prompt's two texts hold for the
    whole run: a stage cannot set them.
    """

    train: str = "data/generated/visual_math/train.parquet"
    validation: str | None = None
    test: str | None = None
    train_limit: int | None = option(None, min=1)  # queries
    test_limit: int | None = option(None, min=1)  # queries
    # Data with other columns: what each of the schema's is made of, e.g. {question: problem, image: images}; names,
    # templates and constants are explained in rethinker/datasets/columns.py (ours)
    columns: dict[str, Any] = field(default_factory=dict)
    columns_of: tuple[Split, ...] = ("train", "validation", "test")  # that have them
    # When images, gold answers and the lengths of prompts of data.train are checked: all before the first episode, or
    # those of an episode when it draws them (39,000 rows are open in seconds). What cannot be used is reported and left
    # out either way (ours)
    checks: Literal["at_start", "when_drawn"] = "at_start"
    # A named subset of data.train: vl-rethinker-7b, -32b, -72b, ...; rethinker/datasets/filters.yaml has their sources
    filter: str | None = None
    # Queries of data.train whose pass rate lies within these bounds, both included; those without a rate are left out.
    # None: all. (The paper's subsets: right at least once in eight; it gives no upper bound.)
    pass_rate: tuple[float, float] | None = option(None, min=0, max=1)
    pass_rate_column: str = "PassRate_7BBase"  # or PassRate_32BTrained: whose responses it was measured on (ViRL39K)
    prompt_suffix: str = ""  # put behind every question (the official code's is in experiments/vl_rethinker_7b.yaml)
    prompt_hint: str = ""  # the paper's reflection hint, which it sets in stage 2 (appendix B.4)

    def columns_for(self, use: Split) -> dict[str, Any] | None:
        """``columns``, if the data for ``use`` has them."""
        return self.columns if use in self.columns_of else None


@dataclass(frozen=True)
class RolloutConfig:
    """How responses are generated.

    ``dtype``: vLLM can run in bfloat16 beside a trainer in float32 (also one with model.autocast), for half the memory
    and more speed: weights are rounded when they are synchronised, and ``grpo.importance_cap`` corrects for the gap.
    The transformers engine has no weights of its own, and so no type of its own. ``canary``: the largest mean gap, in
    nats per token, between the log-probs of engine and trainer after a synchronisation, the first one at the start of
    the run; null: what the types and the depth of the model explain (``rollout.canary.gap_bound``). ``servers``: start
    them with the same config; ``gpu_memory_utilization`` and ``tensor_parallel_size`` are then those of each server.
    """

    # auto: vLLM in the trainer's own process, where installed; server: vLLM servers (see ``servers``)
    engine: Literal["auto", "transformers", "vllm", "server"] = "auto"
    group_size: int = option(8, min=2)  # G responses per query (paper)
    temperature: float = option(1.0, min=0, exclusive=True)  # (official code)
    top_p: float = option(1.0, min=0, max=1, exclusive=True)  # (official code: 0.95)
    max_new_tokens: int = option(2048, min=1)  # a response, forced rethinking included (official code)
    batch_size: int = option(64, min=1)  # prompts generated at once by the transformers engine
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # of vLLM's weights and KV cache; auto: model.dtype
    canary: float | None = option(None, min=0)  # nats, see above; 0: no check (ours)
    gpu_memory_utilization: float = option(0.5, min=0, max=1, exclusive=True)  # vLLM on a GPU
    tensor_parallel_size: int = option(1, min=1)  # GPUs of an engine; in a run of several processes of a server only
    servers: str = "runs/servers"  # engine=server: folder of `rethinker serve`, relative to the working directory
    # engine=server: the next episode is rolled out while this one is trained on: one episode off-policy (ours)
    overlap: bool = False
    # engine=server: how weights get there; file: through the folder ``servers``; nccl: GPU to GPU (not run by us)
    weight_transfer: Literal["file", "nccl"] = "file"
    server_timeout: float = option(600.0, min=0, exclusive=True)  # seconds of one request, before another server
    server_patience: float = option(600.0, min=0)  # seconds without any usable server, before the run ends


@dataclass(frozen=True)
class RewardConfig:
    """The reward of a response: its correctness, 1 or 0 (paper), minus what its tokens cost (ours)."""

    # A token's price; 0: none. Each token counts, the trigger of a second look included. Unanimous groups then have
    # advantages too, and fill the batch, so that replay hardly acts: see rethinker/replay.py. With
    # grpo.advantage_scale=std such a group's are as large as those of a group that differs in correctness, however
    # small the price: none keeps it in proportion.
    token_price: float = option(0.0, min=0)


@dataclass(frozen=True)
class GrpoConfig:
    """Group advantages and the policy loss; see rethinker/grpo.py for the formulas."""

    policy_coef: float = option(1.0, min=0)  # of the policy loss; 0: imitation of kept second looks alone (ours)
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
    alpha: float = option(1.0, min=0)  # exponent of abs(advantage) (paper, appendix B.3)
    lifetime: int = option(1, min=1)  # episodes that a sample stays (paper: 1, cleared at the start of each)
    capacity: int | None = option(None, min=1)  # samples; None: no bound
    max_rollouts: int = option(10, min=1)  # dynamic_sampling: rollouts per episode before it trains on what it has

    @property
    def outlives(self) -> bool:
        """Whether samples are there for later episodes too."""
        return self.mode == "ssr" and self.lifetime > 1


@dataclass(frozen=True)
class RethinkConfig:
    """Forced Rethinking; see rethinker/rethink.py.

    ``seam``: natural tokenises the end of y1 and the trigger together, as the model would write them (official code:
    the whole text); what changes of y1 counts as forced. spliced puts the trigger's own ids behind those of y1.
    ``keep``: own_answer keeps no second look that gives no boxed answer of its own (ours).
    """

    fraction: float = option(0.0, min=0, max=1)  # q of the eligible first responses; 0: off (stage 1)
    max_per_query: int = option(2, min=1)  # kept trajectories (paper)
    temperature: float = option(0.9, min=0, exclusive=True)  # of the second look (official code)
    min_second_look_tokens: int = option(32, min=1)  # smallest budget for a second look
    max_first_look_tokens: int | None = option(None, min=1)  # of a y1 that is forced (official code: 1024 of 2048)
    min_kept_tokens: int = option(0, min=0)  # of a kept second look (official code: 31)
    max_kept_tokens: int | None = option(None, min=1)  # (official code: 1023)
    keep: Literal["own_answer", "any"] = "own_answer"  # any: paper, official code
    seam: Literal["natural", "spliced"] = "natural"
    cut_answer: float = option(0.0, min=0, max=1)  # share of y1 cut before their answer (official code: 0.5)
    placement: Literal["replace", "append"] = "replace"
    trigger_choice: Literal["blind", "by_correctness"] = "blind"  # by_correctness: official code
    skip_reflective: bool = False  # leave first responses alone that reflect by themselves (ours)
    nll_coef: float = option(0.05, min=0)  # (official code)
    nll_on: Literal["rethinking", "trajectory"] = "rethinking"
    nll_scale: Literal["kept", "batch"] = "batch"  # by the batch, or by the tokens that were kept (grpo.nll_loss)
    forced_tokens: Literal["on_policy", "behavior", "mask"] = "on_policy"  # ratio of trigger tokens, ours


@dataclass(frozen=True)
class OptimConfig:
    """AdamW; a step is one optimiser update.

    An episode makes queries_per_episode * rollout.group_size / ``train_batch_size`` steps. Each takes an equal part of
    the episode's samples, in the order of the groups: ``train_batch_size``, more where rethink.placement=append has
    made groups larger. Where replay.mode=dynamic_sampling gave up early there are fewer steps of at most that size.
    """

    lr: float = option(1e-6, min=0, exclusive=True)  # (official code)
    betas: tuple[float, float] = option((0.9, 0.98), min=0, max=1)
    weight_decay: float = option(0.0, min=0)
    warmup_steps: int = option(0, min=0)
    max_grad_norm: float = option(1.0, min=0, exclusive=True)
    train_batch_size: int = option(512, min=1)  # samples per step, over all ranks, before any selection (paper)
    micro_batch_tokens: int = option(16384, min=1)  # tokens per forward pass on one rank; a single sample may exceed it


@dataclass(frozen=True)
class EvaluationConfig:
    """Validation during training and the evaluation on the test split, before training and after each stage.

    All of them sample as the run's own settings say (rollout.temperature, rollout.top_p, rethink.temperature,
    rethink.min_second_look_tokens, rethink.seam): what a stage overrides is for its training only, so that stages can
    be compared.
    """

    every: int = option(5, min=0)  # episodes between validations; 0: only at the ends of stages, or by every_tokens
    every_tokens: int = option(0, min=0)  # generated tokens between validations, beside those of every; 0: none (ours)
    samples: int = option(4, min=1)  # sampled responses per test query (pass@k)
    modes: tuple[Literal["plain", "forced", "bound"], ...] = ("plain", "forced", "bound")


@dataclass(frozen=True)
class TrackingConfig:
    """Where a run is written besides its folder."""

    wandb: bool = False  # the key comes from WANDB_API_KEY or `wandb login`; it is never written to a file
    wandb_project: str = "rethinker"
    wandb_mode: Literal["online", "offline"] = "offline"  # offline: sent later by `rethinker sync`
    wandb_group: str | None = None  # runs that belong together, e.g. an ablation's seeds (ours)
    wandb_tags: tuple[str, ...] = ()  # (ours)
    # Rows with images in an episode's table; 0: no tables (ours). Each table has its own copy of its images on disk.
    wandb_responses: int = option(64, min=0)
    wandb_checkpoints: bool = False  # the best and the last one become artifacts when the run ends or stops (ours)
    # Episodes between checkpoints. The end of a stage, a stop and a new best validation have theirs, whatever this is;
    # 0: only these
    save_every: int = option(10, min=0)
    # Newest checkpoints that stay, beside the best one and those at the ends of stages. Where the last one turns out to
    # be damaged, a resume takes the one before; 1 saves its space (7B, all weights trained: 100 GB) (ours)
    keep_last: int = option(2, min=1)


@dataclass(frozen=True)
class LaunchConfig:
    """How ``rethinker train`` starts processes; the result does not depend on it, up to rounding."""

    accelerate: str | None = None  # a file of `accelerate config`; None: as processes and machines say
    processes: int = option(1, min=1)  # on each machine, where no accelerate file is given
    # `rethinker train` is called on each of them, with the same config. The number comes from the accelerate file where
    # one is given; not run on GPUs.
    machines: int = option(1, min=1)
    machine_rank: int | None = option(None, min=0)  # of this one; None: SLURM_PROCID, with one task a machine
    address: str | None = None  # of machine 0, for several; None: MASTER_ADDR
    port: int | None = option(None, min=1, max=65535)  # on machine 0, for several; None: MASTER_PORT, else 29500
    threads: int = option(1, min=1)  # CPU threads per process
    # Seconds after SIGTERM, which schedulers send, until an episode that has not ended is abandoned. Slurm and
    # Kubernetes kill 30 seconds after it by default.
    grace_seconds: float = option(25.0, min=0)
    # Only algorithms whose result is the same every time, slower; matters on GPUs, CPUs have no others (see
    # processes.use_deterministic_algorithms).
    deterministic: bool = False


@dataclass(frozen=True)
class BudgetConfig:
    """What the run may use before a stage ends, beside ``stages[i].episodes``: equal budgets for methods whose episodes
    cost differently (ours).

    All count from the start of the run, and the episode that reaches one is the stage's last. A stage can set its own:
    ``overrides: {budget: {tokens: 100_000}}`` ends it when the run has generated that many. A later stage whose budget
    is used up when it starts has no episode.
    """

    tokens: int | None = option(None, min=1)  # generated, second looks included; evaluations are not counted
    steps: int | None = option(None, min=1)  # optimiser updates
    # Of episodes, not evaluations or checkpoints. With rollout.overlap the next episode may have begun: it is lost.
    seconds: float | None = option(None, min=0, exclusive=True)


@dataclass(frozen=True)
class StageConfig:
    """A part of the run with settings of its own, e.g. ``overrides: {rethink: {fraction: 0.5}}``."""

    name: str = "train"
    episodes: int = option(1, min=1)
    overrides: dict[str, Any] = field(default_factory=dict)
