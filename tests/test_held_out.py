"""Evaluations in one process: how much of the policy each engine needs."""

from __future__ import annotations

import pytest
import torch

from rethinker.config import load_config
from rethinker.evaluation.held_out import policy_to_ask


@pytest.mark.parametrize(("engine", "weights"), [("vllm", "meta"), ("server", "cpu")])
def test_a_policy_beside_vllm_takes_nothing_of_the_gpu(tiny_folder, monkeypatch, engine, weights):
    """Servers have the machine's GPUs to themselves, and vLLM in process has a copy of its own on its GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = load_config(None, [f"model.path={tiny_folder}", "model.lora_rank=4", f"rollout.engine={engine}"])
    policy = policy_to_ask(config, prompt_suffix=" Think.", prompt_hint="")
    assert policy.device == torch.device("cuda", 0) and policy.prompt_suffix == " Think."
    assert {value.device.type for value in policy.model.state_dict().values()} == {weights}
    assert not any("lora" in name for name in policy.model.state_dict())
