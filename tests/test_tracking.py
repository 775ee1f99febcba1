"""The files of a run as the tracker writes them."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

from rethinker import wandb_mirror
from rethinker.config import RunConfig, TrackingConfig
from rethinker.measure import histogram
from rethinker.tracking import Tracker


def tracker(folder, **settings) -> Tracker:
    return Tracker(RunConfig(name="run", runs_dir=str(folder), tracking=TrackingConfig(**settings)))


def lines(folder) -> list[dict]:
    return [json.loads(text) for text in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def test_lines(tmp_path):
    writer = tracker(tmp_path)
    writer.log("step", "first", 1, 2, {"loss/total": 0.25, "loss/kl": None, "policy/grad_norm": float("nan")})
    writer.log("episode", "first", 1, 2, {"advantages/before": histogram([0.5]), "time/episode": float("inf")})
    step, episode = lines(tmp_path)
    seconds = step.pop("seconds")
    assert 0 <= seconds < 60
    assert step == {
        "record": "step",
        "stage": "first",
        "episode": 1,
        "step": 2,
        "loss/total": 0.25,
        "loss/kl": None,
        "policy/grad_norm": None,
    }
    assert episode["advantages/before"] == histogram([0.5]) and episode["time/episode"] is None


def test_unknown_metrics_are_refused(tmp_path):
    writer = tracker(tmp_path)
    with pytest.raises(KeyError, match=r"not in glossary.STEP: loss/mystery"):
        writer.log("step", "s", 1, 1, {"loss/mystery": 1.0})
    with pytest.raises(KeyError, match=r"not in glossary.EPISODE: loss/total"):
        writer.log("episode", "s", 1, 1, {"loss/total": 1.0})
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_only_the_main_process_writes(tmp_path, capsys):
    writer = Tracker(RunConfig(runs_dir=str(tmp_path), tracking=TrackingConfig(wandb=True)), enabled=False)
    writer.log("step", "s", 1, 1, {"loss/total": 1.0})
    writer.rollouts(1, [{"episode": 1}])
    writer.forget_after(0, 0)
    writer.say("hello")
    writer.close()
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""


def test_forget_after(tmp_path):
    writer = tracker(tmp_path)
    for episode in (1, 2, 3):
        for step in (2 * episode - 1, 2 * episode):
            writer.log("step", "s", episode, step, {"loss/total": float(step)})
        writer.log("episode", "s", episode, 2 * episode, {"queries/effective": 0.5})
        writer.rollouts(episode, [{"episode": episode, "qid": "a"}])
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_text(path.read_text() + '{"record": "step", "episode": 3, "st')  # killed while writing
    writer.forget_after(2, 4)
    assert [(line["record"], line["episode"], line["step"]) for line in lines(tmp_path)] == [
        ("step", 1, 1),
        ("step", 1, 2),
        ("episode", 1, 2),
        ("step", 2, 3),
        ("step", 2, 4),
        ("episode", 2, 4),
    ]
    files = sorted(file.name for file in (tmp_path / "run" / "rollouts").iterdir())
    assert files == ["episode-00001.parquet", "episode-00002.parquet"]
    writer.forget_after(-1, 0)
    assert lines(tmp_path) == [] and not list((tmp_path / "run" / "rollouts").iterdir())


def test_seconds_go_on(tmp_path):
    config = RunConfig(runs_dir=str(tmp_path))
    assert 100 <= Tracker(config, seconds_before=100.0).seconds < 160


EPISODE_LINE = {
    "accuracy/first": 0.25,
    "reward/mean": None,
    "queries/effective": 0.5,
    "replay/effective_after": None,
    "replay/buffer_size": 3,
    "reflection/share": 0.0,
    "rollout/tokens_per_second": 1234.5,
}


def test_progress_line(tmp_path, capsys):
    tracker(tmp_path).progress(1, 4, EPISODE_LINE)
    text = capsys.readouterr().out
    assert "episode    1/1  step     4  accuracy 0.250  reward   –   effective 0.50→  –   buffer     3" in text
    assert "1,234 tokens/s" in text and "left" in text


def test_wandb_identity(tmp_path, monkeypatch):
    """Going on keeps the id of the W&B twin, a new run of the same name gets another."""
    started = []

    class Twin:
        def __init__(self, **settings):
            started.append(settings)

        def define_metric(self, name, step_metric):
            pass

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=Twin, Settings=dict))
    monkeypatch.setattr(wandb_mirror.Mirror, "_use_inputs", lambda self: None)
    tracker(tmp_path, wandb=True)
    tracker(tmp_path, wandb=True)
    tracker(tmp_path / "elsewhere", wandb=True)
    first, again, other = (settings["id"] for settings in started)
    assert first == again != other and len(first) == 16
