"""A run made ready for others, from a made-up one."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
from synthetic_run import STAGES, write_run

from rethinker.config import load_config
from rethinker.lab import jobs
from rethinker.lab.notebook import share
from rethinker.rundir.atomic import atomic_write_text


@pytest.fixture
def run(tmp_path):
    folder = write_run(tmp_path / "runs" / "made-up", stages=(2, 2), queries=4, held_out=6)
    stages = "".join(f"- {{name: {name}, episodes: 2}}\n" for name in STAGES)
    test = atomic_write_text(tmp_path / "test.parquet", "queries")
    atomic_write_text(folder / "config.yaml", f"name: made-up\ndata: {{test: '{test}'}}\nstages:\n{stages}")
    for name in STAGES:
        atomic_write_text(folder / "checkpoints" / name / "model" / "weights", name)
    return folder


@pytest.fixture
def evaluated(run, monkeypatch):
    """What was evaluated, as (label, model); instead of it the run's own results are copied."""
    asked = []

    def evaluate(out, label, model):
        asked.append((label, model))
        (out / "evaluation").mkdir(exist_ok=True)
        shutil.copyfile(run / "evaluation" / f"{label}.json", out / "evaluation" / f"{label}.json")

    monkeypatch.setattr(share, "evaluate", evaluate)
    return asked


@pytest.fixture
def told(monkeypatch):
    """What a pretended W&B was told; it says it was interrupted at the record whose kind is put into ``told.fail``."""

    class Told(list):
        fail = None

    told = Told()

    class Mirror:
        def __init__(self, config, *, job_type):
            told.append((config.name, job_type))
            number = len(list((config.folder / "wandb").glob("**/run.wandb")))
            atomic_write_text(config.folder / "wandb" / f"offline-run-{number}" / "run.wandb", "")
            atomic_write_text(config.folder / "wandb_id", str(number))

        def log(self, line):
            if line["record"] == told.fail:
                raise KeyboardInterrupt
            told.append((line["record"], line["episode"]))

        def responses(self, episode, rows):
            told.append(("responses", episode, len(rows), rows[0]["trigger"], next(iter(rows[0]["images"]))[-4:]))

        def evaluation(self, label, summary):
            told.append((label, sorted(summary["modes"])))

        def close(self):
            told.append("closed")
            print("wandb: set WANDB_MODE=online", file=sys.stderr)

    monkeypatch.setattr(share, "Mirror", Mirror)
    monkeypatch.delenv("WANDB_MODE", raising=False)  # it would have the last word
    return told


def test_folder(run):
    """In ``shared`` beside the run, with its files and its settings; what is not given is as the run says."""
    folder = share.share_folder(run, queries=3, samples=2)
    assert folder == run.parent / "shared" / "made-up" and (folder / "rollouts" / "episode-00004.parquet").is_file()
    config = load_config(folder / "config.yaml")
    assert (config.name, config.data.test_limit, config.evaluation.samples) == ("made-up", 3, 2)
    assert config.tracking.wandb and not load_config(run / "config.yaml").tracking.wandb
    own = load_config(share.share_folder(run) / "config.yaml")
    assert (own.data.test_limit, own.evaluation.samples, own.data.test) == (None, 4, config.data.test)
    assert load_config(share.share_folder(run, data="mine.parquet") / "config.yaml").data.test == "mine.parquet"
    assert [job.name for job in jobs.find(run.parent)] == ["made-up"]  # the copy is no job


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"wandb_mode": "never"}, "tracking.wandb_mode='never'"),
        ({"queries": -1}, "data.test_limit=-1"),
        ({"samples": -1}, "evaluation.samples=-1"),
    ],
)
def test_bad_values_are_named_before_anything_is_written(run, given, expected):
    with pytest.raises(ValueError, match=expected):
        share.share_folder(run, **given)
    assert not (run.parent / "shared").exists()


def test_a_run_without_held_out_queries(run):
    atomic_write_text(run / "config.yaml", "name: made-up")
    with pytest.raises(ValueError, match=r"made-up names no held-out queries .*give data=FILE.parquet"):
        share.share_folder(run)
    assert share.share_folder(run, data="mine.parquet").is_dir()


def test_what_the_run_wrote_since_is_copied(run, tmp_path):
    """Of a run that was shared while it was trained; a rollout that is no more goes."""
    metrics, newest = run / "metrics.jsonl", run / "rollouts" / "episode-00004.parquet"
    whole, saved = metrics.read_text(), shutil.move(newest, tmp_path / "saved.parquet")
    metrics.write_text(whole[: len(whole) // 2])
    atomic_write_text(run / "status.json", '{"state": "running"}')
    folder = share.share_folder(run)
    atomic_write_text(folder / "rollouts" / "episode-00009.parquet", "of an earlier run")
    metrics.write_text(whole)
    shutil.move(saved, newest)
    atomic_write_text(run / "status.json", '{"state": "finished"}')
    share.share_folder(run)
    assert (folder / "metrics.jsonl").read_text() == whole and "finished" in (folder / "status.json").read_text()
    for name in ("rollouts/episode-00001.parquet", "rollouts/episode-00004.parquet"):
        assert (folder / name).read_bytes() == (run / name).read_bytes()
    assert len(list((folder / "rollouts").iterdir())) == 4


def test_another_folder_is_left_alone(run):
    (run.parent / "shared" / "made-up").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"shared/made-up is in the way"):
        share.share_folder(run, queries=3, samples=2)


def test_every_stage_is_evaluated_once(run, evaluated, capsys):
    folder = share.share_folder(run, queries=3, samples=2)
    share.evaluate_stages(run, folder)
    share.evaluate_stages(run, folder)
    models = [str(run / "checkpoints" / name / "model") for name in STAGES]
    assert evaluated == [("start", "data/tiny-vlm"), *zip(STAGES, models, strict=True)]
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "start (1 of 3) ..." and said[1].startswith("start: evaluated in") and len(said) == 6
    table = share.results(folder)
    assert list(table["evaluation"].unique()) == ["start", *STAGES]
    first, fig7 = table.iloc[0], json.loads((run / "evaluation" / "start.json").read_text())["modes"]["plain"]["greedy"]
    assert first["accuracy"] == f"{fig7['value']:.1%}" and first["queries"] == 6
    assert first["95% interval"] == f"{100 * fig7['low']:.1f} to {100 * fig7['high']:.1f}"


def test_what_does_not_change_an_evaluation_keeps_it(run, evaluated, told):
    """Where it is sent, how the run went on: nothing is lost. Other weights or queries: what depends on them is new."""
    folder = share.share_folder(run, queries=3)
    share.evaluate_stages(run, folder)
    share.record(folder)
    evaluated.clear()
    atomic_write_text(run / "provenance.json", '{"started": "later"}')
    assert share.share_folder(run, queries=3, wandb_mode="online") == folder
    share.evaluate_stages(run, folder)
    assert not evaluated and (folder / "wandb" / "offline-run-0" / "run.wandb").is_file()
    assert load_config(folder / "config.yaml").tracking.wandb_mode == "online"
    atomic_write_text(run / "checkpoints" / STAGES[1] / "model" / "weights", "trained again")
    share.evaluate_stages(run, folder)
    assert [label for label, _ in evaluated] == [STAGES[1]]
    evaluated.clear()
    share.evaluate_stages(run, share.share_folder(run, queries=4))
    assert [label for label, _ in evaluated] == ["start", *STAGES]
    evaluated.clear()
    atomic_write_text(run.parents[1] / "test.parquet", "other queries")
    share.evaluate_stages(run, share.share_folder(run, queries=4))
    assert len(evaluated) == 3


def test_no_two_evaluations_of_different_queries(run, evaluated, monkeypatch):
    """Where the first of the new ones fails, the old ones do not stand next to it."""
    folder = share.share_folder(run, queries=3)
    share.evaluate_stages(run, folder)

    def fail(out, label, model):
        raise RuntimeError("no memory")

    monkeypatch.setattr(share, "evaluate", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        share.evaluate_stages(run, share.share_folder(run, queries=4))
    assert not list((folder / "evaluation").glob("*.json"))


def test_no_checkpoint(run):
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(FileNotFoundError, match="has no checkpoint of a finished stage yet"):
        share.evaluate_stages(run, share.share_folder(run, queries=3, samples=2))


def test_a_failed_evaluation_says_why(run, tmp_path):
    folder = share.share_folder(run, queries=3, samples=2)
    with pytest.raises(
        RuntimeError, match=r"(?s)the evaluation of .*nowhere failed \(.*start.log\): .*rethinker evaluate:"
    ):
        share.evaluate(folder, "start", str(tmp_path / "nowhere"))


def test_the_files_are_recorded(run, told):
    """Every line, every episode's table after its line, every evaluation; once."""
    folder = share.share_folder(run, queries=3, samples=2)
    shutil.copytree(run / "evaluation", folder / "evaluation")
    words = share.record(folder)
    assert f"Send it: rethinker sync {folder}" in words and f"rethinker report {folder} --wandb" in words
    assert told[0] == ("made-up", "share") and told[-1] == "closed"
    assert [item[1] for item in told if item[0] == "responses"] == [1, 2, 3, 4]
    at = told.index(("episode", 2))
    assert told[at + 1][:2] == ("responses", 2) and told[at + 1][3:] == (None, ".png")
    assert sum(item[0] == "step" for item in told) == 16
    assert [item[0] for item in told[-4:-1]] == ["start", *STAGES]
    before = len(told)
    assert share.record(folder) == words and len(told) == before
    share.share_folder(run, queries=3, samples=2, wandb_mode="online")
    assert share.record(folder) == words and len(told) == before  # it is there: sent by the command, not twice


@pytest.mark.parametrize(("mode", "said"), [("offline", ""), ("online", "wandb: set WANDB_MODE=online\n")])
def test_offline_nothing_is_advised_but_the_command(run, told, capsys, mode, said):
    words = share.record(share.share_folder(run, wandb_mode=mode))
    assert capsys.readouterr().err == said and words.startswith(
        {"offline": "Recorded offline.", "online": "Sent."}[mode]
    )


def test_an_interrupted_recording_is_made_again(run, told):
    folder = share.share_folder(run)
    told.fail = "validation"
    with pytest.raises(KeyboardInterrupt):
        share.record(folder)
    assert told[-1] == "closed"
    told.fail = None
    assert "Recorded offline" in share.record(folder) and ("episode", 4) in told
    assert [path.name for path in sorted((folder / "wandb").glob("offline-run-*"))] == ["offline-run-1"]
    assert (folder / "wandb" / "superseded" / "offline-run-0" / "run.wandb").is_file()  # kept, but not sent
    assert (folder / "wandb_id").read_text() == "1"


def test_a_run_that_went_on_is_recorded_anew(run, told):
    """As another W&B run: what was sent stays where it is, what was not is kept but not sent."""
    metrics = run / "metrics.jsonl"
    whole = metrics.read_text()
    metrics.write_text(whole[: len(whole) // 2])  # cut within a line
    folder = share.share_folder(run)
    share.record(folder)
    assert ("episode", 4) not in told
    atomic_write_text(folder / "wandb" / "offline-run-0" / "run.wandb.synced", "")
    metrics.write_text(whole)
    share.record(share.share_folder(run))
    assert ("episode", 4) in told and (folder / "wandb_id").read_text() == "1"
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 2
