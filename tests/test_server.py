"""Rollouts by real vLLM servers on this machine: the same prompts, weights and sampling distribution as in process."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import httpx
import pandas as pd
import psutil
import pytest
import torch
from arrivals import check_arrivals
from safetensors.torch import load_file
from served import DATA, MODEL, lines, serve, train, write_config

from rethinker.config import ModelConfig, load_config
from rethinker.datasets.io import load_queries
from rethinker.policy.forward import PolicyForward
from rethinker.policy.loading import load_policy
from rethinker.rollout import canary_gap, vllm_available
from rethinker.rollout.server.engine import ServerEngine
from rethinker.rollout.server.fleet import Fleet
from rethinker.rollout.server.folder import ServersDir, servers_of
from rethinker.rollout.server.transfer import FileTransfer
from rethinker.rundir.paths import RunDir
from rethinker.types import Request, Sampling

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not vllm_available(), reason="vLLM is not installed, or not built for this processor"),
]

SAMPLING = Sampling(max_new_tokens=24)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The file of a config whose servers are those of this module."""
    return write_config(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def policy():
    return load_policy(ModelConfig(path=str(MODEL)))


@pytest.fixture(scope="module")
def queries():
    return load_queries(str(DATA))[0][:6]


@pytest.fixture(scope="module")
def servers(config):
    with serve(config) as process:
        yield process


@pytest.fixture
def engine(policy, servers, config, tmp_path):
    folder = ServersDir(load_config(config).rollout.servers)
    fleet = Fleet(servers_of(folder.read()), folder.token(), timeout_s=240, patience_s=240)
    made = ServerEngine(policy, fleet, FileTransfer(tmp_path / "weights"), dtype=torch.float32)
    yield made
    made.close()


def perturbed(policy, seed: int = 5):
    """A policy of other weights."""
    other = load_policy(ModelConfig(path=str(MODEL)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in other.model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.02 * weight.abs().mean())
    return other


def gap(engine, policy, queries, seed: int = 1) -> float:
    """Mean distance of the log-probs of servers and ``policy``, in nats."""
    requests = [Request(query.qid, query, seed=seed + index, n=2) for index, query in enumerate(queries)]
    policy.encoder.forget()
    found = canary_gap(engine, policy, PolicyForward(policy.model, policy.encoder), requests, SAMPLING)
    assert found is not None
    return found


def test_the_servers_ask_for_a_token(servers, config):
    folder = ServersDir(load_config(config).rollout.servers)
    url = folder.read()[0].servers[0][0]
    for path in ("/pause", "/inference/v1/generate", "/update_weights", "/v1/models"):
        assert httpx.post(url + path, json={}).status_code == 401
    assert httpx.get(url + "/health").status_code == 200
    assert httpx.get(url + "/v1/models", headers={"Authorization": f"Bearer {folder.token()}"}).status_code == 200


def test_log_probs_before_and_after_a_sync(engine, policy, queries):
    """The head is tied: a CPU server keeps a copy of it, which is replaced only where its own name is in the stream."""
    with pytest.raises(RuntimeError, match="call sync_weights before generate"):
        engine.generate([Request("a", queries[0], 0)], SAMPLING)
    engine.transfer.bucket_bytes = 2**20
    engine.sync_weights(policy.model)
    names = [name for bucket in engine.transfer.buckets for name in load_file(bucket.path)]
    assert len(engine.transfer.buckets) > 2 and "lm_head.weight" in names
    assert gap(engine, policy, queries) < 1e-5
    other = perturbed(policy)
    assert gap(engine, other, queries) > 1e-4
    engine.sync_weights(other.model)
    assert gap(engine, other, queries) < 1e-5 and gap(engine, policy, queries) > 1e-4


def test_responses_arrive_as_they_are_finished(engine, policy, queries):
    engine.sync_weights(policy.model)
    requests = [Request(query.qid, query, seed=index, n=2) for index, query in enumerate(queries)]
    assert len(check_arrivals(engine, requests, SAMPLING)) == 2 * len(queries)


def test_a_bucket_that_fails_is_repaired_by_a_whole_transfer(engine, policy, queries, monkeypatch):
    """The first time, one server is told of a file that is not what was written."""
    other, post, failed = perturbed(policy), engine.fleet.post, []

    def fail_once(server, path, body=None, **params):
        if path == "/update_weights" and server is engine.fleet.servers[0] and not failed:
            failed.append(server)
            body = {"update_info": {**body["update_info"], "sha256": "0" * 64}}
        return post(server, path, body, **params)

    monkeypatch.setattr(engine.fleet, "post", fail_once)
    engine.sync_weights(other.model)
    assert failed and len(engine.fleet.usable()) == 2
    for server in engine.fleet.servers:  # each alone
        monkeypatch.setattr(engine.fleet, "servers", [server])
        assert gap(engine, other, queries) < 1e-5


def test_a_transfer_that_was_left_open_is_ended(engine, policy, queries):
    """As by a trainer that was killed in the middle of one; the next one has the server paused and started."""
    engine.sync_weights(policy.model)
    for server in engine.fleet.servers:
        engine.fleet.post(server, "/pause", mode="wait", clear_cache="true")
        engine.fleet.post(server, "/start_weight_update", {})
    other = perturbed(policy)
    engine.sync_weights(other.model)
    assert len(engine.fleet.usable()) == 2 and gap(engine, other, queries) < 1e-5


def test_without_a_pause_the_caches_are_stale(engine, policy, queries, monkeypatch):
    """What the pause is for: without it the prefix and encoder caches hold what the old weights made."""
    engine.sync_weights(policy.model)
    gap(engine, policy, queries)  # fills the caches
    post = engine.fleet.post
    monkeypatch.setattr(
        engine.fleet,
        "post",
        lambda server, path, body=None, **params: (
            {} if path in ("/pause", "/resume") else post(server, path, body, **params)
        ),
    )
    other = perturbed(policy)
    engine.sync_weights(other.model)
    assert gap(engine, other, queries) > 1e-4
    monkeypatch.undo()
    engine.sync_weights(other.model)
    assert gap(engine, other, queries) < 1e-5


def test_a_server_killed_in_mid_episode_loses_nothing(engine, policy, queries, servers):
    """Its requests are answered by the other one, from the same distribution: with the same seeds, the same tokens.
    Started again by `rethinker serve`, it is asked only with the current weights."""
    other = perturbed(policy)
    engine.sync_weights(other.model)
    requests = [Request(f"{query.qid}/{n}", query, seed=n, n=4) for query in queries for n in range(4)]
    expected = engine.generate(requests, SAMPLING)
    victim = engine.fleet.servers[0]
    port = victim.url.rpartition(":")[2]
    process = next(child for child in servers.children() if port in child.cmdline())

    def kill_when_busy() -> None:
        while not victim.running:
            time.sleep(0.001)
        os.killpg(process.pid, signal.SIGKILL)

    thread = threading.Thread(target=kill_when_busy)
    thread.start()
    found = engine.generate(requests, SAMPLING)
    thread.join()
    assert {name: [r.token_ids for r in answer] for name, answer in found.items()} == {
        name: [r.token_ids for r in answer] for name, answer in expected.items()
    }
    assert not victim.usable and victim.problem
    deadline = time.monotonic() + 600
    while not victim.usable:
        assert time.monotonic() < deadline, victim.problem
        time.sleep(0.2)
    engine.fleet.servers = [victim]
    assert gap(engine, other, queries) < 1e-5


def responses(folder: RunDir) -> dict[int, pd.DataFrame]:
    return {episode: pd.read_parquet(file) for episode, file in folder.all_rollouts().items()}


def killed_and_resumed(config: Path, folder: RunDir, *words: str) -> None:
    """A run that is killed when it has a checkpoint, and resumed."""
    process = train(config, f"name={folder.folder.name}", *words)
    deadline = time.monotonic() + 600
    while not (folder.checkpoints / "last").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    children = [process, *process.children(recursive=True)]
    for child in children:
        child.kill()
    psutil.wait_procs(children, timeout=60)  # a rank that still ends holds the run's lock
    assert train(config, f"name={folder.folder.name}", *words, "--resume").wait(600) == 0


def test_a_run_killed_and_resumed_has_the_rollouts_of_one_that_was_not(config, servers):
    folder = Path(load_config(config).runs_dir)
    whole, killed = RunDir(folder / "whole"), RunDir(folder / "killed")
    assert train(config, "name=whole").wait(600) == 0
    killed_and_resumed(config, killed)
    first, second = responses(whole), responses(killed)
    assert list(first) == list(second) == [1, 2, 3]
    for episode, rows in first.items():
        assert rows["text"].tolist() == second[episode]["text"].tolist()
    words = [f"data.test={DATA}", "data.test_limit=4", "evaluation.samples=1", "evaluation.modes=[plain]"]
    command = [sys.executable, "-m", "rethinker.cli", "evaluate", str(killed.config), "--label", "again", *words]
    assert psutil.Popen(command).wait(600) == 0 and killed.evaluation("again").exists()
    assert all(0 < line["canary/gap"] < 1e-5 for line in lines(killed, "episode"))

    ahead = RunDir(folder / "ahead")
    # Without shards nothing but the engine itself keeps a rank from sending weights while the other one still asks.
    killed_and_resumed(config, ahead, "rollout.overlap=true", "model.sharding=none")
    third = responses(ahead)
    assert first[1]["text"].tolist() == third[1]["text"].tolist()  # nothing is older than the first weights
    for episode, rows in first.items():
        assert rows["qid"].unique().tolist() == third[episode]["qid"].unique().tolist()
    assert all(0 < line["canary/gap"] < 1e-5 for line in lines(ahead, "episode"))
    found = lines(ahead, "overlap")
    assert [line["episode"] for line in found] == [1, 2, 3]
    lags = [line["overlap/weight_lag"] for line in found]
    assert lags[0] == 0 and sorted(lags) == [0, 0, 1]  # the first episode, and the first after the resume
    assert all(0.5 < line["overlap/effective_sample_size"] <= 1 for line in found)
