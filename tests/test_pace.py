"""The time that a run still takes, by its episodes and its budgets."""

from __future__ import annotations

import pytest

from rethinker.rundir.pace import seconds_left

LINES = [  # 10 seconds an episode, 8 of them the episode's own; 100 tokens and 2 updates each
    {"episode": n, "step": 2 * n, "seconds": 10.0 * n + 5, "tokens/generated": 100 * n, "time/episode": 8.0}
    for n in range(1, 31)
]


@pytest.mark.parametrize(
    ("budget", "episodes"),
    [
        ({}, 70),
        ({"tokens": None, "steps": None, "seconds": None}, 70),
        ({"tokens": 4000}, 10),
        ({"tokens": 9999, "steps": 70}, 5),
        ({"seconds": 8 * 32.0}, 2),
        ({"tokens": 3000}, 0),
        ({"tokens": 90_000}, 70),
    ],
)
def test_what_ends_first_counts(budget, episodes):
    assert seconds_left(LINES, 100, budget) == pytest.approx(10.0 * episodes)


def test_one_episode_has_no_pace():
    assert seconds_left(LINES[:1], 100, {}) is None and seconds_left([], 100, {}) is None


def test_without_progress_a_budget_tells_nothing():
    still = [line | {"step": 7} for line in LINES]
    assert seconds_left(still, 31, {"steps": 8}) == pytest.approx(10.0)
