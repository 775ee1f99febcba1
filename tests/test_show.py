"""What notebooks show: a drawing or the reason why there is none, a report or the reason, whole texts, short paths."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from IPython.display import HTML, Image, Markdown
from synthetic_run import write_run

from rethinker.lab.figures.catalogue import Drawing, NoData
from rethinker.lab.notebook import show

ROOT = Path(__file__).parents[1]


@pytest.fixture
def displayed(monkeypatch):
    """What was displayed, in order; a table as the HTML that a notebook would show."""
    found: list = []

    def display(thing):
        found.append(HTML(thing._repr_html_()) if isinstance(thing, pd.DataFrame) else thing)

    monkeypatch.setattr(show, "display", display)
    return found


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", stages=(1,), queries=4, held_out=6)


def test_a_drawing_or_the_reason(displayed):
    show.show_if(lambda: Drawing(plt.figure(), "what *it* shows"))
    image, caption = displayed
    assert isinstance(image, Image) and image.alt == "what *it* shows" and caption.data == r"*what \*it\* shows*"

    def nothing() -> Drawing:
        raise NoData("No episode has ended yet.")

    show.show_if(nothing)
    assert isinstance(displayed[-1], Markdown) and displayed[-1].data == "*No episode has ended yet.*"


def test_figures_of_a_run(displayed, run):
    show.show_figures(run, "overview", "rethinking")
    assert [type(thing) for thing in displayed] == [Image, Markdown, Markdown]
    assert displayed[-1].data.startswith("*Nothing was forced")
    with pytest.raises(ValueError, match="no theme 'blue'; there are light, dark"):
        show.show_figures(run, "overview", theme="blue")
    with pytest.raises(ValueError, match="no figure 'nothing'"):
        show.show_figures(run, "nothing")


def test_a_report_that_is_missing_is_written(displayed, run):
    show.show_report(run)
    assert (run / "report.html").is_file() and displayed[-1].data == f"Report: `{run / 'report.html'}`"
    (run / "report.html").write_text("mine")
    show.show_report(run)
    assert (run / "report.html").read_text() == "mine"


def test_a_report_that_cannot_be_written(displayed, run):
    (run / "metrics.jsonl").write_text("broken\n")
    show.show_report(run)
    assert displayed[-1].data.startswith("No report: ") and "not a record of a run" in displayed[-1].data
    show.show_report(run.parent)
    assert "is not the folder of a run" in displayed[-1].data


def test_a_report_in_the_repository_is_a_link(displayed, run, monkeypatch):
    monkeypatch.setattr(show, "repository_root", lambda: run.parents[0])
    show.show_report(run)
    assert displayed[-1].data == "Report: [run/report.html](../run/report.html)"


def test_texts_of_a_table_are_whole(displayed):
    text = "a line an episode " * 9 + "."
    show.show_table(pd.DataFrame({"what": [text]}))
    assert text in displayed[-1].data and "…" not in displayed[-1].data


def test_paths_are_shown_from_the_root(tmp_path):
    assert show.shown(ROOT / "runs" / "demo") == "runs/demo"
    assert show.shown(tmp_path) == str(tmp_path.resolve())
