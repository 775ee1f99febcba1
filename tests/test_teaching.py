"""The worked examples give the numbers that the notebooks say in words, computed here by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rethinker.lab.notebook import pages, teaching
from rethinker.types import Query


def test_advantages_by_hand():
    table = teaching.advantage_table([[1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    assert table["mean"].tolist() == [0.25, 1.0, 0.0] and table["std"].tolist() == [0.5, 0.0, 0.0]
    assert table["A (std)"].tolist() == ["+1.500  -0.500  -0.500  -0.500", "0  0  0  0", "0  0  0  0"]
    assert table["A (none)"][0] == "+0.750  -0.250  -0.250  -0.250"
    assert table["effective"].tolist() == [True, False, False]


def test_the_objective_by_hand():
    """Ratios 1.5, 1, 0.5 with A = 1.5, and 1.5, 0.5 with A = -0.5; clipped to [0.8, 1.35]."""
    table = teaching.objective_table(teaching.toy_batch(), 0.2, 0.35)
    assert table["ratio"].tolist() == [1.5, 1.0, 0.5, 1.5, 0.5]
    assert table["loss"].tolist() == [-2.025, -1.5, -0.75, 0.75, 0.4]
    assert table["d loss / d log p"].tolist() == [0.0, -1.5, -0.75, 0.75, 0.0]


def test_aggregations_by_hand():
    table = teaching.aggregation_table(teaching.toy_batch(), 0.2, 0.35, max_length=4).set_index("aggregation")
    expected = {"sequence_mean": -0.425, "token_mean": -0.625, "constant": -0.390625}
    for name, value in expected.items():
        assert table.loc[name, "whole batch"] == pytest.approx(value, abs=1e-9)
        assert table.loc[name, "sum of micro-batches"] == pytest.approx(value, abs=1e-9)


def test_a_lone_success_of_eight():
    table = teaching.advantages_by_correct(8).set_index(["right", "scale"])
    assert table.loc[(1, "none"), "A right"] == pytest.approx(7 / 8)
    assert table.loc[(1, "std"), "A right"] == pytest.approx(7 / 8 / np.sqrt(1 / 8), abs=1e-4)
    assert table.loc[(7, "std"), "A wrong"] == -table.loc[(1, "std"), "A right"]


def test_algorithm_one_fills_the_batch():
    samples = teaching.toy_samples(4)
    table = teaching.algorithm_one(samples, ineffective=5, alpha=1.0, seed=0)
    assert table["from"].tolist() == ["this batch"] * 3 + ["the buffer"] * 5
    assert set(table["sample"]) <= {sample.name for sample in samples}


def test_draws_follow_the_law():
    """Chi-square of 8 cells with 4,000 draws an alpha; a false alarm in one of 2 has a chance of about 4e-5."""
    samples = teaching.toy_samples(9)
    table = teaching.alpha_sweep(samples, [0, 2], draws=4000, seed=3)
    size = table["abs(A)"].to_numpy()
    expected = np.where(table["alpha"] == 0, 1 / 8, size**2 / (size[:8] ** 2).sum())
    assert table["probability"].to_numpy() == pytest.approx(expected)
    for _, part in table.groupby("alpha"):
        assert part["share"].sum() == pytest.approx(1)
        chi2 = (4000 * (part["share"] - part["probability"]) ** 2 / part["probability"]).sum()
        assert chi2 < 32.0
        assert (part["low"] <= part["share"]).all() and (part["share"] <= part["high"]).all()


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
