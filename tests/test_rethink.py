"""Forced Rethinking on token ids and records alone."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from builders import make_query, make_sample

from rethinker.rethink import (
    TRIGGERS,
    RethinkPlan,
    choose,
    contains_reflection,
    keep,
    mark_kept,
    outcomes,
    splice,
)
from rethinker.types import Grade, Group, Response, Sample

EOS, BOX = 2, 7
TRIGGER_IDS = {"self-questioning": (90,), "self-correction": (91, 92), "self-verification": (93, 94, 95)}
QUERY = make_query("a/b")


def first(index: int, *, tokens=(10, 11, 12, EOS), text="\\boxed{3}", correct=False, **changes) -> Sample:
    """A first response; wrong, unless it is said."""
    return make_sample(f"5/a/b/{index}", tokens=tokens, text=text, correct=correct, advantage=0.7, **changes)


def choose_all(samples, fraction=1.0, **changes):
    settings = {
        "trigger_ids": TRIGGER_IDS,
        "eos_token_id": EOS,
        "min_second_look_tokens": 4,
        "max_new_tokens": 20,
        "seed": 1,
    }
    return choose(samples, fraction, **{**settings, **changes})


def decode(ids) -> str:
    """Token ids as text; BOX is a boxed answer."""
    return " ".join("\\boxed{4}" if token == BOX else str(token) for token in ids)


def force(sample: Sample, *, correct: bool, finished=True, tokens=(50, 51, BOX, EOS)) -> Sample:
    (plan,) = choose_all([sample])
    continuation = Response(tokens, (-0.5,) * len(tokens), finished, "ignored")
    return splice(sample, plan, continuation, Grade(correct, "4", "exact"), decode=decode)


def test_triggers_are_the_papers():
    assert TRIGGERS == {
        "self-questioning": "\n\nWait, does it seem right?",
        "self-correction": "\n\nWait, there might be a mistake",
        "self-verification": "\n\nWait, let's double check",
    }
    assert all(contains_reflection(text) for text in TRIGGERS.values())


@pytest.mark.parametrize(
    ("text", "reflects"),
    [
        ("Wait, that is off. \\boxed{3}", True),
        ("I should DOUBLE-CHECK the bar", True),
        ("let me verify: 3+4=7", True),
        ("I may have made a mistake", True),
        ("Hold on. Rechecking? No: recheck.", True),
        ("The waiting time is 5 minutes", False),
        ("The waiter counts 3. \\boxed{3}", False),
        ("She checked 4 boxes and doubled them", False),
        ("", False),
    ],
)
def test_spontaneous_reflection(text, reflects):
    assert contains_reflection(text) is reflects


def test_a_plan_is_y1_without_eos_and_the_trigger():
    (plan,) = choose_all([first(0)])
    assert plan.sample_id == "5/a/b/0"
    assert plan.prefix_ids == (10, 11, 12, *TRIGGER_IDS[plan.trigger])
    assert plan.trigger_tokens == len(TRIGGER_IDS[plan.trigger]) and plan.first_tokens == 3
    assert plan.max_new_tokens == 20 - len(plan.prefix_ids)


def test_who_is_eligible():
    samples = [
        first(0),
        first(1, tokens=(10, 11, 12, 13), finished=False),  # cut off
        first(2, tokens=(EOS,)),  # empty
        first(3, tokens=(*range(10, 23), EOS)),  # 13 + 3 + 4 = 20: just room
        first(4, tokens=(*range(10, 24), EOS)),  # one too many, whatever trigger would be drawn
        first(5, text="Wait, no. \\boxed{4}"),
        first(6),
    ]
    assert [plan.sample_id[-1] for plan in choose_all(samples)] == ["0", "3", "5", "6"]
    assert [plan.sample_id[-1] for plan in choose_all(samples, skip_reflective=True)] == ["0", "3", "6"]
    assert len(choose_all(samples, eos_token_id=(EOS, 7))) == 4
    assert choose_all(samples, max_new_tokens=1) == []
    assert choose_all(samples, 0.0) == []


def test_the_choice_depends_on_the_sample_alone():
    samples = [first(index) for index in range(64)]
    plans = choose_all(samples, 0.5)
    shuffled = random.Random(0).sample(samples, k=64)
    in_halves = choose_all(shuffled[:30], 0.5) + choose_all(shuffled[30:], 0.5)
    assert sorted(plans, key=lambda plan: plan.sample_id) == sorted(in_halves, key=lambda plan: plan.sample_id)
    reordered = choose_all(samples, 0.5, trigger_ids=dict(reversed(TRIGGER_IDS.items())))
    assert reordered == plans
    # From one machine and Python to the next, too: the generator's numbers are part of its definition.
    kinds = ["self-questioning", "self-correction", "self-correction", "self-correction", "self-verification"]
    assert [(plan.sample_id[-1], plan.trigger) for plan in plans[:5]] == list(zip("01345", kinds, strict=True))
    assert choose_all(samples, 0.5, seed=2) != plans
    assert choose_all([replace(sample, episode=6) for sample in samples], 0.5) != plans
    # The draw is blind: it is the same whether the answers are right or wrong.
    assert choose_all([replace(s, grade=Grade(True, "4", "exact")) for s in samples], 0.5) == plans


def test_fraction_and_triggers_in_the_mean():
    """6,000 coins and about 1,800 triggers, each count within 5 standard deviations: false alarm about 2e-6."""
    n, q = 6000, 0.3
    plans = choose_all([first(index) for index in range(n)], q)
    assert abs(len(plans) - n * q) < 5 * math.sqrt(n * q * (1 - q))
    for kind in TRIGGERS:
        count = sum(plan.trigger == kind for plan in plans)
        assert abs(count - len(plans) / 3) < 5 * math.sqrt(len(plans) * 2 / 9)


def test_trigger_by_correctness_is_the_official_variant():
    samples = [first(index, correct=index % 2 == 0) for index in range(8)]
    plans = choose_all(samples, trigger_choice="by_correctness")
    assert [plan.trigger for plan in plans] == ["self-verification", "self-correction"] * 4
    two = {kind: TRIGGER_IDS[kind] for kind in ("self-correction", "self-verification")}
    assert choose_all(samples, trigger_choice="by_correctness", trigger_ids=two) == plans


def test_choose_rejects_bad_input():
    good = first(0)
    bad_settings = [
        ({"fraction": 1.5}, "fraction"),
        ({"cut_answer": -0.5}, "cut_answer"),
        ({"min_second_look_tokens": 0}, "min_second_look_tokens"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"trigger_ids": {}}, "at least one"),
        ({"trigger_ids": {"self-correction": (), "self-questioning": (1,)}}, "needs token ids"),
        ({"trigger_ids": {"doubt": (1,)}}, "unknown triggers"),
        ({"trigger_choice": "oracle"}, "trigger_choice must be one of"),
        ({"trigger_choice": "by_correctness", "trigger_ids": {"self-questioning": (1,)}}, "needs the triggers"),
    ]
    for settings, message in bad_settings:
        with pytest.raises(ValueError, match=message):
            choose_all([good], **settings)
    with pytest.raises(ValueError, match=r"unique; repeated: \['5/a/b/0'\]"):
        choose_all([good, good])
    with pytest.raises(ValueError, match=r"5/a/b/0.*does not end with EOS"):
        choose_all([first(0, tokens=(10, 11))])
    with pytest.raises(ValueError, match="rethought already"):
        choose_all([force(good, correct=True)])


def test_splice_by_hand():
    sample = first(0)
    plan = RethinkPlan(sample.sample_id, "self-correction", (10, 11, 12, 91, 92), 2, 15)
    continuation = Response((50, 51, EOS), (-0.5, -0.6, -0.7), True, "y2")
    whole = splice(sample, plan, continuation, Grade(True, "4", "exact"), decode=decode)
    assert whole.response.token_ids == (10, 11, 12, 91, 92, 50, 51, EOS)
    assert (
        whole.rollout_logprobs == whole.response.logprobs == (*sample.rollout_logprobs[:3], 0.0, 0.0, -0.5, -0.6, -0.7)
    )
    assert whole.sampled_mask == (True, True, True, False, False, True, True, True)
    assert whole.response.text == "10 11 12 91 92 50 51 2" and whole.response.finished
    assert (whole.nll_mask, whole.behavior_logprobs, whole.advantage) == ((), (), 0.0)
    assert (whole.reward, whole.grade.correct, whole.sample_id, whole.query) == (1.0, True, sample.sample_id, QUERY)
    record = whole.rethinking
    assert (record.trigger, record.first_text, record.first_tokens, record.trigger_tokens) == (
        "self-correction",
        "\\boxed{3}",
        3,
        2,
    )
    assert whole.outcome == "wrong_to_right" and not record.kept


def test_splice_refuses_what_does_not_belong_together():
    sample, other = first(0), first(1)
    (plan,) = choose_all([sample])
    continuation = Response((50, EOS), (-0.5, -0.6), True, "")
    grade = Grade(True, "4", "exact")
    with pytest.raises(ValueError, match=r"5/a/b/0 was paired with sample 5/a/b/1"):
        splice(other, plan, continuation, grade, decode=decode)
    with pytest.raises(ValueError, match="another response"):
        splice(first(0, tokens=(10, 11, 13, EOS)), plan, continuation, grade, decode=decode)
    with pytest.raises(ValueError, match="2 tokens and 1 log-probs"):
        splice(sample, plan, replace(continuation, logprobs=(-0.5,)), grade, decode=decode)


def make_group(correct=(False, True, False, True, False)) -> Group:
    return Group(QUERY, tuple(first(i, correct=c) for i, c in enumerate(correct)), first_correct=correct)


def test_keep_replaces_the_first_right_ones_in_group_order():
    group = make_group()
    verdicts = {4: True, 1: False, 2: True, 3: True, 0: True}  # candidates come in any order
    candidates = [force(group.samples[i], correct=c, finished=i != 0) for i, c in verdicts.items()]
    marked = mark_kept(group, candidates)  # the paper's: at most 2 a query
    result = keep(group, marked)
    assert [s.rethinking is not None for s in result.samples] == [False, False, True, True, False]
    assert [s.sample_id for s in result.samples] == [s.sample_id for s in group.samples]
    assert result.samples[0] is group.samples[0]  # right but cut off: not kept
    assert result.first_correct == group.first_correct and result.query == QUERY
    assert all(s.rethinking.kept for s in result.samples[2:4])
    for s in result.samples:
        assert len(s.nll_mask) == (len(s.response.token_ids) if s.rethinking else 0)
    assert [s.sample_id[-1] for s in marked] == list("01234")
    assert [s.rethinking.kept for s in marked] == [False, False, True, True, False]
    assert [bool(s.nll_mask) for s in marked] == [False, False, True, True, False]
    assert outcomes(marked) == {
        "forced": 5,
        "kept": 2,
        "unfinished": 1,
        "no_answer": 0,
        "wrong_to_right": 3,
        "right_to_wrong": 1,
        "right_to_right": 1,
        "wrong_to_wrong": 0,
    }
    assert keep(group, mark_kept(group, candidates, 0)) == group and keep(group, []) == group
    assert set(outcomes([]).values()) == {0}


def test_what_the_nll_covers():
    group = make_group((False, True))
    candidate = force(group.samples[0], correct=True)
    n = len(candidate.response.token_ids)
    (rethinking,) = mark_kept(group, [candidate], 2, "rethinking")
    (trajectory,) = mark_kept(group, [candidate], 2, "trajectory")
    assert rethinking.nll_mask == (False,) * 3 + (True,) * (n - 3)
    assert trajectory.nll_mask == (True,) * n


def test_a_second_look_without_an_answer_of_its_own_is_not_kept():
    """The last box of such a trajectory is y1's: "I see no mistake." would be imitated wherever y1 was right."""
    group = make_group((True, False))
    empty = force(group.samples[0], correct=True, tokens=(50, EOS))
    own = force(group.samples[1], correct=True)
    marked = mark_kept(group, [empty, own])
    assert [(s.rethinking.own_answer, s.rethinking.kept) for s in marked] == [(False, False), (True, True)]
    assert outcomes(marked)["no_answer"] == 1
    assert [s.rethinking.kept for s in mark_kept(group, [empty, own], keep="any")] == [True, True]
    # One that is not kept takes no place of those that may be.
    assert [s.rethinking.kept for s in mark_kept(group, [empty, own], max_per_query=1)] == [False, True]


@pytest.mark.parametrize(("bounds", "kept"), [((4, None), True), ((5, None), False), ((0, 4), True), ((0, 3), False)])
def test_bounds_on_a_kept_second_look(bounds, kept):
    """EOS counts, as in the official code."""
    group = make_group((False,))
    (marked,) = mark_kept(group, [force(group.samples[0], correct=True)], kept_tokens=bounds)
    assert marked.rethinking.kept is kept


def test_a_long_first_look_is_not_forced():
    assert [len(choose_all([first(0)], max_first_look_tokens=limit)) for limit in (2, 3, None)] == [0, 1, 1]


def test_what_the_seam_changes_is_forced():
    """y1 10 11 12 becomes 10 13 and the trigger: 13 stands for the end of y1, whatever it was."""
    sample = first(0)

    def join(ids, kind, cut):
        assert (ids, cut) == ((10, 11, 12), False)
        return 1, (13, *TRIGGER_IDS[kind])

    (plan,) = choose_all([sample], join=join)
    trigger = TRIGGER_IDS[plan.trigger]
    assert plan.prefix_ids == (10, 13, *trigger) and plan.first_tokens == 1
    assert plan.trigger_tokens == 1 + len(trigger) and plan.max_new_tokens == 20 - len(plan.prefix_ids)
    whole = splice(sample, plan, Response((50, EOS), (-0.5, -0.6), True, ""), Grade(True, "4", "exact"), decode=decode)
    assert whole.response.token_ids == (10, 13, *trigger, 50, EOS)
    assert whole.sampled_mask == (True, *[False] * plan.trigger_tokens, True, True)
    assert whole.response.logprobs == (sample.response.logprobs[0], *[0.0] * plan.trigger_tokens, -0.5, -0.6)
    (marked,) = mark_kept(Group(QUERY, (sample,), (False,)), [whole], keep="any")
    assert marked.nll_mask == (False, *[True] * (plan.trigger_tokens + 2))
    with pytest.raises(ValueError, match="another response"):
        splice(first(0, tokens=(9, 11, 12, EOS)), plan, whole.response, whole.grade, decode=decode)
    # A seam that leaves no room for a second look is no plan; a shorter one is.
    assert choose_all([sample], join=lambda ids, kind, cut: (3, (13,) * 17)) == []
    assert len(choose_all([sample], join=lambda ids, kind, cut: (3, (13,) * 16))) == 1


def test_a_share_of_answers_is_cut():
    """4,000 coins, within 5 standard deviations: false alarm about 6e-7."""
    samples = [first(index) for index in range(4000)]
    cuts = []

    def join(ids, kind, cut):
        cuts.append(cut)
        return len(ids), TRIGGER_IDS[kind]

    plans = choose_all(samples, cut_answer=0.25, join=join)
    assert abs(sum(cuts) - 1000) < 5 * math.sqrt(4000 * 0.25 * 0.75)
    assert plans == choose_all(samples, join=join)  # the coin changes neither who is chosen nor the trigger
    with pytest.raises(ValueError, match="cut_answer needs join"):
        choose_all(samples, cut_answer=0.25)


def test_append_keeps_y1_and_gives_new_ids():
    group = make_group((False, True, False))
    candidates = [force(group.samples[i], correct=True) for i in (2, 0)]
    result = keep(group, mark_kept(group, candidates), "append")
    assert result.samples[:3] == group.samples and result.first_correct == group.first_correct
    assert [s.sample_id for s in result.samples[3:]] == ["5/a/b/3", "5/a/b/4"]
    assert [s.response.token_ids[:3] for s in result.samples[3:]] == [(10, 11, 12)] * 2
    assert all(s.rethinking.kept and s.nll_mask for s in result.samples[3:])


def test_mark_kept_rejects_bad_input():
    group = make_group((False, True))
    candidate = force(group.samples[0], correct=True)
    with pytest.raises(ValueError, match=r"\['9/z/0'\] do not belong to the group of query a/b"):
        mark_kept(group, [replace(candidate, sample_id="9/z/0")])
    with pytest.raises(ValueError, match="unique"):
        mark_kept(group, [candidate, candidate])
    with pytest.raises(ValueError, match="no rethinking record"):
        mark_kept(group, [group.samples[0]])
    with pytest.raises(ValueError, match="no rethinking record"):
        outcomes([group.samples[0]])
    with pytest.raises(ValueError, match="max_per_query"):
        mark_kept(group, [candidate], max_per_query=-1)
    with pytest.raises(ValueError, match="nll_on must be one of"):
        mark_kept(group, [candidate], nll_on="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="keep must be one of"):
        mark_kept(group, [candidate], keep="some")  # type: ignore[arg-type]
