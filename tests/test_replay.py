"""Selective Sample Replay: the law by 40,000 draws, Algorithm 1 step by step, the state."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from builders import make_sample

from rethinker.grpo import group_advantages
from rethinker.replay import (
    DropIneffective,
    SelectiveSampleReplay,
    Selector,
    draw_probabilities,
    make_selector,
)
from rethinker.rundir.samples import read_samples, write_samples


def names(samples) -> list[str]:
    return [sample.sample_id for sample in samples]


def chi_square_p(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """The chance of a chi-square statistic at least this large if the counts follow the probabilities."""
    expected = counts.sum() * probabilities
    statistic = float(((counts - expected) ** 2 / expected).sum())
    freedom = torch.tensor((len(counts) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, torch.tensor(statistic / 2, dtype=torch.float64)))


ADVANTAGES = [0.25, -0.5, 1.0, -1.5, 2.0]
ZERO = make_sample("zero", advantage=0.0)


@pytest.mark.parametrize(
    ("alpha", "law"),
    [
        (0.0, [1 / 5, 1 / 5, 1 / 5, 1 / 5, 1 / 5]),
        (1.0, [1 / 21, 2 / 21, 4 / 21, 6 / 21, 8 / 21]),  # quarters: 1, 2, 4, 6, 8
        (2.0, [1 / 121, 4 / 121, 16 / 121, 36 / 121, 64 / 121]),
    ],
)
def test_the_law_by_40_000_draws_through_select(alpha, law):
    """False alarm about 1e-6 an alpha for a new seed (the seed is fixed, so none from run to run)."""
    replay = SelectiveSampleReplay(alpha=alpha, seed=7)
    samples = [make_sample(str(j), advantage=advantage) for j, advantage in enumerate(ADVANTAGES)]
    batch = replay.select(samples + [ZERO] * 40_000)
    assert len(batch) == 40_005 and names(batch[:5]) == names(samples)
    counts = np.bincount([int(sample.sample_id) for sample in batch[5:]], minlength=5)
    assert chi_square_p(counts, np.array(law)) > 1e-6
    # The test can tell the laws apart: the same counts are impossible under another alpha.
    assert chi_square_p(counts, draw_probabilities(ADVANTAGES, alpha + 0.2)) < 1e-9


def test_draws_are_independent():
    """Pairs of successive draws follow the product law (24 degrees of freedom); false alarm about 1e-6."""
    replay = SelectiveSampleReplay(alpha=1.0, seed=11)
    samples = [make_sample(str(j), advantage=advantage) for j, advantage in enumerate(ADVANTAGES)]
    drawn = np.array([int(sample.sample_id) for sample in replay.select(samples + [ZERO] * 40_000)[5:]])
    counts = np.bincount(drawn[0::2] * 5 + drawn[1::2], minlength=25)
    law = np.array([1, 2, 4, 6, 8]) / 21
    assert chi_square_p(counts, np.outer(law, law).ravel()) > 1e-6


def test_draws_are_with_replacement_even_from_a_buffer_that_is_large_enough():
    """Two draws from two equal samples agree in half of 2,000 steps, within 5 sd: false alarm about 6e-7."""
    replay = SelectiveSampleReplay(seed=2)
    replay.select([make_sample("a", advantage=1.0), make_sample("b", advantage=-1.0)])
    same = sum(len(set(names(replay.select([ZERO, ZERO])))) == 1 for _ in range(2000))
    assert abs(same - 1000) < 5 * (2000 / 4) ** 0.5


def test_probabilities_by_hand_and_at_the_edges():
    assert draw_probabilities([1.0, -3.0, 0.0], 1.0).tolist() == pytest.approx([0.25, 0.75, 0.0])
    assert draw_probabilities([1.0, -3.0, 0.0], 0.0).tolist() == [0.5, 0.5, 0.0]
    assert draw_probabilities([1.0, -3.0, 3.0], 1e6).tolist() == [0.0, 0.5, 0.5]
    assert draw_probabilities([1e-300, -3e-300], 2.0).tolist() == pytest.approx([0.1, 0.9])
    assert draw_probabilities([1e300, -1e300], 5.0).tolist() == [0.5, 0.5]
    for advantages, alpha in [
        ([0.0, 0.0], 1.0),
        ([], 1.0),
        ([1.0], -1.0),
        ([1.0], float("nan")),
    ]:
        with pytest.raises(ValueError):
            draw_probabilities(advantages, alpha)


def test_algorithm_1_in_order():
    replay = SelectiveSampleReplay(seed=1)
    a, b = make_sample("a", advantage=1.0), make_sample("b", advantage=-1.0)
    # Effective samples enter the buffer before the draw: the first batch is refilled from itself.
    first = replay.select([ZERO, a, ZERO, b])
    assert names(first[:2]) == ["a", "b"] and len(first) == 4
    assert set(names(first[2:])) <= {"a", "b"} and len(replay) == 2
    assert [sample.replayed for sample in first] == [False, False, True, True]
    # A full batch draws nothing but is remembered.
    c = make_sample("c", advantage=0.5)
    assert names(replay.select([c])) == ["c"] and len(replay) == 3
    # A batch without effect is replay alone, and every replayed sample keeps its writer's log-probs and advantage.
    originals = {"a": a, "b": b, "c": c}
    for sample in replay.select([ZERO] * 50):
        assert sample == replace(originals[sample.sample_id], replayed=True)
    assert len(replay) == 3  # what was drawn is not stored again


def test_empty_only_if_nothing_was_ever_effective():
    replay = SelectiveSampleReplay()
    assert replay.select([ZERO] * 8) == [] and replay.select([]) == []
    replay.select([make_sample("a", advantage=1.0)])
    assert names(replay.select([ZERO] * 3)) == ["a"] * 3
    replay.start_episode()
    assert replay.select([ZERO] * 8) == []


def test_advantages_as_the_trainer_makes_them():
    """From group_advantages to select, as the trainer does it: every effective sample of every group is stored."""
    rewards_PG = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.1, 0.1, 0.1, 0.1], [1.0, 1.0, 0.0, 1.0]])
    advantages = [a for row in group_advantages(rewards_PG).tolist() for a in row]
    samples = [make_sample(f"{i}", advantage=a) for i, a in enumerate(advantages)]
    replay = SelectiveSampleReplay()
    batch = replay.select(samples)
    assert names(batch[:8]) == ["0", "1", "2", "3", "8", "9", "10", "11"] and len(batch) == 12 and len(replay) == 8
    assert all(sample.effective for sample in batch)


@pytest.mark.parametrize("selector", [Selector(), DropIneffective(), SelectiveSampleReplay()])
def test_a_refused_batch_leaves_no_trace(selector):
    good = make_sample("a", advantage=1.0)
    for batch in (
        [good, make_sample("b", advantage=float("nan"))],
        [good, [good]],
    ):  # not finite; groups that are not flattened
        with pytest.raises((ValueError, AttributeError)):
            selector.select(batch)
    assert selector.state_dict().get("entries", []) == []


def test_plain_objects_are_samples_too():
    @dataclass(frozen=True)
    class Bare:
        advantage: float

    batch = SelectiveSampleReplay().select([Bare(1.0), Bare(0.0)])
    assert batch == [Bare(1.0), Bare(1.0)]


def test_lifetime_in_episodes():
    def survivors(lifetime):
        replay = SelectiveSampleReplay(lifetime=lifetime)
        for episode in range(5):
            replay.start_episode()
            replay.select([make_sample(str(episode), advantage=1.0)])
        return sorted(set(names(replay.select([ZERO] * 100))))  # one of 5 not drawn: 5 * 0.8^100, about 1e-9

    assert survivors(1) == ["4"]  # the paper
    assert survivors(3) == ["2", "3", "4"]
    assert survivors(None) == ["0", "1", "2", "3", "4"]


def test_capacity_lets_the_oldest_go():
    replay = SelectiveSampleReplay(capacity=3, lifetime=None)
    replay.select([make_sample(str(j), advantage=1.0) for j in range(5)])
    assert [sample.sample_id for _, sample in replay.state_dict()["entries"]] == ["2", "3", "4"]
    assert set(names(replay.select([ZERO] * 40))) == {"2", "3", "4"}  # missing one of them: 3 * (2/3)**40, about 3e-7


def test_stats():
    replay = SelectiveSampleReplay(lifetime=2)
    assert replay.stats() == {"buffer_size": 0.0}
    replay.start_episode()
    replay.select([make_sample("a", advantage=1.0)])
    assert replay.stats() == {"buffer_size": 1.0}
    replay.start_episode()
    replay.select([ZERO, make_sample("b", advantage=1.0)])
    assert replay.stats() == {"buffer_size": 2.0}
    replay.start_episode()
    assert replay.stats() == {"buffer_size": 1.0}
    assert Selector().stats() == DropIneffective().stats() == {"buffer_size": 0.0}


@pytest.mark.parametrize(("lifetime", "expected"), [(1, []), (2, ["3"]), (3, ["2", "3"]), (None, ["1", "2", "3"])])
def test_the_state_holds_what_the_next_episode_can_draw(lifetime, expected):
    """And no more: going on from it is the same as not stopping."""
    replay, resumed = (SelectiveSampleReplay(seed=seed, lifetime=lifetime) for seed in (4, 5))
    for episode in (1, 2, 3):
        replay.start_episode()
        replay.select([make_sample(str(episode), advantage=1.0)])
    state = replay.state_dict()
    assert [sample.sample_id for _, sample in state["entries"]] == expected and len(replay) >= len(expected)
    resumed.load_state_dict(state)
    for one in (replay, resumed):
        one.start_episode()
    assert len(replay) == len(resumed) == len(expected)
    batch = [ZERO] * 20 + [make_sample("new", advantage=0.5)]
    assert replay.select(batch) == resumed.select(batch)
    assert len(replay) == len(resumed)


def test_state_goes_through_a_file_and_continues_the_same_stream(tmp_path):
    def play(replay, steps):
        out = []
        for step in steps:
            if step % 3 == 0:
                replay.start_episode()
            out.append(
                replay.select([make_sample(f"{step}/{j}", advantage=(j - 3) / 7) for j in range(7)] + [ZERO] * 20)
            )
        return out

    whole = SelectiveSampleReplay(alpha=0.7, seed=5, lifetime=2, capacity=30)
    play(whole, range(6))
    state = whole.state_dict()
    write_samples(tmp_path / "entries", state["entries"])
    loaded = json.loads(json.dumps({name: value for name, value in state.items() if name != "entries"}))
    loaded["entries"] = read_samples(tmp_path / "entries")
    resumed = SelectiveSampleReplay(alpha=0.7, seed=999, lifetime=2, capacity=30)
    resumed.load_state_dict(loaded)
    later = play(whole, range(6, 12))
    assert play(resumed, range(6, 12)) == later
    assert state["entries"] != whole.state_dict()["entries"]  # the saved state did not move with the original


def test_seeds_differ_and_the_global_generator_is_left_alone():
    samples = [make_sample(str(j), advantage=1.0) for j in range(9)] + [ZERO] * 50
    np.random.seed(0)
    before = np.random.get_state()[1].tolist()
    one, same, two = (names(SelectiveSampleReplay(seed=seed).select(samples)) for seed in (0, 0, 1))
    assert one == same and one != two
    assert np.random.get_state()[1].tolist() == before


def test_the_baselines():
    samples = [make_sample("a", advantage=1.0), ZERO, make_sample("b", advantage=-1.0)]
    plain, dropping = make_selector("grpo"), make_selector("filter")
    for selector in (plain, dropping):
        selector.start_episode()
    assert plain.select(samples) == samples
    assert names(dropping.select(samples)) == ["a", "b"] and dropping.select([ZERO]) == []
    ssr = make_selector("ssr", alpha=2.0, seed=3, lifetime=None, capacity=9)
    assert isinstance(ssr, SelectiveSampleReplay) and (ssr.alpha, ssr.lifetime) == (2.0, None)
    plain.load_state_dict(plain.state_dict())
    with pytest.raises(ValueError, match='"ssr"'):
        plain.load_state_dict(ssr.state_dict())
    with pytest.raises(ValueError, match='"grpo"'):
        ssr.load_state_dict(plain.state_dict())
    with pytest.raises(ValueError, match="grpo, filter, ssr"):
        make_selector("dapo")  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [SelectiveSampleReplay, lambda: make_selector("ssr")])
def test_the_defaults_are_the_papers(make):
    """P(j) proportional to abs(A_j), the buffer cleared when an episode starts (see the tests of either)."""
    replay = make()
    assert (replay.alpha, replay.lifetime) == (1.0, 1)


def test_bad_settings():
    for settings in ({"alpha": -1.0}, {"alpha": float("inf")}, {"lifetime": 0}, {"capacity": 0}):
        with pytest.raises(ValueError):
            SelectiveSampleReplay(**settings)
    replay = SelectiveSampleReplay()
    with pytest.raises(ValueError, match="zero advantage"):
        replay.load_state_dict({**replay.state_dict(), "entries": [(0, ZERO)]})


def test_what_the_price_of_tokens_alone_moves_is_trained_on_once_and_never_stored():
    replay = SelectiveSampleReplay(seed=3)
    right = make_sample("right", advantage=0.5)
    longer = make_sample("longer", advantage=-0.1, unanimous=True)
    batch = replay.select([longer, right, ZERO, ZERO])
    assert names(batch) == ["longer", "right", "right", "right"] and len(replay) == 1
    assert names(replay.select([longer, ZERO, ZERO])) == ["longer", "right", "right"]
    assert names(DropIneffective().select([longer, right, ZERO])) == ["longer", "right"]
    assert not longer.effective and longer.moves_policy and right.effective
