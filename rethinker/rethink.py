"""Forced Rethinking: choose first responses, splice the forced second look, keep what ends correct. No model, no I/O.

Differs from arXiv:2504.08837 in:
- the trigger is drawn without looking at correctness (``trigger_choice="blind"``); the official code uses
  self-verification on right and self-correction on wrong answers, which leaks the label (``"by_correctness"``);
- "a fraction q of the responses" is an independent coin flip for each eligible response, seeded by a hash of
  (seed, episode, sample id): the choice depends neither on the number of ranks nor on the order of the samples;
- responses that already reflect spontaneously can be left alone (``skip_reflective``, off by default);
- the trigger was not sampled, and the paper does not say what the GRPO term does with it: ``forced_tokens`` treats it
  as on-policy (ratio 1), uses the ratio to the behaviour policy, or leaves it out of the term;
- if a query has more than ``max_per_query`` correct trajectories, the first in group order are kept; the paper does not
  say which;
- the NLL term covers trigger and y2 by default (``nll_on``); the paper does not say which tokens. It applies to the
  kept trajectories that are trained on: SSR and the filter drop those of unanimous groups (advantage 0) beforehand (the
  metric rethink/trained counts the rest), and it applies again to a replayed one.

- a kept second look must give a boxed answer of its own (``keep``): without one the last box is still y1's, and a
  confirmation that says nothing ("I see no mistake.") would be imitated.

A trajectory is y1 (EOS removed) + trigger + y2. Its tokens are those that were sampled, except where the trigger's
text merges with the end of y1 (``policy.seam``): what changes there is forced, as the trigger is. Everything is paired
by sample id.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Literal, get_args

import numpy as np

from rethinker.grading.extract import extract_boxed
from rethinker.types import Grade, Group, Response, Rethinking, Sample

TRIGGERS: dict[str, str] = {
    "self-questioning": "\n\nWait, does it seem right?",
    "self-correction": "\n\nWait, there might be a mistake",
    "self-verification": "\n\nWait, let's double check",
}

REFLECTION_PATTERN = re.compile(
    r"\b(?:wait|hold on|double[- ]?check|re-?check|re-?think|re-?examine|re-?evaluate|re-?consider"
    r"|let(?:'s| us| me) (?:verify|check again)|(?:made|be) a mistake|does (?:it|this|that) seem right)\b",
    re.IGNORECASE,
)
"""Words of a second look (ours; those of the triggers and common variants). Whole words: "waiting time" does not
match."""

TriggerChoice = Literal["blind", "by_correctness"]
Placement = Literal["replace", "append"]
NllOn = Literal["rethinking", "trajectory"]
Keep = Literal["own_answer", "any"]
Join = Callable[[tuple[int, ...], str, bool], tuple[int, tuple[int, ...]]]
"""(ids of y1 without EOS, kind of trigger, whether to cut y1's final answer) -> (how many ids of y1 stay, the ids that
are forced behind them: the trigger, and before it what the seam changes of y1)."""


@dataclass(frozen=True, slots=True)
class RethinkPlan:
    """What to ask the engine for: continue after ``prefix_ids`` (y1 without EOS, and the trigger)."""

    sample_id: str
    trigger: str  # a key of TRIGGERS
    prefix_ids: tuple[int, ...]
    trigger_tokens: int  # the forced ones, at the end of prefix_ids: the trigger, and the end of y1 that it changed
    max_new_tokens: int  # what is left of the token limit for y2

    @property
    def first_tokens(self) -> int:
        """Tokens of y1 that stay as they were sampled."""
        return len(self.prefix_ids) - self.trigger_tokens


def contains_reflection(text: str) -> bool:
    """Whether the text of a response takes a second look (``REFLECTION_PATTERN``)."""
    return REFLECTION_PATTERN.search(text) is not None


def eligible(
    samples: Sequence[Sample],
    *,
    trigger_tokens: int,
    eos_token_id: int | Collection[int],
    min_second_look_tokens: int,
    max_new_tokens: int,
    max_first_look_tokens: int | None = None,
    skip_reflective: bool = False,
) -> list[Sample]:
    """The first responses that may be forced, in the order of ``samples``.

    A response is eligible if it ended with EOS, has at least one token before it and at most ``max_first_look_tokens``,
    leaves at least ``min_second_look_tokens`` of a trajectory's ``max_new_tokens`` after a trigger of
    ``trigger_tokens``, and (``skip_reflective``) does not reflect already. ValueError as in ``choose``.
    """
    if min_second_look_tokens < 1 or max_new_tokens < 1:
        raise ValueError(
            f"min_second_look_tokens={min_second_look_tokens}, max_new_tokens={max_new_tokens}: each must be at least 1"
        )
    eos_ids = {eos_token_id} if isinstance(eos_token_id, int) else set(eos_token_id)
    room = max_new_tokens - trigger_tokens - min_second_look_tokens
    longest = room if max_first_look_tokens is None else min(room, max_first_look_tokens)
    found = []
    for sample_id, sample in _by_sample_id(samples).items():
        if sample.rethinking is not None:
            raise ValueError(f"sample {sample_id} has been rethought already; choose takes first responses")
        response = sample.response
        if response.finished and (not response.token_ids or response.token_ids[-1] not in eos_ids):
            raise ValueError(f"sample {sample_id} is marked finished but does not end with EOS ({sorted(eos_ids)})")
        if not response.finished or not 1 <= len(response.token_ids) - 1 <= longest:
            continue
        if skip_reflective and contains_reflection(response.text):
            continue
        found.append(sample)
    return found


def choose(
    samples: Sequence[Sample],
    fraction: float,
    *,
    trigger_ids: Mapping[str, Sequence[int]],
    eos_token_id: int | Collection[int],
    min_second_look_tokens: int,
    max_new_tokens: int,
    seed: int,
    max_first_look_tokens: int | None = None,
    trigger_choice: TriggerChoice = "blind",
    skip_reflective: bool = False,
    cut_answer: float = 0.0,
    join: Join | None = None,
) -> list[RethinkPlan]:
    """Choose first responses to be forced, in the order of ``samples``; at most one plan per sample.

    Each ``eligible`` response is chosen with probability ``fraction`` (of the eligible, not of all; training wants < 1,
    and 1 forces every one, as the test-time modes of Fig. 7 do). ``trigger_ids``: the kinds to draw from, uniformly,
    each with the token ids of its text alone. ``cut_answer``: the probability that y1 is cut back before its final
    answer (official code: 0.5). ``join`` puts y1 and trigger together; None: the ids of both are spliced.

    ``seed``: of the run; coin flip, trigger and cut are a pure function of (seed, episode, sample id). ValueError for
    responses that have been rethought already, a finished response without EOS, unknown or empty triggers, duplicate
    sample ids and numbers out of range.
    """
    for name, share in (("fraction of forced responses", fraction), ("cut_answer", cut_answer)):
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"{name} must be in [0, 1], got {share}")
    if cut_answer and join is None:
        raise ValueError("cut_answer needs join: where the final answer begins is a question of text")
    kinds = _trigger_kinds(trigger_ids, trigger_choice)
    candidates = eligible(
        samples,
        trigger_tokens=max(len(trigger_ids[kind]) for kind in kinds),
        eos_token_id=eos_token_id,
        min_second_look_tokens=min_second_look_tokens,
        max_new_tokens=max_new_tokens,
        max_first_look_tokens=max_first_look_tokens,
        skip_reflective=skip_reflective,
    )
    plans = []
    for sample in candidates:
        generator = _generator(seed, sample)
        if generator.random() >= fraction:
            continue
        if trigger_choice == "blind":
            trigger = kinds[int(generator.integers(len(kinds)))]
        else:
            trigger = "self-verification" if sample.grade.correct else "self-correction"
        first_ids = sample.response.token_ids[:-1]
        if join is None:
            kept, forced_ids = len(first_ids), tuple(trigger_ids[trigger])
        else:
            kept, forced_ids = join(first_ids, trigger, cut_answer > 0 and generator.random() < cut_answer)
        prefix_ids = first_ids[:kept] + forced_ids
        left = max_new_tokens - len(prefix_ids)
        if left > 0:  # a seam may take a token more than the trigger alone
            plans.append(RethinkPlan(sample.sample_id, trigger, prefix_ids, len(forced_ids), left))
    return plans


def splice(
    sample: Sample,
    plan: RethinkPlan,
    continuation: Response,
    grade: Grade,
    *,
    decode: Callable[[Sequence[int]], str],
) -> Sample:
    """The whole trajectory of ``sample`` as a candidate (``rethinking.kept`` False, no ``nll_mask``: see ``keep``).

    ``continuation`` is y2 alone, ``grade`` the verdict on the whole trajectory, ``decode`` turns token ids into text
    without special tokens. The reward becomes the correctness (0.0 or 1.0). Forced tokens have rollout log-prob 0.0
    and ``sampled_mask`` False. Behaviour log-probs are the trainer's to compute; the advantage is reset.
    ValueError when the plan is not this sample's.
    """
    if plan.sample_id != sample.sample_id:
        raise ValueError(f"the plan of sample {plan.sample_id} was paired with sample {sample.sample_id}")
    first = plan.first_tokens
    if sample.response.token_ids[:-1][:first] != plan.prefix_ids[:first]:
        raise ValueError(f"the plan of sample {plan.sample_id} was made for another response than the sample has")
    if len(continuation.token_ids) != len(continuation.logprobs):
        raise ValueError(
            f"the continuation of sample {plan.sample_id} has {len(continuation.token_ids)} tokens and"
            f" {len(continuation.logprobs)} log-probs"
        )
    forced = plan.trigger_tokens
    token_ids = plan.prefix_ids + continuation.token_ids
    logprobs = sample.response.logprobs[:first] + (0.0,) * forced + continuation.logprobs
    return replace(
        sample,
        response=Response(token_ids, logprobs, continuation.finished, decode(token_ids)),
        grade=grade,
        reward=float(grade.correct),
        sampled_mask=sample.sampled_mask[:first] + (False,) * forced + (True,) * len(continuation.token_ids),
        nll_mask=(),
        behavior_logprobs=(),
        advantage=0.0,
        rethinking=Rethinking(
            trigger=plan.trigger,
            first_text=sample.response.text,
            first_tokens=first,
            trigger_tokens=forced,
            first_correct=sample.grade.correct,
            own_answer=extract_boxed(decode(continuation.token_ids)) is not None,
        ),
    )


def mark_kept(
    group: Group,
    candidates: Sequence[Sample],
    max_per_query: int = 2,
    nll_on: NllOn = "rethinking",
    keep: Keep = "own_answer",
    kept_tokens: tuple[int, int | None] = (0, None),
) -> list[Sample]:
    """The candidates of one group, in group order, the kept ones with ``rethinking.kept`` and their ``nll_mask``.

    Keeps the first ``max_per_query`` in group order whose whole trajectory is finished and correct, whose y2 gives a
    boxed answer of its own (``keep``; ``"any"``: or none) and has between ``kept_tokens`` tokens (official code: more
    than 30 and fewer than 1,024). The NLL covers the forced tokens and y2 (``"rethinking"``) or y1 as well
    (``"trajectory"``).
    ValueError for candidates of another group, without a rethinking, or two of one sample.
    """
    if max_per_query < 0:
        raise ValueError(f"max_per_query must be >= 0, got {max_per_query}")
    _check_choice("nll_on", nll_on, NllOn)
    _check_choice("keep", keep, Keep)
    fewest, most = kept_tokens
    by_id = _by_sample_id(candidates)
    strangers = sorted(by_id.keys() - {sample.sample_id for sample in group.samples})
    if strangers:
        raise ValueError(f"candidates {strangers} do not belong to the group of query {group.query.qid}")
    marked = []
    room = max_per_query
    for first in group.samples:
        candidate = by_id.get(first.sample_id)
        if candidate is None:
            continue
        rethinking = candidate.rethinking
        if rethinking is None:
            raise ValueError(f"candidate {candidate.sample_id} has no rethinking record; make it with splice")
        given = rethinking.first_tokens + rethinking.trigger_tokens
        length = len(candidate.response.token_ids) - given
        fits = fewest <= length and (most is None or length <= most)
        answers = rethinking.own_answer or keep == "any"
        kept = candidate.grade.correct and candidate.response.finished and fits and answers and room > 0
        room -= kept
        unmasked = rethinking.first_tokens if nll_on == "rethinking" else 0
        masked = len(candidate.response.token_ids) - unmasked
        nll_mask = (False,) * unmasked + (True,) * masked if kept else ()
        marked.append(replace(candidate, rethinking=replace(rethinking, kept=kept), nll_mask=nll_mask))
    return marked


def keep(group: Group, candidates: Sequence[Sample], placement: Placement = "replace") -> Group:
    """The group with the kept ones of ``candidates`` (see ``mark_kept``); ``first_correct`` stays that of y1.

    ``"replace"`` (paper): a kept trajectory replaces its own y1 and takes its id. ``"append"``: y1 stays and the
    trajectory is appended to the group, with the next free index as its id.
    """
    kept = [sample for sample in candidates if sample.rethinking and sample.rethinking.kept]
    if placement == "replace":
        by_id = {sample.sample_id: sample for sample in kept}
        return replace(group, samples=tuple(by_id.get(first.sample_id, first) for first in group.samples))
    assert placement == "append", placement
    appended = tuple(
        replace(sample, sample_id=f"{sample.sample_id.rpartition('/')[0]}/{index}")
        for index, sample in enumerate(kept, start=len(group.samples))
    )
    return replace(group, samples=group.samples + appended)


def outcomes(candidates: Sequence[Sample]) -> dict[str, int]:
    """Counts over forced trajectories (of any number of groups, after ``mark_kept``).

    Keys: forced, kept, unfinished, no_answer (the second look gives no boxed answer of its own), and the four outcomes
    ("wrong_to_right" ...), which add up to forced.
    """
    counts = {"forced": 0, "kept": 0, "unfinished": 0, "no_answer": 0}
    counts |= {"wrong_to_right": 0, "right_to_wrong": 0, "right_to_right": 0, "wrong_to_wrong": 0}
    for candidate in candidates:
        rethinking = candidate.rethinking
        if rethinking is None:
            raise ValueError(f"sample {candidate.sample_id} has no rethinking record")
        counts["forced"] += 1
        counts["kept"] += rethinking.kept
        counts["unfinished"] += not candidate.response.finished
        counts["no_answer"] += not rethinking.own_answer
        counts[candidate.outcome] += 1
    return counts


def _trigger_kinds(trigger_ids: Mapping[str, Sequence[int]], trigger_choice: TriggerChoice) -> list[str]:
    """The kinds in the order of TRIGGERS (so that the draw does not depend on the order of the mapping)."""
    _check_choice("trigger_choice", trigger_choice, TriggerChoice)
    unknown = sorted(trigger_ids.keys() - TRIGGERS.keys())
    if unknown:
        raise ValueError(f"unknown triggers {unknown}; the kinds are {list(TRIGGERS)}")
    kinds = [kind for kind in TRIGGERS if kind in trigger_ids]
    if not kinds or not all(len(trigger_ids[kind]) for kind in kinds):
        raise ValueError(f"every trigger needs token ids and there must be at least one, got {dict(trigger_ids)}")
    needed = {"self-verification", "self-correction"}
    if trigger_choice == "by_correctness" and not needed <= set(kinds):
        raise ValueError(f'trigger_choice "by_correctness" needs the triggers {sorted(needed)}, got {kinds}')
    return kinds


def _by_sample_id(samples: Sequence[Sample]) -> dict[str, Sample]:
    by_id = {sample.sample_id: sample for sample in samples}
    if len(by_id) != len(samples):
        ids = [sample.sample_id for sample in samples]
        raise ValueError(f"sample ids must be unique; repeated: {sorted({i for i in ids if ids.count(i) > 1})}")
    return by_id


def _generator(seed: int, sample: Sample) -> np.random.Generator:
    digest = blake2b(f"{seed}\0{sample.episode}\0{sample.sample_id}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def _check_choice(name: str, value: str, literal: object) -> None:
    choices = get_args(literal)
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
