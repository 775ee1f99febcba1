"""Evaluations in one process: how much of the policy each engine needs."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from rethinker.config import load_config
from rethinker.evaluation import held_out
from rethinker.evaluation.held_out import evaluate_checkpoint, policy_to_ask
from rethinker.policy.loading import load_policy
from rethinker.rollout import TransformersEngine


@pytest.mark.parametrize(("engine", "weights"), [("vllm", "meta"), ("server", "cpu")])
def test_a_policy_beside_vllm_takes_nothing_of_the_gpu(tiny_folder, monkeypatch, engine, weights):
    """Servers have the machine's GPUs to themselves, and vLLM in process has a copy of its own on its GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = load_config(None, [f"model.path={tiny_folder}", "model.lora_rank=4", f"rollout.engine={engine}"])
    policy = policy_to_ask(config, prompt_suffix=" Think.", prompt_hint="")
    assert policy.device == torch.device("cuda", 0) and policy.prompt_suffix == " Think."
    assert {value.device.type for value in policy.model.state_dict().values()} == {weights}
    assert not any("lora" in name for name in policy.model.state_dict())


def test_an_evaluation_on_data_test_needs_no_weights_beside_vllm(tmp_path, world, guesser, monkeypatch):
    """Prompts, seams and second looks are those of a policy with weights. The stand-in for vLLM has them to itself."""
    options = [f"model.path={guesser}", f"data.test={world / 'test.parquet'}", "rollout.max_new_tokens=64"]
    options += ["evaluation.samples=2", "rethink.min_second_look_tokens=4"]
    expected = evaluate_checkpoint(load_config(None, [*options, "rollout.engine=transformers"]))
    devices = set()

    def engine(config, policy, **_):
        devices.update(value.device.type for value in policy.model.state_dict().values())
        return TransformersEngine(load_policy(config.model), batch_size=config.rollout.batch_size)

    monkeypatch.setattr(held_out, "make_engine", engine)
    found = evaluate_checkpoint(load_config(None, [*options, "rollout.engine=vllm"]))
    assert devices == {"meta"}
    assert set(found.rows["mode"]) == {"plain", "forced", "bound"} and found.rows["trigger"].notna().any()
    pd.testing.assert_frame_equal(found.rows, expected.rows)
