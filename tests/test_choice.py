"""Second looks as a choice: first looks are read from texts, and every number is counted again by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from rethinker.lab.analysis.choice import (
    auc,
    best_rule,
    frontier,
    knows_when_wrong,
    looks,
    rates,
    second_looks_by,
)
from rethinker.lab.figures.evidence import frontier as draw_frontier

WAIT = "\n\nWait, let's double check\n"


def evaluation(**changes) -> pd.DataFrame:
    """Gold 7: right; wrong, then right; right, then wrong; no answer before the second look; forced after wrong."""
    texts = [
        "\\boxed{7}",
        f"\\boxed{{3}}{WAIT}\\boxed{{7}}",
        f"\\boxed{{7}}{WAIT}\\boxed{{3}}",
        f"Hm.{WAIT}\\boxed{{7}}",
    ]
    texts.append(f"\\boxed{{3}}{WAIT}\\boxed{{3}}")
    columns = {
        "qid": list("abcde"),
        "category": ["sum"] * 5,
        "level": [1, 1, 2, 2, 2],
        "mode": ["plain"] * 4 + ["forced"],
        "text": texts,
        "tokens": [2, 9, 9, 8, 9],
        "correct": [True, True, False, True, False],
        "reflects": [False, True, True, True, False],
        "trigger": [None] * 4 + ["self-verification"],
        "first_correct": [True, True, False, True, False],  # an evaluation's own: of the whole first response
        "gold": ["7"] * 5,
        "question": ["<image>How much?"] * 5,
    }
    return pd.DataFrame(columns | changes)


def random_looks(seed: int, rows: int = 60) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    kinds = random.choice(["sum", "clock", "bars"], rows)
    table = {
        "qid": [f"q{number}" for number in random.integers(0, 12, rows)],
        "category": kinds,
        "level": random.integers(1, 3, rows),
        "mode": "plain",
        "correct": random.random(rows) < 0.6,
        "tokens": random.integers(5, 40, rows),
        "second": random.random(rows) < np.where(kinds == "sum", 0.8, 0.3),
        "first_correct": np.where(random.random(rows) < 0.1, np.nan, (random.random(rows) < 0.5).astype(float)),
    }
    return pd.DataFrame(table)


def test_the_first_look_is_what_stands_before_the_second():
    found = looks(evaluation())
    assert found["second"].tolist() == [False, True, True, True, True]
    np.testing.assert_array_equal(found["first_correct"], [1.0, 0.0, 1.0, np.nan, 0.0])
    twice = looks(pd.concat([evaluation(), evaluation()]))
    pd.testing.assert_frame_equal(twice, pd.concat([found, found], ignore_index=True))
    assert rates(found) == {"wrong": 1.0, "right": 0.5, "all": 0.75}


def test_rollouts_count_their_first_responses_only():
    rows = evaluation()
    rows = rows.drop(columns="mode").assign(**{"pass": ["first"] * 4 + ["forced"]})
    pd.testing.assert_frame_equal(looks(rows), looks(evaluation()).head(4))


def test_auc_is_the_share_of_pairs():
    random = np.random.default_rng(0)
    for _ in range(20):
        scores, positive = random.integers(0, 4, 15), random.random(15) < 0.4
        ones, zeros = scores[positive], scores[~positive]
        pairs = [(a > b) + (a == b) / 2 for a, b in itertools.product(ones, zeros)]
        expected = np.mean(pairs) if pairs else math.nan
        assert auc(scores, positive) == pytest.approx(expected, nan_ok=True)
    assert math.isnan(auc([1, 2], [True, True]))


def test_auc_within_cells_pools_the_pairs_of_each_cell():
    for seed in range(5):
        table = random_looks(seed)
        known = table.dropna(subset=["first_correct"]).to_dict("records")
        for within in ((), ("category",), ("category", "level")):
            pairs = [
                (a["second"] > b["second"]) + (a["second"] == b["second"]) / 2
                for a in known
                for b in known
                if not a["first_correct"] and b["first_correct"] and all(a[name] == b[name] for name in within)
            ]
            assert knows_when_wrong(table, within) == pytest.approx(np.mean(pairs))


def test_a_rule_per_kind_knows_nothing_within_kinds():
    table = random_looks(1)
    table["second"] = table["category"] == "sum"
    assert knows_when_wrong(table, ["category"]) == 0.5


def test_no_rule_of_the_same_share_finds_more_wrong_first_looks():
    """Against a search over rules: two cells decided, the third as the share asks."""
    for seed in range(5):
        table = random_looks(seed).dropna(subset=["first_correct"])
        share, found = rates(table)["all"], best_rule(table)
        cells = [(int((part["first_correct"] == 0).sum()), len(part)) for _, part in table.groupby("category")]
        ones, best = sum(wrong for wrong, _ in cells), 0.0
        for chances in itertools.product(np.linspace(0, 1, 101), repeat=2):
            for order in itertools.permutations(cells):
                rest = (
                    share * len(table) - sum(p * size for p, (_, size) in zip(chances, order, strict=False))
                ) / order[2][1]
                if -1e-9 <= rest <= 1 + 1e-9:
                    hits = sum(p * wrong for p, (wrong, _) in zip((*chances, rest), order, strict=True))
                    best = max(best, hits / ones)
        assert found["all"] == pytest.approx(share)
        assert best - 1e-9 <= found["wrong"] <= best + 0.02  # the search has a grid
        assert found["wrong"] * ones + found["right"] * (len(table) - ones) == pytest.approx(share * len(table))


def legend_of(drawn):
    return sorted(text.get_text() for text in drawn.figure.axes[0].get_legend().get_texts())


def test_shares_and_frontier_by_hand():
    table = random_looks(2)
    by = second_looks_by(table, ["category", "first_correct"])
    for row in by.to_dict("records"):
        part = table[(table["category"] == row["category"]) & (table["first_correct"] == row["first_correct"])]
        assert row["share"] == pytest.approx(part["second"].mean()) and row["n"] == len(part)
        assert row["low"] <= row["share"] <= row["high"]
    assert by["n"].sum() == table["first_correct"].notna().sum()
    assert second_looks_by(table)["share"].tolist() == [pytest.approx(table["second"].mean())]
    table["policy"] = np.where(np.arange(len(table)) % 2, "a", "b")
    points = frontier(table, ["policy", "mode"]).set_index("policy")
    drawn = points.reset_index().rename(columns={"policy": "variant"})
    assert legend_of(draw_frontier(drawn, "Two policies.")) == ["a", "b"]
    forced = pd.concat([drawn, drawn.assign(mode="forced")])
    assert legend_of(draw_frontier(forced, "In two modes.")) == ["a", "b", "forced", "plain"]
    for policy, part in table.groupby("policy"):
        expected = (part["correct"].mean(), part["tokens"].mean(), part["second"].mean(), len(part))
        assert points.loc[policy, ["accuracy", "tokens", "second", "n"]].tolist() == pytest.approx(expected)
