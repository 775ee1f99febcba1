"""A run's folder, replay and Forced Rethinking as tables: what notebooks 00, 04 and 05 and their figures show."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from rethinker.config import load_config
from rethinker.evaluation.statistics import clustered, wilson
from rethinker.rundir.paths import RunDir
from rethinker.rundir.reader import load_metrics, load_rollouts

CONTENTS = {
    "config.yaml": "every setting, resolved",
    "provenance.json": "commit, versions, machine, seed, checksums of the data",
    "status.json": "running, stopped or finished, and how far",
    "metrics.jsonl": "one line per episode, optimiser step and validation",
    "rollouts": "every response of every episode, graded",
    "evaluation": "held-out queries: summaries and every response",
    "checkpoints": "Hugging Face folders, and what going on needs",
    "report.html": "all of it, to read",
}


def run_contents(run: str | Path) -> pd.DataFrame:
    """What a run has written: name, what it is, files, kilobytes."""
    rows = []
    for name, words in CONTENTS.items():
        path = Path(run) / name
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        if files:
            size = sum(file.stat().st_size for file in files if not file.is_symlink())
            rows.append({"name": name, "what": words, "files": len(files), "kB": round(size / 1000)})
    return pd.DataFrame(rows)


def buffer_life(run: str | Path) -> pd.DataFrame:
    """The replay buffer of a run, a row per episode: its size, the trained share that came from it, and its ages."""
    rows = load_metrics(run).episodes
    names = ("buffer_size", "effective_before", "effective_after", "share", "age_mean", "age_max", "batch_fill")
    table = rows[["episode", "stage", *(f"replay/{name}" for name in names)]]
    return table.rename(columns={f"replay/{name}": name for name in names})


def draws_by_advantage(run: str | Path) -> pd.DataFrame:
    """How often samples were drawn in the episode that made them, by abs(A), beside what the law expects.

    samples, draws with the 95% interval of their number (Wilson's, of their share of all), ``expected``: the draws that
    fell on an episode's own samples, given to them by abs(A) ** alpha with the stage's ``replay.alpha``. That is exact
    where an episode is one step; of several, samples of the first step can be drawn in the later ones too. The last two
    columns are the same by sample. Samples of groups that agree in correctness are left out: they are never stored,
    also where a price of tokens gives them an advantage. Empty if nothing was drawn.
    """
    names = ["episode", "stage", "qid", "correct", "advantage", "replays"]
    rows = load_rollouts(run, names).dropna(subset=["advantage"])
    verdicts = rows.groupby(["episode", "qid"])["correct"].transform("nunique")
    rows = rows[(rows["advantage"] != 0) & (verdicts > 1)]
    drawn = int(rows["replays"].sum())
    columns = ["abs(A)", "samples", "draws", "low", "high", "expected", "draws a sample", "expected a sample"]
    if not drawn:
        return pd.DataFrame(columns=columns)
    config = load_config(RunDir(run).config)
    alphas = {stage.name: config.for_stage(number).replay.alpha for number, stage in enumerate(config.stages)}
    rows = rows.assign(size=rows["advantage"].astype(float).abs())
    weights = rows["size"] ** rows["stage"].map(alphas)
    shares = weights / weights.groupby(rows["episode"]).transform("sum")
    rows["expected"] = shares * rows.groupby("episode")["replays"].transform("sum")
    found = rows.groupby(rows["size"].round(3).rename("abs(A)")).agg(
        samples=("replays", "size"), draws=("replays", "sum"), expected=("expected", "sum")
    )
    ends = [wilson(int(draws), drawn) for draws in found["draws"]]
    found["low"], found["high"] = ([drawn * end for end in side] for side in zip(*ends, strict=True))
    for name in ("draws", "expected"):
        found[f"{name} a sample"] = found[name] / found["samples"]
    return found.reset_index()[columns]


def trigger_table(run: str | Path) -> pd.DataFrame:
    """Forced second looks of training by trigger: forced, kept, and rescued and lost with 95% intervals.

    rescued: right after it, of the wrong ones; lost: wrong after it, of the right ones. Queries are the clusters.
    """
    names = ["pass", "qid", "trigger", "first_correct", "correct", "kept"]
    rows = load_rollouts(run, names)
    rows = rows[rows["pass"] == "forced"]
    found = []
    for trigger, part in rows.groupby("trigger"):
        first, final = part["first_correct"].astype(bool), part["correct"].astype(bool)
        row: dict[str, object] = {"trigger": trigger, "forced": len(part), "kept": int(part["kept"].astype(bool).sum())}
        for name, chosen, hit in (("rescued", ~first, final), ("lost", first, ~final)):
            by_query = hit[chosen].groupby(part.loc[chosen, "qid"])
            estimate = clustered(by_query.sum().tolist(), by_query.size().tolist())
            row |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
            row[f"{name}_n"] = estimate.n
        found.append(row)
    columns = ["trigger", "forced", "kept"]
    columns += [f"{name}{part}" for name in ("rescued", "lost") for part in ("", "_low", "_high", "_n")]
    return pd.DataFrame(found, columns=columns)
