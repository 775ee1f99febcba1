"""vLLM in process against the trainer: the same log-probs, before and after a change of weights."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
import torch

from rethinker.config import ModelConfig
from rethinker.policy.forward import PolicyForward, token_logprobs
from rethinker.policy.loading import load_policy
from rethinker.rollout import TransformersEngine, VllmEngine, canary_gap, vllm_available
from rethinker.types import Query, Request, Sampling

pytestmark = [pytest.mark.vllm, pytest.mark.skipif(not vllm_available(), reason="vLLM is not installed")]


@pytest.fixture(scope="module")
def policy(tiny_folder):
    """At a temperature and ban of its own; the pixel limits shrink some images."""
    return load_policy(ModelConfig(path=str(tiny_folder), max_pixels=64 * 64))


@pytest.fixture(scope="module")
def caller_state():
    return {}


@pytest.fixture(scope="module")
def engine(policy, tiny_folder, caller_state):
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    threads, set_threads = torch.get_num_threads(), torch.set_num_threads
    made = VllmEngine(policy, tiny_folder, max_new_tokens=48)
    caller_state.update(
        threads=(threads, torch.get_num_threads()),
        function=(set_threads, torch.set_num_threads),
        drawn=(random.random(), float(np.random.rand()), float(torch.rand(()))),
    )
    yield made
    made.close()


def make_requests(queries, n=4):
    return [Request(query.qid, query, seed=100 + index, n=n) for index, query in enumerate(queries)]


def largest_gap(engine, policy, requests, sampling):
    answers = engine.generate(requests, sampling)
    pairs = [(request.query, response) for request in requests for response in answers[request.request_id]]
    items = [(query, response.token_ids) for query, response in pairs]
    with torch.no_grad():
        logprobs, _, _ = token_logprobs(policy, PolicyForward(policy.model), items, temperature=sampling.temperature)
    return max(
        float((logprobs[row, : len(response.token_ids)] - torch.tensor(response.logprobs)).abs().max())
        for row, (_, response) in enumerate(pairs)
    )


def test_the_process_is_as_before(engine, caller_state):
    """vLLM's CPU backend replaces torch.set_num_threads and seeds every generator; none of it may stay."""
    assert caller_state["threads"][0] == caller_state["threads"][1]
    assert caller_state["function"][0] is caller_state["function"][1]
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    assert caller_state["drawn"] == (random.random(), float(np.random.rand()), float(torch.rand(())))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_the_trainers_before_and_after_a_sync(engine, policy, queries, temperature):
    """The same images before and after: stale vision features or a cache miss would show here."""
    sampling = Sampling(temperature=temperature, max_new_tokens=32)
    requests = make_requests(queries)
    engine.sync_weights(policy.model)
    assert largest_gap(engine, policy, requests, sampling) < 1e-4
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    assert canary_gap(engine, policy, PolicyForward(policy.model), requests, sampling) > 1e-2
    engine.sync_weights(policy.model)
    assert largest_gap(engine, policy, requests, sampling) < 1e-4
    assert canary_gap(engine, policy, PolicyForward(policy.model), requests, sampling) < 1e-5


def test_seeds_are_reproducible(engine, policy, queries):
    sampling = Sampling(max_new_tokens=24)
    requests = make_requests(queries)
    first = engine.generate(requests, sampling)
    again = engine.generate(requests[::-1], sampling)
    for request in requests:
        one, other = first[request.request_id], again[request.request_id]
        assert [r.token_ids for r in one] == [r.token_ids for r in other]
        assert len({r.token_ids for r in one}) == 4
    neighbour = engine.generate([dataclasses.replace(requests[1], seed=requests[1].seed + 1)], sampling)
    assert neighbour["one"][0].token_ids != first["one"][1].token_ids


def test_greedy_equals_the_transformers_engine(engine, policy, queries):
    engine.sync_weights(policy.model)
    sampling = Sampling(temperature=0, max_new_tokens=24)
    requests = make_requests(queries, n=2)
    expected = TransformersEngine(policy).generate(requests, sampling)
    found = engine.generate(requests, sampling)
    for request in requests:
        for one, other in zip(found[request.request_id], expected[request.request_id], strict=True):
            assert (one.token_ids, one.finished, one.text) == (other.token_ids, other.finished, other.text)


def test_continuation_of_a_prefix(engine, policy, queries):
    sampling = Sampling(temperature=0, max_new_tokens=24)
    whole = engine.generate(make_requests(queries, n=1), sampling)
    requests = [
        Request(query.qid, query, seed=0, prefix_ids=whole[query.qid][0].token_ids[: 2 * index])
        for index, query in enumerate(queries)
    ]
    rest = engine.generate(requests, sampling)
    for request in requests:
        full = whole[request.request_id][0]
        assert request.prefix_ids + rest[request.request_id][0].token_ids == full.token_ids


def test_banned_tokens_are_never_sampled(engine, policy, queries):
    answers = engine.generate(make_requests(queries, n=8), Sampling(temperature=2.0, max_new_tokens=24))
    responses = [r for each in answers.values() for r in each]
    assert not {token for r in responses for token in r.token_ids} & set(policy.banned_ids)
    for response in responses:
        assert response.finished == (response.token_ids[-1] == policy.eos_id)
        assert response.finished or len(response.token_ids) == 24


def test_many_requests_at_once(engine, policy, queries):
    """More prompt tokens than one engine step takes: split prefills of seeded requests end vLLM on a CPU."""
    query = queries[2]
    requests = [Request(str(index), query, seed=index, n=8) for index in range(20)]
    answers = engine.generate(requests, Sampling(max_new_tokens=4))
    assert len(policy.prompt(query).ids) * 160 > 4096
    assert all(len(responses) == 8 for responses in answers.values())


def test_limits_are_errors_that_name_the_query(engine, policy, queries, image_files):
    crowd = Query("crowd", "?", "", tuple(image_files[:1] * 9))
    with pytest.raises(ValueError, match="query 'crowd': 9 images"):
        engine.generate([Request("a", crowd, 0)], Sampling(max_new_tokens=8))
    with pytest.raises(ValueError, match=r"query 'text': .* exceed the engine's context"):
        engine.generate([Request("a", queries[0], 0)], Sampling(max_new_tokens=100_000))


def test_another_prompt_than_the_trainers_is_an_error(engine, policy, queries, monkeypatch):
    query = queries[1]
    prompt = policy.prompt(query)
    monkeypatch.setitem(policy._prompts, query, dataclasses.replace(prompt, ids=prompt.ids[:-1]))
    with pytest.raises(RuntimeError, match="query 'one': vLLM's prompt has"):
        engine.generate([Request("a", query, 0)], Sampling(max_new_tokens=4))


def test_lora_weights_arrive_merged(engine, policy, queries, tiny_folder):
    adapted = load_policy(ModelConfig(path=str(tiny_folder), max_pixels=64 * 64, lora_rank=4))
    with torch.no_grad():
        for name, parameter in adapted.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    requests = make_requests(queries)
    engine.sync_weights(adapted.model)
    assert largest_gap(engine, adapted, requests, Sampling(max_new_tokens=24)) < 1e-4
    engine.sync_weights(policy.model)
