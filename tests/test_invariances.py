"""What may change without changing the result: advantages under shift, scale and order, candidates in any order."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from builders import make_group, make_response
from hypothesis import given
from hypothesis import strategies as st

from rethinker.grpo import group_advantages
from rethinker.rethink import TRIGGERS, choose, keep, mark_kept, splice
from rethinker.types import Grade, Group, Sample

# -- group advantages -------------------------------------------------------------------------------------------------

# Multiples of 1/64 below 16, so that what is shifted or scaled is exactly that; rounding starts with the mean.
REWARDS = st.integers(-1000, 1000).map(lambda n: n / 64)
SHIFTS = st.integers(-1000, 1000).map(lambda n: n / 64)
SCALES = st.sampled_from(["std", "none"])
# Sums of eight numbers below 32 with 2^-53 a rounding, divided by a std of at least 1/64 / 3.
CLOSE = {"rtol": 1e-11, "atol": 1e-11}


@st.composite
def groups_of_rewards(draw) -> torch.Tensor:
    """(P, G), float64; every third or so is unanimous."""
    size = draw(st.integers(2, 8))
    row = st.one_of(st.lists(REWARDS, min_size=size, max_size=size), REWARDS.map(lambda reward: [reward] * size))
    row |= st.lists(st.sampled_from([0.0, 1.0]), min_size=size, max_size=size)
    return torch.tensor(draw(st.lists(row, min_size=1, max_size=4)), dtype=torch.float64)


def unanimous(rewards_PG: torch.Tensor) -> torch.Tensor:
    return (rewards_PG == rewards_PG[:, :1]).all(dim=1)


@given(groups_of_rewards(), SHIFTS, SCALES)
def test_advantages_do_not_see_a_shift(rewards_PG, shift, scale):
    shifted_PG = group_advantages(rewards_PG + shift, scale)
    torch.testing.assert_close(shifted_PG, group_advantages(rewards_PG, scale), **CLOSE)
    assert torch.equal((shifted_PG == 0.0).all(dim=1), unanimous(rewards_PG))


@given(groups_of_rewards(), st.integers(-6, 6).map(lambda n: 2.0**n), st.sampled_from([0.0, 1e-6, 0.5]))
def test_advantages_and_scale(rewards_PG, factor, eps):
    """(k r - k m) / (k s + k eps) = (r - m) / (s + eps): exact for k = 2^n; eps alone sees the scale."""
    expected_PG = group_advantages(rewards_PG, "std", eps)
    assert torch.equal(group_advantages(factor * rewards_PG, "std", factor * eps), expected_PG)
    assert torch.equal(group_advantages(-rewards_PG, "std", eps), -expected_PG)
    plain_PG = group_advantages(rewards_PG, "none")
    assert torch.equal(group_advantages(factor * rewards_PG, "none"), factor * plain_PG)
    if eps:
        growth_PG = group_advantages(factor * rewards_PG, "std", eps).abs() - expected_PG.abs()
        assert (growth_PG.sign() == (factor > 1.0) - (factor < 1.0))[expected_PG != 0.0].all()


@given(groups_of_rewards(), SCALES, st.randoms(use_true_random=False))
def test_advantages_do_not_see_the_order(rewards_PG, scale, random):
    prompts, responses = (random.sample(range(n), n) for n in rewards_PG.shape)
    permuted_PG = group_advantages(rewards_PG[prompts][:, responses], scale)
    torch.testing.assert_close(permuted_PG, group_advantages(rewards_PG, scale)[prompts][:, responses], **CLOSE)


@given(groups_of_rewards(), SCALES)
def test_advantages_of_a_group(rewards_PG, scale):
    """Sum 0, the order of the rewards, Bessel's norm; a unanimous group is exactly 0.0 and no other is all zero."""
    advantages_PG = group_advantages(rewards_PG, scale, eps=0.0)
    for rewards, advantages, same in zip(rewards_PG, advantages_PG, unanimous(rewards_PG).tolist(), strict=True):
        if same:
            assert advantages.tolist() == [0.0] * len(rewards)
            continue
        assert (advantages != 0.0).sum() >= 2 and abs(float(advantages.sum())) < 1e-10
        assert advantages[rewards.argmax()] == advantages.max() > 0 > advantages.min() == advantages[rewards.argmin()]
        if scale == "std":
            assert float(advantages.square().sum()) == pytest.approx(len(rewards) - 1, rel=1e-9)


@given(
    st.floats(-1e30, 1e30, allow_subnormal=False),
    st.integers(2, 16),
    SCALES,
    st.sampled_from([torch.float32, torch.float64]),
)
def test_a_unanimous_group_is_exactly_zero(reward, size, scale, dtype):
    assert group_advantages(torch.full((1, size), reward, dtype=dtype), scale).tolist() == [[0.0] * size]


# -- second looks -----------------------------------------------------------------------------------------------------

EOS = 2
TRIGGER_IDS = {kind: tuple(90 + i for i in range(n + 1)) for n, kind in enumerate(TRIGGERS)}
TOKENS = st.lists(st.integers(10, 60), min_size=1, max_size=6)


def decode(ids) -> str:
    """Token ids as text; those above 50 that are no trigger are boxed answers."""
    return " ".join(f"\\boxed{{{token}}}" if 50 < token < 80 else str(token) for token in ids)


@st.composite
def second_looks(draw) -> tuple[Group, list[Sample]]:
    """A group and candidates for some of it, spliced from plans and answers that are paired by id, in any order."""
    correct = draw(st.lists(st.booleans(), min_size=2, max_size=6))
    group = make_group(correct)
    group = replace(
        group,
        samples=tuple(
            replace(s, response=r, sampled_mask=(True,) * len(r.token_ids))
            for s in group.samples
            for r in [make_response((*draw(TOKENS), EOS), text=s.sample_id)]
        ),
    )
    changed = draw(st.integers(0, 1))  # tokens at the end of y1 that the seam replaces by one of its own

    def join(first_ids, kind, cut):
        return max(0, len(first_ids) - changed), (80,) * changed + TRIGGER_IDS[kind]

    plans = choose(
        group.samples,
        draw(st.sampled_from([0.5, 1.0])),
        trigger_ids=TRIGGER_IDS,
        eos_token_id=EOS,
        min_second_look_tokens=1,
        max_new_tokens=40,
        seed=draw(st.integers(0, 99)),
        join=draw(st.sampled_from([None, join])),
    )
    answers = {}
    for plan in plans:
        finished = draw(st.booleans())
        answers[plan.sample_id] = make_response((*draw(TOKENS), *[EOS] * finished), finished=finished)
    by_id = {sample.sample_id: sample for sample in group.samples}
    candidates = [
        splice(by_id[p.sample_id], p, answers[p.sample_id], Grade(draw(st.booleans()), "1", "exact"), decode=decode)
        for p in draw(st.permutations(plans))
    ]
    for plan in plans:
        check_splice(by_id[plan.sample_id], plan, answers[plan.sample_id], candidates)
    return group, candidates


def check_splice(first: Sample, plan, answer, candidates: list[Sample]) -> None:
    """y1 without EOS, trigger, y2; every mask as long as the tokens; log-probs with the token that they belong to."""
    (whole,) = [sample for sample in candidates if sample.sample_id == first.sample_id]
    y1, y2 = first.response.token_ids[: plan.first_tokens], answer.token_ids
    trigger = plan.prefix_ids[len(y1) :]
    assert trigger in (TRIGGER_IDS[plan.trigger], (80, *TRIGGER_IDS[plan.trigger]))
    assert whole.response.token_ids == y1 + trigger + y2 and whole.response.text == decode(y1 + trigger + y2)
    assert whole.sampled_mask == (True,) * len(y1) + (False,) * len(trigger) + (True,) * len(y2)
    sampled = [value for value, own in zip(whole.response.logprobs, whole.sampled_mask, strict=True) if own]
    assert sampled == [*first.response.logprobs[: len(y1)], *answer.logprobs]
    assert whole.response.finished == answer.finished and whole.rethinking is not None
    assert (whole.rethinking.first_text, whole.rethinking.first_correct) == (first.response.text, first.grade.correct)
    assert (whole.rethinking.first_tokens, whole.rethinking.trigger_tokens) == (len(y1), len(trigger))
    assert whole.query == first.query and whole.episode == first.episode and whole.reward == float(whole.grade.correct)


@given(second_looks(), st.integers(0, 3), st.sampled_from(["rethinking", "trajectory"]))
def test_who_is_kept(looks, most, nll_on):
    group, candidates = looks
    place = [sample.sample_id for sample in group.samples]
    marked = mark_kept(group, candidates, most, nll_on)
    assert [s.sample_id for s in marked] == sorted((s.sample_id for s in candidates), key=place.index)
    right = [s for s in marked if s.grade.correct and s.response.finished and s.rethinking.own_answer]
    assert [s for s in marked if s.rethinking.kept] == right[:most]
    for sample in marked:
        if not sample.rethinking.kept:
            assert sample.nll_mask == ()
        elif nll_on == "trajectory":
            assert sample.nll_mask == (True,) * len(sample.response.token_ids)
        else:  # trigger and y2
            first = sample.sampled_mask.index(False)
            assert sample.nll_mask == tuple(i >= first for i in range(len(sample.response.token_ids)))


@given(second_looks(), st.integers(0, 3), st.sampled_from(["replace", "append"]), st.randoms(use_true_random=False))
def test_the_order_of_candidates_is_nothing(looks, most, placement, random):
    group, candidates = looks
    shuffled = random.sample(candidates, len(candidates))
    kept = keep(group, mark_kept(group, candidates, most), placement)
    assert keep(group, mark_kept(group, shuffled, most), placement) == kept
    assert mark_kept(group, shuffled, most) == mark_kept(group, candidates, most)


@given(second_looks(), st.integers(0, 3))
def test_the_group_with_its_second_looks(looks, most):
    group, candidates = looks
    kept = {s.sample_id: s for s in mark_kept(group, candidates, most) if s.rethinking.kept}
    ids = [sample.sample_id for sample in group.samples]
    replaced, appended = (
        keep(group, mark_kept(group, candidates, most), placement) for placement in ("replace", "append")
    )
    assert [sample.sample_id for sample in replaced.samples] == ids
    assert list(replaced.samples) == [kept.get(sample.sample_id, sample) for sample in group.samples]
    assert appended.samples[: len(ids)] == group.samples and len(appended.samples) == len(ids) + len(kept)
    assert [s.sample_id for s in appended.samples] == [f"1/q/{index}" for index in range(len(appended.samples))]
    assert [replace(s, sample_id="") for s in appended.samples[len(ids) :]] == [
        replace(kept[name], sample_id="") for name in ids if name in kept
    ]
    assert replaced.first_correct == appended.first_correct == group.first_correct


@given(second_looks(), st.randoms(use_true_random=False), st.integers(0, 5))
def test_the_coin_sees_the_sample_alone(looks, random, seed):
    group, _ = looks
    settings = {
        "trigger_ids": TRIGGER_IDS,
        "eos_token_id": EOS,
        "min_second_look_tokens": 1,
        "max_new_tokens": 40,
        "seed": seed,
    }
    plans = choose(group.samples, 0.5, **settings)
    shuffled = random.sample(group.samples, len(group.samples))
    assert {p.sample_id: p for p in choose(shuffled, 0.5, **settings)} == {p.sample_id: p for p in plans}
    assert [p.sample_id for p in plans] == [
        s.sample_id for s in group.samples if s.sample_id in {p.sample_id for p in plans}
    ]
    more = {p.sample_id: p for p in choose(group.samples, 0.8, **settings)}
    assert all(more[plan.sample_id] == plan for plan in plans)  # a larger fraction forces those and others
