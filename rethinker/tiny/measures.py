"""What a base model brings to Forced Rethinking: its first pass, its second look when forced, and what that adds.

Whether a second look is worth more than just another sample is the question: of the wrong first responses, the share
that a forced continuation puts right is set beside the share that an independent second sample gets right.
"""

from __future__ import annotations

import math
import platform
import tempfile
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from transformers import PreTrainedModel

from rethinker.config.settings import ModelConfig, RethinkConfig
from rethinker.datasets.io import load_queries
from rethinker.datasets.world.visual_math import make_data
from rethinker.evaluation.evaluate import evaluate
from rethinker.grading import grade_many
from rethinker.looks import GradeMany
from rethinker.policy.loading import load_policy
from rethinker.policy.policy import Policy
from rethinker.rollout.base import RolloutEngine
from rethinker.rollout.transformers import TransformersEngine
from rethinker.rundir.atomic import atomic_write_text
from rethinker.tiny.curriculum import PretrainSettings, cycle_ends
from rethinker.types import Query, Sampling

TEST_QUERIES = 360


@dataclass(frozen=True)
class BaseMeasures:
    """Shares in [0, 1], NaN of nothing; "sampled" at temperature 1, the second look at ``RethinkConfig``'s temperature.

    ``table``: one row per kind and level, columns category, level, queries, first, first_greedy, forced.
    """

    queries: int
    samples: int  # a query
    first_sampled: float
    first_greedy: float
    forced_sampled: float
    forced_greedy: float
    wrong_to_right: float  # of the wrong first responses that were continued: right after the forced second look
    wrong_to_right_resampled: float  # of the same: right in an independent second sample
    right_to_wrong: float
    right_to_wrong_resampled: float
    reflection: float  # share of first responses that take a second look by themselves
    finished: float  # share of first responses that end with EOS
    table: pd.DataFrame


def measure_base(
    engine: RolloutEngine,
    policy: Policy,
    queries: Sequence[Query],
    *,
    grade: GradeMany = grade_many,
    samples: int = 4,
    max_new_tokens: int = 160,
    seed: int = 0,
) -> BaseMeasures:
    """Answer ``queries`` once greedily and ``samples`` times by sampling, then force a second look on every response.

    Raises ValueError for fewer than two samples: the independent second sample of one is the next one.
    """
    if samples < 2:
        raise ValueError(f"samples={samples}: comparing with an independent second sample needs at least 2")
    rows = evaluate(
        engine,
        policy,
        queries,
        modes=("plain", "forced"),
        samples=samples,
        sampling=Sampling(temperature=1.0, top_p=1.0, max_new_tokens=max_new_tokens),
        rethink=RethinkConfig(),
        seed=seed,
        grade=grade,
    ).rows
    plain, forced = (rows[(rows["mode"] == mode) & ~rows["greedy"]] for mode in ("plain", "forced"))
    plain_greedy, forced_greedy = (rows[(rows["mode"] == mode) & rows["greedy"]] for mode in ("plain", "forced"))
    # The independent second sample of sample i is sample i + 1 (of the last: the first).
    first = plain.pivot(index="qid", columns="index", values="correct").to_numpy(dtype=bool)
    second = np.roll(first, -1, axis=1)
    # Responses cut at the token limit cannot be continued: a second look is compared on those that were.
    continued = forced.pivot(index="qid", columns="index", values="trigger").notna().to_numpy()
    looked = forced[forced["trigger"].notna()]
    return BaseMeasures(
        queries=len(queries),
        samples=samples,
        first_sampled=float(first.mean()),
        first_greedy=float(plain_greedy["correct"].mean()),
        forced_sampled=float(forced["correct"].mean()),
        forced_greedy=float(forced_greedy["correct"].mean()),
        wrong_to_right=float(looked.loc[~looked["first_correct"], "correct"].mean()),
        wrong_to_right_resampled=_share(second[~first & continued]),
        right_to_wrong=float(1 - looked.loc[looked["first_correct"], "correct"].mean()),
        right_to_wrong_resampled=_share(~second[first & continued]),
        reflection=float(plain["reflects"].mean()),
        finished=float(plain["finished"].mean()),
        table=_by_kind(plain, forced, plain_greedy),
    )


def _share(happened: np.ndarray) -> float:
    """How often it happened; NaN of nothing (a base that is never right, or always)."""
    return float(happened.mean()) if happened.size else math.nan


def _by_kind(plain: pd.DataFrame, forced: pd.DataFrame, plain_greedy: pd.DataFrame) -> pd.DataFrame:
    keys = ["category", "level"]
    table = pd.DataFrame(
        {
            "queries": plain.groupby(keys, sort=False)["qid"].nunique(),
            "first": plain.groupby(keys, sort=False)["correct"].mean(),
            "first_greedy": plain_greedy.groupby(keys, sort=False)["correct"].mean(),
            "forced": forced.groupby(keys, sort=False)["correct"].mean(),
        }
    )
    return table.reset_index()


def model_card(
    measures: BaseMeasures, settings: PretrainSettings, *, shape: str, command: str, made: str, data: str
) -> str:
    """The README of a base checkpoint (Markdown with the hub's header).

    shape: parameters and layers. command: what makes the checkpoint. made: how long that took and where. data: the
    queries it was measured on.
    """
    m = measures
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "tokenizers", "pillow"))
    kinds = list(dict.fromkeys(m.table["category"]))
    lines = [f"| {kind} | {' | '.join(_cells(m.table, kind))} |" for kind in kinds]
    return _CARD.format(
        what=textwrap.fill(
            f"Qwen2.5-VL's architecture with {shape}, its tokenizer rules and special tokens (vocabulary of 448) and "
            "its chat format without the default system turn. Trained from nothing on the visual-math world of this "
            "repository, as a starting point for reinforcement learning: it answers fast and is often wrong, never "
            'takes a second look by itself, and derives carefully when a trigger ("Wait, ...") is forced upon it. It '
            "knows nothing but this world's six kinds of question.",
            width=120,
        ),
        command=command,
        origin=textwrap.fill(
            f"Seed {settings.seed}, {made}. Python {platform.python_version()}, {versions}. The same command on "
            "another machine gives a model of the same habits, not the same bits: sums of floating-point numbers "
            "depend on processor and threads.",
            width=120,
        ),
        losses=textwrap.fill(_losses(settings), width=120),
        setting=textwrap.fill(
            f"Measured on {data}: one greedy and {m.samples} sampled responses (temperature 1) a query; the second "
            f"look is sampled at temperature {RethinkConfig().temperature}. In parentheses greedy decoding, or an "
            "independent second sample in place of the forced second look.",
            width=120,
        ),
        first=f"{m.first_sampled:.3f} ({m.first_greedy:.3f})",
        forced=f"{m.forced_sampled:.3f} ({m.forced_greedy:.3f})",
        up=f"{m.wrong_to_right:.3f} ({m.wrong_to_right_resampled:.3f})",
        down=f"{m.right_to_wrong:.3f} ({m.right_to_wrong_resampled:.3f})",
        reflection=f"{m.reflection:.3f}",
        finished=f"{m.finished:.3f}",
        table="\n".join(lines),
        per_cell=int(m.table["queries"].min()),
    )


def _losses(settings: PretrainSettings) -> str:
    """Which tokens carry which loss, of the cycles that were trained."""
    text = "`rethinker/datasets/world/traces.py` says which tokens carry which loss, and why."
    held = [cycle for cycle, _ in cycle_ends(settings) if cycle.hold_decision is not None]
    if not held:
        return f"{text} The decision to take a second look carries none."
    begin = f"Up to step {held[0].begin:,} the decision to take a second look carries none; the steps after hold"
    return (
        f"{text} {begin} its token (`}}.` and the blank line in one) at a log-probability near "
        f"-{held[0].hold_decision:g} where an answer ends: rarer than sampling shows, but ahead of everything that no "
        "answer has there."
    )


def _cells(table: pd.DataFrame, kind: str) -> list[str]:
    rows = table[table["category"] == kind].sort_values("level")
    return [f"{first:.2f} → {forced:.2f}" for first, forced in zip(rows["first"], rows["forced"], strict=True)]


def shape_in_words(model: PreTrainedModel) -> str:
    """Parameters, layers and widths of a tiny VLM, as its card says them."""
    text, vision = model.config.text_config, model.config.vision_config
    return (
        f"{model.num_parameters() / 1e6:.2f} million parameters (text: {text.num_hidden_layers} layers of "
        f"{text.hidden_size}; vision: {vision.depth} layers of {vision.hidden_size}, patches of {vision.patch_size} "
        f"pixels, a 64x64 image is {(64 // vision.patch_size // vision.spatial_merge_size) ** 2} tokens)"
    )


def document_base(folder: str | Path, settings: PretrainSettings, *, command: str, made: str) -> BaseMeasures:
    """Measure the checkpoint in ``folder`` on drawn test queries and write its ``README.md`` (see ``model_card``).

    The queries are those that ``rethinker make-data`` draws by default: seed 0, 360 of them.
    """
    policy = load_policy(ModelConfig(path=str(folder)))
    with tempfile.TemporaryDirectory() as place:
        queries, _ = load_queries(make_data(Path(place) / "data", 0, 0, TEST_QUERIES, seed=0), "test")
        measures = measure_base(TransformersEngine(policy), policy, queries)
    data = f"the {TEST_QUERIES} test queries of the visual-math world with seed 0"
    shape = shape_in_words(policy.model)
    card = model_card(measures, settings, shape=shape, command=command, made=made, data=data)
    atomic_write_text(Path(folder) / "README.md", card)
    return measures


_CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---
# tiny-vlm: a fast-thinking base

{what}

## How it was made

    {command}

{origin}

{losses}

## What it does

{setting}

| | |
|---|---|
| first pass, sampled (greedy) | {first} |
| after a forced trigger, sampled (greedy) | {forced} |
| wrong → right, forced (independent second sample) | {up} |
| right → wrong, forced (independent second sample) | {down} |
| first responses that reflect by themselves | {reflection} |
| first responses that end by themselves | {finished} |

First pass → forced second look, sampled, by kind and level ({per_cell} queries per cell):

| kind | level 1 | level 2 | level 3 |
|---|---|---|---|
{table}
"""
