"""Log-probs of the policy against the plain Hugging Face forward pass, one sample at a time."""

from __future__ import annotations

import copy
import dataclasses
import importlib.machinery
import importlib.util
import math
import sys
import types

import pytest
import torch
from bounds import EXACT, LOGPROB, STEPS, in_float64, needs_bfloat16, rounding
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_inputs import image_inputs, random_items
from tiny_families import save_tiny
from tiny_qwen3 import tiny_qwen3
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rethinker.config import ModelConfig
from rethinker.config.schema import ConfigError
from rethinker.policy.forward import PolicyForward, token_logprobs
from rethinker.policy.loading import load_policy, make_policy, save_model, use_liger
from rethinker.policy.packing import pack
from rethinker.policy.weights import merged_weights
from rethinker.rollout import TransformersEngine
from rethinker.types import Query, Request, Sampling

pytestmark = pytest.mark.numerics

PACKINGS = ["shared", "plain"]


@pytest.fixture(scope="module")
def policy(tiny_folder):
    return load_policy(ModelConfig(path=str(tiny_folder)))


@pytest.fixture(scope="module")
def items(policy, queries):
    return random_items(policy, queries)


@pytest.fixture(scope="module")
def exact(tiny_folder):
    """The policy in float64, for ``in_float64``: where it is compared, the order of sums does not matter."""
    policy = load_policy(ModelConfig(path=str(tiny_folder)))
    policy.model.double()
    return policy


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


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize(("temperature", "chunk_elements"), [(1.0, 2**26), (0.6, 2**26), (0.6, 2000)])
def test_logprobs_equal_the_plain_forward(exact, items, temperature, chunk_elements, packing):
    """Text-only, one image, several of different sizes, one shared by two queries: all in one batch."""
    forward = PolicyForward(exact.model, chunk_elements=chunk_elements)
    with in_float64():
        logprobs, mask, entropy = token_logprobs(
            exact, forward, items, packing=packing, temperature=temperature, entropy="loss"
        )
        plain = [plain_logprobs(exact, *item, temperature) for item in items]
    assert logprobs.shape == mask.shape == entropy.shape == (len(items), 12)
    assert mask.sum(1).tolist() == [len(response) for _, response in items]
    assert (logprobs[~mask] == 0).all() and (entropy[~mask] == 0).all()
    for row, (expected, expected_entropy) in enumerate(plain):
        torch.testing.assert_close(logprobs[row, : len(expected)], expected, atol=EXACT, rtol=0)
        torch.testing.assert_close(entropy[row, : len(expected)], expected_entropy, atol=EXACT, rtol=0)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("packing", "chunk_elements"), [("shared", 2**26), ("shared", 2000), ("plain", 2**26)])
def test_gradients_equal_the_plain_forward(exact, items, packing, chunk_elements):
    weights = [0.5, -1.0, 2.0, 0.3, -0.7, 1.5, -0.2]
    exact.model.zero_grad()
    with in_float64():
        for weight, (query, response) in zip(weights, items, strict=True):
            (weight * plain_logprobs(exact, query, response, 0.8)[0].sum()).backward()
        expected = gradients(exact.model)
        exact.model.zero_grad()
        forward = PolicyForward(exact.model, chunk_elements=chunk_elements)
        logprobs, _, _ = token_logprobs(exact, forward, items, packing=packing, temperature=0.8)
        (torch.tensor(weights, dtype=torch.float64)[:, None] * logprobs).sum().backward()
    found = gradients(exact.model)
    exact.model.zero_grad()
    assert found.keys() == expected.keys()
    assert any("visual" in name for name in found)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=EXACT * float(gradient.norm()), rtol=0, msg=name)


@pytest.mark.parametrize(("packing", "shown"), [("shared", 5), ("plain", 8)])
def test_each_distinct_image_goes_through_the_tower_once(policy, items, packing, shown):
    """8 images stand in the rows of the plain packing; the shared one shows each query's images once."""
    assert sum(len(query.images) for query, _ in items) == 8
    batch = pack(policy, items, packing)
    assert len(batch.vision.grid_thw) == len({path for query, _ in items for path in query.images}) == 4
    assert len(batch.vision.order) == shown
    before = policy.encoder.encoded
    PolicyForward(policy.model, policy.encoder)(batch)
    assert policy.encoder.encoded - before == 4


def test_the_image_matters(policy, items, image_files):
    query, response = items[1]
    other = dataclasses.replace(query, images=(image_files[4],))
    forward = PolicyForward(policy.model)
    logprobs, _, _ = token_logprobs(policy, forward, [(query, response), (other, response)])
    assert (logprobs[0] - logprobs[1]).abs().max() > 1e-2


@pytest.mark.parametrize("packing", PACKINGS)
def test_gradient_checkpointing_changes_nothing(exact, items, tiny_folder, packing):
    other = load_policy(ModelConfig(path=str(tiny_folder), gradient_checkpointing=True))
    other.model.double()
    calls = []
    layer = other.model.model.language_model.layers[0]
    layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    results = []
    for each in (exact, other):
        each.model.train()
        with in_float64():
            logprobs, _, _ = token_logprobs(each, PolicyForward(each.model), items, packing=packing)
            logprobs.sum().backward()
        results.append((logprobs.detach(), gradients(each.model)))
        each.model.zero_grad()
        each.model.eval()
    assert len(calls) == 2  # once more in the backward pass
    torch.testing.assert_close(results[0][0], results[1][0], atol=EXACT, rtol=0)
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], gradient, atol=EXACT * float(gradient.norm()), rtol=0, msg=name)


@pytest.mark.parametrize("packing", PACKINGS)
def test_dummy_vision_reaches_every_parameter_and_changes_nothing(policy, items, packing):
    text_only = [items[0]]
    forward = PolicyForward(policy.model)
    plain, _, _ = token_logprobs(policy, forward, text_only, packing=packing)
    policy.model.zero_grad()
    dummy, _, _ = token_logprobs(policy, forward, text_only, packing=packing, dummy_vision=True)
    torch.testing.assert_close(dummy, plain, atol=0, rtol=0)
    dummy.sum().backward()
    vision = [p.grad for p in policy.model.model.visual.parameters()]
    assert all(grad is not None and float(grad.abs().max()) == 0.0 for grad in vision)
    policy.model.zero_grad()


@pytest.fixture(scope="module")
def qwen3(policy):
    return tiny_qwen3(policy)


@pytest.fixture(scope="module")
def exact_qwen3(policy):
    qwen3 = tiny_qwen3(policy)
    qwen3.model.double()
    return qwen3


@pytest.mark.parametrize("packing", PACKINGS)
def test_qwen3_vl_with_deepstack_equals_its_plain_forward(exact_qwen3, items, packing):
    with in_float64():
        logprobs, _, _ = token_logprobs(exact_qwen3, PolicyForward(exact_qwen3.model), items, packing=packing)
        plain = [plain_logprobs(exact_qwen3, *item, 1.0) for item in items]
    for row, (expected, _) in enumerate(plain):
        torch.testing.assert_close(logprobs[row, : len(expected)], expected, atol=EXACT, rtol=0)


# -- the shared prefix is exact ----------------------------------------------------------------------------------------


@st.composite
def random_groups(draw):
    """(number of a query, response) pairs over two tokens, so that beginnings are shared; some of the responses occur
    twice, some with a trigger (token 20) and a second look behind them."""
    response = st.lists(st.sampled_from([5, 6]), min_size=1, max_size=5).map(tuple)
    rows = draw(st.lists(st.tuples(st.integers(0, 5), response), min_size=1, max_size=6))
    for number, first in draw(st.lists(st.sampled_from(rows), max_size=4)):
        second = draw(st.one_of(st.none(), response))
        rows.append((number, first if second is None else (*first, 20, *second)))
    return draw(st.permutations(rows))


def scores_and_gradient(policy, items, packing):
    """Log-probs, entropies, the gradient of a weighted sum of both, and that of the vision tower alone."""
    policy.model.zero_grad()
    forward = PolicyForward(policy.model)
    logprobs, _, entropy = token_logprobs(policy, forward, items, packing=packing, entropy="loss")
    weights = torch.tensor([[1.0, -0.6, 2.0][index % 3] for index in range(len(items))])[:, None]
    (weights * (logprobs + 0.1 * entropy)).sum().backward()
    found = gradients(policy.model)
    vision = [gradient.flatten() for name, gradient in found.items() if "visual" in name]
    policy.model.zero_grad()
    return (
        logprobs.detach(),
        entropy.detach(),
        torch.cat([gradient.flatten() for gradient in found.values()]),
        torch.cat(vision) if vision else torch.zeros(0),
    )


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
@given(rows=random_groups())
@settings(max_examples=20, deadline=None, derandomize=True)
def test_shared_equals_plain(exact, exact_qwen3, queries, image_files, family, rows):
    """Log-probs and entropies, and the gradients by their norm."""
    which = {"qwen2_5_vl": exact, "qwen3_vl": exact_qwen3}[family]
    twice = Query("twice", "Is <image>the same as <image>?", "yes", (image_files[2], image_files[2]))
    pool = [*queries, twice]
    items = [(pool[number], response) for number, response in rows]
    with in_float64():
        shared, plain = (scores_and_gradient(which, items, packing) for packing in PACKINGS)
    for one, other in zip(shared[:2], plain[:2], strict=True):
        torch.testing.assert_close(one, other, atol=EXACT, rtol=0)
    for one, other in zip(shared[2:], plain[2:], strict=True):
        assert (one - other).norm() <= EXACT * other.norm()
    tokens = [pack(which, items, packing).input_ids_RS.numel() for packing in PACKINGS]
    assert tokens[0] < tokens[1] or len({query.qid for query, _ in items}) == len(items)


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("packing", PACKINGS)
def test_compiled_layers_compute_the_same(policy, items, queries, tiny_folder, packing):
    """Also that an engine, whose rows change with every token, runs the same layers uncompiled."""
    torch._dynamo.reset()
    compiled = load_policy(ModelConfig(path=str(tiny_folder), compile=True))
    assert compiled.model.state_dict().keys() == policy.model.state_dict().keys()
    counters = torch._dynamo.utils.counters["stats"]
    requests = [Request(query.qid, query, seed=index, n=2) for index, query in enumerate(queries)]
    sampling = Sampling(max_new_tokens=6)

    def engine_runs_uncompiled():
        before = counters["unique_graphs"]
        found = TransformersEngine(compiled).generate(requests, sampling)
        assert counters["unique_graphs"] == before
        for name, expected in TransformersEngine(policy).generate(requests, sampling).items():
            assert [response.token_ids for response in found[name]] == [response.token_ids for response in expected]

    engine_runs_uncompiled()
    graphs = []
    for part in (items, items[:3], items[2:]):  # other lengths, and none without an image
        found, expected = (scores_and_gradient(each, part, packing) for each in (compiled, policy))
        graphs.append(counters["unique_graphs"])
        torch.testing.assert_close(found[0], expected[0], atol=rounding(LOGPROB), rtol=0)
        torch.testing.assert_close(found[1], expected[1], atol=rounding(LOGPROB), rtol=0)
        for one, other in zip(found[2:], expected[2:], strict=True):  # back through the layers, by forward results
            assert (one - other).norm() <= rounding(steps=3 * STEPS) * other.norm()
    assert graphs[0] > 0
    engine_runs_uncompiled()


@needs_bfloat16
@pytest.mark.parametrize("packing", PACKINGS)
def test_autocast_is_close_to_float32(policy, items, packing):
    """bfloat16 keeps 8 bits: a step is off by up to half a unit of them, and STEPS independent ones by its root of it
    in the mean; three times as much for the largest of 41 log-probs."""
    exact, rough = (
        token_logprobs(policy, PolicyForward(policy.model, autocast=autocast), items, packing=packing, entropy="loss")
        for autocast in (False, True)
    )
    assert rough[0].dtype == rough[2].dtype == torch.float32
    exact_logprobs, gap = exact[0].detach(), (exact[0] - rough[0]).detach().abs()
    relative = STEPS**0.5 * torch.finfo(torch.bfloat16).eps / 2
    assert rounding(LOGPROB) < float(gap.max()) < 3 * relative * float(exact_logprobs.abs().max())  # nor is it float32
    assert float(gap[exact[1]].mean()) < relative * float(exact_logprobs[exact[1]].abs().mean())
    rough[0].sum().backward()
    assert all(p.grad.dtype == p.dtype == torch.float32 for p in policy.model.parameters() if p.grad is not None)
    policy.model.zero_grad()


def test_chunks_never_hold_all_logits(policy, items):
    """Rows of every float32 tensor with the vocabulary as its last dimension, forward and backward."""
    vocabulary, hidden = policy.model.lm_head.out_features, policy.model.lm_head.in_features
    total = len(pack(policy, items).targets_U)
    for rows, chunk_elements in ((total, 2**26), (7, 7 * vocabulary), (1, 1)):
        forward = PolicyForward(policy.model, chunk_elements=chunk_elements)
        seen = LargestRows(vocabulary)
        with seen:
            logprobs, _, _ = token_logprobs(policy, forward, items, entropy="loss")
            logprobs.sum().backward()
        policy.model.zero_grad()
        found = {size for size in seen.rows if size != hidden}  # the transposed weight
        assert max(found) == rows and total > 30


class LargestRows(TorchDispatchMode):
    """Watches every operation for float32 outputs [..., width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.rows: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
        self.rows |= {
            tensor.numel() // self.width
            for tensor in tensors
            if tensor.dtype == torch.float32 and tensor.shape[-1:] == (self.width,)
        }
        return output


@pytest.fixture
def liger(monkeypatch):
    """A liger-kernel that writes down what it is asked to patch."""
    calls = []
    patch = types.ModuleType("liger_kernel.transformers.monkey_patch")
    for family in ("qwen2_5_vl", "qwen3_vl", "qwen2", "gemma3_text"):
        name = f"apply_liger_kernel_to_{family}"
        setattr(patch, name, lambda family=family, **options: calls.append((family, options)))
    for name in ("liger_kernel", "liger_kernel.transformers"):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        module.__path__ = []
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.monkey_patch", patch)
    monkeypatch.setattr(sys.modules["liger_kernel.transformers"], "monkey_patch", patch, raising=False)
    return calls


def test_liger_patches_the_model_it_is_given(policy, qwen3, liger):
    """Ours instead: rotary positions of three axes, and the loss."""
    for each in (policy, qwen3):
        use_liger(each.model)
        family, options = liger.pop()
        assert family == each.model.config.model_type and options.pop("model") is each.model
        assert options == {"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}


def test_liger_patches_the_language_model_of_other_families_or_says_that_it_has_none(tmp_path, liger):
    for name, family in (("internvl", "qwen2"), ("gemma3", "gemma3_text")):
        model = load_policy(ModelConfig(path=str(save_tiny(name, tmp_path / name)))).model
        use_liger(model)
        found, options = liger.pop()
        assert found == family and options["model"] is model.model.language_model
    smolvlm = load_policy(ModelConfig(path=str(save_tiny("smolvlm", tmp_path / "smolvlm")))).model
    with pytest.warns(UserWarning, match="liger-kernel has nothing for 'llama'"):  # the one of this test has not
        use_liger(smolvlm)
    assert not liger


@pytest.mark.parametrize(("device", "wanted", "calls"), [("cpu", True, 0), ("cuda", True, 1), ("cuda", False, 0)])
def test_liger_is_for_gpus(tiny_folder, liger, device, wanted, calls):
    """A model that is to go to a GPU, on any machine."""
    load_policy(ModelConfig(path=str(tiny_folder), liger=wanted), device, weights="waiting")
    assert len(liger) == calls


def test_without_liger_a_gpu_does_without(tiny_folder, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    load_policy(ModelConfig(path=str(tiny_folder)), "cuda", weights="waiting")


# -- the policy --------------------------------------------------------------------------------------------------------


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


def test_rows_of_the_embedding_without_a_token_are_banned(policy):
    """Qwen's checkpoints have 271 of them: they could be sampled, and have no text."""
    model, size = copy.deepcopy(policy.model), len(policy.tokenizer)
    model.resize_token_embeddings(size + 5, mean_resizing=False)
    padded = make_policy(model, policy.processor)
    assert padded.banned_ids == (*policy.banned_ids, *range(size, size + 5))
    assert max(policy.banned_ids) < size


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
    changed.prompt = lambda query: wrong
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
    torch.testing.assert_close(reloaded, logprobs, atol=rounding(LOGPROB), rtol=0)
    base_policy = load_policy(ModelConfig(path=str(tiny_folder)))
    base, _, _ = token_logprobs(base_policy, PolicyForward(base_policy.model), items)
    assert (base - logprobs).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("target", "near"),
    [
        ("qkv_proj", "'v_proj'"),
        ("qkv", "'down_proj' or 'gate_proj' or 'k_proj' or 'o_proj'"),  # a layer of the tower; no name is near
        ("input_layernorm", "did you mean"),  # not linear
    ],
)
def test_a_lora_target_that_no_layer_has(tiny_folder, target, near):
    """Beside one that exists: peft would resume without."""
    with pytest.raises(ConfigError, match=f"no linear layer '{target}' in its language model.*{near}"):
        load_policy(ModelConfig(path=str(tiny_folder), lora_rank=4, lora_targets=("q_proj", target)))


@needs_bfloat16
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
        large = p.grad.abs() > 1e-7  # beside Adam's epsilon of 1e-8
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
    with pytest.raises(ValueError, match="'gpt2' is not supported; supported: qwen2_vl, qwen2_5_vl, qwen3_vl"):
        load_policy(ModelConfig(path=str(tmp_path)))
