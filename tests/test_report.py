"""The report: one file, no outside, all text escaped, and words for what is missing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from synthetic_run import write_run

from rethinker.plots import FIGURES
from rethinker.report import write_report

HOSTILE = "<script>alert('x')</script><img src=http://example.com/a.png onerror=alert(1)>&amp;"


class Page(HTMLParser):
    """Collects tags, outside references and whether every element is closed."""

    void = frozenset({"meta", "img", "source", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.open: list[str] = []
        self.balanced = True
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "srcset", "href")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.balanced = self.balanced and bool(self.open) and self.open.pop() == tag


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = write_run(tmp_path_factory.mktemp("world") / "run", stages=(2, 2), queries=8, held_out=16)
    for path in [*run.glob("evaluation/*.parquet"), *run.glob("rollouts/*.parquet")]:
        table = pd.read_parquet(path)
        for name in ("text", "first_text"):
            table[name] = [HOSTILE + value if isinstance(value, str) else value for value in table[name]]
        table["question"] = HOSTILE
        table.to_parquet(path)
    return write_report(run).read_text(encoding="utf-8")


def test_one_well_formed_file_without_outside(html: str) -> None:
    page = Page(html)
    assert page.balanced and not page.open
    assert "script" not in page.tags and "link" not in page.tags
    assert page.sources and all(source.startswith(("data:image/", "#")) for source in page.sources)
    assert "prefers-color-scheme: dark" in html


def test_model_text_is_escaped(html: str) -> None:
    assert "<script" not in html
    assert "&lt;script&gt;alert" in html
    assert "&amp;amp;" in html


def test_sections_and_numbers(html: str) -> None:
    for text in ("Before training", "After reasoner", "After rethinker", "Paired by query, n = 16", "provenance.json"):
        assert text in html
    assert html.count("<figure") == len(FIGURES)
    assert html.count('<article class="sample">') >= 2
    assert 'class="small"' in html  # 64-pixel images are enlarged with sharp pixels
    assert not re.search(r"\bnan\b|NaN|None %", re.sub(r'"data:[^"]*"', "", html))


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.yaml is missing"):
        write_report(tmp_path)
    (tmp_path / "config.yaml").write_text("stages:\n- name: reasoner\n  episodes: 3\n")
    html = write_report(tmp_path).read_text(encoding="utf-8")
    for text in ("No episode has ended yet", "There is no evaluation", "No response of this run", "provenance.json is"):
        assert text in html
    assert Page(html).balanced


def test_one_stage_and_an_image_that_is_gone(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", stages=(2,), queries=6, held_out=12)
    (run / "config.yaml").write_text("stages:\n- {name: reasoner, episodes: 5}\n- {name: rethinker, episodes: 5}\n")
    for path in (tmp_path / "images").glob("*.png"):
        path.write_bytes(b"no picture")
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"record": "ep')
    html = write_report(run).read_text(encoding="utf-8")
    for text in (
        "2 of 10 episodes (not finished)",
        "(yet): rethinker",
        "Nothing was forced",
        "cut short",
    ):
        assert text in html
    assert "cannot be read any more" in html
