"""The command line: what it prints where, and its exit codes."""

from __future__ import annotations

import inspect
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rethinker import cli
from rethinker.config import load_config, to_yaml
from rethinker.config.schema import ConfigError
from rethinker.datasets.world.visual_math import KINDS, make_data
from rethinker.evaluation import held_out
from rethinker.lab import command_line, jobs
from rethinker.lab.jobs import commands
from rethinker.lab.jobs.accelerate import read_accelerate_file
from rethinker.lab.jobs.foreground import INTERRUPTED
from rethinker.lab.report import write as report
from rethinker.rundir.glossary import COORDINATES, RECORDS, ROLLOUT_COLUMNS, to_markdown

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "experiments" / "tiny.yaml")
SAMPLE = ROOT / "data" / "visual_math" / "test.parquet"


def run(*arguments: str, capsys) -> tuple[int, str, str]:
    code = cli.main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["train", CONFIG, "optim.lrr=1"], "rethinker train: unknown setting 'optim.lrr'; did you mean 'optim.lr'?"),
        (["train", CONFIG, "seed"], "rethinker train: 'seed': an override is written key=value"),
        (["train", "missing.yaml"], "rethinker train: missing.yaml: "),
        (["evaluate", CONFIG, "data.test=null"], "rethinker evaluate: data.test is not set"),
        (["report", "nowhere"], "rethinker report: nowhere is not the folder of a run"),
        (["make-data", "--train", "-1"], "rethinker make-data: numbers of queries must not be negative"),
    ],
)
def test_mistakes_are_one_line(arguments, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments, capsys=capsys)
    assert code == 2 and out == ""
    assert err.startswith(text) and err.count("\n") == 1


def test_a_broken_file_is_one_line_too(tmp_path, capsys):
    path = tmp_path / "broken.yaml"
    path.write_text("optim: [1, 2\nmodel: {\n")
    code, _, err = run("train", str(path), capsys=capsys)
    assert code == 2 and err.startswith(f"rethinker train: {path}: ") and err.count("\n") == 1


def test_traceback_on_demand(capsys):
    with pytest.raises(ValueError, match=r"optim\.lrr"):
        cli.main(["--traceback", "train", CONFIG, "optim.lrr=1"])


@pytest.mark.parametrize("arguments", [[], ["trian"], ["train"]])
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2 and "usage: rethinker" in capsys.readouterr().err


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    for name in (
        "train",
        "launch",
        "jobs",
        "tail",
        "stop",
        "watch",
        "evaluate",
        "report",
        "figures",
        "notebooks",
        "make-data",
        "pretrain-tiny",
        "glossary",
        "doctor",
    ):
        assert name in text


def test_starting_is_quick_because_nothing_heavy_is_imported():
    code = (
        "import sys, rethinker.cli; rethinker.lab.command_line.parser(); "
        "print(*(name for name in ('torch', 'transformers') if name in sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


def test_glossary(tmp_path, capsys):
    code, out, _ = run("glossary", capsys=capsys)
    assert code == 0 and out == to_markdown()
    names = [name for entries in (COORDINATES, *RECORDS.values(), ROLLOUT_COLUMNS) for name in entries]
    assert all(f"| `{name}` | " in out for name in names)
    assert run("glossary", "--out", str(tmp_path / "METRICS.md"), capsys=capsys)[0] == 0
    assert (tmp_path / "METRICS.md").read_text(encoding="utf-8") == out


def test_the_page_of_metrics_is_current():
    page = (ROOT / "experiments" / "METRICS.md").read_text(encoding="utf-8")
    assert page == to_markdown(), "run `rethinker glossary --out experiments/METRICS.md`"


def test_make_data(tmp_path, capsys):
    folder = tmp_path / "world"
    sizes = ["--train", "6", "--validation", "3", "--test", "3", "--seed", "5"]
    code, out, _ = run("make-data", "--out", str(folder), *sizes, capsys=capsys)
    assert code == 0 and out == f"written: {folder}\n"
    assert {path.name for path in folder.glob("*.parquet")} == {"train.parquet", "validation.parquet", "test.parquet"}
    assert len(list((folder / "images").glob("*.png"))) == 12
    code, _, err = run("make-data", "--out", str(folder), *sizes[:-1], "6", capsys=capsys)
    assert code == 2 and "holds other data" in err


def test_the_default_data_are_those_of_the_shipped_configs():
    made = {name: each.default for name, each in inspect.signature(make_data).parameters.items() if name != "out"}
    typed = vars(command_line.parse(["make-data"]))
    assert typed["kinds"] is None and made.pop("kinds") == KINDS
    assert list(made.values()) == [typed[name] for name in ("train", "validation", "test", "seed")]
    assert load_config(CONFIG).data.train.endswith(f"{typed['out']}/train.parquet")


def test_an_existing_run_is_refused(tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text((ROOT / "experiments" / "tiny.yaml").read_text())
    settings = [f"runs_dir={tmp_path}", "name=run"]
    code, _, err = run("train", CONFIG, *settings, capsys=capsys)
    assert code == 2 and "exists already: resume it (--resume) or choose another name=" in err
    (folder / "config.yaml").write_text((ROOT / "experiments" / "tiny.yaml").read_text().replace("tiny", "run", 1))
    (folder / "rollouts").mkdir()
    (folder / "rollouts" / "episode-00001.parquet").touch()
    code, _, err = run("train", CONFIG, *settings, "seed=3", "optim.lr=1e-3", "--resume", capsys=capsys)
    assert code == 2 and "was made with other settings (" in err
    assert "optim.lr: 0.0001 -> 0.001" in err and "seed: 0 -> 3" in err


@pytest.fixture
def finished(tmp_path):
    """The folder of a finished run of tiny.yaml, as far as the command line looks at it."""
    folder = tmp_path / "runs" / "tiny"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(load_config(CONFIG)))
    (folder / "status.json").write_text('{"state": "finished"}')
    (folder / "report.html").touch()
    return folder


def test_a_finished_run_is_not_a_mistake(finished, capsys, monkeypatch):
    monkeypatch.chdir(finished.parents[1])
    for more in ([], ["--resume"], ["launch.processes=1"]):
        code, out, _ = run("train", CONFIG, *more, capsys=capsys)
        assert code == 0 and out == "runs/tiny is finished; its report: runs/tiny/report.html\n"
    code, _, err = run("train", CONFIG, "seed=1", capsys=capsys)
    assert code == 2 and "was made with other settings (seed: 0 -> 1): choose another name=" in err


def test_an_interrupt_is_no_failure(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(jobs, "train", lambda config, *, resume, tracebacks: INTERRUPTED)
    settings = [f"runs_dir={tmp_path}", f"data.train={SAMPLE}", "data.validation=null", "data.test=null"]
    code, out, err = run("train", CONFIG, *settings, capsys=capsys)
    assert code == INTERRUPTED and err == "" and out.startswith("resume with: ") and out.endswith(" --resume\n")


def test_a_report_that_a_kill_has_prevented_is_written(finished, capsys, monkeypatch):
    (finished / "report.html").unlink()
    monkeypatch.chdir(finished.parents[1])
    monkeypatch.setattr(report, "write_report", lambda folder: (folder / "report.html").absolute())
    code, out, _ = run("train", CONFIG, capsys=capsys)
    assert code == 0 and out.splitlines()[0] == f"written: {finished / 'report.html'}"


def test_evaluate_takes_the_best_checkpoint_of_a_run(finished, capsys, monkeypatch):
    seen = []

    class Result:
        def save(self, folder, label):
            return folder / "evaluation" / f"{label}.json"

        def summary(self):
            return {}

    monkeypatch.setattr(held_out, "evaluate_checkpoint", lambda config: (seen.append(config.model.path), Result())[1])
    checkpoints, tiny = finished / "checkpoints", str(ROOT / "data" / "tiny-vlm")
    config = [str(finished / "config.yaml"), f"data.test={SAMPLE}"]
    code, _, err = run("evaluate", *config, capsys=capsys)
    assert code == 2 and "has no checkpoint yet; model.path=... names another model" in err and not seen
    shutil.copytree(tiny, checkpoints / "last" / "model")
    code, _, err = run("evaluate", *config, capsys=capsys)
    assert code == 0 and f"evaluating {checkpoints / 'last' / 'model'}\n" in err
    assert f"written: {finished / 'evaluation' / 'evaluation.json'}" in err  # wherever the run lies now
    shutil.copytree(tiny, checkpoints / "best" / "model")
    assert run("evaluate", *config, capsys=capsys)[0] == 0
    assert run("evaluate", *config, f"model.path={tiny}", capsys=capsys)[0] == 0
    monkeypatch.chdir(finished)
    assert run("evaluate", CONFIG, *config[1:], "--out", str(finished), capsys=capsys)[0] == 0
    best, last = (str(checkpoints / name / "model") for name in ("best", "last"))
    assert seen == [last, best, tiny, tiny]


def test_evaluate_overwrites_nothing(finished, capsys, monkeypatch):
    monkeypatch.setattr(held_out, "evaluate_checkpoint", lambda config: pytest.fail("was evaluated"))
    (finished / "evaluation").mkdir()
    (finished / "evaluation" / "start.json").write_text("{}")
    arguments = ["evaluate", str(finished / "config.yaml"), "model.path=x", "--label"]
    code, _, err = run(*arguments, "start", capsys=capsys)
    assert code == 2 and "has an evaluation 'start' already: choose another --label" in err
    code, _, err = run(*arguments, "../start", capsys=capsys)
    assert code == 2 and "--label='../start': allowed are letters" in err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "No such file"),
        ("- 1\n", "not a"),
    ],
)
def test_accelerate_files(tmp_path, text, expected):
    path = tmp_path / "accelerate.yaml"
    if text:
        path.write_text(text)
    with pytest.raises(ConfigError, match=expected):
        read_accelerate_file(str(path))
    assert read_accelerate_file(str(ROOT / "experiments" / "accelerate" / "gpus-8.yaml"))["num_processes"] == 8


def test_how_to_call_again(tmp_path, monkeypatch):
    """As the shell finds the program, else by the path that it was called by (make: .venv/bin/rethinker)."""
    program = tmp_path / "rethinker"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(program)])
    monkeypatch.setenv("PATH", "/nowhere")
    assert commands.program() == [str(program)]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commands.program() == ["rethinker"]
    monkeypatch.setattr(sys, "argv", ["rethinker/cli.py"])
    assert commands.program() == [sys.executable, "-m", "rethinker.cli"]


def test_settings_and_names_may_stand_behind_options(capsys):
    parsed = command_line.parse(["evaluate", "run.yaml", "seed=1", "--label", "x", "evaluation.samples=1"])
    assert parsed.overrides == ["seed=1", "evaluation.samples=1"] and parsed.label == "x"
    assert command_line.parse(["figures", "runs/tiny", "--out", "folder", "overview", "fig7"]).names == [
        "overview",
        "fig7",
    ]
    for wrong in (["evaluate", "run.yaml", "--lable", "x"], ["glossary", "extra"]):
        with pytest.raises(SystemExit) as exit_:
            command_line.parse(wrong)
        assert exit_.value.code == 2 and "unrecognized arguments" in capsys.readouterr().err
