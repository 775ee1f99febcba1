"""The method's figures draw in both themes, and their captions say n, seed and interval."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from synthetic_run import write_run

from rethinker import method_tables
from rethinker.figures import method
from rethinker.figures.style import THEMES, NoData
from rethinker.lab import pages, teaching
from rethinker.plots import render


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("world") / "run", stages=(2, 3), queries=10, held_out=16)


@pytest.fixture(scope="module")
def sweep():
    return teaching.alpha_sweep(teaching.toy_samples(4), [0, 1], 500, 7)


def drawings(run: Path, sweep, theme):
    return {
        "clipped": method.clipped_objective(0.2, 0.35, 3.0, theme),
        "advantages": method.advantages_by_correct(teaching.advantages_by_correct(8), theme),
        "alpha": method.alpha_sweep(sweep, 500, 7, theme),
        "buffer": method.buffer_life(run, theme),
        "triggers": method.triggers(run, theme),
    }


@pytest.mark.parametrize("theme", THEMES.values(), ids=lambda theme: theme.name)
def test_figures(run, sweep, theme):
    for drawing in drawings(run, sweep, theme).values():
        assert ElementTree.fromstring(render(drawing, "svg")).tag.endswith("svg")
        assert drawing.caption.endswith(".")


def test_captions(run, sweep):
    captions = {name: drawing.caption for name, drawing in drawings(run, sweep, THEMES["light"]).items()}
    assert "n\u00a0=\u00a0500 draws" in captions["alpha"] and "95% Wilson" in captions["alpha"]
    assert captions["alpha"].endswith("Seed 7.") and captions["buffer"].endswith("One run, seed 0.")
    assert "n\u00a0=\u00a05 episodes" in captions["buffer"]
    forced = method_tables.trigger_table(run)["forced"].sum()
    assert f"n\u00a0=\u00a0{forced:,}" in captions["triggers"] and "clusters" in captions["triggers"]
    assert captions["clipped"].endswith("nothing is sampled.") and "1.35 times" in captions["clipped"]


def test_what_is_not_there(tmp_path):
    run = write_run(tmp_path / "run", stages=(1,), queries=4, held_out=6)
    with pytest.raises(NoData, match="Nothing was forced"):
        method.triggers(run)
    path = run / "metrics.jsonl"
    text = path.read_text()
    assert '"replay/buffer_size": ' in text
    import re

    path.write_text(re.sub(r'"replay/buffer_size": [0-9.]+', '"replay/buffer_size": 0', text))
    with pytest.raises(NoData, match="kept no sample"):
        method.buffer_life(run)


def test_tables_of_a_run(run):
    triggers = method_tables.trigger_table(run)
    assert set(triggers["trigger"]) <= {"self-questioning", "self-correction", "self-verification"}
    assert (triggers["rescued_n"] + triggers["lost_n"] == triggers["forced"]).all()
    draws = method_tables.draws_by_advantage(run)
    assert (draws["abs(A)"] > 0).all() and (draws["draws a sample"] * draws["samples"]).round().sum() > 0
    contents = method_tables.run_contents(run).set_index("name")
    assert contents.loc["rollouts", "files"] == 5 and "report.html" not in contents.index
    page = pages.changed_html(run, 3)
    assert 1 <= page.count("<hr>") + 1 <= 3 and "second look" in page
