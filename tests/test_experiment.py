"""Whole runs of two stages: what they write, stopping in every way, and going on exactly where they stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from safetensors.torch import load_file

from rethinker.config import RunConfig, load_config, to_yaml
from rethinker.experiment import Experiment
from rethinker.glossary import EPISODE, STEP, VALIDATION
from rethinker.run_folder import STOP_FILE, RunExists, run_state
from rethinker.tracking import Tracker

pytestmark = pytest.mark.slow

STAGES = "[{name: reasoner, episodes: 3}, {name: rethinker, episodes: 3, overrides: {rethink: {fraction: 0.9}}}]"


def make_config(folder: Path, world: Path, guesser: Path, *overrides: str) -> RunConfig:
    return load_config(
        None,
        [
            f"runs_dir={folder}",
            "name=run",
            f"model.path={guesser}",
            *(f"data.{split}={world / split}.parquet" for split in ("train", "validation", "test")),
            "queries_per_episode=4",
            "rollout.engine=transformers",
            "rollout.group_size=4",
            "rollout.max_new_tokens=64",
            "replay.lifetime=3",
            "rethink.room_tokens=8",
            "optim.train_batch_size=8",
            "optim.micro_batch_size=8",
            "optim.lr=1e-4",
            "optim.warmup_steps=3",
            "evaluation.every=2",
            "evaluation.samples=1",
            "tracking.save_every=1",
            f"stages={STAGES}",
            *overrides,
        ],
    )


@pytest.fixture(autouse=True)
def untouched_process():
    """A run sets accelerate's state, torch's threads and a signal handler; each test starts without."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    threads = torch.get_num_threads()
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)
    PartialState._reset_state()
    torch.set_num_threads(threads)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, world, guesser) -> RunConfig:
    """An uninterrupted run."""
    config = make_config(tmp_path_factory.mktemp("whole"), world, guesser)
    AcceleratorState._reset_state(True)
    assert Experiment(config).run() == "finished"
    return config


def lines(config: RunConfig) -> list[dict]:
    return [json.loads(text) for text in (config.folder / "metrics.jsonl").read_text().splitlines()]


def comparable(config: RunConfig) -> list[dict]:
    """The metrics without what a clock measured."""
    clocks = {"seconds", "rollout/tokens_per_second", *(name for name in EPISODE if name.startswith("time/"))}
    return [{name: value for name, value in line.items() if name not in clocks} for line in lines(config)]


def final_weights(config: RunConfig) -> dict[str, torch.Tensor]:
    return load_file(config.folder / "checkpoints" / "last" / "model" / "model.safetensors")


def assert_same_run(config: RunConfig, whole: RunConfig) -> None:
    """Bit for bit: weights, optimiser, replay buffer, metrics, responses and evaluations."""
    expected = final_weights(whole)
    found = final_weights(config)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    assert comparable(config) == comparable(whole)
    for name in ("optimizer.safetensors", "replay.json"):
        path = Path("checkpoints") / "last" / name
        assert (config.folder / path).read_bytes() == (whole.folder / path).read_bytes(), name
    for folder, pattern in (("rollouts", "*.parquet"), ("evaluation", "*.json")):
        names = sorted(path.name for path in (whole.folder / folder).glob(pattern))
        assert names == sorted(path.name for path in (config.folder / folder).glob(pattern))
        for name in names:
            assert (config.folder / folder / name).read_bytes() == (whole.folder / folder / name).read_bytes(), name
    assert run_state(config.folder) == "finished"


def stop_when(monkeypatch, config: RunConfig, episode: int, stop) -> None:
    """Call ``stop`` at the end of ``episode``."""
    rollouts = Tracker.rollouts

    def watch(self, number, rows):
        rollouts(self, number, rows)
        if number == episode:
            stop()

    monkeypatch.setattr(Tracker, "rollouts", watch)


def resume(config: RunConfig) -> str:
    AcceleratorState._reset_state(True)
    return Experiment(config, resume=True).run()


# -- what a run writes ------------------------------------------------------------------------------------------------


def test_files_of_a_run(whole):
    names = {str(path.relative_to(whole.folder)) for path in whole.folder.rglob("*")}
    assert {"config.yaml", "provenance.json", "metrics.jsonl", "status.json"} <= names
    assert {f"rollouts/episode-{number:05d}.parquet" for number in range(1, 7)} <= names
    assert {
        f"evaluation/{label}.{end}" for label in ("start", "reasoner", "rethinker") for end in ("json", "parquet")
    } <= names
    assert {f"checkpoints/{link}" for link in ("last", "best", "reasoner", "rethinker")} <= names
    assert not [name for name in names if name.endswith(".tmp") or name == STOP_FILE]
    assert load_config(whole.folder / "config.yaml") == whole
    accuracies = {line["step"]: line["validation/accuracy"] for line in lines(whole) if line["record"] == "validation"}
    best = int((whole.folder / "checkpoints" / "best").resolve().name.split("-")[1])
    assert accuracies[best] == max(value for step, value in accuracies.items() if step)
    linked = {path.resolve() for path in (whole.folder / "checkpoints").iterdir() if path.is_symlink()}
    assert linked == set((whole.folder / "checkpoints").glob("step-*"))
    facts = json.loads((whole.folder / "provenance.json").read_text())
    assert (
        facts["seed"] == 0 and facts["engine"] == "TransformersEngine" and len(facts["data"]["train"]["sha256"]) == 64
    )


def test_lines_of_a_run(whole):
    records = lines(whole)
    for kind, explained in (("episode", EPISODE), ("step", STEP), ("validation", VALIDATION)):
        coordinates = {"record", "stage", "episode", "step", "seconds"}
        assert {frozenset(line) - coordinates for line in records if line["record"] == kind} == {frozenset(explained)}
    episodes = [line for line in records if line["record"] == "episode"]
    assert [(line["episode"], line["stage"]) for line in episodes] == [
        *((number, "reasoner") for number in (1, 2, 3)),
        *((number, "rethinker") for number in (4, 5, 6)),
    ]
    validations = [(line["episode"], line["stage"]) for line in records if line["record"] == "validation"]
    assert validations == [(0, "start"), (2, "reasoner"), (3, "reasoner"), (5, "rethinker"), (6, "rethinker")]
    steps = [line for line in records if line["record"] == "step"]
    assert [line["step"] for line in steps] == list(range(1, len(steps) + 1)) and len(steps) >= 8
    assert all(line["optim/lr"] == pytest.approx(1e-4 * min(1, (i + 1) / 3)) for i, line in enumerate(steps[:5]))
    assert all(line["rethink/forced"] == 0 for line in episodes[:3])
    assert sum(line["rethink/forced"] for line in episodes[3:]) > 0
    assert sum(line["rethink/kept"] for line in episodes[3:]) > 0
    assert all(line["gap/max"] < 1e-4 and line["canary/gap"] < 1e-4 for line in episodes if line["gap/max"] is not None)
    assert any(line["replay/share"] for line in episodes)
    trained = [line for line in episodes if line["replay/effective_after"] is not None]
    assert trained and all(line["replay/effective_after"] == 1.0 for line in trained)


# -- stopping and going on --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("episode", [2, 3, 5], ids=["in stage 1", "at the end of stage 1", "in stage 2"])
def test_stop_file_and_resume(whole, tmp_path, monkeypatch, episode, world, guesser):
    config = make_config(tmp_path, world, guesser)
    with monkeypatch.context() as patch:
        stop_when(patch, config, episode, (config.folder / STOP_FILE).touch)
        assert Experiment(config).run() == "stopped"
    assert run_state(config.folder) == "stopped" and not (config.folder / STOP_FILE).exists()
    assert [line["episode"] for line in lines(config) if line["record"] == "episode"] == list(range(1, episode + 1))
    assert resume(config) == "finished"
    assert_same_run(config, whole)


def test_sigterm_saves(tmp_path, monkeypatch, world, guesser):
    config = make_config(tmp_path, world, guesser)
    stop_when(monkeypatch, config, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert Experiment(config).run() == "stopped"
    state = json.loads((config.folder / "checkpoints" / "last" / "trainer.json").read_text())["trainer"]
    assert state["progress"]["episode"] == 1


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def wait_for_episode(process: subprocess.Popen, config: RunConfig, episode: int) -> None:
    path = config.folder / "metrics.jsonl"
    for _ in range(1200):
        if path.exists() and f'"episode": {episode}, ' in path.read_text():
            return
        assert process.poll() is None, "the run ended before it was to be stopped"
        time.sleep(0.2)
    raise AssertionError("no episode within 4 minutes")


def test_kill_and_resume(whole, tmp_path, world, guesser):
    """SIGKILL in episode 5, wherever it may be; checkpoints every episode."""
    config = make_config(tmp_path, world, guesser)
    config_file = tmp_path / "config.yaml"
    config_file.write_text(to_yaml(config))
    command = [sys.executable, "-m", "rethinker.experiment", str(config_file)]
    process = subprocess.Popen(command, env=environment())
    wait_for_episode(process, config, 5)
    process.kill()
    assert process.wait() == -signal.SIGKILL and run_state(config.folder) == "running"
    assert resume(config) == "finished"
    assert_same_run(config, whole)


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, world, guesser):
    endless = STAGES.replace("episodes: 3", "episodes: 500")
    config = make_config(tmp_path, world, guesser, f"stages={endless}", "data.test=null", "evaluation.every=0")
    config_file = tmp_path / "my run.yaml"
    config_file.write_text(to_yaml(config))
    command = [sys.executable, "-m", "rethinker.cli", "train", str(config_file), "tracking.save_every=0"]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for_episode(process, config, 2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert "stopping after this episode, with a checkpoint (Ctrl-C again: at once)" in err and "Traceback" not in err
    assert f"stopped and saved; go on with: rethinker train '{config_file}' tracking.save_every=0 --resume" in out
    assert "episode    1/1000  step" in out
    state = json.loads((config.folder / "checkpoints" / "last" / "trainer.json").read_text())["trainer"]
    done = max(line["episode"] for line in lines(config))
    assert state["progress"]["episode"] == done and run_state(config.folder) == "stopped"
    assert (config.folder / "report.html").exists()


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_a_run_of_the_same_name_is_refused(whole):
    before = (whole.folder / "metrics.jsonl").read_bytes()
    with pytest.raises(RunExists, match=r"exists already: go on with it \(--resume\) or choose another name="):
        Experiment(whole)
    assert (whole.folder / "metrics.jsonl").read_bytes() == before


def test_other_settings_are_refused(whole, world, guesser):
    other = make_config(Path(whole.runs_dir), world, guesser, "optim.lr=1e-3")
    with pytest.raises(RunExists, match=r"was made with other settings \(optim.lr: 0.0001 -> 0.001\)"):
        Experiment(other, resume=True)


def test_where_it_runs_and_who_watches_may_change(whole, world, guesser):
    other = make_config(Path(whole.runs_dir), world, guesser, "tracking.save_every=7", "launch.threads=2")
    assert resume(other) == "finished"  # there was nothing left to do


def test_more_queries_than_there_are(tmp_path, world, guesser):
    config = make_config(tmp_path, world, guesser, "queries_per_episode=14")
    with pytest.raises(ValueError, match=r"queries_per_episode=14, but .* has 12 usable queries"):
        Experiment(config)
