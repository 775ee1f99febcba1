"""First and second looks: one code path for training, evaluation and notebooks.

A first look is a response y1, graded. A second look is the trajectory y1 + trigger + y2 of Forced Rethinking (paper,
section 3.3), graded as a whole. ``rethink.py`` decides which responses get one and which trajectories are kept.
Seeds are functions of the request, supplied by the caller, so that a look depends neither on the other queries of a
call nor on the number of ranks; results are paired by id, never by position.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

from rethinker.config import RethinkConfig
from rethinker.grading import grade_many
from rethinker.policy.policy import Policy
from rethinker.policy.seam import before_answer, natural_seam
from rethinker.rethink import TRIGGERS, Join, RethinkPlan, choose, eligible, mark_kept, splice
from rethinker.rollout.base import Responder
from rethinker.types import Grade, Group, Query, Request, Sample, Sampling

GradeMany = Callable[[list[tuple[str, str, str]]], list[Grade]]  # (response text, gold answer, question) each
Timed = Callable[[str], AbstractContextManager[Any]]  # a context that measures the seconds of what it names


def first_looks(
    engine: Responder,
    policy: Policy,
    queries: Sequence[Query],
    n: int,
    sampling: Sampling,
    *,
    seed: Callable[[Query], int],
    episode: int = 0,
    labels: Sequence[str] = (),
    grade: GradeMany = grade_many,
    timed: Timed = nullcontext,
) -> list[Group]:
    """A group of ``n`` graded first responses for every query; the reward is the correctness (paper: binary).

    Sample ids are "<episode>/<qid>/<label>"; ``labels`` are the numbers from 0 unless given.
    """
    if not queries:
        return []
    requests = [Request(query.qid, query, seed(query), n) for query in queries]
    with timed("rollout"):
        responses = engine.generate(requests, sampling)
    for query in queries:
        assert len(responses[query.qid]) == n, f"query {query.qid}: {len(responses[query.qid])} of {n} responses"
    pairs = [(query, response) for query in queries for response in responses[query.qid]]
    with timed("grade"):
        verdicts = grade([(response.text, query.answer, query.question) for query, response in pairs])
    groups = []
    for index, query in enumerate(queries):
        own = slice(index * n, (index + 1) * n)
        samples = tuple(
            Sample(
                sample_id=f"{episode}/{query.qid}/{label}",
                query=query,
                response=response,
                grade=verdict,
                reward=float(verdict.correct),
                episode=episode,
                sampled_mask=(True,) * len(response.token_ids),
                prompt_tokens=len(policy.prompt(query).ids),
            )
            for label, (_, response), verdict in zip(labels or range(n), pairs[own], verdicts[own], strict=True)
        )
        groups.append(Group(query, samples, tuple(sample.grade.correct for sample in samples)))
    return groups


def plan_second_looks(
    policy: Policy,
    firsts: Sequence[Sample],
    options: RethinkConfig,
    max_new_tokens: int,
    *,
    seed: int,
    fraction: float | None = None,
    triggers: Sequence[str] = tuple(TRIGGERS),
) -> list[RethinkPlan]:
    """``rethink.choose`` among first responses with the settings ``options``; ``fraction`` overrides theirs."""
    return choose(
        firsts,
        options.fraction if fraction is None else fraction,
        trigger_ids={kind: encode_trigger(policy, kind) for kind in triggers},
        seed=seed,
        trigger_choice=options.trigger_choice,
        cut_answer=options.cut_answer,
        join=joiner(policy, options.seam),
        **_limits(policy, options, max_new_tokens),
    )


def count_eligible(policy: Policy, firsts: Sequence[Sample], options: RethinkConfig, max_new_tokens: int) -> int:
    """How many first responses ``plan_second_looks`` chooses among."""
    longest = max(len(encode_trigger(policy, kind)) for kind in TRIGGERS)
    return len(eligible(firsts, trigger_tokens=longest, **_limits(policy, options, max_new_tokens)))


def _limits(policy: Policy, options: RethinkConfig, max_new_tokens: int) -> dict[str, Any]:
    return {
        "eos_token_id": policy.eos_ids,
        "min_second_look_tokens": options.min_second_look_tokens,
        "max_new_tokens": max_new_tokens,
        "max_first_look_tokens": options.max_first_look_tokens,
        "skip_reflective": options.skip_reflective,
    }


def joiner(
    policy: Policy, seam: Literal["natural", "spliced"] = "natural", triggers: Mapping[str, str] = TRIGGERS
) -> Join:
    """How a trigger (kind -> text) is put behind a y1 in the tokens of ``policy``; see ``RethinkConfig``."""

    def join(first_ids: tuple[int, ...], kind: str, cut: bool) -> tuple[int, tuple[int, ...]]:
        if cut:
            first_ids = first_ids[: before_answer(first_ids, policy.decode)] or first_ids
        if seam == "spliced":
            return len(first_ids), policy.encode(triggers[kind])
        return natural_seam(first_ids, triggers[kind], encode=policy.encode, decode=policy.decode)

    return join


def second_looks(
    engine: Responder,
    policy: Policy,
    firsts: Sequence[Sample],
    plans: Sequence[RethinkPlan],
    sampling: Sampling,
    *,
    seed: Callable[[str], int],
    grade: GradeMany = grade_many,
) -> dict[str, Sample]:
    """The graded trajectory y1 + trigger + y2 of every plan, by the sample id of its y1."""
    if not plans:
        return {}
    by_id = {first.sample_id: first for first in firsts}
    requests = [
        Request(plan.sample_id, by_id[plan.sample_id].query, seed(plan.sample_id), prefix_ids=plan.prefix_ids)
        for plan in plans
    ]
    found = engine.generate(requests, sampling)
    seconds = [found[plan.sample_id][0] for plan in plans]
    texts = [policy.decode(plan.prefix_ids + second.token_ids) for plan, second in zip(plans, seconds, strict=True)]
    queries = [request.query for request in requests]
    grades = grade([(text, query.answer, query.question) for text, query in zip(texts, queries, strict=True)])
    return {
        plan.sample_id: splice(by_id[plan.sample_id], plan, second, verdict, decode=policy.decode)
        for plan, second, verdict in zip(plans, seconds, grades, strict=True)
    }


def mark_second_looks(group: Group, trajectories: Sequence[Sample], options: RethinkConfig) -> list[Sample]:
    """``rethink.mark_kept`` with the settings ``options``."""
    return mark_kept(
        group,
        trajectories,
        options.max_per_query,
        options.nll_on,
        options.keep,
        (options.min_kept_tokens, options.max_kept_tokens),
    )


def encode_trigger(policy: Policy, kind: str) -> tuple[int, ...]:
    """Token ids of the trigger ``kind``, a key of TRIGGERS."""
    return policy.encode(TRIGGERS[kind])
