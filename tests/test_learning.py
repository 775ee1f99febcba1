"""The reward goes up: real training of the committed tiny VLM, one process, a few seconds a test."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean

import pyarrow.parquet as pq
import pytest
from golden import DATA, ROOT
from tiny_training import fresh_process

from rethinker.config import load_config
from rethinker.datasets.io import write_parquet
from rethinker.run import TrainingRun

pytestmark = pytest.mark.slow

# Of the 36 questions, by the base's accuracy on 64 sampled responses: 25 to 70 %; and below 13 %, most of them sums.
UNSURE = {1, 4, 6, 8, 10, 12, 20, 21, 22, 24, 28, 30}
HARD = {7, 13, 14, 19, 25, 31}


def train(folder: Path, seed: int, questions: set[int], *overrides: str) -> list[dict]:
    """The metrics of the episodes of a run on some questions, all of which every episode asks."""
    rows = [
        row | {"image": [str(DATA.parent / path) for path in row["image"]]}
        for number, row in enumerate(pq.read_table(DATA).to_pylist())
        if number in questions
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_parquet(folder / "train.parquet", rows)
    settings = [
        f"runs_dir={folder}",
        "name=run",
        f"seed={seed}",
        f"model.path={ROOT / 'data' / 'tiny-vlm'}",
        f"data.train={folder / 'train.parquet'}",
        "data.validation=null",
        "data.test=null",
        "rollout.engine=transformers",
        "launch.processes=1",
        f"queries_per_episode={len(questions)}",
        "optim.train_batch_size=48",
        "optim.warmup_steps=0",
        "evaluation.every=0",
        "tracking.save_every=0",
        *overrides,
    ]
    config = load_config(ROOT / "experiments" / "tiny.yaml", settings)
    with fresh_process():
        assert TrainingRun(config).run() == "finished"
    lines = [json.loads(text) for text in (config.folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["record"] == "episode"]


def test_the_reward_goes_up(tmp_path):
    """GRPO with Selective Sample Replay. A policy that does not change has a rise above 0.2 with a probability of at
    most exp(-2 * 0.2^2 / (1/384 + 1/576)) = 1e-8 (Hoeffding: 384 sampled responses in two episodes, 576 in three).
    Power: over 20 seeds the rise was 0.30 to 0.41, mean 0.36, standard deviation 0.03.
    """
    episodes = train(tmp_path, 0, UNSURE, "rollout.group_size=16", "optim.lr=1e-4", "stages=[{name: a, episodes: 8}]")
    accuracies = [line["accuracy/first"] for line in episodes]
    assert mean(accuracies[-3:]) - mean(accuracies[:2]) > 0.2
    assert all(line["reflection/share"] < 0.05 for line in episodes)  # nothing has taught it to


def test_forced_second_looks_become_its_own(tmp_path):
    """Where first looks are wrong and second ones often right, the policy learns to take the second one by itself.

    A policy that does not learn it reflects in less than 5 % of its responses (above): 38 of 96 by chance have a
    probability below 1e-20. Power: over three seeds it was 0.90 to 1.00.
    """
    stages = "stages=[{name: a, episodes: 8, overrides: {rethink: {fraction: 0.9}}}]"
    settings = ["rollout.group_size=8", "optim.train_batch_size=24", "optim.lr=6e-4", stages]
    episodes = train(tmp_path, 0, HARD, *settings)
    assert episodes[0]["reflection/share"] < 0.05 and episodes[0]["rethink/wrong_to_right"] > 0.3
    assert mean(line["reflection/share"] for line in episodes[-2:]) > 0.4
