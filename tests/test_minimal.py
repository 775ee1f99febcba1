"""experiments/minimal.py computes what ``Trainer`` computes: losses, draws and weights, bit for bit."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bounds import rounding
from tiny_training import fresh_process

from rethinker.config import load_config
from rethinker.run import TrainingRun

ROOT = Path(__file__).parents[1]
DATA = ROOT / "data" / "visual_math" / "test.parquet"
STAGES = ((1, 0.0), (2, 0.5))
EPISODES = sum(episodes for episodes, _ in STAGES)


@pytest.fixture(scope="module")
def minimal() -> Any:
    spec = importlib.util.spec_from_file_location("minimal", ROOT / "experiments" / "minimal.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["minimal"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["minimal"]


def test_losses_draws_and_weights_are_those_of_the_trainer(minimal, tmp_path):
    settings = minimal.Settings(
        model=str(ROOT / "data" / "tiny-vlm"), data=str(DATA), queries=8, group=4, batch=16, micro_batch_tokens=1024
    )
    losses, batches = [], []

    def remember(text, episode_losses, episode_batches):
        losses.extend(episode_losses)
        batches.extend(episode_batches)

    policy = minimal.train(settings, STAGES, remember)

    overrides = [f"stages=[{{name: ssr, episodes: {STAGES[0][0]}}}, {{name: rethinking, episodes: {STAGES[1][0]}, "]
    overrides[0] += f"overrides: {{rethink: {{fraction: {STAGES[1][1]}}}}}}}]"
    overrides += [f"runs_dir={tmp_path}", f"model.path={settings.model}", f"data.train={DATA}"]
    overrides += ["data.validation=null", "data.test=null", "rollout.engine=transformers", "launch.processes=1"]
    overrides += ["queries_per_episode=8", "rollout.group_size=4", "optim.train_batch_size=16"]
    overrides += ["optim.micro_batch_tokens=1024"]
    with fresh_process():
        run = TrainingRun(load_config(ROOT / "experiments" / "tiny.yaml", overrides))
        expected_losses, expected_batches, rethought = [], [], []
        log = run.tracker.log
        run.tracker.log = lambda record, *rest: (  # type: ignore[method-assign]
            expected_losses.append(rest[-1]["loss/total"]) if record == "step" else None,
            log(record, *rest),
        )
        for index, (episodes, _) in enumerate(STAGES):
            trainer = run.make_trainer(index, run.config.for_stage(index))
            select = trainer.selector.select

            def spy(samples, select=select):
                batch = select(samples)
                expected_batches.append([sample.sample_id for sample in batch])
                rethought.extend(sample.sample_id for sample in batch if sample.nll_mask)
                return batch

            trainer.selector.select = spy
            for _ in range(episodes):
                trainer.episode()
        assert run.progress.episode == EPISODES and len(losses) == 2 * EPISODES
        assert batches == expected_batches
        assert any(len(set(batch)) < len(batch) for batch in batches)  # replay has drawn
        assert rethought  # and kept second looks were trained on
        # A float32 sum of 16 samples with advantages of about 2, in another order; it may be near 0.
        assert losses == pytest.approx(expected_losses, rel=0, abs=rounding(2.0, steps=2, terms=16))
        ours, theirs = policy.model.state_dict(), run.policy.model.state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        run.engine.close()
        run.tracker.close()
