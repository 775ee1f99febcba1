"""The tables of the notebooks that teach hold what they were given, and the grader's cases what their words say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rethinker.lab.notebook import pages, teaching
from rethinker.types import Query


def test_groups_and_tokens_in_tables():
    rewards_PG = torch.tensor([[1.0, 0.1], [1.0, 1.0]])
    table = teaching.group_table(rewards_PG, none=torch.tensor([[0.45, -0.45], [0.0, 0.0]]))
    assert table["rewards"].tolist() == ["1  0.1", "1  1"] and table["mean"].tolist() == pytest.approx([0.55, 1])
    assert table["A (none)"].tolist() == ["+0.450  -0.450", "0  0"] and table["effective"].tolist() == [True, False]
    mask_BT = torch.tensor([[True, False], [True, True]])
    tokens = teaching.token_table(mask_BT, p=torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert tokens.to_dict("list") == {"response": [0, 1, 1], "token": [0, 0, 1], "p": [1.0, 3.0, 4.0]}


def test_batches_in_tables():
    drawn = replace(teaching.toy_sample("b", -0.5), replayed=True)
    table = teaching.batch_table([teaching.toy_sample("a", 1.5), drawn])
    assert table.to_dict("list") == {"sample": ["a", "b"], "abs(A)": [1.5, 0.5], "from": ["this batch", "the buffer"]}


def test_draws_beside_probabilities():
    """40 of 100 draws where 50 are expected: 2 standard errors of 0.05 too few."""
    samples = [teaching.toy_sample("a", 1.0), teaching.toy_sample("b", -1.0), teaching.toy_sample("c", 0.0)]
    table = teaching.draws_table(samples, {1.0: np.array([0.5, 0.5, 0.0])}, {1.0: {"a": 40, "b": 60}})
    assert table["share"].tolist() == [0.4, 0.6, 0.0] and table["z"].tolist() == pytest.approx([-2, 2, 0])
    assert (table["low"] <= table["share"]).all() and (table["share"] <= table["high"]).all()


def test_grading_cases_are_what_their_words_say():
    assert teaching.grading_cases()["correct"].tolist() == [True, False, *[True] * 5, False, False, False]


QUERIES = [
    Query("a<1>", "<image>How many <b>?", "3", (), "count", level=1),
    Query("b", "And here?", "4", (), "count", level=2),
    Query("c", "Sum?", "5", (), "sum", level=1),
    Query("d", "Sum again?", "6", (), "sum", level=1),
]


def test_queries_in_tables():
    counts = teaching.query_counts(QUERIES)
    assert counts.loc["sum", 1] == 2 and counts.loc["all", "all"] == 4
    graded = teaching.grade_table(QUERIES[0], [r"\boxed{3}", "3", r"\boxed{03.0}"])
    assert graded["correct"].tolist() == [True, False, True]
    assert graded["reason"][1] == "no boxed answer"
    assert teaching.gold_check(QUERIES)["queries"].sum() == 4


def test_a_query_by_its_place():
    assert teaching.query_at(QUERIES, 3).qid == "d"
    for place in (-1, 4, 99):
        with pytest.raises(ValueError, match=rf"query={place}: 4 queries were read; places are 0 to 3"):
            teaching.query_at(QUERIES, place)


@pytest.mark.parametrize("gold", ["42", "-7", "B", "3.5 cm", "\\frac{1}{2}", "x+1", "yes"])
def test_likely_answers_mean_what_they_show(gold):
    query = Query("a", "Which? A. red B. blue" if gold == "B" else "", gold, (), "sum", level=1)
    answers = teaching.likely_answers(query)
    assert len(set(answers)) == 4
    assert teaching.grade_table(query, answers)["correct"].tolist() == [True, False, True, False]


def test_pages_are_escaped():
    grid = pages.query_grid(QUERIES)
    assert "a&lt;1&gt;" in grid and "How many &lt;b&gt;?" in grid and "–" in grid  # no query of sum at level 2
    assert "Sum again" not in grid  # the first of a kind and level
    page = pages.tokens_html([("<a>", 1, "y1", -0.5), ("\n", 2, "trigger", None), ("", 3, "end", -1.0)])
    assert "&lt;a&gt;" in page and "<a>" not in page and "not sampled" in page and "log p = -0.500" in page
    assert "the second look" not in page  # the legend names what is there
