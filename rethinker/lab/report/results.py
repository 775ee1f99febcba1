"""The numbers of a report, as words and cells. A cell is text, or a pair (value, remark in small print)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from rethinker.evaluation.result import load
from rethinker.evaluation.statistics import paired_difference
from rethinker.lab.analysis import diagnostics
from rethinker.lab.figures.evaluation import count_range, one_measure
from rethinker.lab.report.html import percent
from rethinker.rundir.diagnosis import first_responses
from rethinker.rundir.folder import run_state
from rethinker.rundir.reader import Metrics, load_settings


@dataclass(frozen=True)
class Table:
    """Its first ``words`` columns hold words, the others numbers."""

    headers: Sequence[str]
    rows: Sequence[Sequence[object]]
    words: int = 1
    note: str = ""


def progress(run: Path, metrics: Metrics) -> str:
    """How far the run is, in words; "" before the first episode has ended."""
    if metrics.episodes.empty:
        return ""
    last = metrics.episodes.iloc[-1]
    planned = sum(int(stage.get("episodes", 1)) for stage in load_settings(run).get("stages") or [])
    done = int(last["episode"])
    if done >= planned:
        words = [f"{done} episodes"]
    elif run_state(run) == "finished":
        words = [f"{done} episodes (budget used up)"]
    else:
        words = [f"{done} of {planned} episodes (not finished)"]
    words.append(f"{int(last['step'])} optimiser steps")
    words.append("stages " + ", ".join(metrics.stages()["stage"]))
    if pd.notna(last["tokens/generated"]):
        words.append(f"{int(last['tokens/generated']):,} generated tokens")
    if pd.notna(last["seconds"]):
        words.append(f"{last['seconds'] / 60:.1f} minutes")
    return " · ".join(words)


def cards(run: Path) -> list[dict[str, Any]]:
    """The headline number of every evaluation that has plain responses: label, name, value, remarks."""
    found = []
    for label, summary in diagnostics.load_evaluations(run).items():
        plain = summary["modes"].get("plain")
        if plain is None:
            continue
        measure = "pass@1" if "pass@1" in plain else "greedy"
        value, interval = _interval(plain[measure])
        remarks = [f"95% interval {interval}", f"{measure}, {summary['queries']} queries"]
        remarks += [f"greedy {percent(plain['greedy']['value'])}"] if measure == "pass@1" else []
        remarks.append(f"{percent(plain['rethinking']['value'])} reflect by themselves")
        name = "Before training" if label == "start" else f"After {label}"
        found.append({"label": label, "name": name, "value": value, "remarks": remarks})
    return found


def gains(run: Path, labels: list[str]) -> str:
    """Differences between evaluations of the same queries, each query its own control; "" if there are none."""
    paired, remarks = [], []
    means = {label: _means(run, label) for label in labels}
    pairs = list(pairwise(labels))
    for before, after in [*pairs, (labels[0], labels[-1])] if len(labels) > 2 else pairs:
        (first_sampled, first), (second_sampled, second) = means[before], means[after]
        if first.keys() != second.keys():
            remarks.append(f"{before} and {after} were evaluated on different queries.")
        elif first_sampled != second_sampled:
            remarks.append(f"Only one of {before} and {after} has sampled responses.")
        elif len(first) > 1:
            gain = paired_difference(first, second)
            assert gain.value is not None and gain.low is not None and gain.high is not None
            words = f"{before} → {after}: {100 * gain.value:+.1f} points "
            words += f"(95% interval {100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
            paired.append((len(first), words))
    by_size = [(size, "; ".join(words for other, words in paired if other == size)) for size in dict(paired)]
    return " ".join([*(f"Paired by query, n = {size}: {words}." for size, words in by_size), *remarks])


def _means(run: Path, label: str) -> tuple[bool, dict[str, float]]:
    """Whether responses were sampled; every query's mean correctness, of these or, if not, of the greedy response."""
    evaluation = load(run, label)
    rows = evaluation.rows[evaluation.rows["mode"] == "plain"]
    sampled = evaluation.samples > 0
    rows = rows[rows["greedy"] != sampled]
    return sampled, {str(qid): float(value) for qid, value in rows.groupby("qid")["correct"].mean().items()}


def absent(run: Path) -> str:
    """Which evaluations there should be and are not, in words; "" if none is absent."""
    evaluations = diagnostics.load_evaluations(run)
    stages = [str(stage.get("name")) for stage in load_settings(run).get("stages") or []]
    lacking = [label for label in ["start", *stages] if label not in evaluations]
    return f"Not evaluated (yet): {', '.join(lacking)}." if lacking else ""


def evaluation_tables(run: Path, metrics: Metrics) -> dict[str, Any]:
    """The section "Tables": modes, outcomes, kinds by what they are split by, validations; None if there is none."""
    modes, outcomes = diagnostics.fig7_table(run), diagnostics.evaluation_outcomes(run)
    kinds = {}
    for by in ("category", "level") if len(modes) else ():
        plain = diagnostics.accuracy_by(run, by)
        plain = plain[plain["mode"] == "plain"]
        if plain[by].nunique() > 1:
            kinds[by] = _by_kind(plain, by)
    return {
        "modes": by_mode(modes) if len(modes) else None,
        "outcomes": _outcomes(outcomes) if len(outcomes) else None,
        "kinds": kinds,
        "validations": _validations(metrics.validations) if len(modes) and len(metrics.validations) else None,
    }


def by_mode(rows: pd.DataFrame) -> Table:
    """A line for each evaluation and mode, a column for each measure, and of how many responses they are."""
    measures = list(rows["measure"].unique())
    lines = []
    for key, part in rows.groupby(["label", "mode"], sort=False):
        found = part.set_index("measure").to_dict("index")
        cells = [_interval(found[measure]) if measure in found else "–" for measure in measures]
        greedy = part["measure"] == "greedy"
        sizes = [count_range(of["n"]) if len(of) else "–" for of in (part[greedy], part[~greedy])]
        lines.append((*key, *cells, count_range(part["clusters"]), *sizes))
    return Table(("label", "mode", *measures, "queries", "greedy responses", "sampled responses"), lines, words=2)


def _by_kind(rows: pd.DataFrame, by: str) -> Table:
    """A line for each kind, a column for each evaluation of the same measure; the note says which ones lack it."""
    rows, measure, lacking = one_measure(rows)
    labels = list(rows["label"].unique())
    lines = []
    for key, part in rows.groupby(by):
        found = part.set_index("label").to_dict("index")
        cells = [_interval(found[label]) if label in found else "–" for label in labels]
        lines.append((key, *cells, count_range(part["clusters"]), count_range(part["n"])))
    return Table((f"{by} ({measure})", *labels, "queries", "responses"), lines, note=lacking)


def _outcomes(outcomes: pd.DataFrame) -> Table:
    lines = []
    for row in outcomes.to_dict("records"):
        changes = [
            _interval({"value": row[name], "low": row[f"{name}_low"], "high": row[f"{name}_high"]})
            for name in ("rescued", "lost")
        ]
        counts = [_number(row[name]) for name in diagnostics.OUTCOMES]
        lines.append((row["label"], row["decoding"], row["kind"], *changes, *counts))
    names = [" → ".join(word[0] for word in name.split("_to_")) for name in diagnostics.OUTCOMES]
    return Table(("label", "decoding", "second look", "rescued", "lost", *names), lines, words=3)


def _validations(rows: pd.DataFrame) -> Table:
    lines = []
    for row in rows.rename(columns=lambda name: name.removeprefix("validation/")).to_dict("records"):
        accuracy = _interval(row | {"value": row["accuracy"]})
        rest = (f"{row['queries']:.0f}", percent(row["reflection"]), _number(row["length_mean"]))
        lines.append((row["stage"], row["episode"], row["step"], accuracy, *rest))
    return Table(("stage", "episode", "step", "greedy accuracy", "n", "reflects", "mean length"), lines)


def failure_tables(run: Path, metrics: Metrics) -> dict[str, Table | None]:
    """What went wrong: in training, by stage; in evaluations, how verdicts were reached."""
    names = {
        "rollout/truncated": "cut at the token limit",
        "rollout/empty": "empty first responses",
        "grader/no_answer": "without a boxed answer",
        "grader/failures": "not gradable",
    }
    lines: list[Sequence[object]] = []
    for stage, part in metrics.episodes.groupby("stage", sort=False):
        total = part["rollout/responses"].sum()
        firsts = sum(map(first_responses, part.to_dict("records")))
        counts = []
        for name in names:
            number, of = part[name].sum(), firsts if name == "rollout/empty" else total
            counts.append((f"{number:,.0f}", percent(number / of if of else None)))
        lines.append((stage, len(part), f"{total:,.0f}", *counts, f"{part['replay/skipped_steps'].sum():,.0f}"))
    training = Table(("stage", "episodes", "responses", *names.values(), "skipped steps"), lines)
    evaluations = diagnostics.load_evaluations(run)
    reasons = sorted({reason for summary in evaluations.values() for reason in summary["grading"]})
    grading = Table(
        ("evaluation", "queries", *reasons),
        [
            (label, summary["queries"], *(summary["grading"].get(reason, 0) for reason in reasons))
            for label, summary in evaluations.items()
        ],
    )
    return {"training": training if lines else None, "grading": grading if evaluations else None}


def _interval(estimate: dict[str, Any]) -> tuple[str, str]:
    if estimate["value"] is None or pd.isna(estimate["value"]):
        return "–", ""
    return percent(estimate["value"]), f"{100 * estimate['low']:.1f} to {100 * estimate['high']:.1f}"


def _number(value: float | None) -> str:
    return "–" if value is None or pd.isna(value) else f"{value:,.1f}".removesuffix(".0")
