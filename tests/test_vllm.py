"""vLLM in process against the trainer: the same log-probs, before and after a change of weights."""

from __future__ import annotations

import copy
import dataclasses
import math
import random
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from arrivals import check_arrivals
from bounds import LOGPROB, STEPS, needs_bfloat16, rounding
from memory import watch_merged

import rethinker.rollout.vllm as vllm_engine
from rethinker.config import ModelConfig
from rethinker.policy import sharding
from rethinker.policy.forward import PolicyForward, token_logprobs
from rethinker.policy.loading import load_policy
from rethinker.rollout import TransformersEngine, VllmEngine, canary_gap, vllm_available
from rethinker.rollout.vllm_inputs import VllmInputs
from rethinker.rollout.vllm_setup import CPU_KV_BYTES, engine_arguments
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


@pytest.fixture(scope="module")
def encoded(engine):
    """Images that vLLM's vision tower has encoded: a list that grows by a call's number."""
    counts: list[int] = []

    def count(module, args, kwargs):
        counts.append(len(kwargs["grid_thw"]))

    engine._llm.apply_model(lambda model: model.visual.register_forward_pre_hook(count, with_kwargs=True))
    return counts


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_the_trainers_through_training(engine, policy, queries, image_files, temperature):
    """Train, sync, compare, three times, on the same images: stale weights, vision features or KV blocks, a cache miss
    or other pixels would show. One query shows an image twice."""
    twice = Query("twice", "<image>Is <image>the same?", "yes", (image_files[0], image_files[0]))
    sampling = Sampling(temperature=temperature, max_new_tokens=32)
    requests = make_requests([*queries, twice])
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=0.005)
    engine.sync_weights(policy.model)
    assert largest_gap(engine, policy, requests, sampling) < rounding(LOGPROB)
    for _ in range(3):
        answers = engine.generate(requests, sampling)
        items = [(request.query, answers[request.request_id][0].token_ids) for request in requests]
        logprobs, mask, _ = token_logprobs(policy, PolicyForward(policy.model), items, temperature=temperature)
        optimizer.zero_grad()
        (logprobs * mask).sum().backward()  # away from what was sampled
        assert all(float(p.grad.abs().max()) > 0 for p in policy.model.model.visual.patch_embed.parameters())
        optimizer.step()
        assert canary_gap(engine, policy, PolicyForward(policy.model), requests, sampling) > 1e-2
        engine.sync_weights(policy.model)
        assert largest_gap(engine, policy, requests, sampling) < rounding(LOGPROB)
        assert canary_gap(engine, policy, PolicyForward(policy.model), requests, sampling) < rounding(LOGPROB)


def test_logprobs_with_top_p(engine, policy, queries):
    """Those of the nucleus, renormalised, by hand from the model's own logits; what lies outside is never drawn."""
    engine.sync_weights(policy.model)
    text = next(query for query in queries if not query.images)
    prompt = list(policy.prompt(text).ids)
    (answers,) = engine.generate([Request("a", text, seed=5, n=8)], Sampling(top_p=0.8, max_new_tokens=16)).values()
    cut, gap = 0, rounding(LOGPROB)
    for response in answers:
        with torch.no_grad():
            logits = policy.model(input_ids=torch.tensor([prompt + list(response.token_ids)])).logits[0]
        logits[:, list(policy.banned_ids)] = -torch.inf
        for step, (token, logprob) in enumerate(zip(response.token_ids, response.logprobs, strict=True)):
            chances = sorted(torch.softmax(logits[len(prompt) + step - 1].double(), 0).tolist(), reverse=True)
            # Where the mass comes within rounding of 0.8, one token more is as good.
            low, high = (
                next(n for n in range(1, len(chances) + 1) if sum(chances[:n]) >= mass)
                for mass in (0.8 - gap, 0.8 + gap)
            )
            chance = float(torch.softmax(logits[len(prompt) + step - 1].double(), 0)[token])
            assert chance >= chances[high - 1] - gap
            assert min(abs(logprob - math.log(chance / sum(chances[:n]))) for n in range(low, high + 1)) < 2 * gap
            cut += high < len(chances)
    assert cut > 50  # random weights: every distribution is wide


def test_an_image_is_prepared_once_and_encoded_once_a_sync(engine, policy, queries, encoded):
    """Four distinct images in five queries; neither a group nor a continuation costs anything more."""
    sampling = Sampling(max_new_tokens=24)
    engine.sync_weights(policy.model)
    engine.generate(make_requests(queries, n=1), sampling)  # whatever was not prepared yet
    for _ in range(2):
        engine.sync_weights(policy.model)
        encoded.clear()
        decoded = policy.images.decoded
        answers = engine.generate(make_requests(queries, n=8), sampling)
        engine.generate(
            [Request(query.qid, query, seed=7, prefix_ids=answers[query.qid][0].token_ids[:9]) for query in queries],
            sampling,
        )
        assert sum(encoded) == 4
        assert policy.images.decoded == decoded


def test_nothing_is_compiled(engine, queries):
    """torch.compile costs seconds in the first call and needs a C++ compiler; the trainer's own is not disturbed."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()  # an earlier call's code would do
    before = counters["stats"]["unique_graphs"]
    own = torch.compile(lambda x: x.sin() + 1, backend="eager")
    own(torch.ones(3))
    for _ in range(2):
        engine.generate(make_requests(queries), Sampling(max_new_tokens=4))
        own(torch.ones(3))
    assert counters["stats"]["unique_graphs"] == before + 1


def test_asleep_until_the_next_sync(engine, policy, queries):
    engine.sleep()
    with pytest.raises(RuntimeError, match="call sync_weights before generate"):
        engine.generate(make_requests(queries), Sampling(max_new_tokens=4))
    engine.sync_weights(policy.model)
    assert engine.generate(make_requests(queries), Sampling(max_new_tokens=4))


def test_a_failed_call_leaves_nothing_behind(engine, policy, queries, monkeypatch):
    sampling = Sampling(max_new_tokens=16)
    expected = engine.generate(make_requests(queries), sampling)
    step, steps = engine._llm.llm_engine.step, []

    def failing():
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return step()

    with monkeypatch.context() as patch:
        patch.setattr(engine._llm.llm_engine, "step", failing)
        with pytest.raises(KeyboardInterrupt):
            engine.generate(make_requests(queries), sampling)
    engine.sync_weights(policy.model)
    found = engine.generate(make_requests(queries), sampling)
    assert {name: [r.token_ids for r in each] for name, each in found.items()} == {
        name: [r.token_ids for r in each] for name, each in expected.items()
    }


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


def test_responses_arrive_as_they_are_finished(engine, queries):
    requests = [
        dataclasses.replace(request, prefix_ids=(17,) * (4 * index))
        for index, request in enumerate(make_requests(queries))
    ]
    parts = check_arrivals(engine, requests, Sampling(max_new_tokens=24))
    assert len(parts) >= len(queries) and next(iter(parts[0])).startswith(requests[-1].request_id)  # least room left


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


def test_any_of_several_eos_ids_ends_a_response(engine, policy, queries, monkeypatch):
    """The two most frequent tokens become EOS beside the template's own: responses end at any, and at no other."""
    engine.sync_weights(policy.model)
    sampling, requests = Sampling(temperature=0.5, max_new_tokens=40), make_requests(queries, n=8)
    answers = engine.generate(requests, sampling)
    tokens = Counter(token for each in answers.values() for r in each for token in r.token_ids)
    one, other = [token for token, _ in tokens.most_common(3) if token != policy.eos_id][:2]
    eos_ids = (policy.eos_id, one, other)
    monkeypatch.setattr(engine, "policy", dataclasses.replace(policy, eos_ids=eos_ids))
    found = engine.generate(requests, sampling)
    ends = Counter()
    for request in requests:
        for response in found[request.request_id]:
            *before, last = response.token_ids
            assert not set(eos_ids) & set(before)
            assert response.finished == (last in eos_ids)
            ends[last] += 1
    assert ends[one] and ends[other]


def test_pixels_of_a_call_are_bounded(engine, policy, image_files, monkeypatch):
    """Requests wait until others are finished; what they get is the same."""
    engine.sync_weights(policy.model)
    queries = [Query(str(i), "<image>How many?", "3", (image_files[i % 6],)) for i in range(24)]
    requests = [Request(query.qid, query, seed=index, n=2) for index, query in enumerate(queries)]
    sampling = Sampling(max_new_tokens=8)
    expected = engine.generate(requests, sampling)
    size = policy.images.get(image_files[0]).values.nbytes
    most, held = [], VllmInputs.make

    def watch(self, request, sampling):
        made = held(self, request, sampling)
        most.append((self.bytes, len(self._images)))
        return made

    monkeypatch.setattr(VllmInputs, "make", watch)
    for limit, images, unfinished in ((2**32, 6, 24), (2 * size, 3, 12), (1, 1, 4)):
        monkeypatch.setattr(vllm_engine, "PIXEL_BYTES", limit)
        most.clear()
        found = engine.generate(requests, sampling)
        assert len(most) == 24 and max(count for _, count in most) <= unfinished
        assert max(size for size, _ in most) <= images * size
        for request in requests:
            texts = [[r.text for r in answers[request.request_id]] for answers in (found, expected)]
            assert texts[0] == texts[1]
    assert not engine._llm.llm_engine.has_unfinished_requests()


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


def test_lora_weights_arrive_merged(engine, policy, queries, tiny_folder, monkeypatch):
    """At most three of the 21 merged weights exist at a time: vLLM collects those of query, key and value."""
    adapted = load_policy(ModelConfig(path=str(tiny_folder), max_pixels=64 * 64, lora_rank=4))
    with torch.no_grad():
        for name, parameter in adapted.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    requests = make_requests(queries)
    with monkeypatch.context() as patch:
        counts = watch_merged(patch, sharding)
        engine.sync_weights(adapted.model)
    assert len(counts) == 21 and max(counts) <= 3, counts
    assert largest_gap(engine, adapted, requests, Sampling(max_new_tokens=24)) < rounding(LOGPROB)
    engine.sync_weights(policy.model)


@pytest.mark.parametrize("way", ["tensors", "file"])
def test_a_tied_head_follows(engine, policy, queries, way, monkeypatch):
    """vLLM on a CPU has a copy of a tied head of its own, which it keeps unless ``lm_head.weight`` is in what it loads.
    "file": what workers in other processes read."""
    assert policy.model.config.tie_word_embeddings
    assert policy.model.lm_head.weight is policy.model.model.language_model.embed_tokens.weight
    requests, sampling = make_requests(queries), Sampling(max_new_tokens=16)
    engine.sync_weights(policy.model)
    before = policy.model.lm_head.weight.detach().clone()
    with torch.no_grad():
        noise = torch.randn(before.shape, generator=torch.Generator().manual_seed(4))
        policy.model.lm_head.weight.add_(0.02 * before.std() * noise)
    try:
        assert canary_gap(engine, policy, PolicyForward(policy.model), requests, sampling) > 10 * rounding(LOGPROB)
        monkeypatch.setattr(engine, "_parallel", way == "file")
        engine.sync_weights(policy.model)
        assert largest_gap(engine, policy, requests, sampling) < rounding(LOGPROB)
    finally:
        with torch.no_grad():
            policy.model.lm_head.weight.copy_(before)
        monkeypatch.undo()
        engine.sync_weights(policy.model)


@needs_bfloat16
def test_a_bfloat16_engine_beside_a_float32_trainer(policy, queries, tiny_folder):
    """It holds and computes in bfloat16, takes the trainer's float32 weights, and the gap says that it rounds.

    Biases may be float32: vLLM's kernels for AMX hold them so.
    """
    sampling, requests = Sampling(max_new_tokens=16), make_requests(queries)
    forward = PolicyForward(policy.model)
    low = VllmEngine(policy, tiny_folder, max_new_tokens=16, dtype="bfloat16")
    try:
        for _ in range(2):  # the second time with other weights
            low.sync_weights(policy.model)
            (found,) = low._llm.apply_model(lambda model: dict(model.named_parameters()))
            assert {parameter.dtype for parameter in found.values() if parameter.ndim > 1} == {torch.bfloat16}
            own = policy.model.model.language_model.norm.weight.detach().bfloat16()
            assert torch.equal(found["language_model.model.norm.weight"], own)
            # A logit is rounded at the end by a quarter of 2^-8 of itself in the mean, and STEPS times on the way.
            unit = LOGPROB * torch.finfo(torch.bfloat16).eps / 4
            gap = canary_gap(low, policy, forward, requests, sampling)
            assert unit / 10 < gap < STEPS**0.5 * unit
            with torch.no_grad():
                for parameter in policy.model.parameters():
                    parameter.mul_(1.02)
            assert canary_gap(low, policy, forward, requests, sampling) > 0
    finally:
        low.close()


@pytest.fixture
def calls(monkeypatch):
    """What is asked of a vLLM that only writes it down."""
    import vllm

    written: list[tuple] = []

    def write(*call, answer=None):
        written.append(call)
        return answer

    class Written:
        def __init__(self, path, **arguments):
            write("start", arguments["enable_sleep_mode"])
            self.llm_engine = SimpleNamespace(
                model_config=SimpleNamespace(max_model_len=100),
                reset_encoder_cache=lambda: write("reset_encoder_cache"),
            )

        def sleep(self, level):
            write("sleep", level)

        def wake_up(self, tags):
            write("wake_up", *tags)

        def collective_rpc(self, name, kwargs):
            assert dict(kwargs["weights_iterator"])
            write(name)

        def reset_prefix_cache(self):
            return write("reset_prefix_cache", answer=True)

    monkeypatch.setattr(vllm, "LLM", Written)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    return written


def test_order_of_calls_on_a_gpu(policy, tiny_folder, calls):
    """Weights are dropped, not kept in main memory; they are back before the KV cache is (vLLM's documentation)."""
    on_gpu = SimpleNamespace(
        model=policy.model,
        images=policy.images,
        banned_ids=policy.banned_ids,
        device=torch.device("cuda"),
        family=policy.family,
        processor=policy.processor,
        context=policy.context,
    )
    engine = VllmEngine(on_gpu, tiny_folder, max_new_tokens=8)
    engine.sleep()
    engine.sleep()
    with pytest.raises(RuntimeError, match="call sync_weights before generate"):
        engine.generate([], Sampling())
    engine.sync_weights(policy.model)
    engine.sync_weights(policy.model)
    resets = [("reset_prefix_cache",), ("reset_encoder_cache",)]
    assert calls == [
        ("start", True),
        ("sleep", 2),
        ("wake_up", "weights"),
        ("reload_weights",),
        ("wake_up", "kv_cache"),
        *resets,
        ("reload_weights",),
        *resets,
    ]


def test_memory_on_a_cpu(policy):
    """Room for the keys and values of 256 usual sequences and a longest one, up to a bound."""
    text = policy.model.config.get_text_config()
    token = 2 * text.num_hidden_layers * text.num_key_value_heads * 32 * 4
    settings = {"dtype": "float32", "max_images": 1, "gpu_memory_utilization": 0.5, "tensor_parallel_size": 1}
    settings |= {"max_prompt": 0, "gpu": False}
    small = engine_arguments(policy, max_new_tokens=48, **settings)
    assert small["max_model_len"] == text.max_position_embeddings == 1024
    # 64 x 64 pixels are 16 tokens of 2 x 2 patches of 8 x 8.
    assert small["kv_cache_memory_bytes"] == token * (256 * (16 + 256 + 48) + 1024 + 64)
    roomy = copy.copy(policy)
    roomy.model = SimpleNamespace(config=copy.deepcopy(policy.model.config), device=policy.device)
    roomy.model.config.text_config.max_position_embeddings = 100_000
    assert engine_arguments(roomy, max_new_tokens=48, **settings)["max_model_len"] == 16 + 2048 + 48
    long = engine_arguments(roomy, max_new_tokens=48, **settings | {"max_prompt": 3000})
    assert long["max_model_len"] == 3048
    large = engine_arguments(policy, max_new_tokens=10**6, **settings)
    assert large["kv_cache_memory_bytes"] // token == CPU_KV_BYTES // token
