"""Plans of micro-batches: complete, within the budget, balanced, queries together, the same on every rank."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import chain, groupby, pairwise

import pytest
from builders import make_sample
from hypothesis import given, settings
from hypothesis import strategies as st

from rethinker.policy.batching import added_tokens, arrange, micro_batches, plan
from rethinker.types import Sample

pytestmark = pytest.mark.numerics

PROMPTS = [1, 4, 9, 30]  # tokens; each query's own


def sample_of(query: int, tokens: tuple[int, ...], number: int, replayed: bool = False) -> Sample:
    return make_sample(f"1/{query}/{number}", tokens=tokens, replayed=replayed, prompt_tokens=PROMPTS[query])


@st.composite
def batches(draw) -> list[Sample]:
    """Samples of up to four queries in any order, responses that share beginnings, some drawn more than once."""
    responses = st.lists(st.integers(0, 1), min_size=1, max_size=8).map(tuple)
    rows = draw(st.lists(st.tuples(st.integers(0, 3), responses), min_size=1, max_size=16))
    samples = [sample_of(query, tokens, number) for number, (query, tokens) in enumerate(rows)]
    again = draw(st.lists(st.sampled_from(samples), max_size=6))
    return draw(st.permutations(samples + [replace(sample, replayed=True) for sample in again]))


def packed(samples: list[Sample], packing: str) -> int:
    """Tokens of a forward pass, by the meaning of the packing."""
    lengths = [sample.prompt_tokens + len(sample.response.token_ids) for sample in samples]
    if packing == "plain":
        return len(samples) * max(lengths, default=0)
    prompts = {sample.query: sample.prompt_tokens for sample in samples}
    prefixes = {
        (sample.query, sample.response.token_ids[:length])
        for sample in samples
        for length in range(1, len(sample.response.token_ids) + 1)
    }
    return sum(prompts.values()) + len(prefixes)


packings = st.sampled_from(["shared", "plain"])


@given(batches(), st.integers(1, 5), st.integers(1, 120), packings)
@settings(max_examples=200, deadline=None)
def test_plan(samples, ranks, budget, packing):
    parts = plan(samples, ranks, budget, packing)
    assert len(parts) == ranks
    flat = [sample for part in parts for batch in part for sample in batch]
    assert Counter(flat) == Counter(samples)  # every sample exactly as often as it was drawn
    assert flat == arrange(samples)
    for batch in chain(*parts):
        distinct = {(sample.query, sample.response.token_ids) for sample in batch}
        assert batch and (packed(batch, packing) <= budget or len(batch if packing == "plain" else distinct) == 1)
    # No micro-batch is closed early: the whole of the next query would not have fitted, or, in the middle of a query
    # that is too large for a micro-batch of its own, the next sample would not.
    for part in parts:
        for one, other in pairwise(part):
            query = [sample for batch in part for sample in batch if sample.query == other[0].query]
            if one[-1].query == other[0].query:
                assert packed([*one, other[0]], packing) > budget and packed(query, packing) > budget
            else:
                assert packed([*one, *query], packing) > budget
    # Queries are whole but at the cuts: between micro-batches, and between ranks.
    runs = [query for query, _ in groupby(sample.query for sample in flat)]
    assert len(runs) == len(set(runs))
    cuts = sum(map(len, parts)) - 1
    visits = sum(len({sample.query for sample in batch}) for batch in chain(*parts))
    assert visits - len(set(runs)) <= cuts


@given(batches(), st.integers(1, 5), packings)
@settings(max_examples=200, deadline=None)
def test_ranks_have_about_equal_work(samples, ranks, packing):
    """The work of a rank, without what a cut makes it read again, is at most one sample's above the mean."""
    tokens = added_tokens(arrange(samples), packing)
    loads, place = [], 0
    for part in plan(samples, ranks, 10**9, packing):
        count = sum(map(len, part))
        loads.append(sum(tokens[place : place + count]))
        place += count
    assert max(loads) - sum(loads) / ranks <= max(tokens)


homes_of = st.dictionaries(st.sampled_from([make_sample(f"1/{q}/0").query.qid for q in range(4)]), st.integers(0, 4))


@given(batches(), st.integers(1, 5), st.integers(1, 120), packings, homes_of)
@settings(max_examples=200, deadline=None)
def test_samples_stay_at_home_while_there_is_room(samples, ranks, budget, packing, homes):
    homes = {qid: home % ranks for qid, home in homes.items()}
    parts = [list(chain(*part)) for part in plan(samples, ranks, budget, packing, homes)]
    assert Counter(chain(*parts)) == Counter(samples)
    assert [part for part in parts if part] == [arrange(part) for part in parts if part]  # queries together
    ordered = arrange(samples)
    tokens = added_tokens(ordered, packing)
    # Equal samples are drawn repeatedly and take no tokens behind the first: this counts each once.
    work = dict(zip(map(id, ordered), tokens, strict=True))
    loads = [sum(work[id(sample)] for sample in part) for part in parts]
    share = sum(tokens) / ranks
    assert max(loads) - share <= max(tokens)
    for rank, part in enumerate(parts):
        for sample in part:
            home = homes.get(sample.query.qid, rank)
            if home != rank:  # it, or an earlier sample of its query, would have been more than half too many
                assert loads[home] >= share - max(tokens), (loads, share)


def test_no_query_moves_where_the_work_is_equal():
    """Four queries of two samples, on two ranks by turns, as they were rolled out; without homes two of them move."""
    samples = [sample_of(0, (1, 2, index), 2 * index) for index in range(2)]
    queries = [replace(samples[0].query, qid=f"q{number}") for number in range(4)]
    batch = [replace(sample, query=query) for query in queries for sample in samples]
    homes = {query.qid: number % 2 for number, query in enumerate(queries)}

    def qids(parts):
        return [sorted({sample.query.qid for sample in chain(*part)}) for part in parts]

    assert qids(plan(batch, 2, 100, "shared", homes)) == [["q0", "q2"], ["q1", "q3"]]
    assert qids(plan(batch, 2, 100, "shared")) == [["q0", "q1"], ["q2", "q3"]]
    # A sample that is drawn again and again costs nothing.
    crowd = [*batch, *[replace(batch[0], replayed=True)] * 8]
    assert [len(list(chain(*part))) for part in plan(crowd, 2, 100, "shared", homes)] == [12, 4]


@given(batches(), st.randoms(use_true_random=False), packings)
@settings(max_examples=100, deadline=None)
def test_added_tokens_add_up(samples, random, packing):
    """Behind their neighbours, the samples take what their forward pass has."""
    ordered = arrange(samples)
    total = sum(added_tokens(ordered, packing))
    if packing == "shared":
        assert total == packed(samples, packing)
    else:
        assert total == sum(s.prompt_tokens + len(s.response.token_ids) for s in samples)
    shuffled = list(samples)
    random.shuffle(shuffled)
    order = [query for query, _ in groupby(sample.query for sample in ordered)]
    again = sorted(arrange(shuffled), key=lambda sample: order.index(sample.query))
    assert again == ordered  # within a query, whatever the order they come in


def test_by_hand():
    """Two queries of 4 and 9 prompt tokens; y1, and y1 with a second look, drawn twice."""
    first, whole = sample_of(1, (5, 6), 0), sample_of(1, (5, 6, 7), 1)
    other, again = sample_of(2, (5, 6), 2), replace(whole, replayed=True)
    samples = [whole, other, first, again]
    assert arrange(samples) == [first, whole, again, other]
    # shared: 4 + 2, one more, none, and 9 + 2
    assert micro_batches(arrange(samples), 7, "shared") == [[first, whole, again], [other]]
    assert micro_batches(arrange(samples), 18, "shared") == [[first, whole, again, other]]
    assert micro_batches(arrange(samples), 6, "shared") == [[first], [whole, again], [other]]
    # plain: rows of 6, 7, 7 and 11
    assert micro_batches(arrange(samples), 21, "plain") == [[first, whole, again], [other]]
    assert micro_batches(arrange(samples), 20, "plain") == [[first, whole], [again], [other]]
    assert micro_batches(arrange(samples), 44, "plain") == [[first, whole, again, other]]
    # 11 + 6 would fit, but the second query's 7 tokens stay together
    assert micro_batches([other, first, whole, again], 17, "shared") == [[other], [first, whole, again]]
    assert plan(samples, 2, 100, "shared") == [[[first, whole, again]], [[other]]]


@pytest.mark.parametrize("packing", ["shared", "plain"])
def test_more_ranks_than_samples(packing):
    samples = [sample_of(0, (1, number), number) for number in range(2)]
    parts = plan(samples, 5, 100, packing)
    assert sorted(len(part) for part in parts) == [0, 0, 0, 1, 1]
    assert plan([], 3, 100, packing) == [[], [], []]
