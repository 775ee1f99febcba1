"""The model that is evaluated: from a config, or a bare checkpoint with the paper's settings."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from rethinker.benchmarks.asking import Asking, find_skipped
from rethinker.benchmarks.base import Protocol
from rethinker.benchmarks.running import Skipped
from rethinker.benchmarks.tasks import Task
from rethinker.config import RunConfig
from rethinker.evaluation.held_out import policy_to_ask
from rethinker.policy.families import FAMILIES
from rethinker.policy.lengths import PromptRoom
from rethinker.policy.loading import load_outline
from rethinker.policy.policy import Policy
from rethinker.processes import use_deterministic_algorithms
from rethinker.rollout import engine_name, make_engine
from rethinker.rollout.base import RolloutEngine
from rethinker.types import Sampling

IMAGE_BYTES = 2**30  # preprocessed images in memory: some 40 of 1,280 tokens
SUFFIX = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."  # official code
PIXELS = ("model.min_pixels=200704", "model.max_pixels=1003520")  # 256 * 28 * 28, 1280 * 28 * 28; official code
PAPER = (  # settings of the official code's evaluation (scripts/eval_vlm_new.sh); sampling: of more than one response
    "rollout.max_new_tokens=8192",
    "rollout.temperature=0.6",
    "rollout.top_p=0.95",
    "rollout.gpu_memory_utilization=0.9",  # ours: nothing else is on the GPU
)
ON_GPUS = ("model.dtype=bfloat16",)  # ours: as the checkpoints are stored


def paper_settings(path: str) -> tuple[str, ...]:
    """Defaults for a bare checkpoint: the paper's settings, without its pixel limits where the family has none."""
    try:
        name = PreTrainedConfig.get_config_dict(path)[0].get("model_type")
    except OSError:  # there is none: whoever loads it says so
        name = None
    pixels = PIXELS if name not in FAMILIES or FAMILIES[name].sized else ()
    return (*pixels, *PAPER, *(ON_GPUS if torch.cuda.is_available() else ()))


def asking(config: RunConfig, protocol: Protocol, modes: Sequence[str], samples: int) -> Asking:
    """How a config's model is asked; ``modes`` may name plain, which is always there."""
    rollout = config.rollout
    return Asking(
        protocol,
        tuple(mode for mode in modes if mode != "plain"),
        samples,
        Sampling(rollout.temperature, rollout.top_p, rollout.max_new_tokens),
        config.rethink,
        config.seed,
    )


def settings_of(config: RunConfig, how: Asking, limit: int | None) -> dict[str, Any]:
    """What the responses depend on beside the data: a folder made with other values is not resumed."""
    model, rollout, rethink = config.model, config.rollout, config.rethink
    suffix, hint = prompt_texts(config, how.protocol)
    return {
        "protocol": how.protocol,
        "modes": ["plain", *how.modes],
        "samples": how.samples,
        "limit": limit,
        "seed": config.seed,
        "model": model_identity(model.path)
        | {"dtype": model.dtype, "min_pixels": model.min_pixels, "max_pixels": model.max_pixels},
        "prompt": {"suffix": suffix, "hint": hint},
        "rollout": {"engine": engine_name(config), "dtype": rollout.dtype, "max_new_tokens": rollout.max_new_tokens}
        | ({"temperature": rollout.temperature, "top_p": rollout.top_p} if how.samples else {}),
        "rethink": {
            "temperature": rethink.temperature if how.samples else None,
            "min_second_look_tokens": rethink.min_second_look_tokens,
            "seam": rethink.seam,
        }
        if how.modes
        else None,
    }


def prompt_texts(config: RunConfig, protocol: Protocol) -> tuple[str, str]:
    """What stands behind a prompt: of the protocol boxed the config's suffix and hint, of a benchmark's own nothing."""
    return (config.data.prompt_suffix, config.data.prompt_hint) if protocol == "boxed" else ("", "")


def start(config: RunConfig, how: Asking, tasks: Sequence[Task]) -> tuple[Policy, RolloutEngine, Skipped]:
    """Load the policy, find what cannot be asked, and start the engine, in this process."""
    torch.set_num_threads(config.launch.threads)
    if config.launch.deterministic:
        use_deterministic_algorithms()
    suffix, hint = prompt_texts(config, how.protocol)
    policy = policy_to_ask(config, prompt_suffix=suffix, prompt_hint=hint)
    policy.images.capacity = IMAGE_BYTES
    skipped, images, longest = look_at(policy, config, how.protocol, tasks)
    for task in tasks:
        say_skipped(task, skipped[task.name])
    engine = make_engine(config, policy, max_images=images, max_prompt=longest)
    if config.rollout.engine == "server":
        engine.sync_weights(policy.model)
    return policy, engine, skipped


def look_at(policy: Policy, config: RunConfig, protocol: Protocol, tasks: Sequence[Task]) -> tuple[Skipped, int, int]:
    """What cannot be asked, the most images of a prompt, and the tokens of the longest one."""
    room = PromptRoom(policy, config.rollout.max_new_tokens)
    skipped = {task.name: find_skipped(task, protocol, room) for task in tasks}
    images = max((1, *(len(item.images) for task in tasks for item in task.items)))
    return skipped, images, room.longest


def outline(config: RunConfig, protocol: Protocol) -> Policy:
    """The policy without weights: for prompts and their lengths."""
    suffix, hint = prompt_texts(config, protocol)
    return load_outline(config.model, prompt_suffix=suffix, prompt_hint=hint)


def say_skipped(task: Task, skipped: dict[str, str]) -> None:
    """Say on stderr how many items cannot be asked, and why one of them. Raises ValueError if it is all."""
    if not skipped:
        return
    qid, reason = next(iter(skipped.items()))
    text = f"{task.name}: {len(skipped)} of {len(task.items)} items cannot be asked and score 0, e.g. {qid}: {reason}"
    if len(skipped) == len(task.items):
        raise ValueError(text.replace(" and score 0", ""))
    print(f"warning: {text}", file=sys.stderr)


def model_identity(path: str) -> dict[str, Any]:
    """What tells a checkpoint from another: path, sizes, and a hash of samples of its weights (whole files would take
    minutes). Of a model on the hub, the commit."""
    folder = Path(path)
    if not folder.is_dir():
        from transformers import AutoConfig

        return {"path": path, "commit": getattr(AutoConfig.from_pretrained(path), "_commit_hash", None)}
    digest = hashlib.sha256()
    files = sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", ".bin", ".json", ".jinja"))
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as content:
            for start in sorted({size * part // 64 for part in range(64)}):
                content.seek(start)
                digest.update(content.read(2**16))
    return {"path": str(folder.resolve()), "digest": digest.hexdigest()}
