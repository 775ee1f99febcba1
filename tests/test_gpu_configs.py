"""The configs for GPUs: every number has its source, every stage can be trained, and the plan finds room on the GPUs of
the header."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from rethinker import cli  # noqa: F401  registers the commands
from rethinker.config import check_trainable, load_config
from rethinker.config.no_effect import without_effect
from rethinker.datasets.pass_rate import PassRateFilter
from rethinker.lab.command_line import parse
from rethinker.lab.plan.advice import failing, seconds
from rethinker.lab.plan.memory import GIB, moments
from rethinker.lab.plan.page import shipped
from rethinker.rundir import tracking
from rethinker.rundir.tracking import Tracker, clock

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"
GPUS = sorted((EXPERIMENTS / "gpus").glob("*.yaml"))
SOURCED = [*GPUS, EXPERIMENTS / "vl_rethinker_7b.yaml"]
SOURCE = re.compile(r"\b(paper|official code|ours|header|ViRL39K)\b")


def name(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("file", SOURCED, ids=name)
def test_every_number_has_its_source(file: Path):
    bare = [line for line in file.read_text(encoding="utf-8").splitlines() if unsourced(line)]
    assert not bare


def unsourced(line: str) -> bool:
    value, _, comment = line.partition(" # ")
    setting = re.match(r" *(?:- )?\w+: *(.+)$", value)
    number = setting and not line.lstrip().startswith("#") and re.fullmatch(r"[\[\]\d.,e+ -]+", setting[1].strip())
    return bool(number) and not SOURCE.search(comment)


def test_a_number_without_a_source_is_found():
    assert unsourced("  lr: 1.0e-6") and unsourced("  pass_rate: [0.1, 1] # bounds") and unsourced("  - episodes: 3")
    assert not unsourced("  lr: 1.0e-6 # ours: faster") and not unsourced("  path: Qwen/Qwen2.5-VL-7B-Instruct")


@pytest.mark.parametrize("file", sorted(EXPERIMENTS.glob("*.yaml")) + GPUS, ids=name)
def test_every_stage_can_be_trained(file: Path):
    config = load_config(file)
    for index in range(len(config.stages)):
        check_trainable(config.for_stage(index))


@pytest.mark.parametrize("file", GPUS, ids=name)
def test_nothing_is_set_in_vain(file: Path):
    """Validation data is the user's own."""
    config = load_config(file, typed=["data.validation=x.parquet"])
    assert without_effect(config, vllm=True) == []


@pytest.mark.parametrize("file", GPUS, ids=name)
def test_the_plan_fits_on_the_gpus_of_the_header(file: Path):
    entry = shipped(file)
    case = entry.case(EXPERIMENTS)
    assert not failing(case)
    launch = case.config.launch
    assert case.trainers == launch.machines * launch.processes
    parse(entry.command.removeprefix("rethinker ").split())
    assert replace(entry, gpus=None).case(EXPERIMENTS) == case  # the processes of the config say the same


@pytest.mark.parametrize("file", GPUS, ids=name)
def test_the_command_of_the_header_is_for_these_gpus(file: Path):
    found = re.search(r"^# Command: (.+)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert found
    case, (word, *rest) = shipped(file).case(EXPERIMENTS), found[1].split()
    if word == "rethinker":
        assert (ROOT / parse(rest).file).samefile(file) and case.gpus <= 8
        return
    trainers, servers, _, nodes, script, config = (item.rpartition("=")[2] for item in (word, *rest))
    assert (ROOT / script).name == "with_servers.sbatch" and (ROOT / config).samefile(file)
    assert int(trainers) == case.config.launch.machines and 8 * int(nodes) == case.gpus
    assert case.servers == (int(nodes) - int(trainers)) * int(servers) * case.parallel


# -- the command of the README for eight GPUs -------------------------------------------------------------------------

README = (ROOT / "README.md").read_text(encoding="utf-8")


def shape(line: str) -> str:
    return re.sub(r"\d", "?", " ".join(line.split()))


def test_the_readme_shows_the_lines_of_the_program(tmp_path: Path, capsys, monkeypatch):
    settings = [f"runs_dir={tmp_path}", "tracking.wandb=false"]
    config = load_config(EXPERIMENTS / "gpus" / "qwen2.5-vl-7b.yaml", typed=settings)
    monkeypatch.setattr(tracking, "clock", lambda seconds: clock(5000))
    tracker = Tracker(config)
    names = ("accuracy/first", "reward/mean", "queries/effective", "replay/effective_after", "reflection/share")
    metrics = dict.fromkeys(names, 0.5) | {"replay/buffer_size": 4096, "rollout/tokens_per_second": 9000.0}
    tracker.episodes = [
        {"stage": config.stages[0].name, "episode": 1, "step": 16, "seconds": 300.0, "time/episode": 280.0}
    ]
    tracker.progress(1, config.batches(config.samples_per_episode), metrics)
    (printed,) = capsys.readouterr().out.splitlines()
    rates = PassRateFilter(config.data.pass_rate_column, *(config.data.pass_rate or ()), 38870, 16000, 19000)
    shown = [shape(line) for line in README.splitlines()]
    assert shape(printed) in shown
    assert shape(f".../39Krelease.parquet: {rates}") in shown
    first = config.stages[0]
    assert f"    {first.name}: episodes 1 to {first.episodes}" in README
    assert f"episode    1/{config.episodes}  step {config.batches(config.samples_per_episode):>5}  accuracy" in README


def test_the_readme_gives_the_plan_of_its_command():
    case = shipped(EXPERIMENTS / "gpus" / "qwen2.5-vl-7b.yaml").case(EXPERIMENTS)
    heaviest = max(moment.bytes for moment in moments(case)) / GIB
    expected = (
        f"needs {heaviest:.0f} of {case.gpu.memory / GIB:.0f} GiB and {seconds(case) / 60:.1f} minutes an episode"
    )
    assert expected in " ".join(README.split())
