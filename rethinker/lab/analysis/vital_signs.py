"""What tells a run that goes wrong from one that does not: a few metrics of several runs, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from rethinker.rundir.reader import load_metrics

EPISODE = ("accuracy/first", "queries/effective", "gap/mean")
STEP = ("policy/entropy", "policy/clip_fraction", "policy/grad_norm")  # means over an episode's updates
SHARES = {"no answer": "grader/no_answer", "truncated": "rollout/truncated"}  # counts, here by responses


def vital_signs(runs: Mapping[str, str | Path]) -> pd.DataFrame:
    """A row per run and episode: its label, the metrics above, and ``skipped``, the steps without any signal.

    Metrics of steps are NaN where an episode made no update.
    """
    tables = []
    for label, run in runs.items():
        metrics = load_metrics(run)
        table = metrics.episodes[["episode", *EPISODE]].copy()
        steps = metrics.steps.groupby("episode")[list(STEP)].mean().astype(float)
        table = table.join(steps, on="episode")
        for name, count in SHARES.items():
            table[name] = metrics.episodes[count] / metrics.episodes["rollout/responses"]
        table["skipped"] = metrics.episodes["replay/skipped_steps"]
        tables.append(table.assign(run=label))
    return pd.concat(tables, ignore_index=True).astype({name: float for name in (*EPISODE, *SHARES)})
