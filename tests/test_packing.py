"""Packed rows by their meaning: which token stands where, what predicts it, and how long a row is.

That a model computes the same from both packings: test_forward.py.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from trees import BANNED, groups, stub_policy

from rethinker.policy.packing import pack, pack_trees
from rethinker.types import Query

pytestmark = pytest.mark.numerics


def scored(batch, item):
    """Indices into U of an item's tokens."""
    return batch.place_BT[item][batch.mask_BT[item]]


@given(groups(shortest=1))
@settings(max_examples=100, deadline=None)
def test_every_token_is_predicted_by_the_one_before(group):
    lengths, items = group
    policy = stub_policy(lengths)
    for packing in ("shared", "plain"):
        batch = pack(policy, items, packing)
        ids, positions = batch.input_ids_RS.flatten(), batch.positions_3RS.flatten(1)
        assert batch.mask_BT.sum(1).tolist() == [len(response) for _, response in items]
        for item, (query, response) in enumerate(items):
            prompt = policy.prompt(query)
            places = scored(batch, item)
            assert batch.targets_U[places].tolist() == list(response)
            before = batch.predict_U[places]
            assert ids[before].tolist() == [prompt.ids[-1], *response[:-1]]
            following = torch.arange(len(response) - 1).expand(3, -1) + prompt.next_position
            assert torch.equal(positions[:, before], torch.cat([prompt.positions[:, -1:], following], dim=1))


@given(groups(shortest=1))
@settings(max_examples=100, deadline=None)
def test_lengths(group):
    """Shared: every prompt once, every distinct beginning once, but for last tokens, which predict nothing; every
    distinct beginning is scored once. Plain: one row per response."""
    lengths, items = group
    policy = stub_policy(lengths)
    shared, plain = pack(policy, items, "shared"), pack(policy, items, "plain")
    read = {(query.qid, response[:n]) for query, response in items for n in range(1, len(response))}
    scored_once = {(query.qid, response[:n]) for query, response in items for n in range(1, len(response) + 1)}
    prompts = sum(lengths[int(qid)] for qid in {query.qid for query, _ in items})
    assert shared.input_ids_RS.shape == (1, prompts + len(read))
    assert len(shared.targets_U) == len(scored_once)
    longest = max(lengths[int(query.qid)] + len(response) for query, response in items)
    assert plain.input_ids_RS.shape == (len(items), longest)
    assert len(plain.targets_U) == sum(len(response) for _, response in items)
    assert shared.input_ids_RS.numel() < plain.input_ids_RS.numel()


@given(groups())
@settings(max_examples=100, deadline=None)
def test_a_row_of_trees(group):
    """Also with empty responses, as an engine packs them."""
    lengths, items = group
    policy = stub_policy(lengths)
    row = pack_trees(policy, items)
    queries = list({query: None for query, _ in items})
    assert row.owners == tuple(queries.index(query) for query, _ in items)
    for last, (query, _) in zip(row.lasts, items, strict=True):
        assert row.ids_S[last] == policy.prompt(query).ids[-1]
    assert row.trees.lengths_P.tolist() == [lengths[int(query.qid)] for query in queries]
    for query, tokens, length in zip(queries, row.trees.prompts_PL, row.trees.lengths_P, strict=True):
        prompt = policy.prompt(query)
        assert row.ids_S[tokens[:length]].tolist() == list(prompt.ids)
        assert torch.equal(row.positions_3S[:, tokens[:length]], prompt.positions.long())
    for path, (query, response) in zip(row.paths, items, strict=True):
        assert row.ids_S[path].tolist() == list(response)
        expected = torch.arange(len(response)).expand(3, -1) + policy.prompt(query).next_position
        assert torch.equal(row.positions_3S[:, path], expected)
    distinct = {(query, response) for query, response in items if response}
    assert len(row.trees.responses_NT) == len(row.trees.owner_N) == len(distinct)
    flat = torch.cat([row.trees.prompts_PL.flatten(), row.trees.responses_NT.flatten()])
    assert flat[row.trees.place_S].tolist() == list(range(len(row.ids_S)))


def test_by_hand():
    """One prompt of 3, y1 = (5, 6) and y1 + (3, 7): the row is p p p 5 6 3, for nothing is read of the 7."""
    query = Query("0", "?", "1")
    batch = pack(stub_policy([3]), [(query, (5, 6, 3, 7)), (query, (5, 6))])
    assert batch.input_ids_RS.tolist() == [[100, 101, 102, 5, 6, 3]]
    assert batch.predict_U.tolist() == [2, 3, 4, 5] and batch.targets_U.tolist() == [5, 6, 3, 7]
    assert batch.place_BT.tolist() == [[0, 1, 2, 3], [0, 1, 0, 0]]
    assert batch.mask_BT.tolist() == [[True] * 4, [True, True, False, False]]
    assert batch.trees.ends_S.tolist() == [6] * 6
    assert batch.banned.tolist() == [BANNED] and batch.vision.pixels is None and not batch.dummy_vision


def test_queries_that_differ_in_anything_are_not_merged():
    """The same id, another question: a query is its whole record."""
    query = Query("0", "?", "1")
    other = dataclasses.replace(query, question="Why?")
    batch = pack(stub_policy([3]), [(query, (5,)), (other, (5,)), (query, (5,))])
    assert batch.input_ids_RS.shape == (1, 2 * 3) and batch.place_BT.flatten().tolist() == [0, 1, 0]


@pytest.mark.parametrize("packing", ["shared", "plain"])
def test_to_moves_every_tensor(packing):
    query = Query("0", "?", "1")
    moved = pack(stub_policy([3]), [(query, (5, 6)), (query, (5,))], packing).to(torch.device("meta"))
    tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
    tensors += [value for value in vars(moved.trees).values() if value is not None] if moved.trees else []
    assert len(tensors) == (7 + 7 if packing == "shared" else 7) and all(tensor.is_meta for tensor in tensors)
