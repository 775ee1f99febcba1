"""What is planned: a config on some GPUs, and how long its prompts and responses are taken to be."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from rethinker.config import RunConfig
from rethinker.config.schema import ConfigError
from rethinker.config.settings import Sharding
from rethinker.lab.plan.hardware import GPUS, Gpu
from rethinker.lab.sizes.shapes import Shape, find_shape

PIXELS = (
    256 * 28 * 28,
    1280 * 28 * 28,
)  # of an image, smallest and largest, where a config leaves them open (official)
TEXT_TOKENS = 130  # of a prompt beside its image (ours)
RESPONSE_TOKENS = 500  # mean of a response (ours; the paper gives none)
PER_NODE = 8


@dataclass(frozen=True)
class Case:
    """A config on GPUs.

    ``shards``: ranks that share one copy of the weights. ``servers``: GPUs that run vLLM alone; 0: every GPU trains and
    generates in turn (colocated), or, where the config says rollout.engine=server, it is still to be chosen
    (``advice.with_servers``).
    """

    config: RunConfig
    shape: Shape
    gpu: Gpu
    gpus: int
    per_node: int = PER_NODE
    sharding: Sharding = "none"
    servers: int = 0
    prompt_tokens: int = 900
    response_tokens: int = RESPONSE_TOKENS
    stages: tuple[RunConfig, ...] = field(default=(), repr=False)  # the settings of every stage, by ``config``

    def __post_init__(self) -> None:
        if not self.stages:
            stages = tuple(self.config.for_stage(index) for index in range(len(self.config.stages)))
            object.__setattr__(self, "stages", stages)

    @property
    def trainers(self) -> int:
        """GPUs that train."""
        return self.gpus - self.servers

    @property
    def shards(self) -> int:
        """Ranks that share one copy of the weights."""
        return {"none": 1, "full": self.trainers, "hybrid": min(self.per_node, self.trainers)}[self.sharding]

    @property
    def offloads(self) -> bool:
        """Whether what is sharded rests in the CPU's memory."""
        return self.config.model.offload and self.shards > 1

    @property
    def lora(self) -> bool:
        """Whether adapters are trained, and nothing else."""
        return self.config.model.lora_rank > 0

    @property
    def adapters(self) -> int:
        """Parameters of the adapters."""
        return self.shape.adapters(self.config.model.lora_rank, self.config.model.lora_targets)

    @property
    def trains_tower(self) -> bool:
        """Whether the vision tower is trained."""
        return not (self.lora or self.config.model.freeze_vision)

    @property
    def trained(self) -> int:
        """Parameters that are trained."""
        if self.lora:
            return self.adapters
        return self.shape.total if self.trains_tower else self.shape.language

    @property
    def stored(self) -> int:
        """Bytes of a stored weight."""
        return 4 if self.config.model.dtype == "float32" else 2

    @property
    def computed(self) -> int:
        """Bytes of a number in the trainer's matrix products."""
        return 2 if self.config.model.autocast else self.stored

    @property
    def engine_bytes(self) -> int:
        """Bytes of a weight, and of a number of the KV cache, in the engine."""
        dtype = self.config.rollout.dtype
        return self.stored if dtype == "auto" else {"float32": 4, "bfloat16": 2}[dtype]

    @property
    def vllm(self) -> bool:
        """Whether vLLM generates; ``auto`` finds it on every machine with GPUs."""
        return self.config.rollout.engine != "transformers"

    @property
    def parallel(self) -> int:
        """GPUs of one engine."""
        return self.config.rollout.tensor_parallel_size if self.vllm else 1

    @property
    def refused(self) -> str:
        """Why a run with this layout is refused, whatever its memory (``rollout.vllm_setup.placement``); "" where it is
        not. A single process may have an engine over several GPUs, of which this knows nothing."""
        if self.parallel == 1 or self.servers:
            return ""
        return (
            f"rollout.tensor_parallel_size={self.parallel} needs servers: where trainer and engine share their GPUs, "
            "each process has an engine of its own on one"
        )

    @property
    def engines(self) -> int:
        """Engines that generate side by side."""
        return max(1, (self.servers or self.gpus) // self.parallel)

    @property
    def micro_tokens(self) -> int:
        """Tokens of the largest forward pass; one sample may exceed ``optim.micro_batch_tokens``."""
        longest = self.prompt_tokens + self.config.rollout.max_new_tokens
        return max(longest, *(stage.optim.micro_batch_tokens for stage in self.stages))

    @property
    def image_tokens(self) -> int:
        """Tokens of a prompt's image."""
        return max(0, self.prompt_tokens - TEXT_TOKENS) if self.shape.tower else 0

    @property
    def patches(self) -> int:
        """Patches of a prompt's image, which the vision tower reads."""
        return self.image_tokens * self.shape.tower.merge**2 if self.shape.tower else 0

    def with_settings(self, **sections: dict[str, Any]) -> Case:
        """The same with other settings, of the run and all its stages, e.g. ``optim={"micro_batch_tokens": 4096}``."""
        stages = tuple(
            replace(
                stage, overrides={name: _without(part, sections.get(name)) for name, part in stage.overrides.items()}
            )
            for stage in self.config.stages
        )
        changed = {name: replace(getattr(self.config, name), **values) for name, values in sections.items()}
        return replace(self, config=replace(self.config, stages=stages, **changed), stages=())


def _without(part: dict[str, Any], keys: dict[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key not in (keys or {})}


def make_case(
    config: RunConfig,
    gpu: str,
    gpus: int | None = None,
    *,
    nodes: int | None = None,
    sharding: Sharding | None = None,
    servers: int = 0,
    prompt_tokens: int | None = None,
    response_tokens: int | None = None,
) -> tuple[Case, str]:
    """A case with what was left open filled in, and where the model's sizes come from.

    Raises ConfigError for a GPU or a model that is not known, and for numbers of GPUs that cannot be.
    """
    if gpu not in GPUS:
        raise ConfigError(f"--gpu {gpu}: known are {', '.join(GPUS)}")
    if gpus is None:
        gpus = config.launch.machines * config.launch.processes
        if config.rollout.engine == "server":  # these train
            if not servers:
                raise ConfigError(
                    f"rollout.engine=server: the {gpus} GPUs of launch.machines x launch.processes train, and how many "
                    "servers have is not said: give --servers N, or with --gpus N the number of both together"
                )
            gpus += servers
        nodes = nodes or max(config.launch.machines, -(-gpus // PER_NODE))
    nodes = -(-gpus // PER_NODE) if nodes is None else nodes
    if gpus < 1 or not 0 <= servers < gpus:
        raise ConfigError(f"--gpus {gpus} --servers {servers}: needs at least one GPU that trains")
    if nodes < 1 or gpus % nodes:
        raise ConfigError(f"--gpus {gpus} --nodes {nodes}: every machine has the same number of GPUs")
    least = config.rollout.tensor_parallel_size
    if config.rollout.engine == "server" and not servers and gpus <= least:
        raise ConfigError(
            f"--gpus {gpus}: with rollout.engine=server a server has {least} to itself (rollout.tensor_parallel_size) "
            "and others train; give more, or set rollout.engine=vllm"
        )
    shape, source = find_shape(config.model.path)
    if prompt_tokens is None:
        prompt_tokens = TEXT_TOKENS + _usual_image(config, shape)
    return Case(
        config,
        shape,
        GPUS[gpu],
        gpus,
        per_node=gpus // nodes,
        sharding=sharding or config.model.sharding,
        servers=servers,
        prompt_tokens=prompt_tokens,
        response_tokens=min(response_tokens or RESPONSE_TOKENS, config.rollout.max_new_tokens),
    ), source


def _usual_image(config: RunConfig, shape: Shape) -> int:
    """Tokens of an image half-way between the pixel limits. Raises ConfigError where tiles decide."""
    if shape.tower and shape.tower.tokens is not None:
        if not shape.tower.tokens:
            raise ConfigError(
                f"model.path={config.model.path}: images are cut into tiles, whose number depends on their sizes: give "
                "--prompt-tokens, the mean of a prompt with its images (`rethinker data inspect --model` counts them)"
            )
        return shape.tower.tokens
    low, high = config.model.min_pixels or PIXELS[0], config.model.max_pixels or PIXELS[1]
    return (low + high) // 2 // shape.tower.side**2 if shape.tower else 0
