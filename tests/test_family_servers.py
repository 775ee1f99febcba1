"""Families whose images a server can be told: real vLLM servers score tiny random models as the trainer does."""

from __future__ import annotations

import copy

import pytest
import torch
from bounds import LOGPROB, rounding
from conftest import random_weights
from served import serve, write_config
from tiny_families import save_tiny

from rethinker.config import ModelConfig, load_config
from rethinker.policy.forward import PolicyForward
from rethinker.policy.loading import load_policy
from rethinker.rollout import canary_gap, vllm_available
from rethinker.rollout.server.engine import ServerEngine
from rethinker.rollout.server.fleet import Fleet
from rethinker.rollout.server.folder import ServersDir, servers_of
from rethinker.rollout.server.transfer import FileTransfer
from rethinker.types import Request, Sampling

pytestmark = [
    pytest.mark.long,
    pytest.mark.numerics,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not vllm_available(), reason="vLLM is not installed, or not built for this processor"),
]


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "internvl"])
def test_servers_score_as_the_trainer_does(family, queries, tmp_path):
    """Text alone, one image, several: with weights that were sent, with others, and never with stale ones."""
    folder = save_tiny(family, tmp_path / family)
    config = write_config(tmp_path, model={"path": str(folder)})
    trained = load_policy(ModelConfig(path=str(folder)))
    original = copy.deepcopy(trained.model)
    forward, sampling = PolicyForward(trained.model), Sampling(max_new_tokens=16)
    requests = [Request(query.qid, query, seed=index, n=2) for index, query in enumerate(queries)]
    with serve(config, servers=1):
        place = ServersDir(load_config(config).rollout.servers)
        fleet = Fleet(servers_of(place.read()), place.token(), timeout_s=240, patience_s=240)
        engine = ServerEngine(trained, fleet, FileTransfer(tmp_path / "weights"), dtype=torch.float32)
        try:
            engine.sync_weights(original)
            for seed in (1, 2):
                random_weights(trained.model, seed)
                assert canary_gap(engine, trained, forward, requests, sampling) > 1e-2
                engine.sync_weights(trained.model)
                assert canary_gap(engine, trained, forward, requests, sampling) < rounding(LOGPROB)
        finally:
            engine.close()
