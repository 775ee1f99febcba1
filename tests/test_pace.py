"""The time that a run still takes, by its episodes and its budgets."""

from __future__ import annotations

import pytest

from rethinker.rundir.pace import seconds_left

LINES = [  # 10 seconds an episode, 8 of them the episode's own; 100 tokens and 2 updates each
    {"stage": "a", "episode": n, "step": 2 * n, "seconds": 10.0 * n + 5}
    | {"tokens/generated": 100 * n, "time/episode": 8.0}
    for n in range(1, 31)
]


def settings(*lengths: int, overrides: tuple[int | None, ...] = (), budget: dict | None = None) -> dict:
    """Stages a, b, ... of so many episodes, with budgets of generated tokens of their own."""
    stages = [{"name": name, "episodes": length, "overrides": {}} for name, length in zip("abc", lengths, strict=False)]
    for stage, tokens in zip(stages, overrides, strict=False):
        stage["overrides"] = {"budget": {"tokens": tokens}} if tokens else {}
    return {"stages": stages, "budget": budget or {}}


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
    assert seconds_left(LINES, settings(100, budget=budget)) == pytest.approx(10.0 * episodes)


@pytest.mark.parametrize(
    ("lengths", "overrides", "run", "episodes"),
    [
        ((50, 40), (None, None), None, 20 + 40),
        ((50, 40), (4000, None), None, 10 + 40),  # a stage's budget leaves the next one its episodes
        ((50, 40), (4000, 4500), None, 10 + 5),  # what the run has generated from its start, not the stage
        ((50, 40), (4000, 3900), None, 10 + 0),
        ((50, 40), (None, 9000), 4000, 10 + 40),  # its own in the place of the run's
        ((50, 40), (3000, None), 4000, 0 + 10),
    ],
)
def test_stages_have_budgets_of_their_own(lengths, overrides, run, episodes):
    stages = settings(*lengths, overrides=overrides, budget={"tokens": run})
    assert seconds_left(LINES, stages) == pytest.approx(10.0 * episodes)


def test_what_a_budget_kept_an_earlier_stage_from_is_not_to_come():
    """Ten of fifty episodes, then twenty of the next stage's thirty."""
    lines = [*LINES[:10], *(line | {"stage": "b"} for line in LINES[10:])]
    assert seconds_left(lines, settings(50, 30, overrides=(1000, None))) == pytest.approx(100.0)
    assert seconds_left(lines, settings(50, 30, 8, overrides=(1000, 3400, None))) == pytest.approx(40.0 + 80.0)


def test_one_episode_has_no_pace():
    assert seconds_left(LINES[:1], settings(100)) is None and seconds_left([], settings(100)) is None


def test_without_progress_a_budget_tells_nothing():
    still = [line | {"step": 7} for line in LINES]
    assert seconds_left(still, settings(31, budget={"steps": 8})) == pytest.approx(10.0)
