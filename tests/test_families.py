"""Each family of models, tiny and random: prompts and pixels as its processor's, log-probs and a training step as its
own forward's, whatever is shared; both engines; saved and loaded again."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from bounds import EXACT, LOGPROB, in_float64, rounding
from conftest import random_weights
from PIL import Image
from plain_inputs import random_items
from tiny_families import BUILDERS, save_tiny
from tiny_training import fresh_process, teach

from rethinker.config import ConfigError, ModelConfig, load_config
from rethinker.datasets.io import load_queries
from rethinker.grpo import policy_loss
from rethinker.lab.serve import of_run
from rethinker.policy.families.tiled import Tiled
from rethinker.policy.forward import PolicyForward, token_logprobs
from rethinker.policy.lengths import PromptRoom
from rethinker.policy.loading import load_policy, load_processor, save_model
from rethinker.policy.prompt import prompt_text
from rethinker.policy.weights import merged_weights
from rethinker.rollout import TransformersEngine, VllmEngine, canary_gap, vllm_available
from rethinker.rollout.server.engine import ServerEngine
from rethinker.rollout.vllm_inputs import placeholders
from rethinker.run import TrainingRun
from rethinker.types import Request, Sampling

pytestmark = pytest.mark.numerics


@pytest.fixture(scope="module", params=BUILDERS)
def folder(request, tmp_path_factory):
    return save_tiny(request.param, tmp_path_factory.mktemp("family") / request.param)


@pytest.fixture(scope="module")
def policy(folder):
    """In float32, as loaded."""
    return load_policy(ModelConfig(path=str(folder)))


@pytest.fixture(scope="module")
def exact(folder):
    """In float64, for ``in_float64``."""
    found = load_policy(ModelConfig(path=str(folder)))
    found.model.double()
    return found


@pytest.fixture(scope="module")
def items(policy, queries):
    return random_items(policy, queries)


def processed(policy, query):
    """What the family's processor makes of a query, text and images together."""
    images = [Image.open(path).convert("RGB") for path in query.images] or None
    text = [prompt_text(policy.processor, query)]
    return dict(policy.processor(text=text, images=images, return_tensors="pt", add_special_tokens=False))


def plain_logprobs(policy, query, response):
    """The model's own forward on its processor's outputs, without any of our code but the ban."""
    inputs = processed(policy, query)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([response])], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    for name in ("mm_token_type_ids", "token_type_ids"):  # the response is text
        if name in inputs:
            inputs[name] = torch.cat([inputs[name], torch.zeros(1, len(response), dtype=torch.long)], dim=1)
    if hasattr(policy.model.model, "rope_deltas"):
        policy.model.model.rope_deltas = None
    logits = policy.model(**inputs, use_cache=False).logits[0, -len(response) - 1 : -1]
    banned = torch.zeros(logits.shape[-1], dtype=torch.bool)
    banned[list(policy.banned_ids)] = True
    logprobs = torch.log_softmax(logits.masked_fill(banned, -math.inf), dim=-1)
    return logprobs.gather(1, torch.tensor(response)[:, None])[:, 0]


def test_prompts_and_pixels_are_the_processors(policy, queries):
    for query in queries:
        inputs = processed(policy, query)
        assert inputs["input_ids"][0].tolist() == list(policy.prompt(query).ids)
        text = policy.tokenizer.decode(policy.prompt(query).ids)
        assert query.question.split("<image>")[-1] in text
        if query.images:
            values = torch.cat([policy.images.get(path).values for path in query.images])
            assert torch.equal(values, inputs["pixel_values"].reshape(values.shape))
            shown = [policy.images.get(path) for path in query.images]
            tokens = [int(pixels.grid.prod()) // policy.merge_size**2 for pixels in shown]
            assert policy.prompt(query).ids.count(policy.image_id) == sum(tokens)
            for path, pixels, count in zip(query.images, shown, tokens, strict=True):
                width, height = Image.open(path).size
                family, processor = policy.family, policy.processor
                found = family.tokens_of(processor, height, width)
                assert family.most_tokens(processor) >= found >= count == pixels.grid.prod() // policy.merge_size**2
    room = PromptRoom(policy, 8)
    assert all(room(query) is None for query in queries) and policy.image_id in policy.banned_ids


@pytest.mark.parametrize("packing", ["shared", "plain"])
def test_logprobs_and_gradients_equal_the_models_own(exact, items, packing):
    """Text-only, one image, several of different sizes, one shared by two queries: all in one batch."""
    weights = [0.5, -1.0, 2.0, 0.3, -0.7, 1.5, -0.2]
    exact.model.zero_grad()
    with in_float64():
        expected = [plain_logprobs(exact, *item) for item in items]
        sum(weight * logprobs.sum() for weight, logprobs in zip(weights, expected, strict=True)).backward()
        wanted = {name: p.grad.clone() for name, p in exact.model.named_parameters() if p.grad is not None}
        exact.model.zero_grad()
        found, _, _ = token_logprobs(exact, PolicyForward(exact.model), items, packing=packing)
        (torch.tensor(weights, dtype=torch.float64)[:, None] * found).sum().backward()
    for row, logprobs in enumerate(expected):
        torch.testing.assert_close(found[row, : len(logprobs)], logprobs, atol=EXACT, rtol=0)
    size = torch.stack([gradient.norm() for gradient in wanted.values()]).norm()  # a bias of keys has none of its own
    tower = {p for part in exact.family.tower_parts(exact.model) for p in part.parameters()}
    assert any(p in tower and p.grad is not None for p in exact.model.parameters())
    for name, parameter in exact.model.named_parameters():
        if name in wanted:
            assert (parameter.grad - wanted[name]).norm() <= EXACT * size, name
        else:
            assert parameter.grad is None, name
    exact.model.zero_grad()


def test_a_frozen_tower_is_read_once_and_gives_the_same(exact, items):
    with in_float64(), torch.no_grad():
        expected = token_logprobs(exact, PolicyForward(exact.model), items)[0]
        frozen = copy.deepcopy(exact.model)
        for part in exact.family.tower_parts(frozen):
            part.requires_grad_(False)
        forward = PolicyForward(frozen)
        for _ in range(2):
            found = token_logprobs(exact, forward, items)[0]
            torch.testing.assert_close(found, expected, atol=EXACT, rtol=0)
    assert forward.encoder.encoded == 4 and not forward.encoder.trained


def test_a_rank_without_images_sends_a_blank_one(exact, items):
    exact.model.zero_grad()
    with in_float64():
        expected = token_logprobs(exact, PolicyForward(exact.model), items[:1])[0]
        found = token_logprobs(exact, PolicyForward(exact.model), items[:1], dummy_vision=True)[0]
        torch.testing.assert_close(found, expected, atol=EXACT, rtol=0)
        found.sum().backward()
    parts = exact.family.tower_parts(exact.model)
    gradients = [p.grad for part in parts for p in part.parameters() if p.grad is not None]
    assert gradients and all(float(gradient.abs().max()) == 0 for gradient in gradients)
    exact.model.zero_grad()


def test_a_training_step_equals_a_plain_one_and_survives_saving(folder, items, tmp_path):
    """GRPO's loss on shared prefixes against the same on the model's own forward; then save, load, compare."""
    trained, reference = (load_policy(ModelConfig(path=str(folder))) for _ in range(2))
    advantages = torch.tensor([0.5, -1.0, 2.0, 0.3, -0.7, 1.5, -0.2], dtype=torch.float64)
    for each in (trained, reference):
        each.model.double().train()
        optimizer = torch.optim.SGD(each.model.parameters(), lr=0.01)
        with in_float64():
            if each is trained:
                logprobs, mask, _ = token_logprobs(each, PolicyForward(each.model), items)
            else:
                rows = [plain_logprobs(each, *item) for item in items]
                logprobs = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            loss, _ = policy_loss(logprobs, logprobs.detach() + 0.05, advantages, mask, clip_low=0.2, clip_high=0.2)
            assert torch.isfinite(loss)
            loss.backward()
        optimizer.step()
    start = dict(merged_weights(load_policy(ModelConfig(path=str(folder))).model))
    wanted, moved = dict(merged_weights(reference.model)), 0
    for name, weight in merged_weights(trained.model):
        step, expected = weight - start[name], wanted[name] - start[name]
        assert (step - expected).norm() <= EXACT * max(1.0, float(wanted[name].norm())), name
        moved += bool(step.any())
    assert moved > len(wanted) // 2
    trained.model.float().eval()
    save_model(trained, tmp_path / "saved")
    again = load_policy(ModelConfig(path=str(tmp_path / "saved")))
    for (name, one), (other_name, other) in zip(
        merged_weights(trained.model), merged_weights(again.model), strict=True
    ):
        assert name == other_name and torch.equal(one, other)
    assert again.prompt(items[2][0]).ids == trained.prompt(items[2][0]).ids


@pytest.mark.long
@pytest.mark.parametrize("family", ["smolvlm", "gemma3"])
def test_a_whole_run(family, world, tmp_path):
    """Both stages, evaluated, saved; groups have an advantage, and second looks are forced and trained."""
    torch.manual_seed(0)
    guesser = load_policy(ModelConfig(path=str(save_tiny(family, tmp_path / "random"))))
    queries, _ = load_queries(world / "train.parquet")
    teach(guesser, queries[:4], steps=60)
    save_model(guesser, tmp_path / "guesser")
    stages = "[{name: a, episodes: 2}, {name: b, episodes: 1, overrides: {rethink: {fraction: 0.9}}}]"
    config = load_config(
        None,
        [
            f"runs_dir={tmp_path}",
            "name=run",
            f"model.path={tmp_path / 'guesser'}",
            *(f"data.{split}={world / split}.parquet" for split in ("train", "validation", "test")),
            "queries_per_episode=4",
            "rollout.engine=transformers",
            "rollout.group_size=4",
            "rollout.max_new_tokens=64",
            "rethink.min_second_look_tokens=8",
            "optim.train_batch_size=8",
            f"stages={stages}",
        ],
    )
    with fresh_process():
        assert TrainingRun(config).run() == "finished"
    lines = [json.loads(text) for text in (config.folder / "metrics.jsonl").read_text().splitlines()]
    assert {line["record"] for line in lines} >= {"step", "episode"}
    final = load_policy(ModelConfig(path=str(config.folder / "checkpoints" / "last" / "model")))
    before, after = dict(merged_weights(guesser.model)), dict(merged_weights(final.model))
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) > len(before) // 2
    assert any(line.get("rethink/forced") for line in lines)


def test_the_transformers_engine_samples_from_the_models_own_distribution(exact, queries):
    """Of first looks and of continuations."""
    base = exact.encode("\\boxed{23}.\n\nWait, let's see.")
    requests = [
        Request(f"{query.qid}/{len(prefix)}", query, seed=index, n=1 + index % 2, prefix_ids=prefix)
        for index, query in enumerate(queries)
        for prefix in ((), tuple(base[: 3 + index]))
    ]
    with in_float64(), torch.no_grad():
        answers = TransformersEngine(exact, batch_size=7).generate(requests, Sampling(max_new_tokens=16))
        for request in requests:
            for response in answers[request.request_id]:
                ids = [*request.prefix_ids, *response.token_ids]
                expected = plain_logprobs(exact, request.query, ids)[len(request.prefix_ids) :]
                found = torch.tensor(response.logprobs, dtype=torch.float64)
                torch.testing.assert_close(found, expected, atol=EXACT, rtol=0)


def test_lora_is_on_the_language_model_alone(folder, items):
    policy = load_policy(ModelConfig(path=str(folder), lora_rank=2, gradient_checkpointing=True))
    names = [name for name, p in policy.model.named_parameters() if p.requires_grad]
    assert names and all(name.startswith(policy.family.language) and "lora_" in name for name in names)
    assert len(names) == 7 * 2 * policy.model.config.get_text_config().num_hidden_layers
    policy.model.train()
    token_logprobs(policy, PolicyForward(policy.model), items)[0].sum().backward()
    assert all(p.grad is not None for name, p in policy.model.named_parameters() if p.requires_grad)


def test_the_parts_of_a_model_are_found(policy):
    """By name: each layer of both halves, and nothing in neither."""
    model = policy.model
    tower = {id(p) for part in policy.family.tower_parts(model) for p in part.parameters()}
    language = {id(p) for p in policy.family.language_model(model).parameters()}
    assert not tower & language
    assert {id(p) for p in model.parameters()} == tower | language | {id(p) for p in model.lm_head.parameters()}
    assert len(policy.family.tower_blocks(model)) in (2, 3)
    assert {id(p) for block in policy.family.tower_blocks(model) for p in block.parameters()} < tower


@pytest.mark.long
def test_a_frozen_tower_and_compiled_layers(tmp_path):
    path = save_tiny("smolvlm", tmp_path / "smolvlm")
    policy = load_policy(ModelConfig(path=str(path), freeze_vision=True, compile=True))
    assert not policy.encoder.trained
    assert all(layer._compiled_call_impl for layer in policy.family.language_model(policy.model).layers)


def test_tiles_have_no_pixel_limits(policy, folder):
    limited = ModelConfig(path=str(folder), max_pixels=4096)
    if isinstance(policy.family, Tiled):
        with pytest.raises(ConfigError, match=r"model\.max_pixels.*preprocessor_config\.json"):
            load_processor(limited)
    else:
        assert load_processor(limited).image_processor.size["longest_edge"] == 4096


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "llava"}, r"'llava' is not supported; supported: qwen2_vl, qwen2_5_vl, qwen3_vl"),
        ({"model_type": "internvl_chat", "auto_map": {"AutoConfig": "a.B"}}, r"InternVL's own format.*in -hf"),
    ],
)
def test_what_has_no_adapter_is_refused(tmp_path, config, reason):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=reason):
        load_policy(ModelConfig(path=str(tmp_path)))


# -- vLLM --------------------------------------------------------------------------------------------------------------

needs_vllm = pytest.mark.skipif(not vllm_available(), reason="vLLM is not installed")


@needs_vllm
@pytest.mark.long
def test_vllm_is_told_where_the_tokens_of_each_image_stand(policy, queries):
    query = queries[2]
    ids = policy.prompt(query).ids
    shown = torch.tensor(ids) == policy.image_id
    covered = torch.zeros(len(ids), dtype=torch.bool)
    for place in placeholders(policy, ids, [policy.images.get(path) for path in query.images]):
        part = slice(place.offset, place.offset + place.length)
        covered[part] |= torch.ones(place.length, dtype=torch.bool) if place.is_embed is None else place.is_embed
    assert torch.equal(covered, shown)


def test_servers_are_refused_where_they_cannot_be_told_an_images_tokens(policy):
    if policy.family.interleaved:
        with pytest.raises(ConfigError, match=r"rollout\.engine=server.*set rollout\.engine=vllm or transformers"):
            ServerEngine(policy, None, None, dtype=torch.float32)


@needs_vllm
def test_vllm_on_a_cpu_has_no_bidirectional_images(policy, folder):
    if policy.family.bidirectional:
        with pytest.raises(ConfigError, match=r"see each other.*rollout\.engine=transformers"):
            VllmEngine(policy, folder, max_new_tokens=16)


def test_servers_that_cannot_run_a_family_are_not_started(policy, folder):
    config = load_config(None, [f"model.path={folder}", "rollout.engine=server"])
    if policy.family.bidirectional or policy.family.interleaved:
        with pytest.raises(ConfigError, match=r"rollout\.engine=server.*set rollout\.engine=(vllm or )?transformers"):
            of_run(config)


@needs_vllm
@pytest.mark.long
def test_vllm_scores_as_the_trainer_does(policy, folder, queries):
    """With the weights that it loaded, with others, and never with stale ones."""
    if policy.family.bidirectional:
        pytest.skip("refused: see above")
    trained = copy.copy(policy)
    trained.model = copy.deepcopy(policy.model)
    forward, sampling = PolicyForward(trained.model), Sampling(max_new_tokens=16)
    requests = [Request(query.qid, query, seed=index, n=2) for index, query in enumerate(queries)]
    engine = VllmEngine(trained, folder, max_new_tokens=16, max_images=2)
    try:
        for seed in (1, 2):
            random_weights(trained.model, seed)
            assert canary_gap(engine, trained, forward, requests, sampling) > 1e-2
            engine.sync_weights(trained.model)
            assert canary_gap(engine, trained, forward, requests, sampling) < rounding(LOGPROB)
    finally:
        engine.close()
