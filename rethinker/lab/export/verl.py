"""An export for verl (0.9): parquet files of its RLHFDataset, its reward function, its Hydra overrides."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa

from rethinker.config import RunConfig
from rethinker.evaluation.held_out import most_images
from rethinker.lab.export import files
from rethinker.lab.export.data import Splits, pictures, prompt, write_rows
from rethinker.types import Query

PIXELS = (256 * 28 * 28, 1280 * 28 * 28)  # of an image, where the config leaves them to the checkpoint (official code)
TOKEN_PIXELS = 28 * 28  # of an image token of Qwen2.5-VL; Qwen3-VL's has more, so its prompts are shorter
TEXT_TOKENS = 1024  # of a prompt beside its images, longest (ours)
NO_DUAL_CLIP = 1e9  # verl always has dual clip
AGGREGATION = {
    "sequence_mean": "seq-mean-token-mean",
    "token_mean": "token-mean",
    "constant": "seq-mean-token-sum-norm",
}
KL = {"k1": "k1", "k2": "k2", "k3": "low_var_kl"}


def write(config: RunConfig, splits: Splits, folder: Path) -> None:
    """``<split>.parquet``, ``reward.py`` and ``train.sh``."""
    for name, queries in splits.items():
        write_rows(
            folder / f"{name}.parquet",
            queries,
            _schema(config),
            lambda index, query, name=name: row(config, query, index, name),  # type: ignore[misc]
        )
    shutil.copyfile(Path(files.__file__).with_name("reward.py"), folder / "reward.py")
    lines = [f'"{item}"' for item in overrides(config, splits, "$here")]
    script = ["#!/usr/bin/env bash", "set -euo pipefail", 'here="$(cd "$(dirname "$0")" && pwd)"']
    script += [" \\\n  ".join(["python3 -m verl.trainer.main_ppo", *lines, '"$@"']), ""]
    (folder / "train.sh").write_text("\n".join(script), encoding="utf-8")
    (folder / "train.sh").chmod(0o755)


def row(config: RunConfig, query: Query, index: int, split: str) -> dict[str, Any]:
    """A row of RLHFDataset; an image's limits in pixels are read by qwen-vl-utils."""
    limits = _limits(config)
    return {
        "data_source": query.source or "rethinker",
        "prompt": [{"role": "user", "content": prompt(config, query)}],
        "images": [{"bytes": data, **limits} for data in pictures(query)],
        "ability": query.category,
        "reward_model": {"style": "rule", "ground_truth": query.answer},
        "extra_info": {"index": index, "split": split, "qid": query.qid, "question": query.question},
    }


def _limits(config: RunConfig) -> dict[str, int]:
    low, high = config.model.min_pixels or PIXELS[0], config.model.max_pixels or PIXELS[1]
    return {"min_pixels": min(low, high), "max_pixels": high}


def _schema(config: RunConfig) -> pa.Schema:
    text, number = pa.string(), pa.int64()
    image = pa.struct([("bytes", pa.binary()), *((name, number) for name in _limits(config))])
    return pa.schema(
        [
            ("data_source", text),
            ("prompt", pa.list_(pa.struct([("role", text), ("content", text)]))),
            ("images", pa.list_(image)),
            ("ability", text),
            ("reward_model", pa.struct([("style", text), ("ground_truth", text)])),
            ("extra_info", pa.struct([("index", number), ("split", text), ("qid", text), ("question", text)])),
        ]
    )


def overrides(config: RunConfig, splits: Splits, here: str) -> list[str]:
    """``key=value`` of verl's ``ppo_trainer``, by the first stage's settings; ``here``: the export's folder."""
    stage = config.for_stage(0)
    values = {
        **_data(stage, splits, here),
        **_algorithm(stage),
        **_model(stage),
        **_rollout(stage),
        **_trainer(config, splits),
        "reward.custom_reward_function.path": f"{here}/reward.py",
        "reward.custom_reward_function.name": "compute_score",
    }
    return [f"{key}={_written(value)}" for key, value in values.items()]


def _data(config: RunConfig, splits: Splits, here: str) -> dict[str, Any]:
    images = max(most_images(queries) for queries in splits.values()) * _limits(config)["max_pixels"] // TOKEN_PIXELS
    held_out = "validation" if "validation" in splits else "train"
    return {
        "data.train_files": f"{here}/train.parquet",
        "data.val_files": f"{here}/{held_out}.parquet",
        "data.train_batch_size": config.queries_per_episode,
        "data.max_prompt_length": TEXT_TOKENS + images,
        "data.max_response_length": config.rollout.max_new_tokens,
        "data.filter_overlong_prompts": True,
        "data.seed": config.seed,
    }


def _algorithm(config: RunConfig) -> dict[str, Any]:
    grpo, actor = config.grpo, "actor_rollout_ref.actor"
    loss = "cispo" if grpo.objective == "cispo" else "gspo" if grpo.ratio == "sequence" else "vanilla"
    values: dict[str, Any] = {
        "algorithm.adv_estimator": "grpo",
        "algorithm.norm_adv_by_std_in_grpo": grpo.advantage_scale == "std",
        "algorithm.use_kl_in_reward": False,
        "algorithm.filter_groups.enable": config.replay.mode == "dynamic_sampling",
        f"{actor}.policy_loss.loss_mode": loss,
        f"{actor}.loss_agg_mode": AGGREGATION[grpo.aggregation],
        f"{actor}.clip_ratio_low": grpo.clip_low,
        f"{actor}.clip_ratio_high": grpo.clip_high,
        f"{actor}.clip_ratio_c": grpo.dual_clip or NO_DUAL_CLIP,
        f"{actor}.entropy_coeff": grpo.entropy_coef,
        f"{actor}.use_kl_loss": grpo.kl_coef > 0,
    }
    if grpo.kl_coef:
        values |= {f"{actor}.kl_loss_coef": grpo.kl_coef, f"{actor}.kl_loss_type": KL[grpo.kl_estimator]}
    if config.replay.mode == "dynamic_sampling":
        values |= {
            "algorithm.filter_groups.metric": "acc",
            "algorithm.filter_groups.max_num_gen_batches": config.replay.max_rollouts,
        }
    if grpo.importance_cap is not None:
        values |= {
            "algorithm.rollout_correction.rollout_is": "token",
            "algorithm.rollout_correction.rollout_is_threshold": grpo.importance_cap,
        }
    return values


def _model(config: RunConfig) -> dict[str, Any]:
    model, optim = config.model, config.optim
    actor, policy = "actor_rollout_ref.actor", "actor_rollout_ref.model"
    longest = config.rollout.max_new_tokens + TEXT_TOKENS + _limits(config)["max_pixels"] // TOKEN_PIXELS
    values: dict[str, Any] = {
        f"{policy}.path": model.path,
        f"{policy}.enable_gradient_checkpointing": model.gradient_checkpointing,
        f"{actor}.strategy": "fsdp2",
        f"{actor}.freeze_vision_tower": model.freeze_vision or model.lora_rank > 0,
        f"{actor}.optim.lr": optim.lr,
        f"{actor}.optim.betas": list(optim.betas),
        f"{actor}.optim.weight_decay": optim.weight_decay,
        f"{actor}.optim.lr_warmup_steps": optim.warmup_steps,
        f"{actor}.grad_clip": optim.max_grad_norm,
        # verl counts queries here, and multiplies by the size of a group
        f"{actor}.ppo_mini_batch_size": max(1, optim.train_batch_size // config.rollout.group_size),
        f"{actor}.use_dynamic_bsz": True,
        f"{actor}.ppo_max_token_len_per_gpu": max(optim.micro_batch_tokens, longest),
    }
    if model.lora_rank:
        values |= {
            f"{policy}.lora_rank": model.lora_rank,
            f"{policy}.lora_alpha": int(model.lora_alpha),
            f"{policy}.target_modules": list(model.lora_targets),
            f"{policy}.exclude_modules": ".*visual.*",
        }
    return values


def _rollout(config: RunConfig) -> dict[str, Any]:
    options, rollout = config.rollout, "actor_rollout_ref.rollout"
    return {
        f"{rollout}.name": "vllm",
        f"{rollout}.n": options.group_size,
        f"{rollout}.temperature": options.temperature,
        f"{rollout}.top_p": options.top_p,
        f"{rollout}.tensor_model_parallel_size": options.tensor_parallel_size,
        f"{rollout}.gpu_memory_utilization": options.gpu_memory_utilization,
    }


def _trainer(config: RunConfig, splits: Splits) -> dict[str, Any]:
    tracking = config.tracking
    every = config.evaluation.every if "validation" in splits else 0
    gpus = config.launch.machines * config.launch.processes
    nodes = max(config.launch.machines, -(-gpus // 8))
    return {
        "trainer.project_name": tracking.wandb_project,
        "trainer.experiment_name": config.name,
        "trainer.logger": ["console", "wandb"] if tracking.wandb else ["console"],
        "trainer.nnodes": nodes,
        "trainer.n_gpus_per_node": gpus // nodes,
        "trainer.total_training_steps": config.episodes,  # a step of verl is an episode
        "trainer.test_freq": every or -1,
        "trainer.val_before_train": "validation" in splits,
        "trainer.save_freq": tracking.save_every or -1,
    }


def _written(value: Any) -> str:
    """As Hydra reads it."""
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    if isinstance(value, str):
        plain = re.fullmatch(r"(?!(true|false|null)$)[\w./$-]+", value)
        return value if plain else "'" + value.replace("'", "\\'") + "'"
    return {True: "True", False: "False"}[value] if isinstance(value, bool) else repr(value)
