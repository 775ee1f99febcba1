"""The HTML of the report: one file that needs nothing else, readable in light and dark. All text is escaped here."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

STYLE = """
:root { --paper: #ffffff; --soft: #f5f6f8; --ink: #1c1e21; --muted: #5d636b; --line: #dfe2e7; --accent: #0072b2;
  --good: #00704f; --bad: #b34700; }
@media (prefers-color-scheme: dark) { :root { --paper: #15171a; --soft: #1e2125; --ink: #e8eaed; --muted: #a2a8b0;
  --line: #33383e; --accent: #58b0e8; --good: #3cc39a; --bad: #f08a4b; } }
* { box-sizing: border-box; }
html { color-scheme: light dark; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 2.5rem 1.5rem 5rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.35rem; margin: 3.2rem 0 .8rem; padding-top: 1.2rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .5rem; }
p { max-width: 46rem; } .muted, figcaption { color: var(--muted); }
nav { margin: 1rem 0 0; } nav a { margin-right: 1.1rem; color: var(--accent); text-decoration: none; }
nav a:hover { text-decoration: underline; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: 1rem; margin: 1.2rem 0; }
.card { background: var(--soft); border-radius: 10px; padding: 1rem 1.2rem; }
.card b { display: block; font-size: 2.3rem; line-height: 1.15; font-variant-numeric: tabular-nums; }
.card .name { font-weight: 600; } .card small { color: var(--muted); display: block; }
figure { margin: 1.6rem 0 2.2rem; } figure img { max-width: 100%; height: auto; display: block; }
@media (max-width: 640px) { figure.wide picture { display: block; overflow-x: auto; }
  figure.wide img { width: 46rem; max-width: none; } }
figcaption { font-size: .9rem; max-width: 52rem; margin-top: .5rem; }
.scroll { overflow-x: auto; margin: .8rem 0 1.2rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .38rem .9rem .38rem 0; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { color: var(--muted); font-weight: 600; } .word { text-align: left; }
td small { color: var(--muted); }
.missing { background: var(--soft); border-radius: 10px; padding: .7rem 1.1rem; color: var(--muted); max-width: 46rem; }
.sample { display: grid; grid-template-columns: 208px minmax(0, 1fr); gap: 1.4rem; padding: 1.3rem 0;
  border-bottom: 1px solid var(--line); }
@media (max-width: 640px) { .sample { grid-template-columns: 1fr; } }
.sample img { display: block; width: 208px; height: auto; border-radius: 8px; border: 1px solid var(--line);
  background: #fff; margin-bottom: .5rem; }
.sample img.small { image-rendering: pixelated; }
.sample .question { font-weight: 600; margin: .2rem 0 .7rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.said { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--soft); border-radius: 8px; margin: 0;
  max-height: 28rem; overflow-y: auto;
  padding: .6rem .9rem; font: .86rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.second { border-left: 4px solid var(--accent); border-radius: 0 8px 8px 0; }
.label { font-size: .82rem; color: var(--muted); margin: .55rem 0 .2rem; }
.right { color: var(--good); font-weight: 600; } .wrong { color: var(--bad); font-weight: 600; }
details { margin: .8rem 0; } summary { cursor: pointer; color: var(--accent); }
pre.file { background: var(--soft); border-radius: 8px; padding: .9rem 1.1rem; overflow-x: auto; font-size: .82rem;
  line-height: 1.45; }
@media print { .said { max-height: none; } nav { display: none; } details > * { display: block; } }
"""

EDGE = 512  # pixels: larger images are embedded smaller


def page(title: str, body: str) -> str:
    """A whole document; ``body`` is HTML, ``title`` text."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n"
        "</html>\n"
    )


def missing(text: str) -> str:
    """Words in the place of what a run does not have."""
    return f'<p class="missing">{escape(text)}</p>'


def table(headers: Sequence[str], rows: Sequence[Sequence[object]], words: int = 1) -> str:
    """A table whose first ``words`` columns are words; a cell is text, or a pair (value, remark in small print)."""

    def cell(value: object) -> str:
        if isinstance(value, tuple):
            return f"<td>{escape(str(value[0]))} <small>{escape(str(value[1]))}</small></td>"
        return f"<td>{escape(str(value))}</td>"

    head = "".join(f"<th>{escape(header)}</th>" for header in headers)
    head = head.replace("<th>", '<th class="word">', words)
    lines = ["".join(cell(value) for value in row).replace("<td>", '<td class="word">', words) for row in rows]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def details(summary: str, html: str) -> str:
    """Something to unfold."""
    return f"<details><summary>{escape(summary)}</summary>{html}</details>"


def figure(light_svg: bytes, dark_svg: bytes, caption: str, wide: bool = False) -> str:
    """A picture in two variants; the reader's colour scheme chooses. A ``wide`` one is scrolled on a small screen."""
    kind = ' class="wide"' if wide else ""
    dark = _data("image/svg+xml", dark_svg)
    return (
        f'<figure{kind}><picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{_data("image/svg+xml", light_svg)}" alt="{escape(caption, quote=True)}"></picture>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def image(path: str) -> str:
    """A query's image inside the page; small ones are enlarged with sharp pixels. Unreadable: words instead."""
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        return f'<p class="missing">The image {escape(Path(path).name)} cannot be read any more.</p>'
    small = max(picture.size) <= 128
    picture.thumbnail((EDGE, EDGE))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    kind = ' class="small"' if small else ""
    return f'<img{kind} src="{_data("image/png", buffer.getvalue())}" alt="the image of the question">'


def response(row: Mapping[str, Any]) -> str:
    """A response of the gallery (a row of ``gallery.COLUMNS``) beside the images of its question."""
    pictures = "".join(image(path) for path in row["images"]) or '<p class="missing">No image.</p>'
    level = f", level {row['level']}" if row["level"] else ""
    question = row["question"].replace("<image>", "").strip()
    verdicts = [_verdict(row["first_answer"], row["first_correct"]), _verdict(row["final_answer"], row["correct"])]
    how = "second look, forced" if row["forced"] else "second look, by itself"
    return (
        f'<article class="sample"><div>{pictures}</div><div>'
        f'<div class="muted">{escape(str(row["category"]))}{level} · {escape(row["source"])}</div>'
        f'<div class="question">{escape(question)}</div>'
        f"<div>{' → '.join(verdicts)} <span class='muted'>· gold answer {escape(str(row['gold']))}</span></div>"
        f'<div class="label">first answer</div><pre class="said">{escape(row["first"])}</pre>'
        f'<div class="label">{how}</div><pre class="said second">{escape(row["second"])}</pre></div></article>'
    )


def _verdict(answer: str | None, correct: bool) -> str:
    shown = escape(answer if isinstance(answer, str) and answer else "no answer")
    return f'<span class="right">✓ {shown}</span>' if correct else f'<span class="wrong">✗ {shown}</span>'


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
