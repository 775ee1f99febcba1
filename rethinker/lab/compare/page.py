"""``comparison.html``: the figure, the tables, responses without an answer, and those on which evaluations differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from rethinker.benchmarks.base import listed
from rethinker.lab.compare.rows import Evaluation, title
from rethinker.lab.compare.tables import Table, columns, paper_notes
from rethinker.lab.figures.benchmarks import draw
from rethinker.lab.figures.output import render
from rethinker.lab.figures.style import DARK, LIGHT
from rethinker.lab.report.html import environment
from rethinker.rundir.atomic import atomic_write_text

SHOWN = 6  # responses of a kind, at most; as many benchmarks as possible among them
READ = (
    "qid",
    "look",
    "greedy",
    "question",
    "options",
    "images",
    "golds",
    "text",
    "extracted",
    "reason",
    "score",
    "skipped",
)


def write_page(path: Path, evaluations: Sequence[Evaluation], table: pd.DataFrame, tables: Sequence[Table]) -> Path:
    """Write the page: ``table`` as ``rows.collect`` makes it, ``tables`` in the order of the page."""
    titles = columns(table)
    light, dark = (draw(table, titles, theme) for theme in (LIGHT, DARK))
    picture = {
        "missing": "",
        "light": render(light, "svg"),
        "dark": render(dark, "svg"),
        "caption": light.caption,
        "wide": len(titles) > 1,
    }
    text = environment.get_template("comparison.html").render(
        labels=[each.label for each in evaluations],
        picture=picture,
        tables=tables,
        responses=_responses(evaluations),
        paper_notes=paper_notes() if (table["kind"] == "paper").any() else [],
    )
    return atomic_write_text(path, text)


def _responses(evaluations: Sequence[Evaluation]) -> dict[str, list[dict[str, Any]]]:
    """Title of a section -> responses to read; greedy first looks."""
    read = {each.label: _greedy(each) for each in evaluations}
    found: dict[str, list[dict[str, Any]]] = {}
    for label, rows in read.items():
        lost = rows[rows["extracted"].isna() & rows["score"].notna() & rows["skipped"].isna()]
        found[f"No answer found: {label}"] = [_shown([(label, row)]) for row in _spread(lost)]
    if len(evaluations) > 1:
        first, *others = read
        for later in others:
            both = read[first].merge(read[later][["name", "qid", "score"]], on=["name", "qid"], suffixes=("", "_later"))
            differ = both[(both["score"] > 0.5) != (both["score_later"] > 0.5)].dropna(subset=["score", "score_later"])
            second = read[later].set_index(["name", "qid"])
            found[f"Right in one of both: {first}, {later}"] = [
                _shown([(first, row), (later, dict(second.loc[(row["name"], row["qid"])]))]) for row in _spread(differ)
            ]
    return {heading: rows for heading, rows in found.items() if rows}


def _greedy(each: Evaluation) -> pd.DataFrame:
    """The greedy first looks of an evaluation's benchmarks."""
    parts = []
    for name, counted in each.counts.items():
        rows = pd.DataFrame(pq.read_table(each.folder / f"{name}.parquet", columns=list(READ)).to_pylist())
        rows = rows[rows["greedy"] & (rows["look"] == "first")]
        parts.append(rows.assign(name=name, title=title(counted)))
    return pd.concat(parts, ignore_index=True)


def _spread(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """At most ``SHOWN``: the first of every benchmark, then the second ones, and so on."""
    place = rows.groupby("name").cumcount()
    chosen = rows.loc[place.sort_values(kind="stable").index[:SHOWN]]
    return [{str(name): value for name, value in row.items()} for row in chosen.to_dict("records")]


def _shown(said: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """An item with what each of ``said`` answered."""
    row = said[0][1]
    answers = [
        {
            "label": label,
            "extracted": "" if pd.isna(each["extracted"]) else each["extracted"],
            "correct": bool(each["score"] > 0.5),
            "reason": each["reason"],
            "text": each["text"],
        }
        for label, each in said
    ]
    about = {name: row[name] for name in ("title", "qid", "question", "images", "golds")}
    return about | {"options": listed(row["options"]), "said": answers}
