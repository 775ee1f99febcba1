"""Whole runs of two stages: what they write, stopping in every way, and going on exactly where they stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from bounds import LOGPROB, rounding
from safetensors.torch import load_file
from tiny_training import tiny_policy

import rethinker.run as run_module
from rethinker.config import RunConfig, load_config, to_yaml
from rethinker.datasets.io import load_queries, write_parquet
from rethinker.evaluation.held_out import evaluate_checkpoint, read_split
from rethinker.processes import check_accelerator
from rethinker.rollout import TransformersEngine
from rethinker.run import TrainingRun
from rethinker.rundir.folder import RunExists, run_state
from rethinker.rundir.glossary import EPISODE, STEP, VALIDATION
from rethinker.rundir.tracking import Tracker

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("untouched_process")]

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
            "rethink.min_second_look_tokens=8",
            "optim.train_batch_size=8",
            "optim.micro_batch_tokens=256",
            "optim.lr=1e-4",
            "optim.warmup_steps=3",
            "evaluation.every=2",
            "evaluation.samples=1",
            "tracking.save_every=1",
            f"stages={STAGES}",
            *overrides,
        ],
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory, world, guesser) -> RunConfig:
    """An uninterrupted run."""
    config = make_config(tmp_path_factory.mktemp("whole"), world, guesser)
    AcceleratorState._reset_state(True)
    assert TrainingRun(config).run() == "finished"
    return config


def lines(config: RunConfig) -> list[dict]:
    return [json.loads(text) for text in (config.folder / "metrics.jsonl").read_text().splitlines()]


def comparable(config: RunConfig) -> list[dict]:
    """The metrics without what a clock measured, and without images that a new process has to read again."""
    clocks = {"seconds", "rollout/tokens_per_second", *(name for name in EPISODE if name.startswith("time/"))}
    left_out = {*clocks, "images/decoded"}
    return [{name: value for name, value in line.items() if name not in left_out} for line in lines(config)]


def final_weights(config: RunConfig) -> dict[str, torch.Tensor]:
    return load_file(config.folder / "checkpoints" / "last" / "model" / "model.safetensors")


def assert_same_run(config: RunConfig, whole: RunConfig) -> None:
    """Bit for bit: weights, optimiser, replay buffer, metrics, responses and evaluations."""
    expected = final_weights(whole)
    found = final_weights(config)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    assert comparable(config) == comparable(whole)
    last, expected_last = (place / "checkpoints" / "last" for place in (config.folder, whole.folder))
    names = [path.relative_to(expected_last) for path in expected_last.glob("state/*")]
    assert names
    assert (last / "replay.parquet").read_bytes() == (expected_last / "replay.parquet").read_bytes()
    for name in names:
        mine, theirs = load_file(last / name), load_file(expected_last / name)  # the header's order is not fixed
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
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
    return TrainingRun(config, resume=True).run()


# -- budgets -----------------------------------------------------------------------------------------------------------


def test_a_budget_ends_the_stage_and_a_resumed_run_ends_there_too(whole, tmp_path, monkeypatch, world, guesser):
    """Tokens of the first stage, updates of the whole run: as many episodes as reach them, resumed or not."""
    tokens = [line["tokens/generated"] for line in lines(whole) if line["record"] == "episode"]
    stages = (
        f"[{{name: reasoner, episodes: 50, overrides: {{budget: {{tokens: {tokens[1]}}}}}}}, "
        "{name: rethinker, episodes: 50, overrides: {rethink: {fraction: 0.9}}}]"
    )
    config = make_config(tmp_path, world, guesser, f"stages={stages}", "budget.steps=7", "data.test=null")
    with monkeypatch.context() as patch:
        stop_when(patch, config, 1, (config.folder / "STOP").touch)
        assert TrainingRun(config).run() == "stopped"
    assert resume(config) == "finished"
    episodes = [line for line in lines(config) if line["record"] == "episode"]
    assert [line["stage"] for line in episodes[:3]] == ["reasoner", "reasoner", "rethinker"]
    assert [line["tokens/generated"] for line in episodes[:2]] == tokens[:2]  # of the run without a budget
    assert episodes[-1]["step"] >= 7 > episodes[-2]["step"]
    assert {path.name for path in (config.folder / "checkpoints").iterdir()} >= {"reasoner", "rethinker", "last"}


def test_validations_by_tokens_change_nothing_else(whole, tmp_path, world, guesser):
    """One after every episode that passes a multiple, those of ``every`` beside them, and the weights stay the same."""
    episodes = [line for line in lines(whole) if line["record"] == "episode"]
    tokens = [line["tokens/generated"] for line in episodes]
    step = tokens[-1] // 3
    passed = {at for at, (before, after) in enumerate(pairwise([0, *tokens]), 1) if before // step < after // step}
    config = make_config(tmp_path, world, guesser, f"evaluation.every_tokens={step}", "evaluation.every=0")
    AcceleratorState._reset_state(True)
    assert TrainingRun(config).run() == "finished"
    ends = {line["episode"] for line, after in pairwise(episodes) if line["stage"] != after["stage"]} | {len(tokens)}
    validated = [line["episode"] for line in lines(config) if line["record"] == "validation"]
    assert set(validated) == passed | ends | {0} and len(validated) == len(set(validated))
    expected = final_weights(whole)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in final_weights(config).items())


def test_seconds_are_a_budget(tmp_path, world, guesser):
    stages = "[{name: reasoner, episodes: 50}, {name: rethinker, episodes: 50}]"
    options = (f"stages={stages}", "budget.seconds=1e-6", "data.test=null", "data.validation=null")
    config = make_config(tmp_path, world, guesser, *options)
    AcceleratorState._reset_state(True)
    assert TrainingRun(config).run() == "finished"
    (line,) = [line for line in lines(config) if line["record"] == "episode"]  # the second stage has none
    assert line["stage"] == "reasoner"
    saved = json.loads((config.folder / "checkpoints" / "last" / "trainer.json").read_text())
    assert saved["trainer"]["progress"]["seconds"] == pytest.approx(line["time/episode"], rel=0.5)


# -- what a run writes ------------------------------------------------------------------------------------------------


def test_files_of_a_run(whole):
    names = {str(path.relative_to(whole.folder)) for path in whole.folder.rglob("*")}
    assert {"config.yaml", "provenance.json", "metrics.jsonl", "status.json"} <= names
    assert {f"rollouts/episode-{number:05d}.parquet" for number in range(1, 7)} <= names
    assert {
        f"evaluation/{label}.{end}" for label in ("start", "reasoner", "rethinker") for end in ("json", "parquet")
    } <= names
    assert {f"checkpoints/{link}" for link in ("last", "previous", "best", "reasoner", "rethinker")} <= names
    assert not [name for name in names if name.endswith(".tmp") or name == "STOP"]
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
    assert [start["engine"] for start in facts["starts"]] == ["TransformersEngine"]


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
    assert all(
        line["gap/max"] < rounding(LOGPROB) and line["canary/gap"] < rounding(LOGPROB)
        for line in episodes
        if line["gap/max"] is not None
    )
    assert any(line["replay/share"] for line in episodes)
    trained = [line for line in episodes if line["replay/effective_after"] is not None]
    assert trained and all(line["replay/effective_after"] == 1.0 for line in trained)


# -- stopping and going on --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("episode", [2, 3, 5], ids=["in stage 1", "at the end of stage 1", "in stage 2"])
def test_stop_file_and_resume(whole, tmp_path, monkeypatch, episode, world, guesser):
    config = make_config(tmp_path, world, guesser)
    with monkeypatch.context() as patch:
        stop_when(patch, config, episode, (config.folder / "STOP").touch)
        assert TrainingRun(config).run() == "stopped"
    assert run_state(config.folder) == "stopped" and not (config.folder / "STOP").exists()
    assert [line["episode"] for line in lines(config) if line["record"] == "episode"] == list(range(1, episode + 1))
    assert resume(config) == "finished"
    assert_same_run(config, whole)


def test_sigterm_saves(tmp_path, monkeypatch, world, guesser):
    config = make_config(tmp_path, world, guesser)
    stop_when(monkeypatch, config, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert TrainingRun(config).run() == "stopped"
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
    command = [sys.executable, "-m", "rethinker.lab.jobs", "rank", str(config_file)]
    process = subprocess.Popen(command, env=environment())
    wait_for_episode(process, config, 5)
    process.kill()
    assert process.wait() == -signal.SIGKILL and run_state(config.folder) == "running"
    assert resume(config) == "finished"
    assert_same_run(config, whole)


def no_links(folder: Path) -> None:
    for path in (folder / "checkpoints").iterdir():
        if path.is_symlink():
            path.unlink()


def followed_links(folder: Path) -> None:
    """What `cp -rL`, zip and others make of links."""
    shutil.copytree(folder, folder.with_name("copy"))
    shutil.rmtree(folder)
    folder.with_name("copy").rename(folder)


@pytest.mark.parametrize("copy", [no_links, followed_links])
def test_a_copy_goes_on(whole, tmp_path, monkeypatch, world, guesser, copy):
    config = make_config(tmp_path, world, guesser)
    with monkeypatch.context() as patch:
        stop_when(patch, config, 4, (config.folder / "STOP").touch)
        assert TrainingRun(config).run() == "stopped"
    copy(config.folder)
    assert resume(config) == "finished"
    assert_same_run(config, whole)
    assert best_of(config) == best_of(whole)
    assert {path.name for path in (config.folder / "checkpoints").iterdir()} == {
        path.name for path in (whole.folder / "checkpoints").iterdir()
    }


def best_of(config: RunConfig) -> dict:
    """Its progress, but for the seconds of the episodes."""
    state = json.loads((config.folder / "checkpoints" / "best" / "trainer.json").read_text())["trainer"]
    return {name: value for name, value in state["progress"].items() if name != "seconds"}


def test_a_copy_without_its_checkpoint_is_refused_and_left_alone(tmp_path, monkeypatch, world, guesser):
    config = make_config(tmp_path, world, guesser, "data.test=null", "evaluation.every=0")
    stop_when(monkeypatch, config, 2, (config.folder / "STOP").touch)
    assert TrainingRun(config).run() == "stopped"
    no_links(config.folder)
    (config.folder / "checkpoints" / "pointers.json").unlink()
    before = {path: path.read_bytes() for path in config.folder.rglob("*") if path.is_file()}
    with pytest.raises(RunExists, match=r"last checkpoint is missing .* There are step-0000.*: to resume from one"):
        resume(config)
    assert {path: path.read_bytes() for path in config.folder.rglob("*") if path.is_file()} == before


def test_a_best_checkpoint_that_is_gone(tmp_path, monkeypatch, world, guesser, capsys):
    """trainer.json has its accuracy: without its weights, the best of what follows is kept."""
    config = make_config(tmp_path, world, guesser, "data.test=null")
    with monkeypatch.context() as patch:
        stop_when(patch, config, 3, (config.folder / "STOP").touch)
        assert TrainingRun(config).run() == "stopped"
    file = config.folder / "checkpoints" / "pointers.json"
    file.write_text(json.dumps({"last": json.loads(file.read_text())["last"]}))
    (config.folder / "checkpoints" / "best").unlink()
    assert resume(config) == "finished"
    assert "the checkpoint of the best validation accuracy, 0." in capsys.readouterr().out
    assert best_of(config)["episode"] in (5, 6)


def test_damaged_checkpoints_are_replaced_by_the_one_before(whole, tmp_path, monkeypatch, world, guesser, capsys):
    """The last two of three: a byte that has changed, and a file that is short. The run ends as the undamaged one."""
    config = make_config(tmp_path, world, guesser, "tracking.keep_last=3")
    with monkeypatch.context() as patch:
        stop_when(patch, config, 5, (config.folder / "STOP").touch)
        assert TrainingRun(config).run() == "stopped"
    checkpoints = config.folder / "checkpoints"
    (shard,) = (checkpoints / "last" / "state").iterdir()
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
    samples = checkpoints / "previous" / "replay.parquet"
    samples.write_bytes(samples.read_bytes()[:-1])
    third = (checkpoints / "previous-2").resolve().name
    assert resume(config) == "finished"
    shown = " ".join(capsys.readouterr().out.split())
    assert f"resumed from {third}, after episode 3; lost, and trained again: episodes 4 to 5" in shown
    assert f"the content of state/{shard.name} is not what was written" in shown and "replay.parquet has" in shown
    assert_same_run(config, whole)


def test_the_same_with_deterministic_algorithms(whole, tmp_path, world, guesser, untouched_determinism):
    """On CPUs nothing changes; no operation of a run lacks a deterministic algorithm here."""
    config = make_config(tmp_path, world, guesser, "launch.deterministic=true")
    assert TrainingRun(config).run() == "finished" and torch.are_deterministic_algorithms_enabled()
    assert_same_run(config, whole)


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, world, guesser):
    endless = STAGES.replace("episodes: 3", "episodes: 500")
    config = make_config(tmp_path, world, guesser, f"stages={endless}", "data.test=null", "evaluation.every=0")
    config_file = tmp_path / "my run.yaml"
    config_file.write_text(to_yaml(config))
    command = [sys.executable, "-m", "rethinker.cli", "train", str(config_file), "tracking.save_every=0"]
    with subprocess.Popen(
        command,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job, which the tests may be, hands SIGINT down as ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        wait_for_episode(process, config, 2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert (
        "stopping after this episode, with a checkpoint (Ctrl-C again: immediately, without one)" in err
        and "Traceback" not in err
    )
    again = f"{sys.executable} -m rethinker.cli train '{config_file}' tracking.save_every=0 --resume"
    assert f"stopped and saved; resume with: {again}" in out
    assert "episode    1/1000  step" in out
    state = json.loads((config.folder / "checkpoints" / "last" / "trainer.json").read_text())["trainer"]
    done = max(line["episode"] for line in lines(config))
    assert state["progress"]["episode"] == done and run_state(config.folder) == "stopped"
    assert (config.folder / "report.html").exists()


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_a_run_of_the_same_name_is_refused(whole):
    before = (whole.folder / "metrics.jsonl").read_bytes()
    with pytest.raises(RunExists, match=r"exists already: resume it \(--resume\) or choose another name="):
        TrainingRun(whole)
    assert (whole.folder / "metrics.jsonl").read_bytes() == before


def test_other_settings_are_refused(whole, world, guesser):
    other = make_config(Path(whole.runs_dir), world, guesser, "optim.lr=1e-3")
    with pytest.raises(RunExists, match=r"was made with other settings \(optim.lr: 0.0001 -> 0.001\)"):
        TrainingRun(other, resume=True)


def test_where_it_runs_and_who_watches_may_change(whole, world, guesser):
    """And the bound of the canary, which has no part in the training."""
    changed = ("tracking.save_every=7", "launch.threads=2", "rollout.canary=1")
    other = make_config(Path(whole.runs_dir), world, guesser, *changed)
    file = whole.folder / "provenance.json"
    before = json.loads(file.read_text())
    assert resume(other) == "finished"  # there was nothing left to do
    after = json.loads(file.read_text())
    first, *more = after.pop("starts")
    assert before.pop("starts") == [first] and after == before
    assert [set(start) for start in more] == [{"started", "git", "versions", "engine", "settings"}]
    assert [start["settings"]["launch"]["threads"] for start in (first, *more)] == [1, 2]


def test_another_engine_is_refused(whole):
    file = whole.folder / "provenance.json"
    text = file.read_text()
    file.write_text(text.replace('"engine": "TransformersEngine"', '"engine": "VllmEngine"'))
    with pytest.raises(ValueError, match=r"made with VllmEngine and cannot be resumed with TransformersEngine"):
        resume(whole)
    file.write_text(text)


@pytest.mark.parametrize(
    ("split", "rows", "message"),
    [
        ("train", slice(None, None, -1), r"12 usable rows with hash \w{12}, the same in another order"),
        ("train", slice(11), r"11 usable rows with hash \w{12}\)"),
        ("validation", slice(3), r"4 usable rows with hash \w{12} -> 3 usable rows"),
        ("test", [{"question": "What?"}], r"4 usable rows with hash \w{12} -> 4 usable rows with hash \w{12}\)"),
    ],
)
def test_other_data_are_refused(tmp_path, monkeypatch, world, guesser, split, rows, message):
    """Behind the same path; where the file is rewritten in another format, its rows count."""
    source = world / "train.parquet" if split == "train" else world / f"{split}.parquet"
    path = changed_copy(tmp_path, source, [])
    config = make_config(tmp_path, world, guesser, f"data.{split}={path}")
    with monkeypatch.context() as patch:
        stop_when(patch, config, 1, (config.folder / "STOP").touch)
        assert TrainingRun(config).run() == "stopped"
    pq.write_table(pq.read_table(path), path, compression="gzip", version="1.0")
    TrainingRun(config, resume=True)
    if isinstance(rows, slice):
        write_parquet(path, pq.read_table(source).to_pylist()[rows])
    else:
        changed_copy(tmp_path, source, rows)
    before = {file: file.read_bytes() for file in config.folder.rglob("*") if file.is_file()}
    AcceleratorState._reset_state(True)
    with pytest.raises(RunExists, match=rf"made from other data .*data\.{split} \({path}\): .*{message}"):
        TrainingRun(config, resume=True)
    assert {file: file.read_bytes() for file in config.folder.rglob("*") if file.is_file()} == before


def test_more_queries_than_there_are(tmp_path, world, guesser):
    config = make_config(tmp_path, world, guesser, "queries_per_episode=14")
    with pytest.raises(ValueError, match=r"queries_per_episode=14, but .* has 12 usable queries"):
        TrainingRun(config)


def with_long_questions(source: Path, target: Path, *rows: int) -> Path:
    """A copy of a parquet file in which some rows ask more than the tiny model can read."""
    table = pq.read_table(source).to_pylist()
    for row in rows or range(len(table)):
        table[row]["question"] = "How many circles? " * 2000
    for row in table:
        row["image"] = [str(source.parent / image) for image in row["image"] or ()]
    write_parquet(target, table)
    return target


def test_prompts_that_are_too_long_are_skipped_and_said(tmp_path, world, guesser, capsys):
    """In all three sets, before anything is generated."""
    files = {
        use: with_long_questions(world / f"{use}.parquet", tmp_path / f"{use}.parquet", 1)
        for use in ("train", "validation", "test")
    }
    config = make_config(tmp_path, world, guesser, *(f"data.{use}={file}" for use, file in files.items()))
    run = TrainingRun(config)
    sets = {"train": run.train_queries, "validation": run.validation_queries, "test": run.test_queries}
    said = capsys.readouterr().out
    for use, queries in sets.items():
        whole, _ = load_queries(world / f"{use}.parquet")
        assert [query.qid for query in queries] == [query.qid for i, query in enumerate(whole) if i != 1]
        assert f"{files[use]}: 1 dropped, prompt too long: {whole[1].qid} (" in said
        (row,) = json.loads((config.folder / "dropped" / f"{use}.json").read_text())
        assert (row["qid"], row["reason"]) == (whole[1].qid, "prompt too long")
        assert "a response of rollout.max_new_tokens=64 exceed the model's context of 1024" in row["detail"]
    result = evaluate_checkpoint(config)
    assert result.summary()["queries"] == len(sets["test"])
    assert "1 dropped, prompt too long" in capsys.readouterr().err


def test_nothing_but_prompts_that_are_too_long(tmp_path, world, guesser):
    file = with_long_questions(world / "train.parquet", tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"data\.train=.*: none of its 12 rows can be used"):
        TrainingRun(make_config(tmp_path, world, guesser, f"data.train={file}"))
    with pytest.raises(ValueError, match=r"data\.test=.*: none of its 12 rows can be used"):
        evaluate_checkpoint(make_config(tmp_path, world, guesser, f"data.test={file}"))


# -- the engine at the start ------------------------------------------------------------------------------------------


def test_an_engine_with_other_weights_is_found_out_at_the_start(tmp_path, world, guesser, tiny_folder, monkeypatch):
    """Before the first response of a test, a validation or an episode."""
    asked = []
    generate = TransformersEngine.generate

    def remember(self, requests, sampling):
        asked.append((len(requests), sampling.max_new_tokens))
        return generate(self, requests, sampling)

    monkeypatch.setattr(TransformersEngine, "generate", remember)
    monkeypatch.setattr(run_module, "make_engine", lambda *_, **__: Deaf(tiny_policy(tiny_folder)))
    with pytest.raises(RuntimeError, match="after the weight sync at the start engine and trainer differ by"):
        TrainingRun(make_config(tmp_path, world, guesser)).run()
    assert asked == [(4, 16)]
    monkeypatch.setattr(run_module, "make_engine", lambda *_, **__: Deaf(tiny_policy(tiny_folder)))
    assert TrainingRun(make_config(tmp_path, world, guesser, "name=unchecked", "rollout.canary=0")).usual_gap is None
    assert TrainingRun(make_config(tmp_path, world, guesser, "name=loose", "rollout.canary=20")).usual_gap > 0.01


class Deaf(TransformersEngine):
    """Takes no weights."""

    def sync_weights(self, model: object) -> None:
        pass


def test_the_usual_gap_is_kept_when_a_run_is_resumed(whole, capsys):
    usual = {line["canary/usual"] for line in lines(whole) if line["record"] == "episode"}
    assert len(usual) == 1
    checkpoint = (whole.folder / "checkpoints" / "last").resolve() / "trainer.json"
    assert json.loads(checkpoint.read_text())["trainer"]["usual_gap"] == usual.pop()
    AcceleratorState._reset_state(True)
    run = TrainingRun(whole, resume=True)
    assert run.check_engine(1e-12) == 1e-12
    assert "warning: after a weight sync engine and trainer differ by" in capsys.readouterr().out


def changed_copy(folder: Path, source: Path, changes: list[dict]) -> Path:
    """A copy of the parquet file ``source`` whose first rows are changed."""
    table = pq.read_table(source).to_pylist()
    rows = [row | change for row, change in zip(table, changes, strict=False)]
    folder.mkdir(exist_ok=True)
    path = folder / source.name
    write_parquet(path, rows + table[len(rows) :])
    return path


EMPTY = {"answer": r"\boxed{}"}


def test_dropped_rows_are_reported_by_split(tmp_path, world, guesser, capsys):
    """Files of one name, and an id that looks like markup of the terminal's."""
    changes = [EMPTY | {"qid": "[/a]"}, EMPTY]
    paths = {
        split: changed_copy(tmp_path / split, world / "train.parquet", changes[:number])
        for number, split in enumerate(("train", "validation", "test"))
    }
    config = make_config(
        tmp_path, world, guesser, *(f"data.{split}={path.parent}:train" for split, path in paths.items())
    )
    run = TrainingRun(config)
    assert [len(run.train_queries), len(run.validation_queries), len(run.test_queries)] == [12, 11, 10]
    dropped = {path.name: json.loads(path.read_text()) for path in (config.folder / "dropped").iterdir()}
    assert {name: len(rows) for name, rows in dropped.items()} == {"validation.json": 1, "test.json": 2}
    out = capsys.readouterr().out
    assert "[/a]" in out and f"{paths['test'].parent}:train: 2 dropped" in out.replace("\n", "")


def test_a_split_without_a_usable_row(tmp_path, world, guesser):
    path = changed_copy(tmp_path, world / "validation.parquet", [EMPTY] * 4)
    with pytest.raises(ValueError, match=r"data\.validation=.*: none of its 4 rows can be used"):
        TrainingRun(make_config(tmp_path, world, guesser, f"data.validation={path}"))
    with pytest.raises(ValueError, match=r"train\.parquet is a file, which has no splits"):
        read_split(load_config(None, [f"data.train={world / 'train.parquet'}:train"]), "train")


def test_a_stage_in_which_nothing_can_be_forced_says_so(tmp_path, world, guesser, capsys):
    settings = ["data.test=null", "data.validation=null", "rethink.fraction=0.5", "rethink.min_second_look_tokens=63"]
    config = make_config(tmp_path, world, guesser, *settings, "stages=[{name: a, episodes: 2}]")
    assert TrainingRun(config).run() == "finished"
    assert all(line["rethink/eligible"] == 0 for line in lines(config) if line["record"] == "episode")
    out = capsys.readouterr().out
    for words in ("warning: nothing to force in episode 1:", "warning: nothing to force in episodes 1 to 2:"):
        assert words in out
    firsts = 2 * config.samples_per_episode
    assert f"diagnosis of the run: nothing to force in episodes 1 to 2: {firsts} of {firsts} first responses" in out


def test_stages_do_not_change_how_the_policy_is_tested(tmp_path, world, guesser):
    """So that stages can be compared: a stage's temperatures are for its training."""
    stage = "{rollout: {temperature: 0.7}, rethink: {fraction: 0.5, temperature: 0.6, min_second_look_tokens: 9}}"
    config = make_config(
        tmp_path, world, guesser, "data.validation=null", f"stages=[{{name: a, episodes: 1, overrides: {stage}}}]"
    )
    assert TrainingRun(config).run() == "finished"
    start, after = (
        json.loads((config.folder / "evaluation" / f"{label}.json").read_text())["settings"] for label in ("start", "a")
    )
    assert start == after
    assert (after["temperature"], after["rethink_temperature"], after["min_second_look_tokens"]) == (1.0, 0.9, 8)


def test_settings_without_effect_are_named_once(tmp_path, world, guesser, capsys):
    TrainingRun(make_config(tmp_path, world, guesser, "replay.mode=filter", "evaluation.modes=[plain]"))
    out = capsys.readouterr().out
    assert out.count("warning") == 1
    expected = "settings that change neither training nor evaluation: replay.lifetime=3 (needs replay.mode=ssr)\n"
    assert expected in out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distributed_type": DistributedType.FSDP}, "distributed_type FSDP is not supported"),
        (
            {"distributed_type": DistributedType.DEEPSPEED},
            "not finite .* made anew for a stage; .* model.sharding=full",
        ),
        ({"mixed_precision": "bf16"}, "mixed_precision bf16 would change the loss"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps 4 would change the loss"),
        ({"num_processes": 2}, "1 processes were started but accelerate sees 2"),
    ],
)
def test_how_accelerate_may_be_set_up(changes, message, monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    good = {"distributed_type": DistributedType.NO, "mixed_precision": "no"}
    good |= {"gradient_accumulation_steps": 1, "num_processes": 1}
    for kind in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        check_accelerator(SimpleNamespace(**good | {"distributed_type": kind}))
    with pytest.raises(RuntimeError, match=message):
        check_accelerator(SimpleNamespace(**good | changes))
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    check_accelerator(SimpleNamespace(**good | {"num_processes": 4}))  # two machines


def test_mixed_precision_of_the_environment_is_refused(tmp_path, world, guesser, monkeypatch):
    """What `accelerate launch` makes of a file's mixed_precision."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(RuntimeError, match="mixed_precision bf16 would change the loss"):
        TrainingRun(make_config(tmp_path, world, guesser))
    assert not (tmp_path / "run").exists()
