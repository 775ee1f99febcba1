"""Small worked examples of the algorithm's parts, as tables: the numbers behind notebooks 01, 02 and 04.

Everything is computed by the library's own functions (``grpo``, ``replay``, ``grading``); nothing here is a second
implementation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rethinker.evaluation.statistics import wilson
from rethinker.grading import grade_many
from rethinker.grpo import Aggregation, Scale, group_advantages, policy_loss
from rethinker.replay import SelectiveSampleReplay, draw_probabilities
from rethinker.seeding import stable_seed
from rethinker.types import Query

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
    """Query number ``place``, from 0. ValueError where there is none."""
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


def advantage_table(rewards: Sequence[Sequence[float]]) -> pd.DataFrame:
    """A row a group: its rewards, mean, standard deviation (Bessel's), and the advantages with and without division."""
    rewards_PG = torch.tensor(rewards, dtype=torch.float64)
    advantages = {scale: group_advantages(rewards_PG, scale) for scale in get_args(Scale)}

    def words(row: Tensor) -> str:
        return "  ".join(f"{value:+.3f}" if value else "0" for value in row.tolist())

    return pd.DataFrame(
        {
            "rewards": ["  ".join(f"{value:g}" for value in row) for row in rewards_PG.tolist()],
            "mean": rewards_PG.mean(1).tolist(),
            "std": rewards_PG.std(1, correction=1).tolist(),
            **{f"A ({scale})": [words(row) for row in values] for scale, values in advantages.items()},
            "effective": [bool((row != 0).any()) for row in advantages["std"]],
        }
    )


@dataclass(frozen=True)
class ToyBatch:
    """Two responses of the same query, three and two tokens long; log-probs (B, T) in nats."""

    logprobs_BT: Tensor
    behavior_logprobs_BT: Tensor
    advantages_B: Tensor
    mask_BT: Tensor


def toy_batch() -> ToyBatch:
    """Round probabilities, so that ratios are 1.5, 1 and 0.5: the numbers of notebook 02 can be checked by hand."""
    now = torch.tensor([[0.3, 0.4, 0.25], [0.6, 0.2, 1.0]], dtype=torch.float64)
    before = torch.tensor([[0.2, 0.4, 0.5], [0.4, 0.4, 1.0]], dtype=torch.float64)
    mask_BT = torch.tensor([[True, True, True], [True, True, False]])
    return ToyBatch(now.log(), before.log(), torch.tensor([1.5, -0.5], dtype=torch.float64), mask_BT)


def objective_table(toy: ToyBatch, clip_low: float, clip_high: float) -> pd.DataFrame:
    """A row a token: the ratio, both candidates of the minimum, the loss, and its gradient by autograd.

    Loss and gradient are the token's own (no mean over tokens or samples): the gradient is -ratio * A, or 0 where the
    clipped candidate is the smaller one.
    """
    rows = []
    for sample, token in toy.mask_BT.nonzero().tolist():
        logprob_BT = toy.logprobs_BT[sample, token].reshape(1, 1).clone().requires_grad_(True)
        behavior_BT = toy.behavior_logprobs_BT[sample, token].reshape(1, 1)
        advantage_B = toy.advantages_B[sample].reshape(1)
        loss, _ = policy_loss(
            logprob_BT,
            behavior_BT,
            advantage_B,
            torch.ones(1, 1, dtype=torch.bool),
            clip_low=clip_low,
            clip_high=clip_high,
        )
        (gradient,) = torch.autograd.grad(loss, logprob_BT)
        ratio, advantage = (logprob_BT - behavior_BT).exp().item(), advantage_B.item()
        clipped = min(max(ratio, 1 - clip_low), 1 + clip_high)
        rows.append(
            {
                "response": sample,
                "token": token,
                "p before": behavior_BT.exp().item(),
                "p now": logprob_BT.exp().item(),
                "A": advantage,
                "ratio": ratio,
                "ratio * A": ratio * advantage,
                "clipped * A": clipped * advantage,
                "loss": loss.item(),
                "d loss / d log p": gradient.item(),
            }
        )
    return pd.DataFrame(rows).round(4)


def aggregation_table(toy: ToyBatch, clip_low: float, clip_high: float, max_length: int) -> pd.DataFrame:
    """The batch's loss by aggregation, whole and as the sum of one micro-batch a response; they agree."""
    count, tokens = toy.mask_BT.shape[0], int(toy.mask_BT.sum())

    def share(rows: slice, aggregation: Aggregation) -> float:
        loss, _ = policy_loss(
            toy.logprobs_BT[rows],
            toy.behavior_logprobs_BT[rows],
            toy.advantages_B[rows],
            toy.mask_BT[rows],
            clip_low=clip_low,
            clip_high=clip_high,
            aggregation=aggregation,
            max_length=max_length,
            global_sequences=count,
            global_tokens=tokens,
        )
        return loss.item()

    divides = {
        "sequence_mean": f"each response by its own tokens, then by {count} responses",
        "token_mean": f"by {tokens} tokens",
        "constant": f"by {count} responses x {max_length} tokens",
    }
    rows = [
        {
            "aggregation": name,
            "divides": divides[name],
            "whole batch": share(slice(None), name),
            "sum of micro-batches": sum(share(slice(row, row + 1), name) for row in range(count)),
        }
        for name in get_args(Aggregation)
    ]
    return pd.DataFrame(rows)


def advantages_by_correct(group_size: int) -> pd.DataFrame:
    """A row a number of right responses (1 to G - 1) and scale: the advantage of a right and of a wrong response."""
    rows = []
    for right in range(1, group_size):
        rewards_PG = torch.tensor([[1.0] * right + [0.0] * (group_size - right)], dtype=torch.float64)
        for scale in get_args(Scale):
            advantages = group_advantages(rewards_PG, scale)[0]
            rows.append(
                {"right": right, "scale": scale, "A right": advantages[0].item(), "A wrong": advantages[-1].item()}
            )
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class ToySample:
    """What replay asks of a sample, and a name to recognise it by."""

    name: str
    advantage: float
    replayed: bool = False


def toy_samples(group_size: int = 8) -> list[ToySample]:
    """A right response of each group with 1 to G - 1 right ones: every advantage that a right one can have."""
    table = advantages_by_correct(group_size)
    right = table[table["scale"] == "std"]
    return [
        ToySample(f"{row['right']} of {group_size} right", float(row["A right"])) for row in right.to_dict("records")
    ]


def algorithm_one(samples: Sequence[ToySample], ineffective: int, alpha: float, seed: int) -> pd.DataFrame:
    """Algorithm 1 on one raw batch: ``samples`` and ``ineffective`` others with advantage 0; the batch trained on."""
    replay: SelectiveSampleReplay[ToySample] = SelectiveSampleReplay(alpha=alpha, seed=seed)
    replay.start_episode()
    raw = [*samples, *(ToySample("unanimous group", 0.0) for _ in range(ineffective))]
    batch = replay.select(raw)
    return pd.DataFrame(
        {
            "place": range(1, len(batch) + 1),
            "sample": [sample.name for sample in batch],
            "abs(A)": [abs(sample.advantage) for sample in batch],
            "from": ["the buffer" if sample.replayed else "this batch" for sample in batch],
        }
    ).round(3)


def alpha_sweep(samples: Sequence[ToySample], alphas: Sequence[float], draws: int, seed: int) -> pd.DataFrame:
    """The law against ``draws`` draws of the real buffer, a row a sample and alpha.

    probability: the closed form; share: how often it was drawn, with its 95% Wilson interval; z: their distance in
    standard errors.
    """
    rows = []
    advantages = [sample.advantage for sample in samples]
    for alpha in alphas:
        replay: SelectiveSampleReplay[ToySample] = SelectiveSampleReplay(alpha=alpha, seed=stable_seed(seed, alpha))
        replay.start_episode()
        replay.select(samples)
        drawn = replay.select([ToySample("unanimous group", 0.0)] * draws)
        counts = {sample.name: 0 for sample in samples}
        for sample in drawn:
            counts[sample.name] += 1
        for sample, probability in zip(samples, draw_probabilities(advantages, alpha), strict=True):
            count = counts[sample.name]
            low, high = wilson(count, draws)
            error = np.sqrt(probability * (1 - probability) / draws)
            rows.append(
                {
                    "alpha": alpha,
                    "sample": sample.name,
                    "abs(A)": abs(sample.advantage),
                    "probability": probability,
                    "share": count / draws,
                    "low": low,
                    "high": high,
                    "z": (count / draws - probability) / error if error else 0.0,
                }
            )
    return pd.DataFrame(rows)
