"""Whole runs with the model in shards over two processes, as `rethinker train` starts them: the run that they would be
without, and killed and resumed the run that they were."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bounds import LOGPROB, STEPS, rounding
from safetensors.torch import load_file
from test_distributed import lines, make_config

from rethinker.config import RunConfig, load_config, to_yaml
from rethinker.lab import jobs
from rethinker.rollout import vllm_available

pytestmark = [pytest.mark.slow, pytest.mark.numerics, pytest.mark.timeout(900)]

SHORT = "[{name: reasoner, episodes: 1}, {name: rethinker, episodes: 1, overrides: {rethink: {fraction: 0.9}}}]"


def train(folder: Path, world: Path, guesser: Path, name: str, *overrides: str, processes: int = 2) -> RunConfig:
    config = configured(folder, world, guesser, name, *overrides, processes=processes)
    assert jobs.train(config) == 0
    return config


def configured(folder: Path, world: Path, guesser: Path, name: str, *overrides: str, processes: int = 2) -> RunConfig:
    file = folder / f"{name}.yaml"
    file.write_text(to_yaml(make_config(folder, world, guesser, processes)))
    return load_config(file, [f"name={name}", *overrides])


def weights(config: RunConfig) -> dict[str, torch.Tensor]:
    model = config.folder / "checkpoints" / "last" / "model"
    return {name: tensor for file in sorted(model.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def assert_same(one: RunConfig, other: RunConfig, *, start: Path, relative: float) -> None:
    """The same responses, and the weights as near as test_distributed.py's bound has it."""
    first, second, before = weights(one), weights(other), load_file(start / "model.safetensors")
    assert first.keys() == second.keys() and before.keys() == first.keys()
    gap = torch.cat([(first[name] - second[name]).flatten() for name in first]).norm()
    way = torch.cat([(first[name] - before[name]).flatten() for name in first]).norm()
    assert way > 0 and gap < relative**0.5 * way, (gap, way)
    for record in ("episode", "step", "validation"):
        pairs = list(zip(lines(one, record), lines(other, record), strict=True))
        assert pairs
        for line, same in pairs:
            for name in ("rollout/accuracy", "tokens/generated", "batch/samples", "validation/accuracy", "optim/lr"):
                assert line.get(name) == same.get(name), (record, name)
            if record == "step":
                assert same["policy/grad_norm"] == pytest.approx(line["policy/grad_norm"], rel=relative**0.5)


def test_a_sharded_run_is_the_run_that_it_would_be_without(tmp_path, world, guesser):
    """Two stages, images on one rank alone at times, a gradient that is clipped."""
    short = (f"stages={SHORT}", "evaluation.every=0", "data.test=null", "optim.max_grad_norm=0.01")
    plain = train(tmp_path, world, guesser, "plain", *short, processes=1)
    sharded = train(tmp_path, world, guesser, "sharded", *short, "model.sharding=full")
    assert_same(plain, sharded, start=guesser, relative=rounding(steps=3 * STEPS))
    assert all(line["canary/gap"] < rounding(LOGPROB) for line in lines(sharded, "episode"))


OPTIONS = {
    "full": ("model.sharding=full",),
    "offloaded": ("model.sharding=hybrid", "model.offload=true", "model.gradient_checkpointing=true"),
}


@pytest.mark.long
def test_killed_and_resumed(tmp_path, world, guesser):
    """SIGKILL after the third episode, with checkpoints of every one: the same weights, bit for bit; the rest of the
    run in one process: the same up to rounding."""
    settings = ("model.sharding=full", "tracking.save_every=1")
    whole = train(tmp_path, world, guesser, "whole", *settings)
    for name, processes in (("killed", 2), ("fewer", 1)):
        config = configured(tmp_path, world, guesser, name, *settings)
        code = "import sys; from rethinker.config import load_config; from rethinker.lab import jobs\n"
        code += "sys.exit(jobs.train(load_config(sys.argv[1])))"
        file = tmp_path / f"{name}-whole.yaml"
        file.write_text(to_yaml(config))
        process = subprocess.Popen([sys.executable, "-c", code, str(file)], env=os.environ | {"OMP_NUM_THREADS": "1"})
        metrics = config.folder / "metrics.jsonl"
        while not (metrics.exists() and '"episode": 3, ' in metrics.read_text()):
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.2)
        job = jobs.Job(config.folder)
        job.kill()
        process.wait()
        resumed = dataclasses.replace(config, launch=dataclasses.replace(config.launch, processes=processes))
        assert jobs.train(resumed, resume=True) == 0
        if processes == 2:
            first, second = weights(whole), weights(resumed)
            assert first.keys() == second.keys()
            assert all(torch.equal(first[name], second[name]) for name in first)
        else:
            assert_same(whole, resumed, start=guesser, relative=rounding(steps=3 * STEPS))


@pytest.mark.long
@pytest.mark.parametrize("name", OPTIONS)
def test_with_a_reference_and_a_frozen_tower(tmp_path, world, guesser, name):
    settings = ("grpo.kl_coef=0.1", "model.freeze_vision=true")
    plain = train(tmp_path, world, guesser, "plain", *settings)
    sharded = train(tmp_path, world, guesser, "sharded", *settings, *OPTIONS[name])
    assert_same(plain, sharded, start=guesser, relative=rounding(steps=3 * STEPS))


@pytest.mark.long
def test_adapters_with_a_reference(tmp_path, world, guesser):
    """The reference is the sharded policy without its adapters; the folder has them merged in, and resumes."""
    settings = ("grpo.kl_coef=0.1", "model.lora_rank=4", "model.gradient_checkpointing=true", "optim.lr=1e-3")
    plain = train(tmp_path, world, guesser, "plain", *settings)
    sharded = train(tmp_path, world, guesser, "sharded", *settings, "model.sharding=full")
    assert_same(plain, sharded, start=guesser, relative=rounding(steps=3 * STEPS))


@pytest.mark.long
def test_bfloat16_arithmetic_on_float32_weights(tmp_path, world, guesser):
    """Not the unsharded run: layers are gathered in bfloat16, which autocast casts matrix by matrix. Its loss and its
    norms are within a bfloat16's rounding in the first step."""
    plain = train(tmp_path, world, guesser, "plain", "model.autocast=true")
    sharded = train(tmp_path, world, guesser, "sharded", "model.autocast=true", "model.sharding=full")
    assert all(tensor.dtype == torch.float32 for tensor in weights(sharded).values())
    first, second = lines(plain, "step")[0], lines(sharded, "step")[0]
    assert second["policy/grad_norm"] == pytest.approx(first["policy/grad_norm"], rel=0.1)
    assert len(lines(sharded, "step")) == 5


@pytest.mark.long
@pytest.mark.vllm
@pytest.mark.skipif(not vllm_available(), reason="vLLM is not installed")
def test_an_engine_on_each_rank_of_a_sharded_policy(tmp_path, world, guesser):
    """Each rank's vLLM gets the whole weights by the stream; the canary passes after every sync."""
    config = train(tmp_path, world, guesser, "vllm", "model.sharding=full", "rollout.engine=vllm")
    episodes = lines(config, "episode")
    assert len(episodes) == 5
    assert all(line["canary/gap"] < rounding(LOGPROB) and line["gap/max"] < rounding(LOGPROB) for line in episodes)
    starts = json.loads((config.folder / "provenance.json").read_text())
    assert starts["processes"] == 2 and starts["engine"] == "VllmEngine"
