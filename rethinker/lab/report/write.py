"""``report.html`` of a run: headline numbers, figures, tables, real responses, failures, configuration.

It is written from the run's files alone and works on a run that is still going or has one stage only: what is missing
is said in words.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rethinker.evaluation.result import load
from rethinker.evaluation.statistics import paired_difference
from rethinker.lab.analysis import diagnostics
from rethinker.lab.figures import catalogue as plots
from rethinker.lab.figures.evaluation import count_range, one_measure
from rethinker.lab.report import gallery
from rethinker.lab.report.page import details, figure, missing, page, response, table
from rethinker.rundir.atomic import atomic_write_text
from rethinker.rundir.paths import RunDir

RESPONSES = 12  # in the gallery


def write_report(run_folder: str | Path) -> Path:
    """Write ``<run_folder>/report.html`` and return its path.

    Raises FileNotFoundError if the folder is no run at all (no config.yaml), ValueError for a broken file.
    """
    run = Path(run_folder)
    if not RunDir(run).config.is_file():
        raise FileNotFoundError(f"{RunDir(run).config} is missing: {run} is not the folder of a run")
    sections: list[tuple[str, str, Callable[[Path], str]]] = [
        ("results", "Results", _headline),
        ("figures", "Figures", _figures),
        ("responses", "Where rethinking changed the answer", _gallery),
        ("tables", "Tables", _tables),
        ("failures", "What went wrong", _failures),
        ("provenance", "Configuration and provenance", _provenance),
    ]
    name = run.resolve().name
    links = "".join(f'<a href="#{anchor}">{escape(title)}</a>' for anchor, title, _ in sections)
    body = [f"<header><h1>{escape(name)}</h1>{_status(run)}<nav>{links}</nav></header>"]
    for anchor, title, write in sections:
        body.append(f'<section id="{anchor}"><h2>{escape(title)}</h2>\n{write(run)}\n</section>')
    return atomic_write_text(RunDir(run).report, page(f"{name}: Rethinker report", "\n".join(body)))


def _percent(value: float | None) -> str:
    return "–" if value is None or pd.isna(value) else f"{100 * value:.1f}%"


def _interval(estimate: dict[str, Any]) -> tuple[str, str]:
    if estimate["value"] is None or pd.isna(estimate["value"]):
        return "–", ""
    return _percent(estimate["value"]), f"{100 * estimate['low']:.1f} to {100 * estimate['high']:.1f}"


def _when(label: str) -> str:
    return "Before training" if label == "start" else f"After {label}"


def _settings(run: Path) -> dict[str, Any]:
    path = RunDir(run).config
    try:
        settings = OmegaConf.to_container(OmegaConf.load(path))
    except (OmegaConfBaseException, YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    return {str(key): value for key, value in settings.items()} if isinstance(settings, dict) else {}


def _planned(run: Path) -> int | None:
    stages = _settings(run).get("stages")
    return sum(int(stage.get("episodes", 1)) for stage in stages) if stages else None


def _status(run: Path) -> str:
    text, notes = progress(run)
    if not text:
        return missing("No episode has ended yet.")
    return f'<p class="muted">{escape(text)}</p>{"".join(missing(note) for note in notes)}'


def progress(run: Path) -> tuple[str, tuple[str, ...]]:
    """How far the run is, in words, and what was wrong with its metrics; "" before the first episode has ended."""
    try:
        metrics = diagnostics.load_metrics(run)
    except FileNotFoundError:
        return "", ()
    if metrics.episodes.empty:
        return "", ()
    last = metrics.episodes.iloc[-1]
    planned = _planned(run)
    done = int(last["episode"])
    words = [f"{done} episodes" if not planned or done >= planned else f"{done} of {planned} episodes (not finished)"]
    words.append(f"{int(last['step'])} optimiser steps")
    words.append("stages " + ", ".join(metrics.stages()["stage"]))
    if pd.notna(last["tokens/generated"]):
        words.append(f"{int(last['tokens/generated']):,} generated tokens")
    if pd.notna(last["seconds"]):
        words.append(f"{last['seconds'] / 60:.1f} minutes")
    return " · ".join(words), metrics.notes


def _headline(run: Path) -> str:
    evaluations = diagnostics.load_evaluations(run)
    if not evaluations:
        return missing("There is no evaluation on held-out queries yet; the numbers appear here after the first one.")
    cards, labels = [], []
    for label, summary in evaluations.items():
        plain = summary["modes"].get("plain")
        if plain is None:
            continue
        measure = "pass@1" if "pass@1" in plain else "greedy"
        value, interval = _interval(plain[measure])
        labels.append(label)
        remarks = [f"95% interval {interval}", f"{measure}, {summary['queries']} queries"]
        remarks += [f"greedy {_percent(plain['greedy']['value'])}"] if measure == "pass@1" else []
        remarks.append(f"{_percent(plain['rethinking']['value'])} reflect by themselves")
        small = "".join(f"<small>{escape(remark)}</small>" for remark in remarks)
        cards.append(
            f'<div class="card"><span class="name">{escape(_when(label))}</span><b>{escape(value)}</b>{small}</div>'
        )
    if not cards:
        return missing("No evaluation in the mode plain has been made.")
    text = (
        "<p>Accuracy of plain responses on held-out queries. pass@1: of one sampled response; greedy: of the greedy "
        "one.</p>"
    )
    gained, lacking = gains(run, labels), absent(run)
    text += f'<div class="cards">{"".join(cards)}</div>' + (f"<p>{escape(gained)}</p>" if gained else "")
    return text + (missing(lacking) if lacking else "")


def gains(run: Path, labels: list[str]) -> str:
    """Differences between evaluations of the same queries, each query its own control; "" where there are none."""
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
    """Which evaluations there should be and are not, in words; "" where none is absent."""
    evaluations = diagnostics.load_evaluations(run)
    stages = [str(stage.get("name")) for stage in _settings(run).get("stages") or []]
    lacking = [label for label in ["start", *stages] if label not in evaluations]
    return f"Not evaluated (yet): {', '.join(lacking)}." if lacking else ""


def _figures(run: Path) -> str:
    parts = []
    for name in plots.FIGURES:
        try:
            light, dark = (plots.draw(run, name, theme) for theme in plots.THEMES.values())
        except (plots.NoData, FileNotFoundError) as error:
            parts.append(missing(f"{name}: {error}"))
            continue
        wide = light.figure.get_size_inches()[0] > 8  # several panels side by side
        parts.append(figure(plots.render(light, "svg"), plots.render(dark, "svg"), light.caption, wide))
    return "\n".join(parts)


def _tables(run: Path) -> str:
    evaluations = diagnostics.fig7_table(run)
    if evaluations.empty:
        return missing("The tables need an evaluation on held-out queries.")
    parts = ["<h3>Held-out accuracy by mode</h3>", _wide(evaluations, ["label", "mode"])]
    outcomes = diagnostics.evaluation_outcomes(run)
    if len(outcomes):
        parts.append("<h3>What a second look does to held-out answers</h3>")
        parts.append(
            "<p>rescued: right afterwards, of the answers that were wrong; lost: wrong afterwards, of those that were "
            "right. The rows “independent” put another sample of the same query, which knows nothing of the first, in "
            "the place of the second look (all ordered pairs). w → r: wrong first, right "
            "afterwards. 95% intervals with queries as clusters.</p>"
        )
        parts.append(_outcomes(outcomes))
    for by in ("category", "level"):
        plain = diagnostics.accuracy_by(run, by)
        plain = plain[plain["mode"] == "plain"]
        if plain[by].nunique() > 1:
            parts.append(f"<h3>Plain accuracy by {by}</h3>")
            parts.append(_by_kind(plain, by))
    curve = diagnostics.validation_curve(run) if RunDir(run).metrics.is_file() else pd.DataFrame()
    if len(curve):
        rows = [
            (
                row["stage"],
                row["episode"],
                row["step"],
                _interval(row | {"value": row["accuracy"]}),
                f"{row['queries']:.0f}",
                _percent(row["reflection"]),
                _number(row["length_mean"]),
            )
            for row in curve.to_dict("records")
        ]
        headers = ("stage", "episode", "step", "greedy accuracy", "n", "reflects", "mean length")
        parts.append(details("Every validation", table(headers, rows)))
    return "\n".join(parts)


def _number(value: float | None) -> str:
    return "–" if value is None or pd.isna(value) else f"{value:,.1f}".removesuffix(".0")


def _wide(rows: pd.DataFrame, keys: list[str]) -> str:
    """A line for each of ``keys``, a column for each measure, and of how many responses they are."""
    measures = list(rows["measure"].unique())
    lines = []
    for key, part in rows.groupby(keys, sort=False):
        found = part.set_index("measure").to_dict("index")
        cells = [_interval(found[measure]) if measure in found else "–" for measure in measures]
        greedy = part["measure"] == "greedy"
        sizes = [count_range(of["n"]) if len(of) else "–" for of in (part[greedy], part[~greedy])]
        lines.append((*key, *cells, count_range(part["clusters"]), *sizes))
    return table((*keys, *measures, "queries", "greedy responses", "sampled responses"), lines, words=len(keys))


def _by_kind(rows: pd.DataFrame, by: str) -> str:
    """A line for each kind, a column for each evaluation of the same measure; which ones lack it is said."""
    rows, measure, lacking = one_measure(rows)
    labels = list(rows["label"].unique())
    lines = []
    for key, part in rows.groupby(by):
        found = part.set_index("label").to_dict("index")
        cells = [_interval(found[label]) if label in found else "–" for label in labels]
        lines.append((key, *cells, count_range(part["clusters"]), count_range(part["n"])))
    shown = table((f"{by} ({measure})", *labels, "queries", "responses"), lines)
    return shown + (missing(lacking) if lacking else "")


def _outcomes(outcomes: pd.DataFrame) -> str:
    lines = []
    for row in outcomes.to_dict("records"):
        changes = [
            _interval({"value": row[name], "low": row[f"{name}_low"], "high": row[f"{name}_high"]})
            for name in ("rescued", "lost")
        ]
        counts = [_number(row[name]) for name in diagnostics.OUTCOMES]
        lines.append((row["label"], row["decoding"], row["kind"], *changes, *counts))
    names = [" → ".join(word[0] for word in name.split("_to_")) for name in diagnostics.OUTCOMES]
    return table(("label", "decoding", "second look", "rescued", "lost", *names), lines, words=3)


def _gallery(run: Path) -> str:
    responses = gallery.changed_responses(run, RESPONSES)
    if responses.empty:
        return missing("No response of this run has changed its verdict by a second look (yet).")
    text = (
        f"<p>{len(responses)} real responses whose second look changed the verdict. They were taken by rule, not by "
        "looks: the kinds of question take turns in order of the query's id; about a quarter are answers that a second "
        "look spoiled, where there are enough.</p>"
    )
    return text + "\n".join(response(row) for row in responses.to_dict("records"))


def _failures(run: Path) -> str:
    try:
        rows = diagnostics.failures(run)
    except FileNotFoundError as error:
        return missing(str(error))
    names = {
        "rollout/truncated": "cut at the token limit",
        "rollout/empty": "empty",
        "grader/no_answer": "without a boxed answer",
        "grader/failures": "not gradable",
    }
    headers = ("stage", "episodes", "responses", *names.values(), "skipped steps")
    lines = []
    for stage, part in rows.groupby("stage", sort=False):
        total = part["rollout/responses"].sum()
        counts = [(f"{part[name].sum():,.0f}", _percent(part[name].sum() / total if total else None)) for name in names]
        lines.append((stage, len(part), f"{total:,.0f}", *counts, f"{part['replay/skipped_steps'].sum():,.0f}"))
    text = (
        "<p>Responses of training, forced ones included. What the grader cannot judge (error, timeout) counts as "
        "wrong. A step is skipped when no sample has an advantage.</p>"
    )
    grading = [
        (label, summary["queries"], *(summary["grading"].get(reason, 0) for reason in reasons))
        for reasons in [_reasons(run)]
        for label, summary in diagnostics.load_evaluations(run).items()
    ]
    if grading:
        heads = ("evaluation", "queries", *_reasons(run))
        return text + table(headers, lines) + details("How held-out verdicts were reached", table(heads, grading))
    return text + table(headers, lines)


def _reasons(run: Path) -> list[str]:
    return sorted({reason for summary in diagnostics.load_evaluations(run).values() for reason in summary["grading"]})


def _provenance(run: Path) -> str:
    parts = []
    path = RunDir(run).provenance
    if path.is_file():
        try:
            text = json.dumps(json.loads(path.read_text(encoding="utf-8")), indent=2, ensure_ascii=False)
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from error
        parts.append(details("provenance.json", f'<pre class="file">{escape(text)}</pre>'))
    else:
        parts.append(missing("provenance.json is missing: the code and the machine of this run are not recorded."))
    config = RunDir(run).config.read_text(encoding="utf-8")
    parts.append(details("config.yaml", f'<pre class="file">{escape(config)}</pre>'))
    parts.append("<p class='muted'>What every metric means: <code>rethinker glossary</code>.</p>")
    return "\n".join(parts)
