"""Tables for the notebooks that teach: queries and verdicts (01), tensors of the loss (02), batches and draws (04).

What a table shows is computed in the notebook's cells by the algorithm's own functions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from rethinker.evaluation.statistics import wilson
from rethinker.grading import grade_many
from rethinker.types import Grade, Query, Response, Sample

# (question, response, gold answer, what the case shows)
GRADING_CASES = (
    ("", r"First \boxed{4}. Wait, that is wrong: \boxed{7}.", "7", "the last box counts"),
    ("", r"So the answer is 7.", "7", "no box is wrong, and raises nothing"),
    ("", r"\boxed{\frac{1}{2}}", "0.5", "equal numbers"),
    ("", r"\boxed{x^2+2x+1}", "(x+1)^2", "equal expressions: math-verify, in a worker process"),
    ("", r"\boxed{50\%}", "0.5", "per cent"),
    ("Which? A. red B. blue", r"\boxed{(B)}", "B", "a choice by its letter"),
    ("Which? A. red B. blue", r"\boxed{blue}", "B", "a choice by its text"),
    ("Which? A. red B. blue", r"\boxed{AB}", "A", "and not by how it begins"),
    ("", r"I have \boxed{12", "12", "cut at the token limit: not balanced"),
    ("", r"\boxed{}", "3", "nothing in the box"),
)


def query_at(queries: Sequence[Query], place: int) -> Query:
    """Query number ``place``, from 0. ValueError if there is none."""
    if not 0 <= place < len(queries):
        raise ValueError(f"query={place}: {len(queries)} queries were read; places are 0 to {len(queries) - 1} (limit)")
    return queries[place]


def likely_answers(query: Query) -> list[str]:
    """Responses to try a grader with: the gold answer in a box, without one, in another form, and then revoked."""
    gold = query.answer
    if re.fullmatch(r"-?\d+", gold):
        other = f"{gold}.0"
    elif re.fullmatch(r"[A-Z]", gold):
        other = f"({gold})"
    else:
        other = f" {gold} " if "\\" in gold else rf"\text{{{gold}}}"
    return [rf"\boxed{{{gold}}}", gold, rf"It is \boxed{{{other}}}.", rf"\boxed{{{gold}}}? No: \boxed{{-1}}"]


def query_counts(queries: Sequence[Query]) -> pd.DataFrame:
    """Queries by kind (rows) and level (columns), with sums."""
    frame = pd.DataFrame({"kind": [q.category for q in queries], "level": [q.level for q in queries]})
    return pd.crosstab(frame["kind"], frame["level"], margins=True, margins_name="all")


def grade_table(query: Query, answers: Sequence[str]) -> pd.DataFrame:
    """Typed responses to ``query``, graded: what was extracted, the verdict and its reason."""
    grades = grade_many([(answer, query.answer, query.question) for answer in answers])
    rows = [
        {"response": answer, "gold": query.answer, "extracted": g.extracted, "correct": g.correct, "reason": g.reason}
        for answer, g in zip(answers, grades, strict=True)
    ]
    return pd.DataFrame(rows)


def grading_cases() -> pd.DataFrame:
    """GRADING_CASES, graded."""
    grades = grade_many([(response, gold, question) for question, response, gold, _ in GRADING_CASES])
    rows = [
        {"response": response, "gold": gold, "correct": g.correct, "reason": g.reason, "what it shows": shows}
        for (_, response, gold, shows), g in zip(GRADING_CASES, grades, strict=True)
    ]
    return pd.DataFrame(rows)


def gold_check(queries: Sequence[Query]) -> pd.DataFrame:
    """How each query's own gold answer, boxed, is graded: verdict and reason, with counts. All should be right."""
    grades = grade_many([(rf"\boxed{{{query.answer}}}", query.answer, query.question) for query in queries])
    frame = pd.DataFrame({"correct": [g.correct for g in grades], "reason": [g.reason for g in grades]})
    return frame.value_counts().rename("queries").reset_index()


def group_table(rewards_PG: Tensor, **advantages_PG: Tensor) -> pd.DataFrame:
    """One row per group: its rewards, their mean, and its advantages by the name of their scale."""

    def words(row: Sequence[float], form: str) -> str:
        return "  ".join(format(value, form) if value else "0" for value in row)

    advantages = {
        f"A ({scale})": [words(row, "+.3f") for row in values.tolist()] for scale, values in advantages_PG.items()
    }
    effective = [bool((row != 0).any()) for row in next(iter(advantages_PG.values()))]
    rewards = [words(row, "g") for row in rewards_PG.tolist()]
    return pd.DataFrame({"rewards": rewards, "mean": rewards_PG.mean(1).tolist(), **advantages, "effective": effective})


def token_table(mask_BT: Tensor, **columns_BT: Tensor) -> pd.DataFrame:
    """One row per token where the mask is True: its response, its place, and its value in every column."""
    response, token = mask_BT.nonzero(as_tuple=True)
    columns = {name: values[mask_BT].tolist() for name, values in columns_BT.items()}
    return pd.DataFrame({"response": response.tolist(), "token": token.tolist(), **columns}).round(4)


def toy_sample(name: str, advantage: float) -> Sample:
    """A sample of which only its name (``sample_id``) and its advantage matter."""
    nothing = Response((), (), True, "")
    return Sample(
        sample_id=name,
        query=Query(name, "", ""),
        response=nothing,
        grade=Grade(False, None, ""),
        reward=0.0,
        episode=0,
        sampled_mask=(),
        advantage=advantage,
    )


def batch_table(samples: Sequence[Sample]) -> pd.DataFrame:
    """One row per sample of a batch: its name, the size of its advantage, and whether replay drew it."""
    return pd.DataFrame(
        {
            "sample": [sample.sample_id for sample in samples],
            "abs(A)": [abs(sample.advantage) for sample in samples],
            "from": ["the buffer" if sample.replayed else "this batch" for sample in samples],
        }
    ).round(3)


def draws_table(
    samples: Sequence[Sample],
    probabilities: Mapping[float, NDArray[np.float64]],
    drawn: Mapping[float, Mapping[str, int]],
) -> pd.DataFrame:
    """Draws beside the distribution that they follow, one row per sample and alpha (the keys of both mappings).

    ``drawn``: how often a sample was drawn, by its name. share: of all draws, with its 95% Wilson interval; z: its
    distance from the probability in standard errors.
    """
    rows = []
    for alpha, distribution in probabilities.items():
        draws = sum(drawn[alpha].values())
        for sample, probability in zip(samples, distribution.tolist(), strict=True):
            count = drawn[alpha].get(sample.sample_id, 0)
            low, high = wilson(count, draws)
            error = np.sqrt(probability * (1 - probability) / draws)
            row = {"alpha": alpha, "sample": sample.sample_id, "abs(A)": abs(sample.advantage)}
            row |= {"probability": probability, "share": count / draws, "low": low, "high": high}
            rows.append(row | {"z": (count / draws - probability) / error if error else 0.0})
    return pd.DataFrame(rows)
