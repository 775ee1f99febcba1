"""Log-probs of the policy against the plain Hugging Face forward pass, one sample at a time."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from plain_inputs import image_inputs
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from rethinker.config import ModelConfig
from rethinker.policy.forward import PolicyForward, pack, token_logprobs
from rethinker.policy.loading import load_policy, make_policy, merged_weights, save_model
from rethinker.types import Query


@pytest.fixture(scope="module")
def policy(tiny_folder):
    return load_policy(ModelConfig(path=str(tiny_folder)))


@pytest.fixture(scope="module")
def items(policy, queries):
    """Every query, some twice, with responses of 1 to 12 allowed tokens."""
    generator = torch.Generator().manual_seed(0)
    allowed = torch.tensor([i for i in range(len(policy.tokenizer)) if i not in policy.banned_ids])
    lengths = [5, 12, 1, 7, 9, 3, 4]
    return [
        (query, allowed[torch.randint(len(allowed), (length,), generator=generator)].tolist())
        for query, length in zip([*queries, queries[1], queries[2]], lengths, strict=True)
    ]


def plain_logprobs(policy, query, response, temperature):
    """What the model's own forward pass gives, from the processor's pixels and without any of our packing."""
    prompt = policy.prompt(query)
    ids = torch.tensor([[*prompt.ids, *response]])
    vision = image_inputs(policy, query, ids)
    policy.model.model.rope_deltas = None
    logits = policy.model(input_ids=ids, use_cache=False, **vision).logits[0, len(prompt.ids) - 1 : -1] / temperature
    keep = torch.ones(logits.shape[-1], dtype=torch.bool)
    keep[list(policy.banned_ids)] = False
    logprobs = torch.full_like(logits, -math.inf)
    logprobs[:, keep] = torch.log_softmax(logits[:, keep], dim=-1)
    entropy = -(logprobs[:, keep].exp() * logprobs[:, keep]).sum(-1)
    return logprobs.gather(1, torch.tensor(response)[:, None])[:, 0], entropy


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk_elements", [2**26, 2000])
def test_logprobs_equal_the_plain_forward(policy, items, temperature, chunk_elements):
    """Text-only, one image, several of different sizes, one shared by two queries: all in one batch."""
    forward = PolicyForward(policy.model, chunk_elements)
    logprobs, mask, entropy = token_logprobs(policy, forward, items, temperature=temperature, with_entropy=True)
    assert logprobs.shape == mask.shape == entropy.shape == (len(items), 12)
    assert mask.sum(1).tolist() == [len(response) for _, response in items]
    assert (logprobs[~mask] == 0).all() and (entropy[~mask] == 0).all()
    for row, (query, response) in enumerate(items):
        expected, expected_entropy = plain_logprobs(policy, query, response, temperature)
        torch.testing.assert_close(logprobs[row, : len(response)], expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(entropy[row, : len(response)], expected_entropy, atol=1e-5, rtol=0)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("chunk_elements", [2**26, 2000])
def test_gradients_equal_the_plain_forward(policy, items, chunk_elements):
    weights = [0.5, -1.0, 2.0, 0.3, -0.7, 1.5, -0.2]
    policy.model.zero_grad()
    for weight, (query, response) in zip(weights, items, strict=True):
        (weight * plain_logprobs(policy, query, response, 0.8)[0].sum()).backward()
    expected = gradients(policy.model)
    policy.model.zero_grad()
    logprobs, _, _ = token_logprobs(policy, PolicyForward(policy.model, chunk_elements), items, temperature=0.8)
    (torch.tensor(weights)[:, None] * logprobs).sum().backward()
    found = gradients(policy.model)
    policy.model.zero_grad()
    assert found.keys() == expected.keys()
    assert any("visual" in name for name in found)
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, atol=1e-5 * scale + 1e-6, rtol=0, msg=name)


def test_each_distinct_image_goes_through_the_tower_once(policy, items):
    batch = pack(policy, items)
    distinct = {path for query, _ in items for path in query.images}
    assert len(batch.grid_thw) == len(distinct) == 4
    assert len(batch.image_order) == sum(len(query.images) for query, _ in items) == 8


def test_the_image_matters(policy, items, image_files):
    query, response = items[1]
    other = dataclasses.replace(query, images=(image_files[4],))
    forward = PolicyForward(policy.model)
    logprobs, _, _ = token_logprobs(policy, forward, [(query, response), (other, response)])
    assert (logprobs[0] - logprobs[1]).abs().max() > 1e-2


def test_gradient_checkpointing_changes_nothing(policy, items, tiny_folder):
    other = load_policy(ModelConfig(path=str(tiny_folder), gradient_checkpointing=True))
    results = []
    for each in (policy, other):
        each.model.train()
        logprobs, _, _ = token_logprobs(each, PolicyForward(each.model), items)
        logprobs.sum().backward()
        results.append((logprobs.detach(), gradients(each.model)))
        each.model.zero_grad()
        each.model.eval()
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-6, rtol=0)
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], gradient, atol=1e-4, rtol=1e-4, msg=name)


def test_dummy_vision_reaches_every_parameter_and_changes_nothing(policy, items):
    text_only = [items[0]]
    forward = PolicyForward(policy.model)
    plain, _, _ = token_logprobs(policy, forward, text_only)
    policy.model.zero_grad()
    dummy, _, _ = token_logprobs(policy, forward, text_only, dummy_vision=True)
    torch.testing.assert_close(dummy, plain, atol=0, rtol=0)
    dummy.sum().backward()
    vision = [p.grad for p in policy.model.model.visual.parameters()]
    assert all(grad is not None and float(grad.abs().max()) == 0.0 for grad in vision)
    policy.model.zero_grad()


@pytest.fixture(scope="module")
def qwen3(policy, randomise):
    """A tiny Qwen3-VL (DeepStack features at two depths) with the tiny tokenizer."""
    old = policy.model.config
    text = {
        "vocab_size": len(policy.tokenizer), "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 5, 5]},
    }  # fmt: skip
    vision = {
        "depth": 3, "hidden_size": 64, "intermediate_size": 96, "num_heads": 2, "patch_size": 8,
        "temporal_patch_size": 2, "spatial_merge_size": 2, "out_hidden_size": 64, "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    ids = {key: getattr(old, key) for key in ("image_token_id", "video_token_id")}
    ends = {key: getattr(old, key) for key in ("vision_start_token_id", "vision_end_token_id")}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids, **ends)
    model = Qwen3VLForConditionalGeneration(config).float().eval()
    randomise(model)
    return make_policy(model, policy.processor)


def test_qwen3_vl_with_deepstack_equals_its_plain_forward(qwen3, items):
    logprobs, _, _ = token_logprobs(qwen3, PolicyForward(qwen3.model), items)
    for row, (query, response) in enumerate(items):
        expected, _ = plain_logprobs(qwen3, query, response, 1.0)
        torch.testing.assert_close(logprobs[row, : len(response)], expected, atol=1e-5, rtol=0)


def test_prompt_ids(policy, queries):
    prompt = policy.prompt(queries[2])  # 64x64 and 96x48: 16 and 18 tokens
    assert prompt.unexpanded.count(policy.image_id) == 2
    assert len(prompt.ids) == len(prompt.unexpanded) + 16 + 18 - 2
    assert prompt.positions.shape == (3, len(prompt.ids))
    # an image of h x w merged patches moves the position by max(h, w), not by h * w
    text_tokens = len(prompt.unexpanded) - 2
    assert prompt.next_position == text_tokens + 4 + 6
    assert policy.prompt(queries[2]) is prompt


def test_suffix_and_hint_reach_the_prompt(tiny_folder, queries):
    policy = load_policy(ModelConfig(path=str(tiny_folder)), prompt_suffix="\n\nBe brief.", prompt_hint="Reflect.")
    text = policy.tokenizer.decode(policy.prompt(queries[1]).unexpanded)
    assert "Be brief.\n\nReflect." in text


def test_banned_tokens(policy):
    names = set(policy.tokenizer.convert_ids_to_tokens(list(policy.banned_ids)))
    assert {"<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|im_start|>"} <= names
    assert "<|im_end|>" not in names
    assert policy.tokenizer.convert_ids_to_tokens(policy.eos_id) == "<|im_end|>"


def test_errors_name_the_query(policy, items, queries):
    forward = PolicyForward(policy.model)
    query, response = items[1]
    with pytest.raises(ValueError, match=r"query 'one'.*<\|image_pad\|>"):
        token_logprobs(policy, forward, [(query, [*response, policy.image_id])])
    with pytest.raises(ValueError, match="query 'one': an empty response"):
        token_logprobs(policy, forward, [(query, [])])
    with pytest.raises(ValueError, match="no responses"):
        token_logprobs(policy, forward, [])
    with pytest.raises(ValueError, match="temperature=0"):
        token_logprobs(policy, forward, items, temperature=0.0)
    literal = Query("sly", "What is <|image_pad|>?", "", queries[1].images)
    with pytest.raises(ValueError, match="query 'sly': 2 image tokens in the prompt for 1 images"):
        policy.prompt(literal)


def test_features_that_do_not_fit_the_prompt_are_an_error(policy, items, image_files):
    query, response = items[1]
    prompt = policy.prompt(query)
    wrong = dataclasses.replace(prompt, ids=(*prompt.ids, policy.image_id))
    changed = copy.copy(policy)
    changed._prompts = type(policy._prompts)({query: wrong})
    with pytest.raises(ValueError, match=r"query 'one': 17 image tokens in the prompt but 16 image features"):
        pack(changed, [(query, response)])


def test_freeze_vision(tiny_folder, items):
    policy = load_policy(ModelConfig(path=str(tiny_folder), freeze_vision=True))
    token_logprobs(policy, PolicyForward(policy.model), items)[0].sum().backward()
    assert not any("visual" in name for name in gradients(policy.model))


def test_lora_trains_the_language_model_only_and_merges(tiny_folder, items, tmp_path):
    policy = load_policy(ModelConfig(path=str(tiny_folder), lora_rank=4, lora_alpha=8.0, gradient_checkpointing=True))
    trained = [name for name, p in policy.model.named_parameters() if p.requires_grad]
    assert trained and all("language_model" in name and "lora_" in name for name in trained)
    policy.model.train()
    with torch.no_grad():  # lora_B starts at zero
        for name, p in policy.model.named_parameters():
            if "lora_B" in name:
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))) * 0.1)
    logprobs, _, _ = token_logprobs(policy, PolicyForward(policy.model), items)
    logprobs.sum().backward()
    assert all(p.grad is not None for p in policy.model.parameters() if p.requires_grad)
    save_model(policy, tmp_path / "merged")
    plain = load_policy(ModelConfig(path=str(tmp_path / "merged")))
    assert not any("lora" in name for name in plain.model.state_dict())
    reloaded, _, _ = token_logprobs(plain, PolicyForward(plain.model), items)
    torch.testing.assert_close(reloaded, logprobs, atol=1e-4, rtol=0)
    base_policy = load_policy(ModelConfig(path=str(tiny_folder)))
    base, _, _ = token_logprobs(base_policy, PolicyForward(base_policy.model), items)
    assert (base - logprobs).abs().max() > 1e-2


def test_lora_adapters_of_a_bfloat16_model_are_float32(tiny_folder, items):
    """A step of 1e-6 moves them, which in bfloat16 it would not; the merged checkpoint is bfloat16 again."""
    config = ModelConfig(path=str(tiny_folder), dtype="bfloat16", lora_rank=4, gradient_checkpointing=True)
    policy = load_policy(config)
    adapters = {name: p for name, p in policy.model.named_parameters() if p.requires_grad}
    assert adapters and all("lora_" in name and p.dtype == torch.float32 for name, p in adapters.items())
    assert all(p.dtype == torch.bfloat16 for p in policy.model.parameters() if not p.requires_grad)
    before = {name: p.detach().clone() for name, p in adapters.items()}
    policy.model.train()
    optimizer = torch.optim.AdamW(adapters.values(), lr=1e-6, weight_decay=0.0)
    for _ in range(2):  # lora_A has a gradient only once lora_B is not 0
        optimizer.zero_grad()
        logprobs, _, _ = token_logprobs(policy, PolicyForward(policy.model), items)
        assert logprobs.dtype == torch.float32
        logprobs.mean().backward()
        optimizer.step()
    for name, p in adapters.items():
        assert torch.isfinite(p.grad).all(), name
        large = p.grad.abs() > 1e-6  # beside Adam's epsilon of 1e-8
        assert (p != before[name])[large].all() and large.any(), name
        if "lora_A" in name:
            assert (p.bfloat16() == before[name].bfloat16()).float().mean() > 0.9  # what bfloat16 would have kept
    assert {weight.dtype for _, weight in merged_weights(policy.model)} == {torch.bfloat16}


def test_saved_model_is_the_same(policy, tiny_folder, tmp_path):
    save_model(policy, tmp_path / "copy")
    names = {path.name for path in (tmp_path / "copy").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= names
    again = load_policy(ModelConfig(path=str(tmp_path / "copy")))
    for (name, one), (other_name, other) in zip(merged_weights(policy.model), merged_weights(again.model), strict=True):
        assert name == other_name and torch.equal(one, other)


def test_unsupported_models_are_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match="'gpt2' is not supported; supported: qwen2_5_vl, qwen3_vl"):
        load_policy(ModelConfig(path=str(tmp_path)))
