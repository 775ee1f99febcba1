"""Rollout engines: the scripted one, the transformers one, the canary. (vLLM: test_vllm.py.)"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import math
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from arrivals import check_arrivals
from bounds import EXACT, in_float64
from hypothesis import given
from hypothesis import strategies as st
from memory import peak_bytes
from plain_inputs import image_inputs
from tiny_qwen3 import tiny_qwen3

import rethinker.rollout
from rethinker.config import ModelConfig, RolloutConfig, RunConfig
from rethinker.config.schema import ConfigError
from rethinker.policy.attention import FlexLayout, PrefixTrees, SdpaLayout
from rethinker.policy.forward import PolicyForward, token_logprobs
from rethinker.policy.loading import load_policy
from rethinker.rollout import ScriptedEngine, TransformersEngine, canary_gap, decoding, gap_bound, make_engine
from rethinker.rollout.decoding import Decoder
from rethinker.rollout.sampler import choose, sampling_logprobs, uniform_stream
from rethinker.rollout.transformers import KEEP_ROWS, SPARE_ROWS, arrange
from rethinker.rollout.vllm import to_responses
from rethinker.rollout.vllm_setup import placement
from rethinker.types import Query, Request, Response, Sampling

pytestmark = pytest.mark.numerics


@pytest.fixture(scope="module", autouse=True)
def float64():
    """Log-probs are compared with those of other batches: the order of sums must not matter."""
    with in_float64():
        yield


def double_policy(folder):
    policy = load_policy(ModelConfig(path=str(folder)))
    policy.model.double()
    return policy


@pytest.fixture(scope="module")
def policy(tiny_folder, float64):
    return double_policy(tiny_folder)


@pytest.fixture(scope="module")
def qwen3(policy):
    qwen3 = tiny_qwen3(policy)
    qwen3.model.double()
    return qwen3


@pytest.fixture
def engine(policy):
    return TransformersEngine(policy, batch_size=3)


def vector(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def make_requests(queries, n=3):
    return [Request(query.qid, query, seed=100 + index, n=n) for index, query in enumerate(queries)]


# --- scripted -------------------------------------------------------------------------------------------------------


def test_scripted_engine(policy):
    query = Query("q", "2 + 2?", "4")
    engine = ScriptedEngine(lambda request, index: f"answer {index} to {request.query.qid}", policy.tokenizer)
    answers = engine.generate([Request("a", query, 0, n=2), Request("b", query, 0)], Sampling(max_new_tokens=50))
    assert [r.text for r in answers["a"]] == ["answer 0 to q", "answer 1 to q"]
    first = answers["b"][0]
    assert first.finished and first.token_ids[-1] == policy.eos_id
    assert len(first.logprobs) == len(first.token_ids)
    cut = engine.generate([Request("c", query, 0, prefix_ids=(5, 6))], Sampling(max_new_tokens=5))["c"][0]
    assert len(cut.token_ids) == 3 and not cut.finished
    assert len(engine.calls) == 2
    engine.sync_weights("weights")
    assert engine.syncs == ["weights"]


def test_bad_requests_are_errors(policy, engine):
    query = Query("q", "2 + 2?", "4")
    scripted = ScriptedEngine(lambda request, index: "x", policy.tokenizer)
    for each in (engine, scripted):
        with pytest.raises(ValueError, match=r"must be unique.*'a'"):
            each.generate([Request("a", query, 0), Request("a", query, 1)], Sampling())
        with pytest.raises(ValueError, match=r"'a' \(query 'q'\): its prefix of 4 tokens leaves no room"):
            each.generate([Request("a", query, 0, prefix_ids=(1, 2, 3, 4))], Sampling(max_new_tokens=4))
        with pytest.raises(ValueError, match="n=0"):
            each.generate([Request("a", query, 0, n=0)], Sampling())
        assert each.generate([], Sampling()) == {}


# --- the sampler's law ----------------------------------------------------------------------------------------------


def test_sampling_law():
    """40,000 draws from five tokens, one banned, at temperature 0.5: each count within 5 standard deviations of the
    closed form (chance of a false alarm about 2e-6)."""
    logits = vector([0.0, 1.0, -0.5, 0.3, 2.0])[None]
    weights = [math.exp(2 * x) for x in (0.0, 1.0, -0.5, 0.3)]
    expected = [w / sum(weights) for w in weights] + [0.0]
    logprobs = sampling_logprobs(logits, torch.tensor([4]), temperature=0.5, top_p=1.0)
    torch.testing.assert_close(logprobs[0, :4].exp(), vector(expected[:4]), atol=EXACT, rtol=0)
    draws = 40_000
    uniforms = torch.from_numpy(uniform_stream(seed=1, index=0, length=draws))
    counts = Counter(choose(logprobs.expand(draws, -1), uniforms).tolist())
    for token, p in enumerate(expected):
        assert abs(counts[token] - draws * p) <= 5 * math.sqrt(draws * p * (1 - p))


def test_top_p_keeps_the_smallest_set_and_renormalises():
    """0.5, 0.3, 0.15, 0.05 in mixed order: top_p 0.7 keeps 0.5 and 0.3, so 0.625 and 0.375."""
    logits = vector([0.15, 0.5, 0.05, 0.3]).log()[None]
    none = torch.tensor([], dtype=torch.long)
    kept = sampling_logprobs(logits, none, 1.0, 0.7).exp()[0]
    torch.testing.assert_close(kept, vector([0.0, 0.625, 0.0, 0.375]), atol=EXACT, rtol=0)
    only = sampling_logprobs(logits, none, 1.0, 0.01).exp()[0]
    assert only.tolist() == [0.0, 1.0, 0.0, 0.0]
    dropped = choose(sampling_logprobs(logits, none, 1.0, 0.7).expand(1000, -1), torch.linspace(0, 1 - 1e-9, 1000))
    assert set(dropped.tolist()) == {1, 3}


def test_inversion_by_hand():
    logprobs = torch.tensor([[0.25, 0.0, 0.5, 0.25]]).log()
    points = torch.tensor([0.0, 0.24, 0.26, 0.74, 0.76, 0.999], dtype=torch.float64)
    assert choose(logprobs.expand(6, -1), points).tolist() == [0, 0, 2, 2, 3, 3]


def test_streams_are_distinct_and_repeatable():
    a = uniform_stream(7, 0, 100)
    assert (a == uniform_stream(7, 0, 100)).all()
    assert (a[:10] == uniform_stream(7, 0, 10)).all()
    assert not (a == uniform_stream(7, 1, 100)).any()
    assert not (a == uniform_stream(8, 0, 100)).any()


# --- transformers ---------------------------------------------------------------------------------------------------


def test_greedy_equals_generate(policy, engine, queries):
    answers = engine.generate(make_requests(queries, n=1), Sampling(temperature=0, max_new_tokens=20))
    for query in queries:
        prompt = policy.prompt(query)
        ids = torch.tensor([prompt.ids])
        vision = image_inputs(policy, query, ids)
        policy.model.model.rope_deltas = None
        output = policy.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=20,
            suppress_tokens=list(policy.banned_ids),
            **vision,
        )
        assert list(answers[query.qid][0].token_ids) == output[0, len(prompt.ids) :].tolist()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_the_trainers(policy, engine, queries, temperature):
    requests = make_requests(queries)
    answers = engine.generate(requests, Sampling(temperature=temperature, max_new_tokens=24))
    pairs = [(request.query, response) for request in requests for response in answers[request.request_id]]
    items = [(query, response.token_ids) for query, response in pairs]
    with torch.no_grad():
        logprobs, _, _ = token_logprobs(policy, PolicyForward(policy.model), items, temperature=temperature)
    for row, (_, response) in enumerate(pairs):
        found = logprobs[row, : len(response.token_ids)]
        torch.testing.assert_close(found, vector(response.logprobs), atol=EXACT, rtol=0)


def test_samples_do_not_depend_on_the_batch(policy, queries):
    sampling = Sampling(max_new_tokens=16)
    requests = make_requests(queries)
    together = TransformersEngine(policy, batch_size=8).generate(requests, sampling)
    shuffled = TransformersEngine(policy, batch_size=2).generate(requests[::-1], sampling)
    fewer = TransformersEngine(policy).generate([dataclasses.replace(requests[2], n=1)], sampling)
    for request in requests:
        for one, other in zip(together[request.request_id], shuffled[request.request_id], strict=True):
            assert one.token_ids == other.token_ids
    assert fewer["two"][0].token_ids == together["two"][0].token_ids
    assert len({r.token_ids for r in together["one"]}) == 3  # the samples of a request differ
    other_seed = TransformersEngine(policy).generate([dataclasses.replace(requests[1], seed=999)], sampling)
    assert other_seed["one"][0].token_ids != together["one"][0].token_ids


def test_responses_arrive_a_batch_at_a_time(policy, queries):
    requests, sampling = make_requests(queries), Sampling(max_new_tokens=16)
    parts = check_arrivals(TransformersEngine(policy, batch_size=2), requests, sampling)
    assert [len(part) for part in parts] == [2] * (3 * len(queries) // 2) + [1] * (3 * len(queries) % 2)
    scripted = ScriptedEngine(lambda request, index: f"{request.query.qid} {index}", policy.tokenizer)
    assert len(check_arrivals(scripted, requests, sampling)) == 3 * len(queries)


def test_banned_tokens_are_never_sampled(policy, engine, queries):
    answers = engine.generate(make_requests(queries, n=8), Sampling(temperature=5.0, max_new_tokens=30))
    sampled = {token for responses in answers.values() for r in responses for token in r.token_ids}
    assert not sampled & set(policy.banned_ids)
    assert len(sampled) > 100


def test_ends_and_cuts(policy, engine, queries):
    answers = engine.generate(make_requests(queries, n=16), Sampling(max_new_tokens=40))
    responses = [r for each in answers.values() for r in each]
    assert {r.finished for r in responses} == {True, False}
    for response in responses:
        assert response.finished == (response.token_ids[-1] == policy.eos_id)
        assert policy.eos_id not in response.token_ids[:-1]
        assert response.finished or len(response.token_ids) == 40
        assert len(response.logprobs) == len(response.token_ids)
        assert "<|im_end|>" not in response.text


def test_finished_rows_leave_the_batch(policy, queries, monkeypatch):
    """The rows times steps that were computed, with a frequent token as EOS so that lengths differ."""
    requests = make_requests(queries, n=8)
    sampling = Sampling(temperature=0.5, max_new_tokens=40)
    answers = TransformersEngine(policy).generate(requests, sampling)
    tokens = Counter(token for each in answers.values() for r in each for token in r.token_ids)
    engine = TransformersEngine(dataclasses.replace(policy, eos_ids=(tokens.most_common(1)[0][0],)))
    rows = []
    advance = Decoder.advance
    monkeypatch.setattr(Decoder, "advance", lambda self, tokens: rows.append(len(tokens)) or advance(self, tokens))
    lengths = [len(r.token_ids) for each in engine.generate(requests, sampling).values() for r in each]
    needed = sum(length - 1 for length in lengths)  # the last token of a response is not read
    assert needed <= sum(rows) <= needed * SPARE_ROWS / KEEP_ROWS
    assert sum(rows) < 0.9 * len(lengths) * max(lengths)


def placed(*samples: int) -> list[list[tuple[int, Any]]]:
    """Prompts with so many samples each; a sample is its row's name."""
    rows = iter(range(sum(samples)))
    return [[(row, f"sample {row}") for row in itertools.islice(rows, count)] for count in samples]


def test_arrange_by_hand():
    # Two prompts are left, of two rows and of one: a row without a sample fills up.
    prompts, rows = arrange(placed(2, 0, 1))
    assert prompts == [0, 2]
    assert rows == [(0, "sample 0"), (1, "sample 1"), (2, "sample 2"), (2, None)]
    # Four rows and one: eight would be more than 1.5 times five, so each sample has a prompt of its own.
    prompts, rows = arrange(placed(4, 1))
    assert prompts == [0, 0, 0, 0, 1] and rows == [(row, f"sample {row}") for row in range(5)]
    assert arrange(placed(0, 3)) == ([1], [(row, f"sample {row}") for row in range(3)])


@given(st.lists(st.integers(0, 6), min_size=1, max_size=6).filter(any))
def test_arrange_keeps_every_sample_behind_its_prompt(counts):
    active = placed(*counts)
    prompts, rows = arrange(active)
    assert [sample for _, sample in rows if sample] == [sample for samples in active for _, sample in samples]
    assert len(rows) % len(prompts) == 0 and len(rows) <= SPARE_ROWS * sum(counts)
    owner = {row: prompt for prompt, samples in enumerate(active) for row, _ in samples}
    for place, (row, sample) in enumerate(rows):
        assert owner[row] == prompts[place * len(prompts) // len(rows)]
        assert sample in (None, f"sample {row}")


def test_continuation_of_a_prefix(policy, engine, queries):
    """What follows the first tokens of a greedy response is its rest, also with neighbours of other lengths."""
    sampling = Sampling(temperature=0, max_new_tokens=20)
    whole = engine.generate(make_requests(queries, n=1), sampling)
    requests = [
        Request(query.qid, query, seed=0, n=1 + index % 2, prefix_ids=whole[query.qid][0].token_ids[: 2 * index])
        for index, query in enumerate(queries)
    ]
    rest = engine.generate(requests, sampling)
    for request in requests:
        full = whole[request.request_id][0]
        for response in rest[request.request_id]:
            assert request.prefix_ids + response.token_ids == full.token_ids
            tail = full.logprobs[len(request.prefix_ids) :]
            torch.testing.assert_close(vector(response.logprobs), vector(tail), atol=EXACT, rtol=0)


def plain_logprobs(policy, query, ids):
    """Hugging Face's own forward pass: log-probs of every next token [len(ids), V] behind the prompt."""
    prompt = policy.prompt(query)
    row = torch.tensor([[*prompt.ids, *ids]])
    policy.model.model.rope_deltas = None
    with torch.no_grad():
        output = policy.model(input_ids=row, use_cache=False, **image_inputs(policy, query, row))
    logits = output.logits[0, len(prompt.ids) - 1 : -1].index_fill(-1, torch.tensor(policy.banned_ids), -math.inf)
    return torch.log_softmax(logits, -1)


def second_looks(policy, queries):
    """Requests as Forced Rethinking makes them: behind prefixes of every length, three times two of one query that
    begin alike, one twice, one without prefix, and each asks for one to three samples."""
    generator = torch.Generator().manual_seed(3)
    allowed = [i for i in range(len(policy.tokenizer)) if i not in {*policy.banned_ids, policy.eos_id}]
    base = [allowed[i] for i in torch.randint(len(allowed), (12,), generator=generator).tolist()]
    prefixes = {
        "text": [base[:3]],
        "one": [base[:5], base[:9], [], base[4:6]],
        "two": [base[:4], base[:4]],
        "middle": [base[:12], [*base[:11], base[0]]],
        "again": [base[:1]],
    }
    return [
        Request(f"{query.qid}/{index}", query, seed=index, n=1 + index % 3, prefix_ids=tuple(prefix))
        for query in queries
        for index, prefix in enumerate(prefixes[query.qid])
    ]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_second_looks_equal_the_plain_forward(policy, qwen3, queries, family, temperature):
    """Log-probs of what was sampled; greedily, the likeliest tokens."""
    which = {"qwen2_5_vl": policy, "qwen3_vl": qwen3}[family]
    requests = second_looks(which, queries)
    answers = TransformersEngine(which, batch_size=7).generate(requests, Sampling(temperature, max_new_tokens=30))
    for request in requests:
        assert len(answers[request.request_id]) == request.n
        for response in answers[request.request_id]:
            assert response.finished or len(response.token_ids) == 30 - len(request.prefix_ids)
            ids = [*request.prefix_ids, *response.token_ids]
            logprobs = plain_logprobs(which, request.query, ids)[len(request.prefix_ids) :]
            expected = logprobs.gather(1, torch.tensor(response.token_ids)[:, None])[:, 0]
            torch.testing.assert_close(vector(response.logprobs), expected, atol=EXACT, rtol=0)
            if not temperature:
                assert logprobs.argmax(-1).tolist() == list(response.token_ids)


def test_what_requests_have_in_common_is_read_once(policy, queries):
    """Tokens through the language model: each prompt once, each distinct beginning once, then a token a row."""
    requests = second_looks(policy, queries)
    read = []
    handle = policy.model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(
            (kwargs["inputs_embeds"] if kwargs.get("input_ids") is None else kwargs["input_ids"]).shape[:2]
        ),
        with_kwargs=True,
    )
    try:
        TransformersEngine(policy).generate(requests, Sampling(max_new_tokens=15))
    finally:
        handle.remove()
    prompts = sum(len(policy.prompt(query).ids) for query in queries)
    # "one" 9 + 2, "two" 4, "middle" 12 + 1 (their eleven first are the same), "text" 3, "again" 1
    assert read[0] == (1, prompts + 9 + 2 + 4 + 12 + 1 + 3 + 1)
    samples = sum(request.n for request in requests)
    assert all(width == 1 and rows <= SPARE_ROWS * samples for rows, width in read[1:])


@pytest.mark.parametrize("part", ["prompt", "prefix"])
def test_memory_of_reading_grows_with_the_length(policy, monkeypatch, part):
    """Four times the tokens take four times the memory, not sixteen times: nobody makes S x S scores. Also where the
    trainer has the layout of a GPU, which only compiled code may use."""
    monkeypatch.setattr(PrefixTrees, "layout", lambda self, dtype=None: FlexLayout(self))
    monkeypatch.setattr(decoding, "SdpaLayout", functools.partial(SdpaLayout, entries=2**16))
    peaks = []
    for words in (500, 2000):
        text = "circles and " * words
        query = Query(f"{words} words", text if part == "prompt" else "How many?", "1")
        prefix = () if part == "prompt" else tuple(policy.tokenizer(text)["input_ids"])
        items = [(query, prefix)]
        policy.prompt(query)
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # as the engine reads
            peaks.append(peak_bytes(lambda items=items: Decoder(policy, items)))
    assert peaks[1] < 5 * peaks[0]


def test_any_of_several_eos_ids_ends_a_response(policy, queries):
    """The most frequent token becomes an EOS beside the template's own: responses end at either, and no other token."""
    sampling = Sampling(temperature=0.5, max_new_tokens=40)
    answers = TransformersEngine(policy).generate(make_requests(queries, n=8), sampling)
    tokens = Counter(token for each in answers.values() for r in each for token in r.token_ids)
    other = next(token for token, _ in tokens.most_common() if token != policy.eos_id)
    several = dataclasses.replace(policy, eos_ids=(policy.eos_id, other))
    found = TransformersEngine(several).generate(make_requests(queries, n=8), sampling)
    ends = Counter()
    for request in make_requests(queries, n=8):
        for one, whole in zip(found[request.request_id], answers[request.request_id], strict=True):
            stop = next((i for i, token in enumerate(whole.token_ids) if token in several.eos_ids), None)
            assert one.token_ids == (whole.token_ids if stop is None else whole.token_ids[: stop + 1])
            assert one.finished == (stop is not None)
            ends[one.token_ids[-1] if one.finished else None] += 1
    assert ends[policy.eos_id] and ends[other]


def test_the_mode_of_the_model_is_restored(policy, engine, queries):
    policy.model.train()
    engine.generate(make_requests(queries[:1]), Sampling(max_new_tokens=2))
    assert policy.model.training
    policy.model.eval()
    engine.generate(make_requests(queries[:1]), Sampling(max_new_tokens=2))
    assert not policy.model.training


def test_images_are_encoded_once_a_prompt(policy, queries, monkeypatch):
    seen = []
    visual = policy.model.model.visual
    forward = visual.forward
    monkeypatch.setattr(
        visual, "forward", lambda *args, **kwargs: seen.append(len(kwargs["grid_thw"])) or forward(*args, **kwargs)
    )
    TransformersEngine(policy).generate(make_requests(queries, n=8), Sampling(max_new_tokens=3))
    assert seen == [4]  # 5 images shown, 4 distinct


# --- canary and choice of engine --------------------------------------------------------------------------------------


def test_canary_sees_changed_weights(policy, queries, tiny_folder):
    other = double_policy(tiny_folder)
    forward = PolicyForward(policy.model)
    engine = TransformersEngine(other)
    sampling = Sampling(top_p=0.9, max_new_tokens=12)
    prefixed = Request("prefixed", queries[1], seed=3, n=2, prefix_ids=(5, 6, 7))
    probes = [*make_requests(queries, n=2), prefixed]
    assert canary_gap(engine, policy, forward, probes, sampling) < EXACT
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.mul_(1.05)
    assert canary_gap(engine, policy, forward, probes, sampling) > 1e-2
    engine.sync_weights(policy.model)
    assert canary_gap(engine, policy, forward, probes, sampling) < EXACT
    with pytest.raises(ValueError, match="at least one probe"):
        canary_gap(engine, policy, forward, [], sampling)


class Mute(ScriptedEngine):
    """Samples nothing for some requests."""

    def generate(self, requests, sampling):
        found = super().generate(requests, sampling)
        return {name: (Response((), (), False, ""),) if "mute" in name else found[name] for name in found}


def test_canary_passes_over_responses_without_tokens(policy, queries):
    forward = PolicyForward(policy.model)
    engine = Mute(lambda request, index: "x", policy.tokenizer)
    loud, mute = Request("loud", queries[0], 0), Request("mute", queries[1], 0)
    gap = canary_gap(engine, policy, forward, [loud], Sampling())
    assert canary_gap(engine, policy, forward, [loud, mute], Sampling()) == pytest.approx(gap, abs=EXACT)
    assert canary_gap(engine, policy, forward, [mute], Sampling()) is None


def test_the_bound_follows_from_types_and_depth(policy):
    """By hand: LOGIT * sqrt(2 * STEPS * layers) is 10 * sqrt(60) = 77.5 with 3 layers; the MLP is 256 wide."""

    def bound(**changes):
        settings = {"model": ModelConfig(), "rollout": RolloutConfig()} | changes
        return gap_bound(RunConfig(**settings), policy)

    assert bound() == pytest.approx(77.46 * 16 * 2**-24, rel=1e-3)  # 7.4e-5
    half = pytest.approx(77.46 * 2**-9, rel=1e-3)  # 0.15
    assert bound(model=ModelConfig(dtype="bfloat16")) == half
    assert bound(model=ModelConfig(autocast=True)) == half
    assert bound(rollout=RolloutConfig(dtype="bfloat16")) == half
    assert bound(rollout=RolloutConfig(temperature=0.5)) == 2 * bound()
    large = copy.copy(policy)
    large.model = SimpleNamespace(config=copy.deepcopy(policy.model.config), device=policy.device)
    large.model.config.text_config.num_hidden_layers = 12
    assert gap_bound(RunConfig(), large) == pytest.approx(2 * bound())


def test_placement_of_vllm_workers(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert placement(True, 2) == {"tensor_parallel_size": 2}
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert placement(True, 1) == {"tensor_parallel_size": 1, "distributed_executor_backend": "external_launcher"}
    assert placement(False, 1) == {"tensor_parallel_size": 1}
    with pytest.raises(ValueError, match=r"tensor_parallel_size=2 in 4 processes"):
        placement(True, 2)


def test_the_largest_prompts_reach_vllm(policy, monkeypatch):
    made = {}
    monkeypatch.setattr(rethinker.rollout, "VllmEngine", lambda policy, path, **options: made.update(options))
    make_engine(RunConfig(rollout=RolloutConfig(engine="vllm")), policy, max_images=13, max_prompt=5000)
    assert (made["max_images"], made["max_prompt"]) == (13, 5000)


@pytest.mark.parametrize(
    ("model", "rollout", "expected"),
    [("float32", "auto", "float32"), ("bfloat16", "auto", "bfloat16"), ("float32", "bfloat16", "bfloat16")],
)
def test_the_type_of_vllms_weights(policy, monkeypatch, model, rollout, expected):
    made = {}
    monkeypatch.setattr(rethinker.rollout, "VllmEngine", lambda policy, path, **options: made.update(options))
    config = RunConfig(model=ModelConfig(dtype=model), rollout=RolloutConfig(engine="vllm", dtype=rollout))
    make_engine(config, policy)
    assert made["dtype"] == expected


def test_make_engine(policy, monkeypatch):
    def config(engine):
        return RunConfig(rollout=RolloutConfig(engine=engine, batch_size=5))

    made = make_engine(config("transformers"), policy)
    assert isinstance(made, TransformersEngine) and made.batch_size == 5
    monkeypatch.setattr(rethinker.rollout, "vllm_available", lambda: False)
    monkeypatch.setattr(rethinker.rollout.vllm, "vllm_available", lambda: False)
    assert isinstance(make_engine(config("auto"), policy), TransformersEngine)
    with pytest.raises(ConfigError, match=r"rollout\.dtype='bfloat16' with the transformers engine"):
        make_engine(RunConfig(rollout=RolloutConfig(engine="auto", dtype="bfloat16")), policy)
    with pytest.raises(ImportError, match=r"vLLM is not installed.*rollout\.engine=transformers"):
        make_engine(config("vllm"), policy)


def test_one_answer_counts_for_several_only_where_it_is_greedy(policy, queries):
    request, found = Request("r", queries[0], 0, n=3), [((policy.eos_id,), (-0.5,))]
    (one, *others) = to_responses(policy, request, Sampling(0.0, 1.0, 8), found)
    assert others == [one, one] and one.finished
    with pytest.raises(RuntimeError, match="vLLM gave 1 of 3 responses"):
        to_responses(policy, request, Sampling(1.0, 1.0, 8), found)


def test_pieces_of_responses_are_encoded_while_no_prompt_is_made(policy, monkeypatch):
    """`split_special_tokens` is a switch of the tokenizer itself: a prompt made meanwhile would lose its own."""
    tokenizer, seen = policy.tokenizer, []

    def watched(*args, **options):
        seen.append(policy._lock.locked())
        return tokenizer(*args, **options)

    monkeypatch.setattr(policy, "tokenizer", watched)
    policy.encode(" Wait")
    assert seen == [True] and not policy._lock.locked()
