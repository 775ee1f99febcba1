"""The order in which queries are visited."""

from __future__ import annotations

import pytest

from rethinker.datasets.order import QueryOrder
from rethinker.types import Query

QUERIES = [Query(str(index), "?", "1") for index in range(10)]


def ids(queries) -> list[str]:
    return [query.qid for query in queries]


def test_an_epoch_holds_every_query_once_in_a_seeded_order():
    order = QueryOrder(QUERIES, seed=3)
    first = ids(order.take(4) + order.take(6))
    second = ids(order.take(10))
    assert sorted(first) == sorted(second) == sorted(ids(QUERIES))
    assert first != second
    assert first != ids(QUERIES)
    assert ids(QueryOrder(QUERIES, seed=3).take(10)) == first
    assert ids(QueryOrder(QUERIES, seed=4).take(10)) != first


def test_no_query_twice_in_a_call_across_the_end_of_an_epoch():
    for seed in range(50):
        order = QueryOrder(QUERIES, seed)
        order.take(7)
        assert len(set(ids(order.take(9)))) == 9


def test_excluded_queries_wait():
    order = QueryOrder(QUERIES, 0)
    excluded = frozenset({"1", "2", "3"})
    assert set(ids(order.take(7, exclude=excluded))) == set(ids(QUERIES)) - excluded
    assert order.take(2, exclude=frozenset(ids(QUERIES))) == []


def test_more_than_there_are_gives_all():
    order = QueryOrder(QUERIES, 0)
    assert sorted(ids(order.take(25))) == sorted(ids(QUERIES))
    assert len(order.take(10)) == 10  # and it can go on


def test_state_goes_on_where_it_was():
    order = QueryOrder(QUERIES, 7)
    order.take(10)
    order.take(6)
    state = order.state_dict()
    rest = [ids(order.take(5)) for _ in range(4)]
    again = QueryOrder(QUERIES, 7)
    again.load_state_dict(state)
    assert [ids(again.take(5)) for _ in range(4)] == rest


def test_no_queries_is_an_error():
    with pytest.raises(ValueError, match="no training queries"):
        QueryOrder([], 0)
