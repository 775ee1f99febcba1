"""The configs for GPUs: every number has its source, every stage can be trained, and the plan finds room on the GPUs of
the header."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rethinker import cli  # noqa: F401  registers the commands
from rethinker.config import check_trainable, load_config
from rethinker.config.no_effect import without_effect
from rethinker.lab.command_line import parse
from rethinker.lab.plan.advice import failing
from rethinker.lab.plan.page import shipped

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
    assert case.trainers == case.config.launch.processes
    parse(entry.command.removeprefix("rethinker ").split())


@pytest.mark.parametrize("file", GPUS, ids=name)
def test_the_command_of_the_header_parses(file: Path):
    found = re.search(r"^# Command: rethinker (.+)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert found
    assert (ROOT / parse(found[1].split()).file).samefile(file)
