"""An export for prime-rl: a verifiers (0.4) taskset as an installable package, its data, and a TOML file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa

from rethinker.config import RunConfig
from rethinker.lab.export import files
from rethinker.lab.export.data import Splits, pictures, prompt, write_rows
from rethinker.types import Query

PACKAGE = "rethinker_tasks"
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("qid", "prompt", "question", "answer", "category", "source")),
        ("images", pa.list_(pa.struct([("bytes", pa.binary())]))),
    ]
)
PYPROJECT = f"""\
[project]
name = "{PACKAGE.replace("_", "-")}"
version = "0.1.0"
requires-python = ">=3.11"
dependencies = ["verifiers>=0.4,<0.5", "pyarrow", "rethinker"]

[build-system]
requires = ["setuptools>=68"]
build-backend = "setuptools.build_meta"

[tool.setuptools]
packages = ["{PACKAGE}"]
"""


def write(config: RunConfig, splits: Splits, folder: Path) -> None:
    """``data/<split>.parquet`` (a data set of Hugging Face's layout), the package and ``rl.toml``."""
    for name, queries in splits.items():
        write_rows(folder / "data" / f"{name}.parquet", queries, SCHEMA, lambda index, query: row(config, query))
    (folder / PACKAGE).mkdir(parents=True)
    shutil.copyfile(Path(files.__file__).with_name("taskset.py"), folder / PACKAGE / "__init__.py")
    (folder / "pyproject.toml").write_text(PYPROJECT, encoding="utf-8")
    (folder / "rl.toml").write_text(to_toml(settings(config, splits)), encoding="utf-8")


def row(config: RunConfig, query: Query) -> dict[str, Any]:
    """A row of the data."""
    return {
        "qid": query.qid,
        "prompt": prompt(config, query),
        "question": query.question,
        "answer": query.answer,
        "category": query.category,
        "source": query.source,
        "images": [{"bytes": data} for data in pictures(query)],
    }


def settings(config: RunConfig, splits: Splits) -> dict[str, Any]:
    """prime-rl's tables, by the first stage's settings."""
    stage = config.for_stage(0)
    steps = stage.batches(stage.samples_per_episode)
    model: dict[str, Any] = {"optimization_dtype": "bfloat16", "reduce_dtype": "bfloat16"}  # all it takes for VLMs
    if stage.model.gradient_checkpointing:
        model["ac"] = {}
    if stage.model.lora_rank:
        model["lora"] = {
            "rank": stage.model.lora_rank,
            "alpha": stage.model.lora_alpha,
            "target_modules": list(stage.model.lora_targets),
        }
    optim = {
        "type": "adamw",
        "lr": stage.optim.lr,
        "weight_decay": stage.optim.weight_decay,
        "max_norm": stage.optim.max_grad_norm,
        "betas1": stage.optim.betas[0],
        "betas2": stage.optim.betas[1],
    }
    orchestrator: dict[str, Any] = {
        "batch_size": stage.optim.train_batch_size,
        "train": {"source": [_source(stage, "train", stage.rollout.temperature, stage.rollout.group_size)]},
    }
    if "validation" in splits and config.evaluation.every:
        orchestrator["eval"] = {
            "interval": config.evaluation.every * steps,
            "source": [_source(stage, "validation", 0.0, 1)],
        }
    return {
        "max_steps": config.episodes * steps,
        "seq_len": stage.optim.micro_batch_tokens,
        "model": {
            "name": stage.model.path,
            "vlm": {"vision_encoder_attr": "model.visual", "language_model_attr": "model.language_model"},
        },
        "trainer": {"optim": optim, "model": model},
        "orchestrator": orchestrator,
        "inference": {"vllm": {"tensor_parallel_size": stage.rollout.tensor_parallel_size}},
    }


def _source(config: RunConfig, split: str, temperature: float, group_size: int) -> dict[str, Any]:
    agent = {"harness": {"id": "null"}, "runtime": {"type": "subprocess"}}
    taskset = {"id": PACKAGE.replace("_", "-"), "split": split}
    return {
        "name": f"rethinker-{split}",
        "group_size": group_size,
        "sampling": {"temperature": temperature, "max_completion_tokens": config.rollout.max_new_tokens},
        "env": {"taskset": taskset, "agent": agent},
    }


def to_toml(tables: dict[str, Any], path: str = "") -> str:
    """Tables of plain values as TOML: a table's own values first, then the tables in it."""
    own = {name: value for name, value in tables.items() if not _nested(value)}
    lines = [f"{name} = {json.dumps(value)}" for name, value in own.items()]  # JSON's scalars and lists are TOML's
    for name, value in tables.items():
        inner = f"{path}.{name}" if path else name
        if isinstance(value, dict):
            only_tables = value and all(_nested(item) for item in value.values())
            lines += ([] if only_tables else ["", f"[{inner}]"]) + [to_toml(value, inner).rstrip("\n")]
        elif _nested(value):
            for item in value:
                lines += ["", f"[[{inner}]]", to_toml(item, inner).rstrip("\n")]
    return "\n".join(lines) + "\n"


def _nested(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(item, dict) for item in value))
