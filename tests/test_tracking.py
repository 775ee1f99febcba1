"""The files of a run as the tracker writes them."""

from __future__ import annotations

import json

import pytest
import wandb
from wandb.sdk.mailbox import MailboxClosedError

from rethinker.config import RunConfig, StageConfig, TrackingConfig
from rethinker.lab.wandb import mirror as wandb_mirror
from rethinker.rundir.metrics import histogram
from rethinker.rundir.tracking import Tracker


def tracker(folder, make_sink=wandb_mirror.open_mirror, **settings) -> Tracker:
    config = RunConfig(name="run", runs_dir=str(folder), tracking=TrackingConfig(**settings))
    return Tracker(config, make_sink=make_sink)


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
    config = RunConfig(runs_dir=str(tmp_path), tracking=TrackingConfig(wandb=True))
    writer = Tracker(config, enabled=False, make_sink=wandb_mirror.open_mirror)
    writer.log("step", "s", 1, 1, {"loss/total": 1.0})
    writer.rollouts(1, [{"episode": 1}])
    writer.truncate_after(0, 0)
    writer.say("hello")
    writer.close()
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""


def test_truncate_after(tmp_path):
    writer = tracker(tmp_path)
    for episode in (1, 2, 3):
        for step in (2 * episode - 1, 2 * episode):
            writer.log("step", "s", episode, step, {"loss/total": float(step)})
        writer.log("episode", "s", episode, 2 * episode, {"queries/effective": 0.5})
        writer.rollouts(episode, [{"episode": episode, "qid": "a"}])
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_text(path.read_text() + '{"record": "step", "episode": 3, "st')  # killed while writing
    for name in (
        ".metrics.jsonl.x.tmp",
        ".status.json.x.tmp",
        ".config.yaml.x.tmp",
        "rollouts/.episode-00003.parquet.x.tmp",
    ):
        (path.parent / name).touch()
    writer.truncate_after(2, 4)
    assert [(line["record"], line["episode"], line["step"]) for line in lines(tmp_path)] == [
        ("step", 1, 1),
        ("step", 1, 2),
        ("episode", 1, 2),
        ("step", 2, 3),
        ("step", 2, 4),
        ("episode", 2, 4),
    ]
    files = sorted(file.name for file in (tmp_path / "run" / "rollouts").iterdir())
    assert files == ["episode-00001.parquet", "episode-00002.parquet"] and not list(path.parent.glob(".*"))
    writer.truncate_after(-1, 0)
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


def test_time_left_minds_the_budget_of_the_stage(tmp_path, capsys):
    stages = (StageConfig("first", 9, {"budget": {"steps": 12}}), StageConfig("second", 5))
    writer = Tracker(RunConfig(name="run", runs_dir=str(tmp_path), stages=stages))
    writer.episodes.append({"stage": "first", "episode": 1, "step": 4, "seconds": 100.0})
    writer.progress(1, 4, EPISODE_LINE)
    assert "11:40 left" in capsys.readouterr().out  # two more episodes, and five; each takes a hundred seconds


class FailingSink:
    """A sink whose service has gone, at the call with this number."""

    name, resend = "W&B", "rethinker sync FOLDER"
    errors = wandb_mirror.mirror_errors()

    def __init__(self, error: Exception, last: int) -> None:
        self.error, self.calls, self.last = error, 0, last

    def _called(self, *_) -> None:
        self.calls += 1
        if self.calls >= self.last:
            raise self.error

    log = responses = evaluation = close = _called


def test_a_setting_is_not_ignored(tmp_path):
    with pytest.raises(ValueError, match=r"tracking\.wandb=true needs a sink"):
        tracker(tmp_path, None, wandb=True)


@pytest.mark.parametrize("error", [ConnectionResetError("gone"), wandb.errors.CommError("gone"), MailboxClosedError()])
@pytest.mark.parametrize("last", [1, 2, 3, 4])
def test_the_run_survives_its_sink(tmp_path, capsys, error, last):
    """Whichever call fails: it is said once, nothing more is asked of the sink, and the files are whole."""
    sink = FailingSink(error, last)
    writer = tracker(tmp_path, lambda config: sink, wandb=True)
    writer.log("step", "s", 1, 1, {"loss/total": 1.0})
    writer.rollouts(1, [{"episode": 1, "qid": "a"}])
    writer.log("step", "s", 1, 2, {"loss/total": 1.0})
    writer.close()
    assert sink.calls == last and writer.sink is None
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]
    assert (tmp_path / "run" / "rollouts" / "episode-00001.parquet").is_file()
    said = capsys.readouterr().out
    assert said.count(f"W&B failed ({type(error).__name__}") == 1
    assert "rethinker sync FOLDER" in said and "recorded for W&B" not in said


def test_a_mistake_of_ours_is_not_hidden(tmp_path):
    writer = tracker(tmp_path, lambda config: FailingSink(KeyError("mistake"), 1), wandb=True)
    with pytest.raises(KeyError, match="mistake"):
        writer.log("step", "s", 1, 1, {"loss/total": 1.0})


def test_wandb_mode_of_the_environment(tmp_path, monkeypatch, capsys):
    """WANDB_MODE can only lower what the config says; disabled makes no mirror, and says so."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert tracker(tmp_path, wandb=True).sink is None
    assert "WANDB_MODE=disabled: nothing is recorded" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    for wished, configured, mode in (
        ("offline", "online", "offline"),
        ("online", "offline", "offline"),
        ("online", "online", "online"),
    ):
        monkeypatch.setenv("WANDB_MODE", wished)
        config = RunConfig(tracking=TrackingConfig(wandb_mode=configured))
        assert wandb_mirror.recording_mode(config) == mode
