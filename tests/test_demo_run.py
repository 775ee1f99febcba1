"""Runs for notebooks: made once, loaded afterwards, and loud where they fail. (Notebook 00 makes a real one.)"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from rethinker.config import to_yaml
from rethinker.config.repository import enter_repository, repository_root
from rethinker.lab.jobs import RunBusy
from rethinker.lab.notebook import demo_run
from rethinker.rundir.folder import check_folder, run_state

ROOT = Path(__file__).parents[1]


class PretendedJob:
    """Has printed a line, prints another when it is followed, and ends in ``state``; where ``ended``, long ago."""

    def __init__(self, state: str, *, ended: bool = False):
        self.state, self.ended = state, ended

    def follow(self, n: int) -> Iterator[str]:
        self.ended = True
        yield from ["episode 1", "episode 2"][0 if n else 1 :]

    def status(self) -> SimpleNamespace:
        return SimpleNamespace(state=self.state if self.ended else "running", episode=28)


def pretend_training(monkeypatch, state: str = "finished") -> list:
    """Instead of training, write the files of a run that ended in ``state``; returns the configs that were started."""
    calls: list = []

    def start(config, resume, home):
        assert resume and home == ROOT
        if run_state(config.folder) == "finished":
            check_folder(config, resume=True)
            return PretendedJob("finished", ended=True)
        calls.append(config)
        config.folder.mkdir(parents=True, exist_ok=True)
        (config.folder / "config.yaml").write_text(to_yaml(config))
        (config.folder / "status.json").write_text(json.dumps({"state": state}))
        return PretendedJob(state)

    monkeypatch.setattr(demo_run.jobs, "start", start)
    monkeypatch.setattr(demo_run, "write_report", lambda folder: (folder / "report.html").write_text("page"))
    return calls


def test_a_run_is_where_the_repository_is(tmp_path, monkeypatch):
    """Its config has no path of the machine: a checkout that was moved finds its demo again."""
    calls: list = []

    def start(config, resume, home):
        calls.append((config, home))
        raise RuntimeError("not started")

    monkeypatch.setattr(demo_run.jobs, "start", start)
    monkeypatch.setattr(demo_run, "make_data", lambda folder, *_: calls.append(folder))
    monkeypatch.setattr(demo_run, "repository_root", lambda: tmp_path)
    (tmp_path / "experiments").mkdir()
    (tmp_path / demo_run.CONFIG).write_text((ROOT / demo_run.CONFIG).read_text())
    with pytest.raises(RuntimeError, match="not started"):
        demo_run.demo_run()
    drawn, (config, home) = calls
    assert drawn == tmp_path / "runs" / ".data" / "demo" and home == tmp_path
    assert config.folder == Path("runs/demo") and config.data.train == "runs/.data/demo/train.parquet"


def test_made_once(tmp_path, monkeypatch, capsys):
    calls = pretend_training(monkeypatch)
    folder = demo_run.demo_run(tmp_path)
    assert folder == tmp_path / "demo" and demo_run.demo_run(tmp_path) == folder and len(calls) == 1
    said = f"episode 1\nepisode 2\n{folder}: loaded, 28 episodes\n"  # not its whole log again
    assert capsys.readouterr().out == said and (folder / "report.html").is_file()
    (config,) = calls
    assert [stage.episodes for stage in config.stages] == [4, 24] and config.for_stage(1).rethink.fraction == 0.5
    assert config.rollout.engine == "transformers" and config.launch.processes <= 2
    for split in (config.data.train, config.data.validation, config.data.test):
        assert (ROOT / split).is_file()
    assert demo_run.run_or_demo("", tmp_path) == folder == demo_run.run_or_demo(folder)
    assert demo_run.demo_run(tmp_path, "another") == tmp_path / "another" and len(calls) == 2


def test_another_run_in_the_folder_is_an_error(tmp_path, monkeypatch):
    calls = pretend_training(monkeypatch)
    folder = demo_run.demo_run(tmp_path)
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("seed: 0", "seed: 5", 1))
    with pytest.raises(ValueError, match=r"made with other settings \(seed: 5 -> 0\)"):
        demo_run.demo_run(tmp_path)
    assert len(calls) == 1


def test_a_stopped_run_is_an_error_and_goes_on(tmp_path, monkeypatch):
    pretend_training(monkeypatch, "stopped")
    with pytest.raises(RuntimeError, match="call again to resume"):
        demo_run.demo_run(tmp_path)
    calls = pretend_training(monkeypatch)
    assert demo_run.demo_run(tmp_path).is_dir() and len(calls) == 1


def test_what_is_no_run_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"not the folder of a run \(no config.yaml\)"):
        demo_run.run_or_demo(tmp_path)


def test_a_run_that_another_kernel_started_is_waited_for(tmp_path, monkeypatch, capsys):
    """From where it is: what it had said by then is not repeated."""
    folder = demo_run_folder(tmp_path, monkeypatch)
    running = PretendedJob("finished")

    def busy(*_, **__):
        raise RunBusy("somebody")

    monkeypatch.setattr(demo_run.jobs, "start", busy)
    monkeypatch.setattr(demo_run.jobs, "Job", lambda path: running if path == folder else None)
    capsys.readouterr()
    assert demo_run.demo_run(tmp_path) == folder
    assert capsys.readouterr().out == "episode 2\n"


def demo_run_folder(tmp_path, monkeypatch) -> Path:
    pretend_training(monkeypatch)
    return demo_run.demo_run(tmp_path)


def test_an_interrupt_saves_and_stops(tmp_path, monkeypatch, capsys):
    pretend_training(monkeypatch)
    done: list[str] = []

    class Interrupted(PretendedJob):
        def follow(self, n: int) -> Iterator[str]:
            raise KeyboardInterrupt
            yield

        def stop(self) -> None:
            done.append("stop")

        def wait(self) -> None:
            done.append("wait")

    monkeypatch.setattr(demo_run.jobs, "start", lambda *_, **__: Interrupted("stopped"))
    with pytest.raises(KeyboardInterrupt):
        demo_run.demo_run(tmp_path)
    assert done == ["stop", "wait"] and "saving and stopping" in capsys.readouterr().out


def test_two_notebooks_at_a_time_make_one_run(tmp_path, monkeypatch):
    """The second waits for the first; threads with files of their own exclude each other as processes do."""
    calls = pretend_training(monkeypatch)
    start = demo_run.jobs.start

    def slow_start(config, **options):
        state = run_state(config.folder)
        time.sleep(0.2)  # long enough for another that does not wait to see the same state
        assert run_state(config.folder) == state
        return start(config, **options)

    monkeypatch.setattr(demo_run.jobs, "start", slow_start)
    with ThreadPoolExecutor(2) as pool:
        assert set(pool.map(demo_run.demo_run, [tmp_path, tmp_path])) == {tmp_path / "demo"}
    assert len(calls) == 1


def test_the_root_is_found_from_anywhere(tmp_path, monkeypatch):
    assert repository_root(ROOT / "notebooks") == repository_root(ROOT) == ROOT
    assert repository_root(tmp_path) == ROOT  # where the package lies
    monkeypatch.chdir(ROOT / "tests")
    enter_repository()
    assert Path.cwd() == ROOT
