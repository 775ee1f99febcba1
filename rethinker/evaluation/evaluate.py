"""Evaluation on held-out queries: one greedy and several sampled responses per query, in the modes of the paper's Fig.
7.

- ``plain``: the response as it is. Of a trained rethinker this is the paper's "VL-Rethinker" bar.
- ``forced``: every response is continued after a trigger, those that reflect by themselves included. What cannot be
  continued (empty, cut at the token limit, or less than ``RethinkConfig.min_second_look_tokens`` left) stays as it is.
- ``bound``: wrong responses only are continued. This looks at the label: an upper bound, not a method.

A first response has one continuation, which forced and bound share, so their difference is only the choice. The trigger
is drawn without looking at correctness, whatever ``RethinkConfig.trigger_choice`` says (ours: at test time there is no
label). The final answer is the last one of the whole trajectory, as in training; a second look without an answer
leaves the first one standing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from rethinker.config import RethinkConfig
from rethinker.evaluation.result import COLUMNS, MODES, Evaluation, empty_rows
from rethinker.grading import grade_many
from rethinker.looks import GradeMany, first_looks, plan_second_looks, second_looks
from rethinker.policy.policy import Policy
from rethinker.rethink import contains_reflection
from rethinker.rollout.base import Responder
from rethinker.seeding import stable_seed
from rethinker.types import Query, Sample, Sampling

GREEDY = "greedy"  # the last part of a greedy response's sample id; sampled ones have their number there


def evaluate(
    engine: Responder,
    policy: Policy,
    queries: Sequence[Query],
    *,
    modes: Sequence[str],
    samples: int,
    sampling: Sampling,
    rethink: RethinkConfig,
    seed: int,
    grade: GradeMany = grade_many,
) -> Evaluation:
    """Greedy and ``samples`` sampled responses to every query, in each of ``modes``.

    sampling: of the sampled responses; ``max_new_tokens`` bounds the whole response, a second look included.
    rethink: temperature of a sampled second look (a greedy first response is continued greedily) and
    ``min_second_look_tokens``. A query's result depends on ``seed`` and its qid, not on the other queries: ranks can
    each evaluate a shard and merge (``Evaluation.merge``); an empty shard gives an empty evaluation.
    Raises ValueError for an unknown mode or repeated qids.
    """
    unknown = sorted(set(modes) - set(MODES))
    if unknown or not modes:
        raise ValueError(f"evaluation modes: {unknown or 'none given'}; allowed are {', '.join(MODES)}")
    if samples < 0:
        raise ValueError(f"evaluation samples: {samples}; needs 0 (greedy only) or more")
    firsts = _greedy(engine, policy, queries, sampling, seed, grade)
    if samples:
        groups = first_looks(
            engine,
            policy,
            queries,
            samples,
            sampling,
            seed=lambda query: stable_seed(seed, query.qid, "sampled"),
            grade=grade,
        )
        firsts += [sample for group in groups for sample in group.samples]

    seconds: dict[str, Sample] = {}
    if "forced" in modes or "bound" in modes:
        # Without the mode forced, continuations of right responses would be generated for nothing.
        continued = [first for first in firsts if "forced" in modes or not first.grade.correct]
        always = replace(
            rethink, trigger_choice="blind", skip_reflective=False, max_first_look_tokens=None, cut_answer=0.0
        )
        for greedy, temperature in ((True, 0.0), (False, rethink.temperature)):
            chosen = [first for first in continued if _is_greedy(first.sample_id) == greedy]
            plans = plan_second_looks(
                policy, chosen, always, sampling.max_new_tokens, seed=stable_seed(seed, "trigger"), fraction=1.0
            )
            seconds |= second_looks(
                engine,
                policy,
                chosen,
                plans,
                replace(sampling, temperature=temperature, top_p=1.0 if greedy else sampling.top_p),
                seed=lambda sample_id: stable_seed(seed, sample_id, "second look"),
                grade=grade,
            )

    choices = {
        "plain": firsts,
        "forced": [seconds.get(first.sample_id, first) for first in firsts],
        "bound": [first if first.grade.correct else seconds.get(first.sample_id, first) for first in firsts],
    }
    wanted = tuple(mode for mode in MODES if mode in modes)
    rows = _rows((mode, sample) for mode in wanted for sample in choices[mode])
    settings = {
        "seed": seed,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_new_tokens": sampling.max_new_tokens,
        "rethink_temperature": rethink.temperature,
        "min_second_look_tokens": rethink.min_second_look_tokens,
        "seam": rethink.seam,
    }
    return Evaluation(rows, wanted, samples, settings)


def validate(
    engine: Responder,
    policy: Policy,
    queries: Sequence[Query],
    *,
    sampling: Sampling,
    seed: int,
    grade: GradeMany = grade_many,
) -> Evaluation:
    """One greedy plain response per query, for validation during training; see ``Evaluation.validation_metrics``."""
    firsts = _greedy(engine, policy, queries, sampling, seed, grade)
    settings = {"seed": seed, "max_new_tokens": sampling.max_new_tokens}
    return Evaluation(_rows(("plain", first) for first in firsts), ("plain",), 0, settings)


def _greedy(
    engine: Responder,
    policy: Policy,
    queries: Sequence[Query],
    sampling: Sampling,
    seed: int,
    grade: GradeMany,
) -> list[Sample]:
    """A greedy first response to every query."""
    groups = first_looks(
        engine,
        policy,
        queries,
        1,
        replace(sampling, temperature=0.0, top_p=1.0),
        seed=lambda query: stable_seed(seed, query.qid, GREEDY),
        labels=(GREEDY,),
        grade=grade,
    )
    return [sample for group in groups for sample in group.samples]


def _is_greedy(sample_id: str) -> bool:
    return sample_id.endswith(f"/{GREEDY}")


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
