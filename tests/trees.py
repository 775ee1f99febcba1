"""Random groups of prompts and responses for tests of packing and attention, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import strategies as st

from rethinker.policy.families import FAMILIES
from rethinker.policy.policy import PromptIds
from rethinker.types import Query

FIRST_PROMPT_TOKEN = 100  # responses hold smaller ones
BANNED, PAD = 99, 98


def stub_policy(lengths: Sequence[int]) -> Any:
    """What packing asks of a policy; query number q has a prompt of ``lengths[q]`` tokens, in positions of its own."""

    def prompt(query: Query) -> PromptIds:
        number = int(query.qid)
        length = lengths[number]
        ids = tuple(FIRST_PROMPT_TOKEN * (number + 1) + index for index in range(length))
        positions = torch.arange(3 * length, dtype=torch.int32).reshape(3, length) + 1000 * number
        return PromptIds(ids, ids, positions, int(positions.max()) + 1)

    return SimpleNamespace(
        prompt=prompt, banned_ids=(BANNED,), image_id=-1, pad_id=PAD, merge_size=2, images=None, tokenizer=None,
        family=FAMILIES["qwen2_5_vl"],
    )  # fmt: skip


@st.composite
def groups(draw: Any, shortest: int = 0) -> tuple[list[int], list[tuple[Query, tuple[int, ...]]]]:
    """Lengths of up to three prompts and up to nine responses to them, over two tokens, so that beginnings are shared;
    often one is the continuation of another, or occurs twice."""
    lengths = draw(st.lists(st.integers(1, 7), min_size=1, max_size=3))
    response = st.lists(st.integers(0, 1), min_size=shortest, max_size=6).map(tuple)
    rows = draw(st.lists(st.tuples(st.integers(0, len(lengths) - 1), response), min_size=1, max_size=6))
    for number, response in draw(st.lists(st.sampled_from(rows), max_size=3)):
        second = draw(st.lists(st.integers(0, 1), max_size=3))
        rows.append((number, (*response, 3, *second) if second else response))
    return lengths, [(Query(str(number), "?", "1"), response) for number, response in draw(st.permutations(rows))]
