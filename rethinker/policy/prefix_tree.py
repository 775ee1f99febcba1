"""Responses to one prompt, merged into a tree of their common prefixes.

A trajectory y1 + trigger + y2 shares y1 with the response it came from; responses that begin alike share their
beginning; one that occurs twice (a draw of SSR's, a sharp policy) costs nothing the second time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PrefixTree:
    """Tokens of a tree, depth first, U of them.

    ``ids``, ``depths`` (tokens before it in its response) and ``ends`` (end, exclusive, of the tokens that follow it in
    some response): [U] each. ``paths``: for each response its tokens, as indices.
    """

    ids: np.ndarray
    depths: np.ndarray
    ends: np.ndarray
    paths: tuple[np.ndarray, ...]


def merge(responses: Sequence[Sequence[int]]) -> PrefixTree:
    """The tree of ``responses``; ``paths`` are in their order."""
    rows = [np.asarray(response, dtype=np.int64) for response in responses]
    ids, depths, ends = (np.zeros(sum(map(len, rows)), dtype=np.int64) for _ in range(3))
    paths = [np.empty(0, np.int64)] * len(rows)
    size, path, previous = 0, np.empty(0, np.int64), np.empty(0, np.int64)
    # In the order of their tokens a response shares its longest prefix with its neighbour.
    for index in sorted(range(len(rows)), key=lambda i: tuple(responses[i])):
        row = rows[index]
        shared = common_prefix(previous, row)
        ends[path[shared:]] = size
        new = np.arange(size, size + len(row) - shared)
        path, previous = np.concatenate([path[:shared], new]), row
        ids[new], depths[new] = row[shared:], np.arange(shared, len(row))
        paths[index] = path
        size += len(new)
    ends[path] = size
    return PrefixTree(ids[:size], depths[:size], ends[:size], tuple(paths))


def common_prefix(one: np.ndarray, other: np.ndarray) -> int:
    """Number of first tokens that are equal."""
    length = min(len(one), len(other))
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if len(different) else length
