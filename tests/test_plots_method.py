"""The method's figures draw in both themes, and their captions say n, seed and interval."""

from __future__ import annotations

import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
from synthetic_run import write_run
from trees import stub_policy

from rethinker.evaluation.statistics import wilson
from rethinker.lab.analysis import method as method_tables
from rethinker.lab.analysis.vital_signs import vital_signs
from rethinker.lab.figures import method, tree
from rethinker.lab.figures.catalogue import render
from rethinker.lab.figures.health import health
from rethinker.lab.figures.style import THEMES, NoData
from rethinker.lab.notebook import pages, teaching
from rethinker.policy.packing import pack_trees
from rethinker.replay import draw_probabilities
from rethinker.rundir.glossary import ROLLOUT_COLUMNS
from rethinker.rundir.reader import load_metrics
from rethinker.types import Query


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("world") / "run", stages=(2, 3), queries=10, held_out=16)


@pytest.fixture(scope="module")
def sweep():
    """One sample drawn 300 times of 500 and another 200 times, beside the probabilities for alpha 0 and 1."""
    samples = [teaching.toy_sample("a", 1.5), teaching.toy_sample("b", -0.5)]
    probabilities = {alpha: draw_probabilities([1.5, -0.5], alpha) for alpha in (0.0, 1.0)}
    return teaching.draws_table(samples, probabilities, {alpha: {"a": 300, "b": 200} for alpha in probabilities})


def drawings(run: Path, sweep, theme):
    return {
        "clipped": method.clipped_objective(0.2, 0.35, 3.0, theme),
        "advantages": method.advantages_by_correct({"none": torch.tensor([[0.5, -0.5]])}, theme),
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
    assert "A lone success weighs 0.50 (none)" in captions["advantages"]
    assert captions["clipped"].endswith("nothing is sampled.") and "1.35 times" in captions["clipped"]


@pytest.mark.parametrize("theme", THEMES.values(), ids=lambda theme: theme.name)
def test_the_packed_tree(theme):
    """A prompt of 4 tokens, y1 of 2 and its trajectory with 2 more: 8 tokens packed, 4 + 2 + 4 + 4 = 14 apart."""
    query = Query("0", "?", "1")
    row = pack_trees(stub_policy([4]), [(query, (1, 2)), (query, (1, 2, 7, 8))])
    drawing = tree.packed_tree(row, [["y1"] * 2, ["y1", "y1", "trigger", "y2"]], lambda ids: f"{ids[0]}", theme)
    assert "8 tokens in one row, where a row for each response would take 14" in drawing.caption
    left, right = drawing.figure.axes
    assert [text.get_text() for text in left.texts] == ["prompt\n4 tokens", "1", "7", "8"]
    seen = np.asarray(right.images[0].get_array())
    assert seen[7].tolist() == [1, 1, 1, 1, 2, 2, 3, 4] and seen[3].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]


def test_vital_signs(run, tmp_path):
    """Two updates per episode average; a run without updates has gaps; counts become shares of the responses."""
    rows = load_metrics(run)
    still = shutil.copytree(run, tmp_path / "still")
    metrics = still / "metrics.jsonl"
    metrics.write_text("".join(line for line in metrics.open() if '"record": "step"' not in line))
    table = vital_signs({"moving": run, "still": still}).set_index(["run", "episode"])
    steps = rows.steps[rows.steps["episode"] == 2]["policy/entropy"]
    assert table.loc[("moving", 2), "policy/entropy"] == pytest.approx(steps.astype(float).mean())
    assert table.loc["still", "policy/entropy"].isna().all() and len(table.loc["still"]) == 5
    first = rows.episodes.iloc[0]
    assert table.loc[("still", 1), "truncated"] == first["rollout/truncated"] / first["rollout/responses"]
    drawing = health({"moving": run, "still": still})
    assert "2 runs, n\u00a0=\u00a05 to 5 episodes" in drawing.caption
    assert len(drawing.figure.axes) == 6 and render(drawing, "png")


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


def test_gaps_are_explained(run, tmp_path):
    assert "Gaps: nothing was replayed in 5 of the episodes." in method.buffer_life(run).caption  # ages are null there
    path = shutil.copytree(run, tmp_path / "run") / "metrics.jsonl"
    path.write_text(path.read_text().replace('"replay/age_mean": null', '"replay/age_mean": 1.5'))
    assert "Gaps" not in method.buffer_life(path.parent).caption


def test_a_trigger_that_knows_the_verdict_is_no_comparison_of_words(run, tmp_path):
    assert "drawn without looking at the answer" in method.triggers(run).caption
    path = shutil.copytree(run, tmp_path / "run") / "config.yaml"
    path.write_text(path.read_text() + "rethink:\n  trigger_choice: by_correctness\n")
    assert "chosen by the verdict" in method.triggers(path.parent).caption


def test_draws_beside_the_law(tmp_path):
    """Episode 1, alpha 2: 10 draws for sizes 1, 1, 2 by 1 : 1 : 4. Episode 2, alpha 0: 3 draws alike for 1, 2, 2.

    In both the group of "all" is all right, and has the advantages that a price of tokens gives: it is never stored.
    """
    stages = "stages:\n- name: one\n  overrides: {replay: {alpha: 2}}\n- name: two\n  overrides: {replay: {alpha: 0}}\n"
    (tmp_path / "config.yaml").write_text(stages)
    (tmp_path / "rollouts").mkdir()
    for episode, stage, sizes, replays in (
        (1, "one", (1, -1, 2, 0, None), (1, 2, 7, 0, 0)),
        (2, "two", (1, -2, 2), (0, 1, 2)),
    ):
        rows = [
            {"qid": "some", "correct": bool(size and size > 0), "advantage": size, "replays": times}
            for size, times in zip(sizes, replays, strict=True)
        ]
        rows += [{"qid": "all", "correct": True, "advantage": size, "replays": 0} for size in (1, -2, 2)]
        table = pd.DataFrame(
            [dict.fromkeys(ROLLOUT_COLUMNS) | {"episode": episode, "stage": stage} | row for row in rows]
        )
        table.to_parquet(tmp_path / "rollouts" / f"episode-{episode:05d}.parquet")
    table = method_tables.draws_by_advantage(tmp_path).set_index("abs(A)")
    assert table["samples"].tolist() == [3, 3] and table["draws"].tolist() == [3, 10]
    assert table["expected"].tolist() == pytest.approx([10 / 3 + 1, 20 / 3 + 2])
    assert table.loc[2, "draws a sample"] == pytest.approx(10 / 3)
    assert table.loc[2, ["low", "high"]].tolist() == pytest.approx([13 * end for end in wilson(10, 13)])


def test_nothing_drawn_is_an_empty_table(tmp_path):
    (tmp_path / "rollouts").mkdir()
    row = dict.fromkeys(ROLLOUT_COLUMNS) | {"episode": 1, "stage": "one", "qid": "x", "replays": 0}
    rows = [row | {"advantage": advantage, "correct": advantage > 0} for advantage in (1.0, -1.0)]
    pd.DataFrame(rows).to_parquet(tmp_path / "rollouts" / "episode-00001.parquet")
    assert method_tables.draws_by_advantage(tmp_path).empty


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
