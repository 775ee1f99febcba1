"""Prefix trees against a trie in plain Python: the set of distinct prefixes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rethinker.policy.prefix_tree import common_prefix, merge

pytestmark = pytest.mark.numerics

tokens = st.integers(0, 2)  # few, so that beginnings are shared
responses = st.lists(st.lists(tokens, max_size=6), max_size=7)


@given(responses)
@example([])
@example([[]])
@example([[], [1], []])
@example([[1, 2], [1, 2], [1]])
@example([[1, 2, 1], [1], [1, 2, 0], [2]])
@settings(max_examples=300, deadline=None)
def test_the_tree_is_the_set_of_prefixes(responses):
    tree = merge(responses)
    prefixes = {tuple(response[:length]) for response in responses for length in range(1, len(response) + 1)}
    assert len(tree.ids) == len(tree.depths) == len(tree.ends) == len(prefixes)
    node: dict[tuple[int, ...], int] = {}  # prefix -> its last token
    for response, path in zip(responses, tree.paths, strict=True):
        assert tree.ids[path].tolist() == list(response)
        for length, index in enumerate(path.tolist(), start=1):
            assert node.setdefault(tuple(response[:length]), index) == index
    assert sorted(node.values()) == list(range(len(prefixes)))
    for prefix, index in node.items():
        assert tree.depths[index] == len(prefix) - 1
        seen = {other for longer, other in node.items() if longer[: len(prefix)] == prefix}
        assert seen == set(range(index, int(tree.ends[index])))  # the descendants and itself


def test_by_hand():
    """A response, its continuation by trigger and second look, a response that begins alike, and a repeated one."""
    first, trigger, second = [7, 8], [5], [9, 9]
    tree = merge([[*first, *trigger, *second], first, [7, 3], first])
    assert tree.ids.tolist() == [7, 3, 8, 5, 9, 9]
    assert tree.depths.tolist() == [0, 1, 1, 2, 3, 4]
    assert tree.ends.tolist() == [6, 2, 6, 6, 6, 6]
    assert [path.tolist() for path in tree.paths] == [[0, 2, 3, 4, 5], [0, 2], [0, 1], [0, 2]]


@pytest.mark.parametrize(
    ("one", "other", "length"),
    [([], [], 0), ([1], [], 0), ([1, 2], [1, 2, 3], 2), ([1, 2], [1, 3], 1), ([2], [1], 0), ([4, 4], [4, 4], 2)],
)
def test_common_prefix(one, other, length):
    assert common_prefix(np.array(one, np.int64), np.array(other, np.int64)) == length
