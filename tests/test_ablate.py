"""Grids of runs: what a file may say, scheduling by a fake train command, the table, means and differences by hand."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from synthetic_run import write_run

from rethinker import cli
from rethinker.config import RunConfig, to_yaml
from rethinker.config.schema import ConfigError
from rethinker.evaluation.statistics import over_seeds, t95
from rethinker.lab import jobs
from rethinker.lab.ablation import gpus, origin, slots
from rethinker.lab.ablation import run as ablation
from rethinker.lab.ablation.grid import Grid, load_grid
from rethinker.lab.ablation.table import NOT_MEASURED, PROGRESS, TEST, VALIDATION, compare, curves, in_words, wide
from rethinker.lab.figures import ablation as figures
from rethinker.lab.figures import catalogue as plots
from rethinker.lab.jobs import Job
from rethinker.lab.jobs.files import is_alive
from rethinker.lab.jobs.gpus import visible_gpus
from rethinker.rundir import locks, provenance
from rethinker.rundir.folder import RunExists
from rethinker.rundir.paths import RunDir

ROOT = Path(__file__).parents[1]

FAKE = [sys.executable, "-S", str(Path(__file__).with_name("fake_train.py"))]


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Runs are stand-ins (fake_train.py); ``train(run, what)`` plans what one does."""

    def command(config: RunConfig, *, resume: bool) -> list[str]:
        return [*FAKE, str(RunDir(config.folder).job_config)]

    def plan(name: str, what: str) -> None:
        path = tmp_path / "runs" / "plan" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(what)

    monkeypatch.setattr(jobs.job, "train_command", command)
    yield plan
    for path in (tmp_path / "runs").rglob("job/config.yaml"):  # of a test that failed
        Job(path.parents[1]).kill()


def write_grid(folder: Path, **changes) -> Path:
    """A grid of two labels and two seeds on a base without data."""
    base = folder / "base.yaml"
    base.write_text(
        "queries_per_episode: 4\nrollout: {group_size: 4}\noptim: {train_batch_size: 8}\ndata: {train: x, test: y}\n"
    )
    values = {
        "base": str(base),
        "axes": {"replay": {"ssr": ["replay.mode=ssr"], "filter": ["replay.mode=filter"]}},
        "seeds": [0, 1],
        "slots": 2,
        "common": [f"runs_dir={folder / 'runs'}"],
        "baseline": "filter",
    }
    path = folder / "small.yaml"
    path.write_text(json.dumps({key: value for key, value in (values | changes).items() if value is not None}))
    return path


def begun(folder: Path) -> list[str]:
    return [name for what, name in events(folder) if what == "begin"] if (folder / "runs" / "events").exists() else []


def events(folder: Path) -> list[tuple[str, str]]:
    return [tuple(line.split()) for line in (folder / "runs" / "events").read_text().splitlines()]


# -- what a file may say ----------------------------------------------------------------------------------------------


def test_a_grid(tmp_path):
    axes = {
        "replay": {"ssr": ["replay.mode=ssr"], "none": ["replay.mode=grpo"]},
        "q": {"0": [], "5": ["rethink.fraction=0.5"]},
    }
    path = write_grid(tmp_path, axes=axes, seeds=[3, 1], baseline="none-0")
    grid = load_grid(path, ["optim.lr=1e-3", "slots=1"])
    assert [run.config.name for run in grid.runs] == [
        f"small-{replay}-{q}-s{seed}" for replay in ("ssr", "none") for q in (0, 5) for seed in (3, 1)
    ]
    last = grid.runs[-1]
    assert (last.config.seed, last.config.replay.mode, last.config.rethink.fraction) == (1, "grpo", 0.5)
    assert last.config.optim.lr == 1e-3 and last.config.tracking.wandb_group == "small"
    assert dict(last.labels) == {"replay": "none", "q": "5"} and last.label == "none-5"
    assert grid.folder == tmp_path / "runs" / "small" and grid.slots == 1
    other = load_grid(path, ["seeds=[7]", "name=other", "baseline=ssr-5"])
    assert [run.config.seed for run in other.runs] == [7] * 4 and other.folder.name == "other"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"seed": [0]}, "unknown setting 'seed'; did you mean 'seeds'?"),
        ({"base": None}, "base is missing"),
        ({"base": "nowhere.yaml"}, "run small-ssr-s0: nowhere.yaml: "),
        ({"axes": None}, "axes is missing"),
        ({"axes": {"replay": {}}}, "axes.replay={}: expected labels with lists"),
        ({"axes": {"replay": {"ssr": "replay.mode=ssr"}}}, "axes.replay.ssr='replay.mode=ssr': expected a list"),
        ({"axes": {"seed": {"a": []}}}, "axes.seed: the table has a column of that name"),
        ({"axes": {"replay": {"a b": []}}}, "axes.replay='a b': allowed are letters"),
        (
            {"axes": {"x": {"a": ["replay.mod=ssr"]}}},
            "run small-a-s0: unknown setting 'replay.mod'; did you mean",
        ),
        ({"axes": {"x": {"a": ["seed=1"]}}}, "x sets seed: a run's name and seed come from the grid"),
        ({"axes": {"x": {"a": ["runs_dir=y"]}}}, "x sets runs_dir: all runs of a grid lie in one folder"),
        ({"axes": {"x": {"a": []}, "y": {"b": ["optim.lr=1"]}, "z": {"c": ["optim={}"]}}}, "set it in one place"),
        (
            {"axes": {"x": {"a-b": [], "a": []}, "y": {"c": [], "b-c": []}}, "baseline": None},
            "two runs would be called",
        ),
        ({"seeds": []}, "needs at least one, and each once"),
        ({"seeds": [1, 1]}, "needs at least one, and each once"),
        ({"slots": 0}, "slots=0: must be at least 1"),
        ({"name": "a/b"}, "name='a/b': allowed are letters"),
        ({"baseline": "sr"}, "baseline='sr': the labels are ssr, filter"),
    ],
)
def test_mistakes_are_found_before_anything_runs(tmp_path, changes, text):
    path = write_grid(tmp_path, **changes)
    with pytest.raises(ConfigError) as caught:
        load_grid(path)
    assert str(caught.value).startswith(f"{path}: ") and text in str(caught.value)


def test_yaml_that_is_no_grid(tmp_path):
    path = tmp_path / "grid.yaml"
    for text, expected in (
        ("[1, 2]", "holds no mapping"),
        ("a: [", "grid.yaml: "),
        ("base: x\naxes: {a: {on: []}}", "True"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=expected):
            load_grid(path)


def test_a_label_that_yaml_reads_as_a_bool(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text("base: x.yaml\naxes: {a: {true: []}}\n")
    with pytest.raises(ConfigError, match="reads the label as True; put it into quotes"):
        load_grid(path)


def test_the_folder_of_a_run_is_no_place_for_a_table(tmp_path):
    path = write_grid(tmp_path)
    (tmp_path / "runs" / "small").mkdir(parents=True)
    (tmp_path / "runs" / "small" / "config.yaml").write_text("name: small\n")
    with pytest.raises(ConfigError, match="is the folder of a run: choose another name"):
        load_grid(path)


def test_the_runs_that_go_wrong():
    grid = load_grid(ROOT / "experiments" / "ablations" / "bad_runs.yaml")
    assert len(grid.runs) == 4 and {run.config.episodes for run in grid.runs} == {6}


@pytest.mark.parametrize(("name", "labels", "seeds"), [("smoke", 2, 2), ("grid", 4, 3), ("grid_7b", 4, 3)])
def test_the_grids_of_the_repository(name, labels, seeds, monkeypatch):
    monkeypatch.chdir(ROOT)
    held_out = [f"data.{split}=my/{split}.parquet" for split in ("validation", "test")]  # as its command gives them
    grid = load_grid(f"experiments/ablations/{name}.yaml", held_out if name == "grid_7b" else [])
    assert grid.baseline in grid.labels and len(grid.labels) == labels and len(grid.runs) == labels * seeds
    assert all(run.config.data.validation and run.config.data.test for run in grid.runs)  # Fig. 5 and Table 3
    if labels == 4:  # one part less from label to label
        parts = [(run.config.replay.mode, run.config.for_stage(1).rethink.fraction) for run in grid.runs[::3]]
        assert parts == [("ssr", 0.5), ("ssr", 0.0), ("filter", 0.0), ("grpo", 0.0)]
        rates = [run.config.for_stage(1).optim.lr for run in grid.runs[::3]]
        assert rates == ([1e-5] * 4 if name == "grid_7b" else [1e-4, 5e-5, 5e-5, 5e-5])  # each its better one


def test_only_some_variants(tmp_path):
    """Labels as the table shows them; seeds that are typed are those to run, beside the file's."""
    axes = {
        "replay": {"ssr": ["replay.mode=ssr"], "none": ["replay.mode=grpo"]},
        "q": {"0": [], "5": ["rethink.fraction=0.5"]},
    }
    path = write_grid(tmp_path, axes=axes, baseline="none-0")
    whole = load_grid(path)
    grid = load_grid(path, only=["none-5", "ssr-0"])
    wanted = ("ssr-0-s0", "ssr-0-s1", "none-5-s0", "none-5-s1")
    assert [run.config.name for run in grid.wanted] == [f"small-{name}" for name in wanted]
    assert whole.wanted == list(whole.runs) == list(grid.runs)
    grid = load_grid(path, ["seeds=[1,3]"], only=["none-5"])
    assert [run.config.name for run in grid.wanted] == ["small-none-5-s1", "small-none-5-s3"]
    assert [run.config.name for run in grid.runs] == [*(run.config.name for run in whole.runs), "small-none-5-s3"]
    for only, said in ((["ssr", "none-0"], "--only ssr"), ([], "--only")):
        with pytest.raises(ConfigError) as caught:
            load_grid(path, only=only)
        assert str(caught.value) == f"{path}: {said}: the labels are ssr-0, ssr-5, none-0, none-5"


# -- running ----------------------------------------------------------------------------------------------------------


def test_runs_side_by_side_and_once(tmp_path, train):
    grid = load_grid(write_grid(tmp_path))
    for name in ("small-ssr-s0", "small-ssr-s1"):
        train(name, "meet")  # neither ends before the other has begun: two at once
    lines: list[str] = []
    assert set(ablation.run_grid(grid, say=lines.append).values()) == {"finished"}
    names = [run.config.name for run in grid.runs]
    assert sorted(name for what, name in events(tmp_path) if what == "begin") == sorted(names)
    alive = most = 0
    for what, _ in events(tmp_path):
        alive += 1 if what == "begin" else -1
        most = max(most, alive)
    assert most == 2
    assert any(line.startswith("[1/4] small-ssr-s0: started, log ") for line in lines)
    assert list(ablation.plan(grid)["to do"]) == ["nothing: finished"] * 4
    assert ablation.run_grid(grid, say=lines.append) == dict.fromkeys(names, "finished")
    assert len(events(tmp_path)) == 8 and "4 of 4 runs: nothing: finished" in lines
    more = load_grid(tmp_path / "small.yaml", ["seeds=[0,1,2]"])
    ablation.run_grid(more, say=lines.append)
    assert sorted({name for what, name in events(tmp_path)[8:]}) == ["small-filter-s2", "small-ssr-s2"]
    assert len(pd.read_csv(grid.folder / "table.csv")) == 6


def test_one_variant_and_seed_is_made_again(tmp_path, train, capsys):
    """In the place of a lost run; the table keeps all others, also those whose folders are gone."""
    path = str(write_grid(tmp_path))
    assert cli.main(["ablate", path]) == 0
    table = tmp_path / "runs" / "small" / "table.csv"
    before = pd.read_csv(table)
    for name in ("ssr-s0", "ssr-s1", "filter-s0"):
        shutil.rmtree(tmp_path / "runs" / f"small-{name}")
    capsys.readouterr()
    assert cli.main(["ablate", path, "--only", "ssr", "seeds=[1]", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.count(" start ") == 1 and "small-ssr-s1" in out and "small-filter" not in out
    assert cli.main(["ablate", path, "--only", "ssr", "seeds=[1]"]) == 0
    assert begun(tmp_path)[4:] == ["small-ssr-s1"]
    pd.testing.assert_frame_equal(pd.read_csv(table), before)
    assert cli.main(["ablate", path, "--only", "ssr", "seeds=[3]"]) == 0
    after = pd.read_csv(table)
    assert list(after["run"]) == [*before["run"], "small-ssr-s3"] and set(after["state"]) == {"finished"}
    assert cli.main(["ablate", path, "--only", "filter", "seeds=[0]"]) == 0  # small-ssr-s3 is not of this call
    assert begun(tmp_path)[5:] == ["small-ssr-s3", "small-filter-s0"]
    pd.testing.assert_frame_equal(pd.read_csv(table), after)
    assert cli.main(["ablate", path, "--only", "sr"]) == 2
    assert "--only sr: the labels are ssr, filter" in capsys.readouterr().err


def test_a_run_that_fails_leaves_the_others_alone(tmp_path, train, capsys):
    path = str(write_grid(tmp_path, slots=1))
    train("small-ssr-s1", "fail")
    assert cli.main(["ablate", path]) == 1
    out = capsys.readouterr().out
    assert "[2/4] small-ssr-s1: failed (exit code 3) after" in out
    assert "small-ssr-s1 failed; the end of" in out and "ValueError: no such thing" in out
    assert out.index("[4/4] small-filter-s1: finished") < out.index("ValueError: no such thing")
    assert begun(tmp_path) == [f"small-{label}-s{seed}" for label in ("ssr", "filter") for seed in (0, 1)]
    table = pd.read_csv(tmp_path / "runs" / "small" / "table.csv").set_index("run")
    assert table.loc["small-ssr-s1", "state"] == "failed"  # its own last word was "running"
    train("small-ssr-s1", "")
    assert cli.main(["ablate", path]) == 0  # mended: only what failed is run again
    assert begun(tmp_path)[4:] == ["small-ssr-s1"]


def test_ctrl_c_stops_all_and_the_same_call_goes_on(tmp_path, train, capsys):
    grid = load_grid(write_grid(tmp_path))
    train("small-ssr-s0", "interrupt")
    train("small-ssr-s1", "stop")
    lines: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        ablation.run_grid(grid, say=lines.append)
    assert list(ablation.collect(grid)["state"]) == ["stopped", "stopped", "not begun", "not begun"]
    assert sum("stopped after" in line for line in lines) == 2 and not any("failed" in line for line in lines)
    assert cli.main(["ablate", str(tmp_path / "small.yaml")]) == 130
    assert "run the same command to resume" in capsys.readouterr().err
    train("small-ssr-s0", "")
    train("small-ssr-s1", "")
    assert set(ablation.run_grid(grid, say=lines.append).values()) == {"finished"}


def test_the_second_interrupt_kills(tmp_path, train):
    grid = load_grid(write_grid(tmp_path, slots=1))
    train("small-ssr-s0", "interrupt twice")
    lines: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        ablation.run_grid(grid, say=lines.append)
    assert begun(tmp_path) == ["small-ssr-s0"] and not Job(grid.runs[0].config.folder).alive
    assert any(line.startswith("[1/4] small-ssr-s0: killed after") for line in lines)


@pytest.mark.parametrize("finishes", [True, False])
@pytest.mark.parametrize("lock", ["job_lock", "writer_lock"])
def test_a_run_that_lives_outside_the_slots_is_waited_for(tmp_path, train, monkeypatch, lock, finishes):
    """By whom and on which GPUs is unknown: nothing is started, and it is resumed if it ended unfinished."""
    grid = load_grid(write_grid(tmp_path, slots=3))
    config = grid.runs[3].config
    held = locks.take(getattr(RunDir(config.folder), lock))
    assert held is not None
    (config.folder / "config.yaml").write_text(to_yaml(config))
    assert list(ablation.plan(grid)["to do"]) == ["start"] * 3 + ["wait: another job writes it"]
    lines: list[str] = []
    looks: list[Path] = []

    def look(folder: Path) -> bool:
        looks.append(folder)
        if looks.count(config.folder) == 3 and folder == config.folder:
            assert len(lines) == 1  # nothing was started when it was looked at before
            (folder / "status.json").write_text(json.dumps({"state": "finished" if finishes else "running"}))
            os.close(held)
        return is_alive(folder)

    monkeypatch.setattr(slots, "is_alive", look)
    assert ablation.run_grid(grid, say=lines.append) == {run.config.name: "finished" for run in grid.runs}
    assert lines[0] == (
        "[4/4] small-filter-s1: is running already; it may be on any GPU, so nothing is started before it has ended"
    )
    assert len(begun(tmp_path)) == (3 if finishes else 4)


class Killed(Exception):
    """What ends ``run_grid`` as a restart of the kernel does: its runs live on."""


def abandon(grid: Grid, run: str, **settings) -> None:
    """``run_grid`` until ``run`` has been started."""

    def say(line: str) -> None:
        if f"{run}: started" in line:
            raise Killed

    with pytest.raises(Killed):
        ablation.run_grid(grid, say=say, **settings)


def test_a_run_keeps_its_slot_when_the_kernel_is_restarted(tmp_path, train, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    grid = load_grid(write_grid(tmp_path))
    train("small-ssr-s0", "hold")
    abandon(grid, "small-ssr-s0")
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if "small-filter-s0: started" in line or "nothing is started" in line:
            # The third run: the first one has held slot 0 all the time.
            (tmp_path / "runs" / "go").touch()

    assert ablation.run_grid(grid, say=say) == {run.config.name: "finished" for run in grid.runs}
    assert lines[0] == "[1/4] small-ssr-s0: is running already; it keeps its slot"
    assert "[1/4] small-ssr-s0: finished" in lines  # by its own last word, and it was not started again
    assert sorted(begun(tmp_path)) == sorted(run.config.name for run in grid.runs)
    used = {run.config.name: (run.config.folder / "gpus").read_text() for run in grid.runs}
    assert [used[name] for name in ("small-ssr-s0", "small-ssr-s1", "small-filter-s0")] == ["2", "3", "3"]


def test_a_run_that_dies_in_a_slot_of_an_earlier_call_goes_on(tmp_path, train):
    grid = load_grid(write_grid(tmp_path, slots=1))
    train("small-ssr-s0", "hold")
    abandon(grid, "small-ssr-s0")

    def say(line: str) -> None:
        if "keeps its slot" in line:
            Job(grid.runs[0].config.folder).kill()
            train("small-ssr-s0", "")

    assert set(ablation.run_grid(grid, say=say).values()) == {"finished"}
    assert [name for what, name in events(tmp_path) if what == "end"] == [run.config.name for run in grid.runs]


def test_slots_of_another_size_are_waited_for(tmp_path, train, monkeypatch):
    """One of two slots has GPU 2; the only slot has both. Also where the grid has no such run any more."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    path = write_grid(tmp_path)
    train("small-ssr-s0", "hold")
    abandon(load_grid(path), "small-ssr-s0")
    smaller, lines = load_grid(path, ["seeds=[1]"]), []

    def say(line: str) -> None:
        lines.append(line)
        if "is running already" in line:
            (tmp_path / "runs" / "go").touch()

    assert set(ablation.run_grid(smaller, 1, say=say).values()) == {"finished"}
    assert lines[0].startswith("small-ssr-s0: is running already; it may be on any GPU")
    assert [what for what, _ in events(tmp_path)] == ["begin", "end"] * 3


def test_what_another_job_finished_meanwhile_is_not_started(tmp_path, train):
    grid = load_grid(write_grid(tmp_path, slots=1))
    last = grid.runs[3].config
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if "small-ssr-s0: started" in line:  # planned is all by now
            last.folder.mkdir(parents=True)
            (last.folder / "config.yaml").write_text(to_yaml(last))
            (last.folder / "status.json").write_text('{"state": "finished"}')

    assert ablation.run_grid(grid, say=say) == {run.config.name: "finished" for run in grid.runs}
    assert begun(tmp_path) == [run.config.name for run in grid.runs[:3]]
    assert [line for line in lines if "[4/4]" in line] == ["[4/4] small-filter-s1: finished"]


def test_one_process_looks_after_a_grid(tmp_path, train, capsys):
    path = write_grid(tmp_path)
    grid = load_grid(path)
    with slots.exclusive(grid.folder):
        assert cli.main(["ablate", str(path)]) == 2
        error = capsys.readouterr().err
        assert f"process {os.getpid()} on " in error and "looks after the runs of" in error
        assert cli.main(["ablate", str(path), "--dry-run"]) == 0
    assert not begun(tmp_path)
    assert set(ablation.run_grid(grid, say=lambda _: None).values()) == {"finished"}
    with slots.exclusive(grid.folder):  # nothing is left to run: it may be looked at
        assert set(ablation.run_grid(grid, say=lambda _: None).values()) == {"finished"}


def test_a_start_that_is_refused_leaves_the_others_alone(tmp_path, train):
    """A folder that got a run of other settings behind the plan."""
    grid = load_grid(write_grid(tmp_path, slots=1))
    second = grid.runs[1].config
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if "small-ssr-s0: started" in line:
            second.folder.mkdir(parents=True)
            (second.folder / "config.yaml").write_text(to_yaml(second).replace("seed: 1", "seed: 5"))
            (second.folder / "status.json").write_text('{"state": "stopped"}')

    with pytest.raises(RunExists, match="small-ssr-s1"):  # from the table, when the others are done
        ablation.run_grid(grid, say=say)
    assert any("small-ssr-s1: failed (" in line and "other settings (seed: 5 -> 1)" in line for line in lines)
    assert [name for what, name in events(tmp_path) if what == "end"] == [grid.runs[at].config.name for at in (0, 2, 3)]


def test_other_settings_under_a_run_s_name(tmp_path, train, capsys):
    path = write_grid(tmp_path)
    ablation.run_grid(load_grid(path), say=lambda _: None)
    before = events(tmp_path)
    changed = load_grid(path, ["optim.lr=0.5"])
    for call in (ablation.plan, ablation.run_grid, ablation.collect):
        with pytest.raises(RunExists, match=r"small-ssr-s0 was made with other settings \(optim.lr: 1e-06 -> 0.5\)"):
            call(changed)
    assert cli.main(["ablate", str(path), "optim.lr=0.5"]) == 2
    assert "was made with other settings" in capsys.readouterr().err and events(tmp_path) == before


def test_dry_run(tmp_path, capsys):
    assert cli.main(["ablate", str(write_grid(tmp_path)), "--dry-run", "optim.lr=1e-3"]) == 0
    out = capsys.readouterr().out
    assert out.count(" start ") == 4 and "replay.mode=filter seed=1" in out
    assert not (tmp_path / "runs").exists()
    assert cli.main(["ablate", str(tmp_path / "small.yaml"), "--dry-run", "optim.lrr=1"]) == 2
    assert "did you mean 'optim.lr'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        ("2,3,5,7", ["2", "3", "5", "7"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0, 1", ["0", "1"]),
        ("0,-1,1", ["0"]),  # CUDA reads no further than what it does not know
        ("GPU-8932f937,MIG-3f1a", ["GPU-8932f937", "MIG-3f1a"]),
    ],
)
def test_the_gpus_that_cuda_would_show(monkeypatch, value, seen):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert visible_gpus() == seen


def test_slots_share_the_gpus():
    four = ["2", "3", "5", "7"]
    assert gpus.slot_gpus(four, 2) == ["2,3", "5,7"] and gpus.slot_gpus([], 3) == [""] * 3
    for count, text in ((5, "slots=5, but 4 GPUs are visible"), (0, "slots=0: needs at least 1")):
        with pytest.raises(ConfigError, match=text):
            gpus.slot_gpus(four, count)


def test_a_run_with_more_processes_than_its_slot_has_gpus(tmp_path, train, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7")
    path = write_grid(tmp_path)
    eight = load_grid(path, ["launch.processes=8"])
    text = r"run small-ssr-s0: launch.processes=8, but each of 2 slots has 4 of 8 GPUs"
    with pytest.raises(ConfigError, match=text):
        ablation.run_grid(eight, say=lambda _: None)
    file = ROOT / "experiments" / "accelerate" / "gpus-8.yaml"
    with pytest.raises(ConfigError, match=r"gpus-8\.yaml: num_processes=8, but each of 2 slots has 4"):
        ablation.run_grid(load_grid(path, [f"launch.accelerate={file}"]), say=lambda _: None)
    assert not begun(tmp_path)
    lines: list[str] = []
    ablation.run_grid(load_grid(path, ["launch.processes=2", "seeds=[0]"]), 3, say=lines.append)
    assert lines[0] == "2 of 8 GPUs stay idle: they cannot be shared equally by 3 slots"
    assert {path.read_text() for path in (tmp_path / "runs").glob("*/gpus")} == {"0,1", "2,3"}


# -- the table --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Grid:
    """A grid of four made-up runs, one of which was killed."""
    folder = tmp_path_factory.mktemp("grid")
    grid = load_grid(write_grid(folder))
    for number, run in enumerate(grid.runs):
        write_run(run.config.folder, stages=(2, 2), queries=6, held_out=8, seed=number)
        (run.config.folder / "config.yaml").write_text(to_yaml(run.config))
        state = "running" if number == 3 else "finished"
        (run.config.folder / "status.json").write_text(json.dumps({"state": state}))
        came_from(run.config.folder)
    return grid


def came_from(folder: Path, *commits: str, engine: str = "VllmEngine", digest: str = "d1") -> None:
    """provenance.json of a run that was started at each of ``commits``, "+" behind it for changes."""
    states = [{"commit": name.rstrip("+") * 40, "changed": name.endswith("+")} for name in commits or ("a",)]
    facts = {"git": states[0], "starts": [{"git": state} for state in states], "engine": engine, "processes": 2}
    facts["data"] = {"train": {"path": "x", "sha256": digest}}
    (folder / "provenance.json").write_text(json.dumps(facts))


def test_collect_reads_run_files(finished):
    table = ablation.save_table(finished)
    assert list(table.columns[:4]) == ["run", "replay", "label", "seed"]
    assert list(table.groupby("run", sort=False)["state"].first()) == ["finished"] * 3 + ["failed"]
    run = finished.runs[0].config
    mine = table[table["run"] == run.name].set_index(["measure", "stage"])
    summary = json.loads((run.folder / "evaluation" / "rethinker.json").read_text())["modes"]
    for mode in ("plain", "forced", "bound"):
        row = mine.loc[(f"test/{mode}/pass@1", "rethinker")]
        expected = summary[mode]["pass@1"]
        assert [row[key] for key in ("value", "low", "high", "n")] == [
            expected[key] for key in ("value", "low", "high", "n")
        ]
        assert row["queries"] == 8 and (row["episode"], row["step"]) == (4, 16)
    lines = [json.loads(text) for text in (run.folder / "metrics.jsonl").read_text().splitlines()]
    episodes = [line for line in lines if line["record"] == "episode"]
    effective = [line["queries/effective"] for line in episodes[2:]]
    assert mine.loc[("queries/effective", "rethinker"), "value"] == pytest.approx(sum(effective) / 2)
    assert mine.loc[("queries/effective", "rethinker"), "n"] == 2
    assert mine.loc[("replay/skipped_steps", "rethinker"), "value"] == 1  # episode 3
    assert mine.loc[("tokens/generated", "rethinker"), "value"] == episodes[-1]["tokens/generated"]
    assert mine.loc[("seconds", "reasoner"), "value"] == episodes[1]["seconds"]
    validations = [line["validation/accuracy"] for line in lines if line["record"] == "validation"]
    assert list(table[(table["run"] == run.name) & (table["measure"] == VALIDATION)]["value"]) == validations
    assert mine.loc[("test/plain/pass@1", "start"), "episode"].item() == 0
    for saved in (pd.read_parquet(finished.folder / "table.parquet"), pd.read_csv(finished.folder / "table.csv")):
        pd.testing.assert_frame_equal(saved, table, check_dtype=False)


def test_runs_that_are_not_finished_are_not_compared(finished):
    comparison = compare(ablation.collect(finished), "filter").set_index(["label", "measure"])
    assert comparison.loc[("ssr", TEST), "seeds"] == 2 and comparison.loc[("filter", TEST), "seeds"] == 1
    assert comparison.loc[("filter", TEST), "interval"] == "over queries"
    assert comparison.loc[("ssr", TEST), "pairs"] == 1
    assert pd.isna(comparison.loc[("ssr", TEST), "difference_low"])


def test_a_grid_that_has_not_begun(tmp_path):
    table = ablation.collect(load_grid(write_grid(tmp_path)))
    assert list(table["state"].unique()) == ["not begun"] and list(table["value"]) == [0.0] * 4
    assert compare(table, "filter").empty and "No run is finished yet" in in_words(compare(table, "filter"))
    for name, text in (("fig5", "No run has been validated"), ("table3", "No run of the grid is finished")):
        with pytest.raises(plots.NoData, match=text):
            figures.draw(table, name)


def test_what_runs_have_not_in_common_is_said(finished, monkeypatch):
    """Code, engine and data are not settings: a run is found again although they have changed."""
    first, second, third, fourth = (run.config for run in finished.runs)
    state = {"commit": "b" * 40, "changed": True}
    monkeypatch.setattr(provenance, "git_state", lambda folder: state)
    monkeypatch.setattr(provenance, "data_digests", lambda config: {"train": {"path": "x", "sha256": "d1"}})
    came_from(second.folder, "b+")
    came_from(third.folder, "a", "b", engine="TransformersEngine", digest="d2")
    (fourth.folder / "provenance.json").unlink()
    try:
        uncommitted = "perhaps code (uncommitted changes, then and now)"
        expected = [
            "code aaaaaaa, now bbbbbbb+changes",
            uncommitted,
            "code aaaaaaa then bbbbbbb, now bbbbbbb+changes; data",
        ]
        assert list(ablation.plan(finished)["changed since"]) == [*expected, ""]
        table = ablation.collect(finished)
        runs = table.groupby("run", sort=False)[["commit", "engine", "processes"]].first()
        assert runs.loc[second.name].to_list() == ["b" * 40 + "+changes", "VllmEngine", 2]
        assert runs.loc[fourth.name].isna().all()
        digests = table.groupby("run", sort=False)["data"].first()
        assert digests[first.name] == digests[second.name] != digests[third.name]
        words = origin.mixture(table)
        assert words == (
            "The runs differ in commit (aaaaaaa: 1 run, bbbbbbb+changes: 1 run, aaaaaaa then bbbbbbb: 1 run), "
            f"engine (VllmEngine: 2 runs, TransformersEngine: 1 run), data ({digests[first.name]}: 2 runs, "
            f"{digests[third.name]}: 1 run)."
        )
        for name in figures.FIGURES:
            assert words in figures.draw(table, name).caption.replace("\u00a0", " ")
    finally:
        for config in (second, third, fourth):
            came_from(config.folder)
    state |= {"commit": "a" * 40, "changed": False}
    assert set(ablation.plan(finished)["changed since"]) == {""}
    assert origin.mixture(ablation.collect(finished)) == ""


def test_run_grid_warns_of_what_cannot_be_compared(tmp_path, train, monkeypatch):
    grid = load_grid(write_grid(tmp_path), ["data.test=null"])
    lines: list[str] = []
    ablation.run_grid(grid, say=lines.append)
    assert lines[0].startswith("warning: neither data.test nor data.validation is set")
    came_from(grid.runs[0].config.folder, "a")
    came_from(grid.runs[1].config.folder, "b")
    lines.clear()
    monkeypatch.setattr(provenance, "git_state", lambda folder: {"commit": "b" * 40, "changed": False})
    monkeypatch.setattr(provenance, "data_digests", lambda config: {"train": {"path": "x", "sha256": "d1"}})
    ablation.run_grid(grid, say=lines.append)
    assert lines[1].startswith("warning: changed since 1 of 4 runs were made: code aaaaaaa, now bbbbbbb (small-ssr-s0)")
    assert lines[-1] == "warning: The runs differ in commit (aaaaaaa: 1 run, bbbbbbb: 1 run)."


# -- means and differences, by hand -----------------------------------------------------------------------------------

VALUES = {"ssr": {0: 0.80, 1: 0.70, 2: 0.75}, "filter": {0: 0.60, 1: 0.65, 2: 0.55}, "grpo": {1: 0.5}}


def made_up(values: dict[str, dict[int, float]], measure: str = TEST, state: str = "finished") -> pd.DataFrame:
    rows = [
        {"run": f"g-{label}-s{seed}", "label": label, "seed": seed, "state": state, "stage": stage, "episode": episode}
        | {"step": 4 * episode, "measure": measure, "value": part * value, "low": value - 0.1, "high": value + 0.1}
        | {"planned": "train 2 episodes"}
        | {"n": 40, "queries": 10, "commit": "a" * 40, "engine": "VllmEngine", "processes": 2, "data": "sha256:1"}
        for label, seeds in values.items()
        for seed, value in seeds.items()
        for stage, episode, part in (("start", 0, 0.5), ("train", 2, 1.0))
    ]
    return pd.DataFrame(rows)


def test_quantiles_of_t():
    """Against the printed table (e.g. Abramowitz and Stegun, table 26.10)."""
    printed = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 30: 2.042, 120: 1.980}
    assert {freedom: round(t95(freedom), 3) for freedom in printed} == printed
    for wrong in (lambda: t95(0), lambda: over_seeds([0.5])):
        with pytest.raises(ValueError, match="at least"):
            wrong()


def test_means_and_paired_differences():
    found = compare(made_up(VALUES), "filter").set_index("label")
    # ssr: mean 0.75, standard deviation 0.05; t(2) = 4.302653: 4.302653 * 0.05 / sqrt(3) = 0.124207
    ssr = found.loc["ssr"]
    assert [ssr["value"], ssr["low"], ssr["high"]] == pytest.approx([0.75, 0.625793, 0.874207], abs=1e-6)
    assert (ssr["n"], ssr["queries"], ssr["seeds"], ssr["seed_list"]) == (120, 10, 3, "0, 1, 2")
    # differences 0.20, 0.05, 0.20: mean 0.15, standard deviation sqrt(0.0075); 4.302653 * 0.05 = 0.215133
    assert [ssr["difference"], ssr["difference_low"], ssr["difference_high"]] == pytest.approx(
        [0.15, -0.065133, 0.365133], abs=1e-6
    )
    assert pd.isna(found.loc["filter", "difference"])
    grpo = found.loc["grpo"]  # one seed: the run's own interval, and one pair
    assert [grpo["value"], grpo["low"], grpo["high"], grpo["interval"]] == [0.5, 0.4, 0.6, "over queries"]
    assert grpo["difference"] == pytest.approx(-0.15) and grpo["pairs"] == 1 and pd.isna(grpo["difference_low"])
    start = compare(made_up(VALUES), stage="start").set_index("label")
    assert start.loc["ssr", "value"] == pytest.approx(0.375) and "difference" not in start


def test_intervals_end_where_shares_end():
    two = {"a": {0: 0.1, 1: 0.9}, "b": {0: 0.9, 1: 0.1}}
    shares = compare(made_up(two), "b").set_index("label").loc["a"]
    assert (shares["low"], shares["high"], shares["difference_low"], shares["difference_high"]) == (0, 1, -1, 1)
    seconds = compare(made_up({"a": {0: 10.0, 1: 90.0}}, "seconds")).iloc[0]
    assert seconds["low"] == 0 and seconds["high"] == pytest.approx(50 + 12.706205 * 40)


def test_wrong_comparisons():
    with pytest.raises(ValueError, match="baseline 'x': the table has ssr, filter, grpo"):
        compare(made_up(VALUES), "x")
    table = made_up(VALUES)
    table.loc[table["run"] == "g-ssr-s1", "planned"] = "train 7 episodes"
    lengths = r"\(g-ssr-s0: train 2 episodes; g-ssr-s1: train 7 episodes\)"
    with pytest.raises(ValueError, match=f"ssr: its runs are of different lengths {lengths}: give them the same"):
        compare(table)


def test_runs_that_end_by_a_budget_are_compared(tmp_path, capsys):
    """They end after different numbers of episodes, one of them before its last stage."""
    stages = "stages=[{name: reasoner, episodes: 9}, {name: rethinker, episodes: 9}]"
    path = write_grid(tmp_path, common=[f"runs_dir={tmp_path / 'runs'}", "budget.tokens=4000", stages])
    grid = load_grid(path)
    for run, lengths in zip(grid.runs, ((2, 1), (2, 3), (1, 2), (3,)), strict=True):
        write_run(run.config.folder, stages=lengths, queries=6, held_out=8, seed=len(lengths))
        (run.config.folder / "config.yaml").write_text(to_yaml(run.config))
        (run.config.folder / "status.json").write_text('{"state": "finished"}')
        came_from(run.config.folder)
    assert cli.main(["ablate", str(path)]) == 0
    out = capsys.readouterr().out
    assert "t over seeds; n = 64, seeds 0, 1" in out and "2 paired by seed" in out
    table = ablation.collect(grid)
    limits = "reasoner 9 episodes or budget.tokens=4000, rethinker 9 episodes or budget.tokens=4000"
    assert set(table["planned"]) == {limits}
    progress = compare(table).set_index(["label", "measure"])["value"].xs(PROGRESS, level="measure")
    assert progress.to_dict() == {"ssr": 4.0, "filter": 3.0}
    assert "Seeds: 0, 1." in figures.draw(table, "table3", baseline="filter").caption


def test_the_table_is_named_before_a_comparison_that_fails(tmp_path, capsys):
    """Here a stage is as long as the seed says."""
    longer = ["stages=[{name: reasoner, episodes: 2}]", "stages.0.episodes=\\${seed}"]
    path = write_grid(tmp_path, seeds=[1, 2], common=[f"runs_dir={tmp_path / 'runs'}", *longer])
    for run in load_grid(path).runs:
        write_run(run.config.folder, stages=(run.config.seed,), queries=4, held_out=6)
        (run.config.folder / "config.yaml").write_text(to_yaml(run.config))
        (run.config.folder / "status.json").write_text('{"state": "finished"}')
        came_from(run.config.folder)
    assert cli.main(["ablate", str(path)]) == 2
    captured = capsys.readouterr()
    assert "(small-ssr-s1: reasoner 1 episodes; small-ssr-s2: reasoner 2 episodes)" in captured.err
    assert f"written: {tmp_path / 'runs' / 'small' / 'table.parquet'}" in captured.out


@pytest.mark.parametrize("missing", ["no row", "no value"])
def test_a_measure_that_one_seed_has_only_in_an_earlier_stage(missing):
    """As effective_after where nothing was trained on at the end: neither an error, nor the earlier stage's value."""
    table = pd.concat([made_up(VALUES), made_up(VALUES, PROGRESS)], ignore_index=True)
    gone = (table["run"] == "g-ssr-s1") & (table["stage"] == "train") & (table["measure"] == TEST)
    if missing == "no row":
        table = table[~gone]
    else:
        table.loc[gone, "value"] = float("nan")
    found = compare(table, "filter").set_index(["label", "measure"])
    ssr = found.loc[("ssr", TEST)]
    assert (ssr["value"], ssr["seed_list"], ssr["n"], ssr["pairs"]) == (pytest.approx(0.775), "0, 2", 80, 2)
    assert found.loc[("ssr", PROGRESS), "seed_list"] == "0, 1, 2"
    (ticks,) = [line for line in figures.draw(table, "table3").figure.axes[0].lines if line.get_marker() == "|"][:1]
    assert list(ticks.get_xdata()) == [0.80, 0.75]


def test_words_and_tables():
    comparison = compare(made_up(VALUES), "filter")
    line = next(line for line in in_words(comparison).splitlines() if "ssr" in line)
    assert line == (
        "  ssr     0.750 [0.626, 0.874] t over seeds; n = 120, seeds 0, 1, 2; against filter +0.150 [-0.065, +0.365], "
        "3 paired by seed"
    )
    assert wide(comparison, [TEST, "seconds"]).loc["grpo"].to_dict() == {TEST: "0.500 [0.400, 0.600]"}


def test_curves_wait_for_every_run():
    table = made_up({"a": {0: 0.4, 1: 0.6}}, VALIDATION, "running")
    late = table[(table["seed"] == 0) | (table["stage"] == "start")]
    assert list(curves(table)["episode"]) == [0, 2] and list(curves(late)["episode"]) == [0]
    last = curves(table).iloc[-1]
    assert last["value"] == pytest.approx(0.5) and last["seeds"] == 2
    assert (last["low"], last["high"]) == (0, 1)  # 0.5 -+ 12.7 * 0.1


# -- figures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("theme", plots.THEMES.values(), ids=plots.THEMES)
def test_figures(finished, theme):
    table = ablation.collect(finished)
    drawing = figures.draw(table, "fig5", theme, "filter")
    assert "n\u00a0=\u00a08 validation queries per point" in drawing.caption and "Seeds: 0, 1." in drawing.caption
    assert "1 of 4 runs are not finished." in drawing.caption
    (axis,) = drawing.figure.axes
    assert len(axis.lines) == 4 + 2 and [text.get_text() for text in axis.get_legend().get_texts()] == ["ssr", "filter"]
    assert ElementTree.fromstring(plots.render(drawing, "svg")).tag.endswith("svg")
    drawing = figures.draw(table, "table3", theme, "filter")
    assert "8 queries, n\u00a0=\u00a032 to 64 responses per label" in drawing.caption
    assert "Student's t over seeds (ticks: single runs) or of the one run over queries" in drawing.caption
    assert [len(axis.get_yticklabels()) for axis in drawing.figure.axes] == [2, 2]


def test_fig_5_is_over_episodes_which_all_runs_share():
    """Runs skip steps, so that step 4 of one is step 8 of another: a mean over steps would lie between."""
    table = made_up({"a": {0: 0.4, 1: 0.6}}, VALIDATION)
    table.loc[table["run"] == "g-a-s1", "step"] //= 2
    (axis,) = figures.draw(table, "fig5").figure.axes
    assert [list(line.get_xdata()) for line in axis.lines] == [[0, 2]] * 3
    assert axis.get_xlabel() == "episode"


def test_runs_without_an_accuracy_say_so():
    """All are finished, so that "not yet" would be wrong."""
    table = made_up(VALUES, PROGRESS)
    with pytest.raises(plots.NoData, match=r"neither data\.test nor data\.validation was set"):
        figures.draw(table, "table3")
    with pytest.raises(plots.NoData, match=r"data\.validation was not set"):
        figures.draw(made_up(VALUES), "fig5")
    assert in_words(compare(table)) == NOT_MEASURED


def test_captions_say_what_is_there():
    table = made_up(VALUES)
    words = figures.draw(table, "table3").caption
    assert "Seeds: ssr 0, 1, 2; filter 0, 1, 2; grpo 1." in words and "Right:" not in words
    words = figures.draw(table, "table3", baseline="filter").caption
    assert "1 to 3 pairs per label, with its t interval over the pairs." in words
    assert "All 7 runs are finished." in words
    with pytest.raises(ValueError, match="no figure 'pie'"):
        figures.draw(table, "pie")


def test_figures_as_files(tmp_path):
    paths = figures.save_figures(made_up(VALUES), tmp_path, "filter")
    assert [path.name for path in paths] == [
        f"table3-{theme}.{kind}" for theme in ("light", "dark") for kind in ("svg", "png")
    ]


# -- one real grid ----------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.slow
def test_a_real_grid(tmp_path, world, guesser, capsys):
    settings = [
        f"runs_dir={tmp_path / 'runs'}",
        f"model.path={guesser}",
        *(f"data.{split}={world / split}.parquet" for split in ("train", "validation", "test")),
        "rollout.engine=transformers",
        "rollout.max_new_tokens=64",
        "evaluation.modes=[plain]",
        "evaluation.samples=2",
        "tracking.save_every=0",
    ]
    path = str(write_grid(tmp_path, common=settings, seeds=[0]))
    assert cli.main(["ablate", path]) == 0
    table = pd.read_parquet(tmp_path / "runs" / "small" / "table.parquet")
    for label in ("ssr", "filter"):
        mine = table[table["label"] == label]
        assert set(mine["state"]) == {"finished"} and {TEST, VALIDATION, "seconds"} <= set(mine["measure"])
        assert (tmp_path / "runs" / f"small-{label}-s0" / "report.html").exists()
    assert "test/plain/pass@1 (95% intervals)" in capsys.readouterr().out
    assert cli.main(["ablate", path]) == 0
    assert "2 of 2 runs: nothing: finished" in capsys.readouterr().out
