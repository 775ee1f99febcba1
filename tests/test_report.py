"""The report: one file, no outside, all text escaped, and words for what is missing."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from synthetic_run import write_run

from rethinker.evaluation.result import Evaluation, load
from rethinker.lab.figures.catalogue import FIGURES, THEMES, draw
from rethinker.lab.figures.contrast import contrast, readable
from rethinker.lab.figures.style import Theme, colors, strength
from rethinker.lab.report.results import failure_tables, gains
from rethinker.lab.report.wandb_report import fig7_keys, fig7_words, headline
from rethinker.lab.report.write import write_report
from rethinker.rundir.reader import load_metrics

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


def test_a_run_that_a_budget_ended_is_finished(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", stages=(2,), queries=4, held_out=6)
    (run / "config.yaml").write_text("stages: [{name: reasoner, episodes: 5}]\nbudget: {tokens: 90}\n")
    for state, words in (
        ("running", "2 of 5 episodes (not finished) · 8 optimiser steps"),
        ("finished", "2 episodes (budget used up) · 8 optimiser steps"),
    ):
        (run / "status.json").write_text(json.dumps({"state": state}))
        assert words in write_report(run).read_text(encoding="utf-8")
        assert f"**run**: {words}" in headline(run)


def test_empty_first_responses_are_counted_among_first_responses(tmp_path: Path) -> None:
    """Only they are looked at, while responses that are cut can be second looks too."""
    run = write_run(tmp_path / "run", stages=(1, 2), queries=4, held_out=6)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    empty = {"rollout/empty": 8, "rollout/truncated": 8}
    (run / "metrics.jsonl").write_text("".join(json.dumps(record | empty) + "\n" for record in records))
    rollouts = [pd.read_parquet(path) for path in sorted(run.glob("rollouts/*.parquet"))[1:]]
    responses = sum(map(len, rollouts))
    assert sum((table["pass"] == "first").sum() for table in rollouts) == 2 * 4 * 8 < responses
    table = failure_tables(run, load_metrics(run))["training"]
    assert table is not None
    (cells,) = (dict(zip(table.headers, row, strict=True)) for row in table.rows if row[0] == "rethinker")
    assert cells["empty first responses"] == ("16", "25.0%")
    assert cells["cut at the token limit"] == ("16", f"{100 * 16 / responses:.1f}%")


def test_what_is_wrong_stands_at_the_top(tmp_path: Path) -> None:
    """A made-up run whose second episode taught nothing."""
    run = write_run(tmp_path / "run", stages=(3,), queries=4, held_out=6)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert 'class="finding"' not in write_report(run).read_text(encoding="utf-8")
    for record in records:
        if (record["record"], record["episode"]) == ("episode", 2):
            record |= {"replay/batch_fill": 0.0, "replay/effective_before": 0.0, "replay/skipped_steps": 4}
            record |= {"queries/all_incorrect": 1.0, "queries/all_correct": 0.0, "grader/no_answer": 30}
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    html = write_report(run).read_text(encoding="utf-8")
    (finding,) = re.findall(r'<div class="finding">(.*?)</div>', html, re.DOTALL)
    assert "Nothing learned in episode 2: 4 of 4 groups are unanimous (4 all wrong, 0 all right)" in finding
    assert "<li>30 of 32 responses have no \\boxed{} answer" in finding
    assert html.index('class="finding"') < html.index('id="results"') and Page(html).balanced


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one more evaluation: greedy only, on more queries, all of them right."""
    run = write_run(tmp_path_factory.mktemp("uneven") / "run", stages=(1,), queries=4, held_out=8)
    rows = load(run, "start").rows
    plain = rows[(rows["mode"] == "plain") & rows["greedy"].astype(bool)].assign(correct=True)
    more = pd.concat([plain, plain.assign(qid=plain["qid"] + "-more")])
    Evaluation(more, ("plain",), 0, {"seed": 0, "max_new_tokens": 128}).save(run, "zz")
    return run


def test_evaluations_that_differ_keep_their_own_numbers(uneven: Path) -> None:
    for name in ("fig7", "kinds"):
        drawing = draw(uneven, name)
        assert "Without sampled responses, so not among them: zz." in drawing.caption
    html = write_report(uneven).read_text(encoding="utf-8")
    cards = re.findall(r'<div class="card">(.*?)</div>', html)
    (start,) = (card for card in cards if "Before training" in card)
    (greedy,) = (card for card in cards if "After zz" in card)
    assert "pass@1, 8 queries" in start and "greedy, 16 queries" in greedy and "<b>100.0%</b>" in greedy
    assert "Accuracy of plain responses on held-out queries." in html and "different queries" in html
    assert "Without sampled responses, so not among them: zz." in html
    lines = [re.sub("<[^>]+>", " ", line).split() for line in re.findall(r"<tr>(.*?)</tr>", html)]
    (plain,) = (line for line in lines if line[:2] == ["start", "plain"])
    assert plain[-3:] == ["8", "8", "32"]  # queries, greedy responses, sampled responses
    (only,) = (line for line in lines if line[:2] == ["zz", "plain"])
    assert only[-3:] == ["16", "16", "–"]


def test_wandb_keeps_the_evaluations_own_measures(uneven: Path) -> None:
    keys = fig7_keys([uneven])
    assert "evaluation/start/plain/pass@1" in keys and "evaluation/zz/plain/greedy" in keys
    assert "evaluation/start/plain/greedy" not in keys
    (line,) = (line for line in fig7_words(uneven).splitlines() if line.startswith("| zz | plain |"))
    assert " 100.0% (" in line and line.endswith(" | 16 | 16 | – |")


def test_greedy_and_sampled_are_not_paired(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", stages=(1,), queries=4, held_out=8)
    rows = load(run, "start").rows
    Evaluation(rows[rows["greedy"].astype(bool)], ("plain",), 0, {"seed": 0, "max_new_tokens": 128}).save(run, "zz")
    assert gains(run, ["start", "zz"]) == "Only one of start and zz has sampled responses."


def test_markers_at_the_ends_of_the_scale_are_whole(uneven: Path) -> None:
    (axis,) = draw(uneven, "kinds").figure.axes
    low, high = axis.get_xlim()
    assert low < 0 and high > 1


@pytest.mark.parametrize("theme", THEMES.values(), ids=list(THEMES))
def test_contrast(theme: Theme) -> None:
    """Lines have 3 to 1 against the paper (WCAG 2.2, 1.4.11); text on a map's cell has the better of ink and paper."""
    assert contrast("#ffffff", "#000000") == pytest.approx(21) and contrast("#777777", "#ffffff") == pytest.approx(
        4.48, abs=0.01
    )
    for color in colors(theme):
        assert contrast(color, theme.paper) >= 3
    for share in (0.0, 0.3, 0.5, 0.55, 0.6, 1.0):
        cell = strength(theme)(share)
        assert contrast(readable(cell, theme), cell) == max(contrast(theme.ink, cell), contrast(theme.paper, cell)) > 4
