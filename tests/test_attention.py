"""Attention over packed prefix trees against a dense mask made from its meaning."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from bounds import EXACT, rounding
from hypothesis import example, given, settings
from hypothesis import strategies as st
from memory import peak_bytes
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from trees import groups, stub_policy

from rethinker.config import ModelConfig
from rethinker.policy.attention import (
    ENTRIES,
    NAME,
    FlexLayout,
    SdpaLayout,
    image_runs,
    like_rows,
    shared_prefix_attention,
    use_shared_prefix_attention,
)
from rethinker.policy.families import FAMILIES
from rethinker.policy.loading import load_policy
from rethinker.policy.packing import pack_trees
from rethinker.types import Query

pytestmark = pytest.mark.numerics

LAYER = SimpleNamespace(layer_idx=0, training=False, is_causal=True)
HEADS, WIDTH = 4, 16


def dense_mask(lengths, items) -> torch.Tensor:
    """Token of the row x token of the row: its prompt up to itself, or its prompt and its own response up to itself."""
    row = pack_trees(stub_policy(lengths), items)
    sees = torch.zeros(len(row.ids_S), len(row.ids_S), dtype=torch.bool)
    starts, start = {}, 0
    for query, _ in items:
        if query not in starts:
            # A prompt stands before its responses: behind everything that other queries have.
            starts[query] = start
            prefixes = {r[:n] for q, r in items if q == query for n in range(1, len(r) + 1)}
            start += lengths[int(query.qid)] + len(prefixes)
    assert start == len(sees)
    for (query, _), path in zip(items, row.paths, strict=True):
        prompt = list(range(starts[query], starts[query] + lengths[int(query.qid)]))
        line = prompt + path.tolist()
        for place, token in enumerate(line):
            sees[token, line[: place + 1]] = True
    return sees


def random_states(tokens: int, key_heads: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """Query, key, value [1, H, S, D]."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(1, heads, tokens, WIDTH, generator=generator, dtype=dtype)
        for heads in (HEADS, key_heads, key_heads)
    ]


def expected_output(states, mask, scaling) -> torch.Tensor:
    output = scaled_dot_product_attention(*states, attn_mask=mask, scale=scaling, enable_gqa=True)
    return output.transpose(1, 2)


QUERY = Query("0", "?", "1")


@given(groups(), st.sampled_from([1, 2, 4]), st.sampled_from([None, 0.3]), st.sampled_from([ENTRIES, 60, 7]))
@example(([5], [(QUERY, ())]), 2, None, ENTRIES)  # a prompt alone, as an engine reads it
@example(([1], [(QUERY, (0, 1)), (QUERY, (0, 1)), (QUERY, (0,))]), 2, None, ENTRIES)
@example(([3, 2], [(QUERY, (0,) * 40), (QUERY, (1, 0)), (Query("1", "?", "1"), (1,) * 21)]), 2, None, 50)
@settings(max_examples=120, deadline=None)
def test_sdpa_layout_is_dense_attention(group, key_heads, scaling, entries):
    """Outputs, and gradients of a weighted sum of them; in one batch, in several, and in slices of one response."""
    lengths, items = group
    trees = pack_trees(stub_policy(lengths), items).trees
    mask = dense_mask(lengths, items)
    ends = trees.ends_S
    by_ends = torch.tensor([[k <= q < int(ends[k]) for k in range(len(ends))] for q in range(len(ends))])
    assert torch.equal(by_ends, mask)  # what FlexLayout reads
    found_states = [tensor.requires_grad_() for tensor in random_states(len(mask), key_heads)]
    states = [tensor.requires_grad_() for tensor in random_states(len(mask), key_heads)]
    found = SdpaLayout(trees, torch.float64, entries).attend(LAYER, *found_states, scaling)
    expected = expected_output(states, mask, scaling)
    assert found.shape == (1, len(mask), HEADS, WIDTH)
    torch.testing.assert_close(found, expected, atol=EXACT, rtol=0)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for one, other in zip(found_states, states, strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=EXACT, rtol=0)


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT",
    reason="torch compiles flex_attention for CPUs with AVX2 only; FlexLayout is for GPUs and runs here to be compared",
)
@pytest.mark.slow  # it is compiled
def test_flex_layout_is_the_sdpa_layout():
    """Outputs only: PyTorch's flex_attention has no backward pass on a CPU."""
    a, b, c = (Query(str(number), "?", "1") for number in range(3))
    items = [(a, (0, 1, 1)), (b, (1,)), (a, (0, 1, 3, 0)), (c, ()), (a, (1,)), (b, (1,)), (b, (0, 0, 1))]
    trees = pack_trees(stub_policy([5, 9, 2]), items).trees
    states = random_states(len(trees.ends_S), 2, torch.float32)
    with torch.no_grad():
        expected = SdpaLayout(trees).attend(LAYER, *states, None)
        found = FlexLayout(trees).attend(LAYER, *states, None)
    # Scores, softmax, sum of values of up to 4, over as many tokens.
    torch.testing.assert_close(found, expected, atol=rounding(4.0, steps=4, terms=len(trees.ends_S)), rtol=0)


@given(groups(), st.sampled_from([ENTRIES, 20]))
@settings(max_examples=30, deadline=None)
def test_repeated_heads_are_grouped_heads(group, entries):
    """What a GPU computes: its kernels for masks take as many heads of keys as of queries."""
    lengths, items = group
    trees = pack_trees(stub_policy(lengths), items).trees
    states = random_states(len(trees.ends_S), 2)
    layout = SdpaLayout(trees, torch.float64, entries)
    expected = layout.attend(LAYER, *states, None)
    layout.grouped = False
    torch.testing.assert_close(layout.attend(LAYER, *states, None), expected, atol=EXACT, rtol=0)


def test_rows_of_like_length_by_hand():
    """A row of 5 queries behind 2 keys has 5 * 7 scores; four such are 140."""
    assert like_rows([], [], 10) == []
    assert like_rows([5, 1, 5, 5], [2, 2, 2, 2], 140) == [[0, 1, 2, 3]]
    assert like_rows([5, 1, 5, 5], [2, 2, 2, 2], 139) == [[0, 2, 3], [1]]
    assert like_rows([5, 1, 5, 5], [2, 2, 2, 2], 70) == [[0, 2], [3], [1]]
    assert like_rows([5, 1, 5, 5], [2, 2, 2, 2], 1) == [[0], [2], [3], [1]]
    assert like_rows([4, 4], [0, 60], 100) == [[1], [0]]  # alike in their queries, not in their keys


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(0, 300)), min_size=1, max_size=30), st.integers(1, 200_000))
def test_rows_of_like_length_waste_little(rows, entries):
    queries, before = [t for t, _ in rows], [k for _, k in rows]
    batches = like_rows(queries, before, entries)
    assert sorted(row for batch in batches for row in batch) == list(range(len(rows)))
    for batch in batches:
        longest = max(queries[row] for row in batch)
        padded = longest * (longest + max(before[row] for row in batch))
        assert len(batch) == 1 or len(batch) * padded <= entries
        if len(batches) > 1:  # each dimension at most doubled, twice for what both have: the queries
            assert all(padded < 8 * queries[row] * (queries[row] + before[row]) for row in batch)


def seen_by_autograd(items: list[tuple[Query, tuple[int, ...]]], lengths: list[int], layers: int) -> int:
    """Peak bytes of a forward and backward pass through ``layers`` layers of attention alone."""
    trees = pack_trees(stub_policy(lengths), items).trees
    states = [tensor.requires_grad_() for tensor in random_states(len(trees.ends_S), 2, torch.float32)]

    def act() -> None:
        layout = SdpaLayout(trees)
        sum(layout.attend(LAYER, *states, None).sum() for _ in range(layers)).backward()

    return peak_bytes(act)


def test_one_long_response_does_not_pad_the_others():
    """63 responses of 40 tokens and one of 1,500: the memory is that of the long one alone, and a layer more does not
    keep a mask more."""
    generator = torch.Generator().manual_seed(0)
    rows = [tuple(torch.randint(0, 90, (length,), generator=generator).tolist()) for length in [1500] + [40] * 63]
    long, everything = ([(QUERY, row) for row in chosen] for chosen in (rows[:1], rows))
    assert seen_by_autograd(everything, [100], 2) < 2 * seen_by_autograd(long, [100], 2)
    mask = 1500 * 1600 * 4
    assert seen_by_autograd(long, [100], 6) - seen_by_autograd(long, [100], 2) < 4 * mask / 2


def test_the_layout_follows_the_device():
    policy = stub_policy([3])
    policy.family = FAMILIES["gemma3"]  # one tensor more
    trees = pack_trees(policy, [(QUERY, (1,))]).trees
    assert isinstance(trees.layout(), SdpaLayout)
    assert all(value.is_meta for value in vars(trees.to(torch.device("meta"))).values())


def test_runs_of_image_tokens_are_counted():
    assert image_runs(torch.tensor([7, 7, 1, 7, 2, 2, 7, 7]), 7).tolist() == [0, 0, -1, 1, -1, -1, 2, 2]
    assert image_runs(torch.tensor([1, 2]), 7).tolist() == [-1, -1]


def test_without_a_layout_it_is_transformers_sdpa():
    states = random_states(6, 2)
    module = SimpleNamespace(num_key_value_groups=2, is_causal=True, training=False)
    mask = torch.ones(6, 6, dtype=torch.bool).tril()[None, None]
    for given_mask in (None, mask):
        found, _ = shared_prefix_attention(module, *states, given_mask, None, 0.3)
        expected, _ = sdpa_attention_forward(module, *states, given_mask, scaling=0.3)
        assert torch.equal(found, expected)


def test_a_model_without_a_layout_is_as_before(tiny_folder):
    """Rows of unequal length with a padding mask, from transformers' own forward pass."""
    from transformers import AutoModelForImageTextToText

    policy = load_policy(ModelConfig(path=str(tiny_folder)))
    plain = AutoModelForImageTextToText.from_pretrained(tiny_folder, dtype=torch.float32, attn_implementation="sdpa")
    assert policy.model.config.get_text_config()._attn_implementation == NAME
    assert policy.model.model.visual.config._attn_implementation == "sdpa"  # images are left alone
    ids = torch.randint(0, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * 9, [0] * 4 + [1] * 5])
    with torch.no_grad():
        found = policy.model(input_ids=ids, attention_mask=mask).logits
        expected = plain.eval()(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(found[mask.bool()], expected[mask.bool()])


def test_sliding_windows_are_refused(tiny_folder):
    model = load_policy(ModelConfig(path=str(tiny_folder))).model
    config = copy.deepcopy(model.config)
    config.get_text_config().layer_types = ["full_attention", "sliding_attention", "full_attention"]
    with pytest.raises(ValueError, match="sliding-window attention is not supported"):
        use_shared_prefix_attention(SimpleNamespace(config=config))
