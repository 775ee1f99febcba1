"""Does the policy choose where to think twice? From graded responses: where second looks are taken, and what they cost.

A response takes a second look where it reflects by itself or is forced. Its first look is what stands before that; the
answer boxed there is graded. A response without a second look is its own first look. Responses that reflect before any
answer have no first look to judge (``first_correct`` is missing): they are in the shares of second looks, and in
nothing that needs the verdict.

The decision is binary, so the AUC of "takes a second look" against "the first look was wrong" within a cell is
(1 + hit rate - false-alarm rate) / 2, and 1/2 for a habit that ignores correctness.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from rethinker.evaluation.statistics import clustered
from rethinker.grading import extract_boxed, grade_many
from rethinker.rethink import REFLECTION_PATTERN

CELLS = ("category", "level")


def looks(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per response: qid, category, level, mode, correct, tokens, ``second`` (bool) and ``first_correct`` (1.0,
    0.0; NaN: no answer before the second look).

    ``rows``: of an evaluation (``evaluation.result.COLUMNS``), or of rollouts (``glossary.ROLLOUT_COLUMNS``), of which
    the first responses count, as mode "plain".
    """
    rows = rows.reset_index(drop=True)  # of several files together, an index may repeat
    if "pass" in rows:
        nothing = pd.Series(None, index=rows.index, dtype="object")
        rows = rows[rows["pass"] == "first"].assign(mode="plain", trigger=nothing, first_text=rows["text"])
    forced, reflects = rows["trigger"].notna(), rows["reflects"].astype(bool)
    first = rows["correct"].astype(float)
    if forced.any():
        first = first.where(~forced, rows["first_correct"].astype(float))
    spontaneous = reflects & ~forced
    if spontaneous.any():
        first = first.mask(spontaneous, _before_reflection(rows[spontaneous]))
    kept = rows[["qid", "category", "level", "mode", "correct", "tokens"]].astype({"correct": bool})
    return kept.assign(second=forced | reflects, first_correct=first).reset_index(drop=True)


def _before_reflection(rows: pd.DataFrame) -> pd.Series:
    """Whether the answer before the reflection is right; NaN where there is none. Equal answers are graded once."""
    texts = [text[: match.start()] for text in rows["text"] if (match := REFLECTION_PATTERN.search(text))]
    assert len(texts) == len(rows), "a response that reflects has a word of reflection"
    keys = list(zip(map(extract_boxed, texts), rows["gold"], rows["question"], strict=True))
    cases = {key: (text, key[1], key[2]) for key, text in zip(keys, texts, strict=True) if key[0] is not None}
    verdicts = dict(zip(cases, (float(grade.correct) for grade in grade_many(list(cases.values()))), strict=True))
    return pd.Series([verdicts.get(key, math.nan) for key in keys], index=rows.index, dtype=float)


def second_looks_by(table: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Share of responses with a second look, split by columns of ``looks`` (say ``["category", "first_correct"]``).

    Columns ``by``, share, low, high (95%, queries as clusters), n responses, clusters queries. Missing first verdicts
    are left out where that is a column of ``by``.
    """
    rows = []
    for key, part in table.groupby(list(by)) if by else [((), table)]:
        counts = part.groupby("qid")["second"].agg(["sum", "size"])
        estimate = clustered(counts["sum"].tolist(), counts["size"].tolist()).to_dict()
        rows.append(dict(zip(by, key, strict=True)) | {"share": estimate.pop("value")} | estimate)
    return pd.DataFrame(rows, columns=[*by, "share", "low", "high", "n", "clusters"])


def auc(scores: Sequence[float], positive: Sequence[bool]) -> float:
    """P(score of a positive > score of a negative), ties one half; NaN without a pair. By ranks (Mann and Whitney)."""
    hit = np.asarray(positive, dtype=bool)
    ones, zeros = int(hit.sum()), int((~hit).sum())
    if not ones or not zeros:
        return math.nan
    ranks = pd.Series(np.asarray(scores, dtype=float)).rank().to_numpy()
    return float((ranks[hit].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def knows_when_wrong(table: pd.DataFrame, within: Sequence[str] = (), score: str = "second") -> float:
    """AUC of "takes a second look", or of another column ``score``, against "the first look was wrong".

    ``within``: columns whose cells are judged one by one, and averaged with their pairs (wrong times right) as weights.
    Between cells is then no evidence: a rule per cell has 1/2. NaN without a pair.
    """
    known = table.dropna(subset=["first_correct"])
    total = pairs = 0.0
    for _, part in known.groupby(list(within)) if within else [((), known)]:
        wrong = part["first_correct"] == 0
        count = int(wrong.sum()) * int((~wrong).sum())
        if count:
            total += count * auc(part[score], wrong)
            pairs += count
    return total / pairs if pairs else math.nan


def rates(table: pd.DataFrame) -> dict[str, float]:
    """Shares of wrong and of right first looks that got a second look, ``wrong`` and ``right``, and of all, ``all``."""
    known = table.dropna(subset=["first_correct"])
    wrong = known["first_correct"] == 0
    parts = {"wrong": known[wrong], "right": known[~wrong], "all": known}
    return {name: float(part["second"].mean()) if len(part) else math.nan for name, part in parts.items()}


def best_rule(table: pd.DataFrame, by: Sequence[str] = ("category",), share: float | None = None) -> dict[str, float]:
    """What the best rule that sees ``by`` only would do with the same share of second looks (``share``; None: theirs).

    A rule gives every cell a probability of a second look. The best one, known in hindsight from the same responses,
    takes the cells in order of their share of wrong first looks until the share is used up, the last one in part: no
    other rule finds more wrong first looks. Keys as in ``rates``, and ``cells`` that it looks at twice (in part: its
    share).
    """
    known = table.dropna(subset=["first_correct"])
    wrong = (known["first_correct"] == 0).groupby([known[name] for name in by]).agg(["sum", "size"])
    wrong = wrong.assign(rate=wrong["sum"] / wrong["size"]).sort_values("rate", ascending=False, kind="stable")
    budget = len(known) * (float(known["second"].mean()) if share is None else share)
    before = wrong["size"].cumsum() - wrong["size"]
    taken = ((budget - before) / wrong["size"]).clip(0.0, 1.0)
    hits, alarms = float((taken * wrong["sum"]).sum()), float((taken * (wrong["size"] - wrong["sum"])).sum())
    ones, zeros = int(wrong["sum"].sum()), int((wrong["size"] - wrong["sum"]).sum())
    return {
        "wrong": hits / ones if ones else math.nan,
        "right": alarms / zeros if zeros else math.nan,
        "all": (hits + alarms) / len(known) if len(known) else math.nan,
        "cells": float(taken.sum()),
    }


def frontier(table: pd.DataFrame, by: Sequence[str] = ("mode",)) -> pd.DataFrame:
    """Accuracy over tokens: ``by`` (mode, say; add a column that names the policy), accuracy with its 95% interval
    (queries as clusters), tokens a response, share of second looks, n responses, clusters queries."""
    rows = []
    for key, part in table.groupby(list(by), sort=False):
        counts = part.groupby("qid")["correct"].agg(["sum", "size"])
        estimate = clustered(counts["sum"].tolist(), counts["size"].tolist()).to_dict()
        about = {"accuracy": estimate.pop("value"), "tokens": float(part["tokens"].mean())}
        rows.append(dict(zip(by, key, strict=True)) | about | {"second": float(part["second"].mean())} | estimate)
    return pd.DataFrame(rows, columns=[*by, "accuracy", "tokens", "second", "low", "high", "n", "clusters"])
