"""Queries and trajectories as HTML, for notebooks. All text that comes from data or a model is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from rethinker.lab.report.gallery import changed_responses
from rethinker.lab.report.html import picture
from rethinker.types import Query


def query_grid(queries: Sequence[Query], columns: int = 6) -> str:
    """HTML: the first query of every kind (columns) and level (rows), with its images, question and gold answer.

    Only the ``columns`` largest kinds are shown.
    """
    sizes = pd.Series([query.category for query in queries]).value_counts(sort=True)
    kinds = sorted(sizes.index[:columns])
    levels = sorted({query.level for query in queries})
    first = {(query.category, query.level): query for query in reversed(queries)}
    head = "".join(f"<th>{escape(kind or '(none)')}</th>" for kind in kinds)
    rows = []
    for level in levels:
        cells = "".join(f"<td>{_card(first.get((kind, level)))}</td>" for kind in kinds)
        rows.append(f"<tr><th>level {level}</th>{cells}</tr>")
    style = "table-layout:fixed;text-align:left;vertical-align:top"
    return f'<table style="{style}"><tr><th></th>{head}</tr>{"".join(rows)}</table>'


def query_card(query: Query) -> str:
    """HTML: one query."""
    return f'<div style="max-width:24em">{_card(query)}</div>'


def _card(query: Query | None) -> str:
    if query is None:
        return "–"
    pictures = "".join(_picture(path) for path in query.images)
    question = escape(query.question.replace("<image>", "").strip())
    return (
        f'{pictures}<div style="text-align:left">{question}<br>'
        f"<b>{escape(query.answer)}</b> <small>{escape(query.qid)}</small></div>"
    )


def changed_html(run: str | Path, count: int) -> str:
    """HTML: up to ``count`` responses whose second look changed the verdict (``gallery.changed_responses``)."""
    rows = changed_responses(run, count).to_dict("records")
    if not rows:
        return "<p>No second look has changed a verdict yet.</p>"
    return "<hr>".join(_changed(row) for row in rows)


def _changed(row: Mapping[str, Any]) -> str:
    pictures = "".join(_picture(path) for path in row["images"])
    verdicts = " → ".join("right" if row[name] else "wrong" for name in ("first_correct", "correct"))
    question = escape(row["question"].replace("<image>", "").strip())
    look = "second look, forced" if row["forced"] else "second look, by itself"
    return (
        f'<div style="display:flex;gap:1em;align-items:flex-start">{pictures}<div style="text-align:left">'
        f"<small>{escape(row['source'])}</small><br>{question} <b>{escape(str(row['gold']))}</b> ({verdicts})"
        f'<pre style="white-space:pre-wrap">{escape(row["first"])}</pre><small>{look}</small>'
        f'<pre style="white-space:pre-wrap">{escape(row["second"])}</pre></div></div>'
    )


def _picture(path: str) -> str:
    found = picture(path)
    if found is None:
        return f"<p>The image {escape(Path(path).name)} cannot be read any more.</p>"
    return f'<img style="width:128px;image-rendering:pixelated" src="{found.source}" alt="the image of the question">'


TINTS = {"y1": "0,114,178", "trigger": "213,94,0", "y2": "0,158,115", "end": "128,128,128"}  # Okabe and Ito's


def tokens_html(tokens: Sequence[tuple[str, int, str, float | None]]) -> str:
    """HTML of a trajectory, each token (text, id, part, log-prob or None) on its part's colour.

    Hovering over a token shows its id and log-prob. The shade alternates so that neighbours stay apart; the parts are
    also named in a legend, for readers who cannot tell the colours.
    """
    spans = []
    for number, (text, token_id, part, logprob) in enumerate(tokens):
        said = f"id {token_id}, {part}, " + ("not sampled" if logprob is None else f"log p = {logprob:.3f}")
        shade = 0.42 if number % 2 else 0.26
        shown = escape(text).replace("\n", "↵<br>") or "·"
        spans.append(
            f'<span title="{escape(said, quote=True)}" style="background:rgba({TINTS[part]},{shade});'
            f'border-radius:3px;padding:1px 0">{shown}</span>'
        )
    names = {"y1": "y1, the first response", "trigger": "trigger, forced", "y2": "y2, the second look", "end": "EOS"}
    seen = [part for part in names if any(token[2] == part for token in tokens)]
    legend = "  ".join(
        f'<span style="background:rgba({TINTS[part]},0.34);border-radius:3px;padding:1px 5px">{names[part]}</span>'
        for part in seen
    )
    return (
        f'<div style="font-size:small">{legend}</div>'
        f'<div style="font-family:monospace;white-space:pre-wrap;line-height:1.9">{"".join(spans)}</div>'
    )
