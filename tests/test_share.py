"""A run made ready for others, from a made-up one."""

from __future__ import annotations

import json
import shutil

import pytest
from synthetic_run import STAGES, write_run

from rethinker.config import load_config
from rethinker.files import atomic_write_text
from rethinker.lab import share


@pytest.fixture
def run(tmp_path):
    folder = write_run(tmp_path / "runs" / "made-up", stages=(2, 2), queries=4, held_out=6)
    stages = "".join(f"- {{name: {name}, episodes: 2}}\n" for name in STAGES)
    atomic_write_text(folder / "config.yaml", f"name: made-up\nstages:\n{stages}")
    for name in STAGES:
        (folder / "checkpoints" / name / "model").mkdir(parents=True)
    return folder


def test_folder(run):
    """Beside the run, with its files and its settings; kept where nothing changed, made anew where something did."""
    folder = share.share_folder(run, queries=3, samples=2)
    assert folder == run.parent / "made-up-shared" and (folder / "rollouts" / "episode-00004.parquet").is_file()
    config = load_config(folder / "config.yaml")
    assert (config.name, config.data.test_limit, config.evaluation.samples) == ("made-up-shared", 3, 2)
    assert config.tracking.wandb and not load_config(run / "config.yaml").tracking.wandb
    mark = atomic_write_text(folder / "evaluation" / "mark", "")
    assert share.share_folder(run, queries=3, samples=2) == folder and mark.exists()
    assert share.share_folder(run, queries=4, samples=2) == folder and not mark.exists()
    atomic_write_text(run / "provenance.json", '{"started": "later"}')
    mark = atomic_write_text(folder / "evaluation" / "mark", "")
    assert share.share_folder(run, queries=4, samples=2) == folder and not mark.exists()


def test_another_folder_is_left_alone(run):
    (run.parent / "made-up-shared").mkdir()
    with pytest.raises(ValueError, match=r"made-up-shared is in the way"):
        share.share_folder(run, queries=3, samples=2)


def test_every_stage_is_evaluated_once(run, monkeypatch):
    folder, asked = share.share_folder(run, queries=3, samples=2), []

    def evaluate(out, label, model):
        asked.append((label, model))
        (out / "evaluation").mkdir(exist_ok=True)
        shutil.copyfile(run / "evaluation" / f"{label}.json", out / "evaluation" / f"{label}.json")

    monkeypatch.setattr(share, "_evaluate", evaluate)
    share.evaluate_stages(run, folder)
    share.evaluate_stages(run, folder)
    models = [str(run / "checkpoints" / name / "model") for name in STAGES]
    assert asked == [("start", "data/tiny-vlm"), *zip(STAGES, models, strict=True)]
    table = share.results(folder)
    assert list(table["evaluation"].unique()) == ["start", *STAGES]
    first, fig7 = table.iloc[0], json.loads((run / "evaluation" / "start.json").read_text())["modes"]["plain"]["greedy"]
    assert first["accuracy"] == f"{fig7['value']:.1%}" and first["queries"] == 6
    assert first["95% interval"] == f"{100 * fig7['low']:.1f} to {100 * fig7['high']:.1f}"


def test_no_checkpoint(run):
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(FileNotFoundError, match="has no checkpoint of a finished stage yet"):
        share.evaluate_stages(run, share.share_folder(run, queries=3, samples=2))


def test_a_failed_evaluation_says_why(run, tmp_path):
    folder = share.share_folder(run, queries=3, samples=2)
    with pytest.raises(RuntimeError, match=r"the evaluation of .*nowhere failed: .*data.test is not set"):
        share._evaluate(folder, "start", str(tmp_path / "nowhere"))


def test_the_files_are_recorded(run, monkeypatch):
    """Every line, every episode's table after its line, every evaluation; once."""
    told = []

    class Mirror:
        def __init__(self, config, *, job_type):
            told.append((config.name, job_type))
            atomic_write_text(config.folder / "wandb" / "offline-run-1" / "run.wandb", "")

        def log(self, line):
            told.append((line["record"], line["episode"]))

        def responses(self, episode, rows):
            told.append(("responses", episode, len(rows), rows[0]["trigger"], next(iter(rows[0]["images"]))[-4:]))

        def evaluation(self, label, summary):
            told.append((label, sorted(summary["modes"])))

        def close(self):
            told.append("closed")

    monkeypatch.setattr(share, "Mirror", Mirror)
    folder = share.share_folder(run, queries=3, samples=2)
    shutil.copytree(run / "evaluation", folder / "evaluation")
    words = share.record(folder)
    assert f"Send it: rethinker sync {folder}" in words and f"rethinker report {folder} --wandb" in words
    assert told[0] == ("made-up-shared", "share") and told[-1] == "closed"
    assert [item[1] for item in told if item[0] == "responses"] == [1, 2, 3, 4]
    at = told.index(("episode", 2))
    assert told[at + 1][:2] == ("responses", 2) and told[at + 1][3:] == (None, ".png")
    assert sum(item[0] == "step" for item in told) == 16
    assert [item[0] for item in told[-4:-1]] == ["start", *STAGES]
    before = len(told)
    assert share.record(folder) == words and len(told) == before
