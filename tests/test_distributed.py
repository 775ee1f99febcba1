"""One process and two give the same training: gloo on CPUs, as `rethinker train` starts it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from bounds import LOGPROB, STEPS, rounding
from safetensors.torch import load_file

from rethinker.config import RunConfig, load_config
from rethinker.lab import jobs
from rethinker.rollout import vllm_available

pytestmark = [pytest.mark.slow, pytest.mark.numerics]

# Samples of the first stage are replayed an episode later; an episode of the second is one update on its own samples.
STAGES = (
    "[{name: reasoner, episodes: 2, overrides: {replay: {lifetime: 2}}},"
    " {name: rethinker, episodes: 3, overrides: {rethink: {fraction: 0.9}}}]"
)


def make_config(folder: Path, world: Path, guesser: Path, processes: int) -> RunConfig:
    """Five steps in five episodes. Half of the queries have no image, and a forward pass holds few samples: some of
    the passes of a rank are without images while the other rank's are not."""
    return load_config(
        None,
        [
            f"runs_dir={folder}",
            f"name=processes-{processes}",
            f"launch.processes={processes}",
            f"model.path={guesser}",
            *(f"data.{split}={world / split}.parquet" for split in ("train", "validation", "test")),
            "queries_per_episode=3",  # not a multiple of two: the ranks' shares differ
            "rollout.engine=transformers",
            "rollout.group_size=4",
            "rollout.max_new_tokens=64",
            "rethink.min_second_look_tokens=8",
            "optim.train_batch_size=12",
            "optim.micro_batch_tokens=60",
            "optim.lr=1e-4",
            "evaluation.every=2",
            "evaluation.samples=1",
            f"stages={STAGES}",
        ],
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory, world, guesser) -> dict[int, RunConfig]:
    folder = tmp_path_factory.mktemp("runs")
    configs = {processes: make_config(folder, world, guesser, processes) for processes in (1, 2)}
    for config in configs.values():
        assert jobs.train(config) == 0
    return configs


def lines(config: RunConfig, record: str) -> list[dict]:
    found = [json.loads(text) for text in (config.folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["record"] == record]


def test_the_weights_are_the_same(runs):
    """Float32, lr 1e-4: five steps move a weight by at most 5e-4.

    Adam makes a step of the learning rate out of any gradient, so that a weight whose gradient is nothing but rounding
    moves anywhere. With a relative error d of the gradients a share of about d of the weights does, and the distance is
    about sqrt(d) of the way; a wrong denominator moves all of them.
    """
    one, two = (load_file(runs[n].folder / "checkpoints" / "last" / "model" / "model.safetensors") for n in (1, 2))
    start = load_file(Path(runs[1].model.path) / "model.safetensors")
    steps = lines(runs[2], "step")
    assert len(steps) == 5
    assert one.keys() == two.keys()
    assert max(float((one[name] - start[name]).abs().max()) for name in one) > 1e-4
    way, gap = (torch.cat([(one[name] - other[name]).flatten() for name in one]).norm() for other in (start, two))
    assert gap < rounding(steps=3 * STEPS) ** 0.5 * way, (gap, way)
    assert any("visual" in name and not torch.equal(one[name], start[name]) for name in one)


def test_the_metrics_are_the_same(runs):
    """Within what the weights' distance makes of them (see above): about 1 %, and of nothing a unit of float32."""
    apart = rounding(steps=3 * STEPS) ** 0.5
    # Of one rank, of what both ranks have to see, or of rounding.
    local = (
        "time/",
        "rollout/tokens_per_second",
        "batch/images",
        "images/decoded",
        "images/encoded",
        "gap/",
        "canary/",
    )
    for record in ("episode", "step", "validation"):
        one, two = (lines(runs[n], record) for n in (1, 2))
        assert len(one) == len(two) > 0
        for first, second in zip(one, two, strict=True):
            for name, value in first.items():
                if name == "seconds" or name.startswith(local):
                    continue
                if isinstance(value, float):
                    close = pytest.approx(value, rel=apart, abs=rounding())
                    assert second[name] == close, (record, first["step"], name)
                else:
                    assert second[name] == value, (record, first["step"], name)


def test_log_probs_are_computed_apart_only_where_they_are_needed(runs):
    for config in runs.values():
        assert [line["time/logprobs"] > 0 for line in lines(config, "episode")] == [True, True, False, False, False]


def test_the_responses_are_the_same(runs):
    """Rows, columns and their order; log-probs are not in the table, advantages are exact."""
    tables = []
    for config in runs.values():
        paths = sorted((config.folder / "rollouts").glob("*.parquet"))
        assert len(paths) == 5
        tables.append(pd.concat([pd.read_parquet(path) for path in paths], ignore_index=True))
    assert (tables[0]["pass"] == "forced").any()
    pd.testing.assert_frame_equal(tables[0], tables[1])


def test_one_process_writes_the_files(runs):
    """Every line once, the same files as one process writes but for the shards of checkpoints, the evaluation whole."""
    names = [
        {str(path.relative_to(config.folder)) for path in config.folder.rglob("*") if path.is_file()}
        for config in runs.values()
    ]
    shards = [sorted(name for name in found if "/state/" in name) for found in names]
    assert len(shards[1]) == 2 * len(shards[0]) > 0
    assert names[0] - set(shards[0]) == names[1] - set(shards[1])
    assert [line["step"] for line in lines(runs[2], "step")] == [1, 2, 3, 4, 5]
    assert [line["episode"] for line in lines(runs[2], "episode")] == [1, 2, 3, 4, 5]
    for label in ("start", "reasoner", "rethinker"):
        parts = [json.loads((config.folder / "evaluation" / f"{label}.json").read_text()) for config in runs.values()]
        assert parts[0]["queries"] == parts[1]["queries"] == 4 and parts[0]["modes"] == parts[1]["modes"]
    assert json.loads((runs[2].folder / "provenance.json").read_text())["processes"] == 2


@pytest.mark.timeout(600)  # two engines start, on whatever cores are left
@pytest.mark.vllm
@pytest.mark.skipif(not vllm_available(), reason="vLLM is not installed")
def test_two_processes_with_an_engine_each(tmp_path, world, guesser):
    """What the default run does: both ranks generate with a vLLM of their own, the canary passes after every sync."""
    two = make_config(tmp_path, world, guesser, 2)
    stages = tuple(dataclasses.replace(stage, episodes=1) for stage in two.stages)
    config = dataclasses.replace(two, rollout=dataclasses.replace(two.rollout, engine="vllm"), stages=stages)
    assert jobs.train(config) == 0
    episodes = lines(config, "episode")
    assert [line["episode"] for line in episodes] == [1, 2]
    assert all(line["canary/gap"] < rounding(LOGPROB) and line["gap/max"] < rounding(LOGPROB) for line in episodes)
    starts = json.loads((config.folder / "provenance.json").read_text())
    assert starts["processes"] == 2 and starts["engine"] == "VllmEngine"
