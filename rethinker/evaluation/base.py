"""What a base model brings to Forced Rethinking: its first pass, its second look when forced, and what that adds.

Whether a second look is worth more than just another sample is the question: of the wrong first responses, the share
that a forced continuation puts right is set beside the share that an independent second sample gets right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rethinker.config import RethinkConfig
from rethinker.evaluation.evaluate import GradeMany, evaluate
from rethinker.policy.loading import Policy
from rethinker.rethink import TRIGGERS
from rethinker.rollout.base import RolloutEngine
from rethinker.types import Query, Sampling


@dataclass(frozen=True)
class BaseMeasures:
    """Shares in [0, 1]; "sampled" at temperature 1, the second look at ``RethinkConfig``'s temperature.

    ``table``: one row a kind and level, columns category, level, queries, first, first_greedy, forced.
    """

    queries: int
    samples: int  # a query
    first_sampled: float
    first_greedy: float
    forced_sampled: float
    forced_greedy: float
    wrong_to_right: float  # of the wrong first responses: right after a forced second look
    wrong_to_right_resampled: float  # of the same: right in an independent second sample
    right_to_wrong: float
    right_to_wrong_resampled: float
    reflection: float  # share of first responses that take a second look by themselves
    finished: float  # share of first responses that end with EOS
    table: pd.DataFrame


def measure_base(
    engine: RolloutEngine,
    policy: Policy,
    queries: Sequence[Query],
    *,
    grade_many: GradeMany,
    samples: int = 4,
    max_new_tokens: int = 160,
    seed: int = 0,
) -> BaseMeasures:
    """Answer ``queries`` once greedily and ``samples`` times by sampling, then force a second look on every response.

    Raises ValueError for fewer than two samples: the independent second sample of one is the next one.
    """
    if samples < 2:
        raise ValueError(f"samples={samples}: comparing with an independent second sample needs at least 2")
    ids = {kind: tuple(policy.tokenizer(text)["input_ids"]) for kind, text in TRIGGERS.items()}
    rows = evaluate(
        engine,
        queries,
        modes=("plain", "forced"),
        samples=samples,
        sampling=Sampling(temperature=1.0, top_p=1.0, max_new_tokens=max_new_tokens),
        rethink=RethinkConfig(),
        trigger_ids=ids,
        eos_token_id=policy.eos_id,
        decode=policy.decode,
        seed=seed,
        grade_many=grade_many,
    ).rows
    plain, forced = (rows[(rows["mode"] == mode) & ~rows["greedy"]] for mode in ("plain", "forced"))
    plain_greedy, forced_greedy = (rows[(rows["mode"] == mode) & rows["greedy"]] for mode in ("plain", "forced"))
    # The independent second sample of sample i is sample i + 1 (of the last: the first).
    grid = plain.pivot(index="qid", columns="index", values="correct").to_numpy(dtype=bool)
    first, second = grid, np.roll(grid, -1, axis=1)
    return BaseMeasures(
        queries=len(queries),
        samples=samples,
        first_sampled=float(first.mean()),
        first_greedy=float(plain_greedy["correct"].mean()),
        forced_sampled=float(forced["correct"].mean()),
        forced_greedy=float(forced_greedy["correct"].mean()),
        wrong_to_right=float(forced.loc[~forced["first_correct"], "correct"].mean()),
        wrong_to_right_resampled=float(second[~first].mean()),
        right_to_wrong=float(1 - forced.loc[forced["first_correct"], "correct"].mean()),
        right_to_wrong_resampled=float(1 - second[first].mean()),
        reflection=float(plain["reflects"].mean()),
        finished=float(plain["finished"].mean()),
        table=_by_kind(plain, forced, plain_greedy),
    )


def _by_kind(plain: pd.DataFrame, forced: pd.DataFrame, plain_greedy: pd.DataFrame) -> pd.DataFrame:
    keys = ["category", "level"]
    table = pd.DataFrame(
        {
            "queries": plain.groupby(keys, sort=False)["qid"].nunique(),
            "first": plain.groupby(keys, sort=False)["correct"].mean(),
            "first_greedy": plain_greedy.groupby(keys, sort=False)["correct"].mean(),
            "forced": forced.groupby(keys, sort=False)["correct"].mean(),
        }
    )
    return table.reset_index()
