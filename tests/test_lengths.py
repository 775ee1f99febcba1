"""Prompts that the model's context has no room for are found when data is read."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny_training import tiny_policy

from rethinker.policy import images
from rethinker.policy.lengths import LONG, PromptRoom
from rethinker.types import Query


@pytest.fixture(scope="module")
def policy(tiny_folder):
    policy = tiny_policy(tiny_folder)
    policy.images.image_processor.size = {"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    policy.prompt_suffix = " Think."
    return policy


def words(count: int) -> str:
    return " ".join(f"{number}" for number in range(count))


def test_there_is_room_to_the_last_token(policy, queries):
    """At the very length of the prompt that the model reads, whatever the images are shrunk to."""
    for query in [*queries, Query("long", words(250), "1"), Query("über", "größer? " * 30, "1", queries[2].images)]:
        tokens = len(policy.prompt(query).ids)
        fits, misses = (PromptRoom(policy, policy.context - tokens + more) for more in (0, 1))
        assert fits(query) is None and fits.longest >= tokens, query.qid
        reason, detail = misses(query)
        assert (reason, misses.longest) == ("prompt too long", 0)
        assert detail.startswith(f"{tokens} tokens") and f"max_new_tokens={policy.context - tokens + 1}" in detail


def test_no_image_is_decoded_and_no_short_text_tokenised(policy, queries, monkeypatch):
    class Untouched:
        def __call__(self, *_, **__):
            raise AssertionError("tokenised")

    def refuse(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr(images, "open_image", refuse)
    policy = replace(policy, tokenizer=Untouched(), _prompts={})
    room = PromptRoom(policy, 100)
    assert [room(query) for query in queries] == [None] * len(queries)
    assert 0 < room.longest < LONG


def test_the_longest_prompt_is_exact_where_it_is_long(policy, monkeypatch):
    monkeypatch.setattr(policy.model.config.text_config, "max_position_embeddings", 10**6)
    query = Query("long", words(2 * LONG), "1")
    room = PromptRoom(policy, 100)
    assert room(query) is None and room.longest == len(policy.prompt(query).ids) > LONG


def test_without_a_look_at_images_the_longest_is_at_least_what_a_look_finds(policy, queries):
    looked, unlooked = PromptRoom(policy, 100), PromptRoom(policy, 100)
    for query in queries:
        missing = replace(query, images=tuple(f"{path}.none" for path in query.images))
        assert looked(query) is None and unlooked.at_most(missing) is None
        assert looked.longest <= unlooked.longest <= unlooked.room
    reason, _ = PromptRoom(policy, policy.context - 1).at_most(queries[0]) or ("", "")  # the text alone
    assert reason == "prompt too long"
