"""Sequences in arrays do what tuples do."""

from __future__ import annotations

import operator
import pickle
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import make_response, make_sample
from hypothesis import given
from hypothesis import strategies as st

from rethinker.arrays import Flags, Floats, Ints, Numbers

KINDS = {
    Ints: st.integers(-(2**31), 2**31 - 1),
    Floats: st.floats(width=32, allow_nan=False) | st.floats(allow_nan=False),
    Flags: st.booleans(),
}


@st.composite
def values(draw) -> tuple[type[Numbers], tuple, tuple]:
    kind = draw(st.sampled_from(list(KINDS)))
    rows = st.lists(KINDS[kind], max_size=6)
    first = draw(rows)
    # Often with a common beginning.
    return kind, tuple(first), tuple(first[: draw(st.integers(0, 6))] + draw(rows))


@given(values(), st.integers(-7, 7), st.integers(-7, 7))
def test_they_do_what_tuples_do(case, start, stop):
    kind, one, two = case
    mine, other = kind(one), kind(two)
    assert tuple(mine) == one and list(mine) == list(one) and len(mine) == len(one) and bool(mine) == bool(one)
    assert all(type(a) is type(b) for a, b in zip(mine, one, strict=True))
    assert mine[start:stop] == one[start:stop] and isinstance(mine[start:stop], kind)
    assert [mine[i] for i in range(-len(one), len(one))] == [one[i] for i in range(-len(one), len(one))]
    for sums in (mine + other, mine + two, one + other):
        assert sums == one + two and isinstance(sums, kind)
    assert (mine == other, mine == two, one == other) == (one == two,) * 3
    assert (mine != other, mine < other) == (one != two, one < two)
    assert hash(mine) == hash(one) and repr(mine) == repr(one) and sum(mine[:2]) == sum(one[:2])
    again = pickle.loads(pickle.dumps(mine))
    assert again == mine and type(again) is kind and np.asarray(again).dtype == np.asarray(mine).dtype


def test_what_is_not_the_same_kind():
    assert Ints((1, 2)) != [1, 2] and Ints((1,)) != "1" and Flags((True,)) == Ints((1,))
    with pytest.raises(TypeError):
        operator.add(Ints((1,)), [2])
    with pytest.raises(TypeError):
        assert Ints((1,)) < Floats((2,))
    with pytest.raises(IndexError):
        Ints((1,))[1]
    with pytest.raises(OverflowError):
        Ints((2**31,))


def test_log_probs_are_never_rounded():
    assert np.asarray(Floats((0.5, float(np.float32(-0.1)), float("nan"), -float("inf")))).dtype == np.float32
    one, wide = Floats((0.5,)), (-0.1,)
    assert np.asarray(one + wide).dtype == np.float64 and one + wide == (0.5, -0.1)
    assert np.asarray((one + wide)[:1] + one).dtype == np.float32
    assert np.asarray(Floats(np.ones(2, np.float32))).dtype == np.asarray(Floats(np.ones(2))).dtype == np.float32


def test_nobody_can_change_them():
    source = np.arange(3)
    mine = Ints(source)
    source[0] = 9
    assert mine == (0, 1, 2)
    for array in (np.asarray(mine), np.asarray(mine[1:]), np.asarray(pickle.loads(pickle.dumps(mine)))):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    with pytest.raises(TypeError):
        mine[0] = 1
    assert np.shares_memory(np.asarray(mine), np.asarray(mine[1:])) and torch.tensor(np.asarray(mine)).sum() == 3


def test_records_keep_them():
    """Whatever a record was given, and through ``replace``; equal records are equal and can be keys."""
    sample = make_sample(tokens=[5, 6, 7], nll_mask=(False, True, True))
    assert isinstance(sample.response.token_ids, Ints) and isinstance(sample.response.logprobs, Floats)
    assert isinstance(sample.sampled_mask, Flags) and isinstance(sample.nll_mask, Flags)
    assert isinstance(replace(sample, behavior_logprobs=[0.5] * 3).behavior_logprobs, Floats)
    again = pickle.loads(pickle.dumps(sample))
    assert again == sample and len({again, sample}) == 1 and replace(sample, advantage=0.5) != sample


def test_a_token_takes_few_bytes():
    """14 in a sample with all log-probs and masks; about 110 as tuples."""
    tokens = 2048
    rng = np.random.default_rng(0)
    ids, rollout, behavior = (rng.integers(0, 150_000, tokens), *rng.random((2, tokens), np.float32))
    sample = make_sample(tokens=ids, nll_mask=(True,) * tokens, behavior_logprobs=behavior.tolist())
    sample = replace(sample, response=make_response(ids, logprobs=rollout.tolist()))
    data = pickle.dumps([replace(sample, sample_id=f"1/q/{index}") for index in range(8)])
    assert len(data) < 16 * tokens  # what they share is sent once
    data = pickle.dumps([replace(pickle.loads(pickle.dumps(sample))) for _ in range(8)])
    assert len(data) < 8 * 16 * tokens
    tracemalloc.start()
    received = pickle.loads(data)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(received) == 8 and used < 8 * 18 * tokens
