"""From the runs of a grid to numbers: tidy rows from run files, means over seeds with intervals, paired differences.

Two kinds of chance are kept apart. Between seeds: Student's t interval over the runs of a label. With one seed there
is none of that; the run's own interval over queries is given instead and named as such. Differences are paired by seed:
the same seed draws the same queries in the same order, so that what the order does cancels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from rethinker.config import RunConfig
from rethinker.evaluation.statistics import over_seeds
from rethinker.lab.ablation.origin import origin
from rethinker.lab.jobs import Job
from rethinker.lab.jobs.files import is_run
from rethinker.rundir.paths import RunDir
from rethinker.rundir.reader import load_evaluations, load_metrics

COLUMNS = {
    "run": "name of the run",
    "label": "labels of all axes, joined by '-': what is compared",
    "seed": "seed of the run",
    "state": "how the run stands, as its job says: 'starting', 'running', 'stopping', 'finished', 'stopped', 'failed'; "
    "'not begun'",
    "planned": "what ends the run: the episodes and budgets of its stages",
    "commit": "of the code, of all starts of the run; '+changes': the code was not as committed",
    "engine": "that generated the responses",
    "processes": "that trained",
    "data": "checksum of all splits",
    "stage": "stage of the run, 'start' before training",
    "episode": "episodes done by then",
    "step": "optimiser updates made by then",
    "measure": "what was measured",
    "value": "the measurement",
    "low": "lower end of its 95% interval over queries, where it has one",
    "high": "upper end",
    "n": "cases behind the value: responses, or episodes",
    "queries": "queries that the responses answer",
}

# Measures of a stage's episodes: how they are summed up, and what they are. The names are the glossary's.
EPISODE_MEASURES = {
    "queries/effective": ("mean", "effective share of queries, mean over the stage's episodes"),
    "replay/effective_after": ("mean", "effective share of the trained samples, mean over the stage's episodes"),
    "reflection/share": ("mean", "share of first responses that reflect by themselves, mean over the stage's episodes"),
    "replay/skipped_steps": ("sum", "steps of the stage without any effective sample"),
    "tokens/generated": ("last", "tokens generated since the run's start"),
    "seconds": ("last", "wall-clock seconds since the run's start, pauses excluded"),
}
NOT_BEGUN = "not begun"  # state of a run without a folder
PROGRESS = "episodes"  # how many have ended: every run has this row
VALIDATION = "validation/accuracy"
TEST = "test/plain/pass@1"
_UNBOUNDED = (PROGRESS, "replay/skipped_steps", "tokens/generated", "seconds")  # all other measures are shares

NOT_MEASURED = "The runs are finished and have no accuracy: neither data.test nor data.validation was set."
NOT_VALIDATED = "The runs were trained without validation: data.validation was not set."

COMPARISON = ("label", "measure", "stage", "value", "low", "high", "interval", "n", "queries", "seeds", "seed_list")
DIFFERENCE = ("baseline", "difference", "difference_low", "difference_high", "pairs")


def run_rows(config: RunConfig) -> list[dict[str, Any]]:
    """The rows of one run from its files: its progress, every validation, every test, the episodes of every stage.

    Tests are ``test/<mode>/<greedy or pass@1>`` and ``test/<mode>/reflection``. Rows have the columns of ``COLUMNS``
    from ``state`` on. Raises ValueError for a broken file.
    """
    folder = config.folder
    state = {"state": Job(folder).status().state if is_run(folder) else NOT_BEGUN, "planned": planned(config)}
    state |= origin(folder)
    begun = {"stage": "start", "episode": 0, "step": 0}
    if not RunDir(folder).metrics.is_file():
        return [state | begun | {"measure": PROGRESS, "value": 0.0}]
    metrics = load_metrics(folder)
    rows: list[dict[str, Any]] = []
    for row in metrics.validations.to_dict("records"):
        at = {"stage": row["stage"], "episode": row["episode"], "step": row["step"], "measure": VALIDATION}
        numbers = {"value": row[VALIDATION], "low": row["validation/low"], "high": row["validation/high"]}
        rows.append(at | numbers | {"n": row["validation/queries"], "queries": row["validation/queries"]})
    ends: dict[str, dict[str, Any]] = {"start": begun}
    for stage, episodes in metrics.episodes.groupby("stage", sort=False):
        ends[stage] = at = {"stage": stage, "episode": episodes["episode"].max(), "step": episodes["step"].max()}
        for measure, (how, _) in EPISODE_MEASURES.items():
            values = episodes[measure].dropna()
            if len(values):
                value = values.iloc[-1] if how == "last" else values.agg(how)
                rows.append(at | {"measure": measure, "value": float(value), "n": len(values)})
    for stage, summary in load_evaluations(folder).items():
        if stage not in ends:
            continue  # from a manual `rethinker evaluate --label`: no point in the run's time
        for mode, result in summary["modes"].items():
            for name in ("greedy", "pass@1", "reflection"):
                if name in result:
                    estimate = dict(result[name])
                    found = {"measure": f"test/{mode}/{name}", "queries": estimate.pop("clusters")}
                    rows.append(ends[stage] | found | estimate)
    last = list(ends.values())[-1]
    rows.append(last | {"measure": PROGRESS, "value": float(last["episode"])})
    return [state | row for row in rows]


def planned(config: RunConfig) -> str:
    """What ends the run, in words: its stages' episodes, and their budgets where they have some."""
    words = []
    for number, stage in enumerate(config.stages):
        budget = asdict(config.for_stage(number).budget)
        limits = [f" or budget.{name}={limit}" for name, limit in budget.items() if limit is not None]
        words.append(f"{stage.name} {stage.episodes} episodes{''.join(limits)}")
    return ", ".join(words)


def typed(table: pd.DataFrame) -> pd.DataFrame:
    """The table with numbers as numbers, also where a column is empty: counts that may be missing, and floats."""
    counts = {name: "Int64" for name in ("processes", "n", "queries", "pairs") if name in table}
    numbers = ("value", "low", "high", "difference", "difference_low", "difference_high")
    return table.astype(counts | {name: "float64" for name in numbers if name in table})


def compare(table: pd.DataFrame, baseline: str | None = None, stage: str | None = None) -> pd.DataFrame:
    """Mean over seeds of every label and measure, with its interval and, given a ``baseline``, the paired difference.

    Args:
        table: of ``ablation.run.collect``. Runs that are not finished are left out: they would be compared too early.
        baseline: the label that is subtracted, seed by seed.
        stage: a stage's name or "start"; None: the last one of each run. Where a run has no value of a measure there
            (nothing was trained on, say), its seed is not in that line.

    Returns:
        Columns ``COMPARISON`` and, with a baseline, ``DIFFERENCE``. ``interval`` says what [low, high] is: "t over
        seeds" (two seeds or more), "over queries" (one seed: the run's own) or None. ``n`` counts the cases of all
        seeds, ``queries`` the different ones. Intervals of shares end at 0 and 1, those of their differences at -1 and
        1. A difference has an interval where two seeds or more are in both.

    Raises ValueError for a baseline that is not in the table, and for runs of one label whose settings end them at
    different lengths. Where they ended does not count: with a budget it differs from seed to seed, which is fair.
    """
    labels = list(dict.fromkeys(table["label"]))
    if baseline is not None and baseline not in labels:
        raise ValueError(f"baseline {baseline!r}: the table has {', '.join(labels)}")
    finished = table[table["state"] == "finished"]
    _check_lengths(finished)
    rows = final(finished, stage)
    values = {key: part.set_index("seed")["value"] for key, part in rows.groupby(["label", "measure"])}
    measures = list(dict.fromkeys(rows["measure"]))
    found = []
    for label in labels:
        for measure in measures:
            part = rows[(rows["label"] == label) & (rows["measure"] == measure)].sort_values("seed")
            if part.empty:
                continue
            line = {"label": label, "measure": measure, "stage": part["stage"].iloc[-1], **_mean(part, measure)}
            if baseline is not None:
                line |= _difference(values, label, measure, baseline)
            found.append(line)
    result = pd.DataFrame(found, columns=[*COMPARISON, *(DIFFERENCE if baseline is not None else ())])
    return typed(result)


def final(table: pd.DataFrame, stage: str | None = None) -> pd.DataFrame:
    """The last value of every run and measure in ``stage`` (None: the run's last stage), in the order of the table."""
    rows = table.sort_values(["episode", "step"], kind="stable")
    last = rows["run"].map(rows.groupby("run")["stage"].last())  # that of its progress, which every run has at its end
    rows = rows[rows["stage"] == (stage or last)]
    return rows.dropna(subset=["value"]).groupby(["run", "measure"], sort=False).tail(1).sort_index()


def _check_lengths(finished: pd.DataFrame) -> None:
    """Raises ValueError if the runs of a label were to end differently: their means would mix lengths."""
    for label, part in finished.groupby("label", sort=False):
        plans = part.groupby("planned", sort=False)["run"].first()
        if len(plans) > 1:
            lengths = "; ".join(f"{run}: {plan}" for plan, run in plans.items())
            raise ValueError(
                f"{label}: its runs are of different lengths ({lengths}): give them the same stages and budget, or "
                "another label each"
            )


def _mean(part: pd.DataFrame, measure: str) -> dict[str, Any]:
    seeds = part["seed"].tolist()
    about = {"n": part["n"].sum(), "queries": part["queries"].max(), "seeds": len(seeds)}
    about |= {"seed_list": ", ".join(map(str, seeds))}
    if len(seeds) == 1:
        row = part.iloc[0]
        interval = "over queries" if pd.notna(row["low"]) else None
        return {"value": row["value"], "low": row["low"], "high": row["high"], "interval": interval} | about
    mean, low, high = over_seeds(part["value"].tolist())
    low, high = max(0.0, low), high if measure in _UNBOUNDED else min(1.0, high)
    return {"value": mean, "low": low, "high": high, "interval": "t over seeds"} | about


def _difference(values: dict[tuple[str, str], pd.Series], label: str, measure: str, baseline: str) -> dict[str, Any]:
    here, there = values[label, measure], values.get((baseline, measure))
    seeds = sorted(set(here.index) & set(there.index)) if there is not None and label != baseline else []
    line: dict[str, Any] = {"baseline": baseline, "pairs": len(seeds)}
    if there is None or not seeds:
        return line
    differences = [float(here[seed] - there[seed]) for seed in seeds]
    if len(seeds) == 1:
        return line | {"difference": differences[0]}
    mean, low, high = over_seeds(differences)
    if measure not in _UNBOUNDED:
        low, high = max(-1.0, low), min(1.0, high)
    return line | {"difference": mean, "difference_low": low, "difference_high": high}


def curves(table: pd.DataFrame, measure: str = VALIDATION) -> pd.DataFrame:
    """Fig. 5: mean of a measure over the seeds of a label, at every episode that all of its runs have reached.

    Columns label, episode, value, low, high (t interval; null with one seed), seeds, queries. All runs count, also
    those that are still going. Episodes, not updates: runs have seen as many queries by then, but not made as many
    updates where some had nothing to train on.
    """
    rows = table[table["measure"] == measure]
    found = []
    for label, part in rows.groupby("label", sort=False):
        runs = part["run"].nunique()
        for episode, at in part.groupby("episode"):
            if len(at) < runs:
                continue
            line = {"label": label, "episode": episode, "value": at["value"].mean()}
            if runs > 1:
                _, low, high = over_seeds(at["value"].tolist())
                line |= {"low": max(0.0, low), "high": min(1.0, high)}
            found.append(line | {"seeds": runs, "queries": at["queries"].max()})
    return pd.DataFrame(found, columns=["label", "episode", "value", "low", "high", "seeds", "queries"])


def wide(comparison: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    """The comparison to read: a row a label, a column a measure, "value [low, high]" as text."""

    def text(row: dict[str, Any]) -> str:
        digits = 0 if row["measure"] in _UNBOUNDED else 3
        value = f"{row['value']:,.{digits}f}"
        return value if pd.isna(row["low"]) else f"{value} [{row['low']:,.{digits}f}, {row['high']:,.{digits}f}]"

    cells = {(row["label"], row["measure"]): text(row) for row in comparison.to_dict("records")}
    labels = list(dict.fromkeys(comparison["label"]))
    shown = [measure for measure in measures if any((label, measure) in cells for label in labels)]
    return pd.DataFrame(
        [[cells.get((label, measure), "–") for measure in shown] for label in labels],
        index=pd.Index(labels, name="label"),
        columns=shown,
    )


def in_words(comparison: pd.DataFrame, measures: Sequence[str] = (TEST, VALIDATION)) -> str:
    """The comparison as lines of text, a block for each of ``measures`` that it has; else why there is none."""
    if comparison.empty:
        return "No run is finished yet: there is nothing to compare."
    lines = []
    for measure in measures:
        part = comparison[comparison["measure"] == measure]
        if part.empty:
            continue
        lines.append(f"{measure} (95% intervals)")
        width = part["label"].str.len().max()
        for row in part.to_dict("records"):
            text = f"  {row['label']:<{width}}  {row['value']:.3f}"
            if row["interval"]:
                text += f" [{row['low']:.3f}, {row['high']:.3f}] {row['interval']}"
            text += f"; n = {row['n']:.0f}, seeds {row['seed_list']}"
            if pd.notna(row.get("difference")):
                text += f"; against {row['baseline']} {round(row['difference'], 3) + 0:+.3f}"
                if pd.notna(row["difference_low"]):
                    text += f" [{row['difference_low']:+.3f}, {row['difference_high']:+.3f}]"
                text += f", {row['pairs']} paired by seed"
            lines.append(text)
    return "\n".join(lines) or NOT_MEASURED
