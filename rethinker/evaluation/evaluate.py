"""Evaluation on held-out queries: one greedy and several sampled responses a query, in the modes of the paper's Fig. 7.

- ``plain``: the response as it is. Of a trained rethinker this is the paper's "VL-Rethinker" bar.
- ``forced``: every response is continued after a trigger, those that reflect by themselves included. What cannot be
  continued (empty, cut at the token limit, or less than ``RethinkConfig.room_tokens`` left) stays as it is.
- ``bound``: wrong responses only are continued. This looks at the label: an upper bound, not a method.

A first response has one continuation, which forced and bound share, so their difference is only the choice. The trigger
is drawn without looking at correctness, whatever ``RethinkConfig.trigger_choice`` says (ours: at test time there is no
label). The final answer is the last one of the whole trajectory, as in training; a second look without an answer
leaves the first one standing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from rethinker.config.settings import RethinkConfig
from rethinker.evaluation.result import COLUMNS, MODES, Evaluation, empty_rows
from rethinker.rethink import RethinkPlan, choose, contains_reflection, splice
from rethinker.rollout.base import RolloutEngine
from rethinker.seeding import stable_seed
from rethinker.types import Grade, Query, Request, Response, Sample, Sampling

GradeMany = Callable[[list[tuple[str, str, str]]], list[Grade]]  # (response text, gold answer, question) each
GREEDY = "greedy"  # the last part of a greedy response's sample id; sampled ones have their number there


def evaluate(
    engine: RolloutEngine,
    queries: Sequence[Query],
    *,
    modes: Sequence[str],
    samples: int,
    sampling: Sampling,
    rethink: RethinkConfig,
    trigger_ids: Mapping[str, tuple[int, ...]],
    eos_token_id: int,
    decode: Callable[[Sequence[int]], str],
    seed: int,
    grade_many: GradeMany,
) -> Evaluation:
    """Greedy and ``samples`` sampled responses to every query, in each of ``modes``.

    sampling: of the sampled responses; ``max_new_tokens`` bounds the whole response, a second look included.
    rethink: temperature of a sampled second look (a greedy first response is continued greedily) and ``room_tokens``.
    trigger_ids: the tokens of each kind of trigger. decode: token ids to text without special tokens.
    A query's result depends on ``seed`` and its qid, not on the other queries: ranks can each evaluate a shard and
    merge (``Evaluation.merge``); an empty shard gives an empty evaluation.
    Raises ValueError for an unknown mode, repeated qids, or an engine that leaves a request without its responses.
    """
    unknown = sorted(set(modes) - set(MODES))
    if unknown or not modes:
        raise ValueError(f"evaluation modes: {unknown or 'none given'}; allowed are {', '.join(MODES)}")
    if samples < 0:
        raise ValueError(f"evaluation samples: {samples}; needs 0 (greedy only) or more")
    greedy = replace(sampling, temperature=0.0, top_p=1.0)
    firsts = _first_responses(engine, queries, greedy, 1, seed, grade_many, greedy=True)
    if samples:
        firsts += _first_responses(engine, queries, sampling, samples, seed, grade_many, greedy=False)

    seconds: dict[str, Sample] = {}
    if "forced" in modes or "bound" in modes:
        # Without the mode forced, continuations of right responses would be generated for nothing.
        continued = [first for first in firsts if "forced" in modes or not first.grade.correct]
        plans = choose(
            continued,
            1.0,
            trigger_ids=trigger_ids,
            eos_token_id=eos_token_id,
            room_tokens=rethink.room_tokens,
            max_new_tokens=sampling.max_new_tokens,
            seed=stable_seed(seed, "trigger"),
            skip_reflective=False,
        )
        second = replace(sampling, temperature=rethink.temperature)
        seconds = _second_looks(engine, continued, plans, greedy, second, decode, seed, grade_many)

    choices = {
        "plain": firsts,
        "forced": [seconds.get(first.sample_id, first) for first in firsts],
        "bound": [first if first.grade.correct else seconds.get(first.sample_id, first) for first in firsts],
    }
    chosen = tuple(mode for mode in MODES if mode in modes)
    rows = _rows((mode, sample) for mode in chosen for sample in choices[mode])
    settings = {
        "seed": seed,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_new_tokens": sampling.max_new_tokens,
        "rethink_temperature": rethink.temperature,
        "room_tokens": rethink.room_tokens,
    }
    return Evaluation(rows, chosen, samples, settings)


def validate(
    engine: RolloutEngine, queries: Sequence[Query], *, sampling: Sampling, seed: int, grade_many: GradeMany
) -> Evaluation:
    """One greedy plain response a query, for validation during training; see ``Evaluation.validation_metrics``."""
    greedy = replace(sampling, temperature=0.0, top_p=1.0)
    firsts = _first_responses(engine, queries, greedy, 1, seed, grade_many, greedy=True)
    settings = {"seed": seed, "max_new_tokens": sampling.max_new_tokens}
    return Evaluation(_rows(("plain", first) for first in firsts), ("plain",), 0, settings)


def _is_greedy(sample_id: str) -> bool:
    return sample_id.endswith(f"/{GREEDY}")


def _generate(engine: RolloutEngine, requests: list[Request], sampling: Sampling) -> list[tuple[Response, ...]]:
    if not requests:
        return []
    results = engine.generate(requests, sampling)
    for request in requests:
        got = len(results.get(request.request_id, ()))
        if got != request.n:
            raise ValueError(f"request {request.request_id!r}: the engine returned {got} of {request.n} responses")
    return [results[request.request_id] for request in requests]


def _grade(grade_many: GradeMany, items: list[tuple[str, Query]]) -> list[Grade]:
    grades = grade_many([(text, query.answer, query.question) for text, query in items]) if items else []
    if len(grades) != len(items):
        raise ValueError(f"the grader returned {len(grades)} verdicts for {len(items)} responses")
    return grades


def _first_responses(
    engine: RolloutEngine,
    queries: Sequence[Query],
    sampling: Sampling,
    n: int,
    seed: int,
    grade_many: GradeMany,
    *,
    greedy: bool,
) -> list[Sample]:
    """``n`` graded first responses a query as samples of episode 0, with the sample ids that name their rows."""
    seen: set[str] = set()
    for query in queries:
        if query.qid in seen:
            raise ValueError(f"qid {query.qid!r} occurs twice in the queries of an evaluation; make the qids distinct")
        seen.add(query.qid)
    kind = GREEDY if greedy else "sampled"
    requests = [Request(f"{query.qid}/{kind}", query, stable_seed(seed, query.qid, kind), n) for query in queries]
    results = _generate(engine, requests, sampling)
    items = [
        (f"0/{query.qid}/{GREEDY if greedy else index}", query, response)
        for query, responses in zip(queries, results, strict=True)
        for index, response in enumerate(responses)
    ]
    grades = _grade(grade_many, [(response.text, query) for _, query, response in items])
    return [
        Sample(
            sample_id=sample_id,
            query=query,
            response=response,
            grade=grade,
            reward=float(grade.correct),
            episode=0,
            rollout_logprobs=response.logprobs,
            sampled_mask=(True,) * len(response.token_ids),
        )
        for (sample_id, query, response), grade in zip(items, grades, strict=True)
    ]


def _second_looks(
    engine: RolloutEngine,
    firsts: Sequence[Sample],
    plans: Sequence[RethinkPlan],
    greedy: Sampling,
    second: Sampling,
    decode: Callable[[Sequence[int]], str],
    seed: int,
    grade_many: GradeMany,
) -> dict[str, Sample]:
    """The graded trajectories by sample id."""
    by_id = {first.sample_id: first for first in firsts}
    found: dict[str, Response] = {}
    for is_greedy, sampling in ((True, greedy), (False, second)):
        requests = [
            Request(
                plan.sample_id,
                by_id[plan.sample_id].query,
                stable_seed(seed, plan.sample_id, "second look"),
                prefix_ids=plan.prefix_ids,
            )
            for plan in plans
            if _is_greedy(plan.sample_id) == is_greedy
        ]
        results = _generate(engine, requests, sampling)
        found |= {request.request_id: result[0] for request, result in zip(requests, results, strict=True)}
    items = [(decode(plan.prefix_ids + found[plan.sample_id].token_ids), by_id[plan.sample_id].query) for plan in plans]
    return {
        plan.sample_id: splice(by_id[plan.sample_id], plan, found[plan.sample_id], grade, decode=decode)
        for plan, grade in zip(plans, _grade(grade_many, items), strict=True)
    }


def _rows(samples: Iterable[tuple[str, Sample]]) -> pd.DataFrame:
    rows = [_row(sample, mode) for mode, sample in samples]
    return pd.DataFrame(rows, columns=list(COLUMNS)) if rows else empty_rows()


def _row(sample: Sample, mode: str) -> dict[str, Any]:
    rethinking = sample.rethinking
    first_text = rethinking.first_text if rethinking else sample.response.text
    greedy = _is_greedy(sample.sample_id)
    return {
        "qid": sample.query.qid,
        "category": sample.query.category,
        "level": sample.query.level,
        "mode": mode,
        "greedy": greedy,
        "index": 0 if greedy else int(sample.sample_id.rpartition("/")[2]),
        "text": sample.response.text,
        "tokens": len(sample.response.token_ids),
        "finished": sample.response.finished,
        "correct": sample.grade.correct,
        "extracted": sample.grade.extracted,
        "grade_reason": sample.grade.reason,
        "reflects": contains_reflection(first_text),
        "first_correct": rethinking.first_correct if rethinking else sample.grade.correct,
        "first_text": first_text,
        "trigger": rethinking.trigger if rethinking else None,
        "images": list(sample.query.images),
        "question": sample.query.question,
        "gold": sample.query.answer,
    }
