"""Jobs in the background: the states of one, its lock, races, process ids of others, crashes; and a real run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rethinker import cli, launch, locks
from rethinker.config import RunConfig, load_config, to_yaml
from rethinker.jobs import claim, foreground, handle
from rethinker.jobs.files import last_words
from rethinker.jobs.handle import Job
from rethinker.run_folder import STOP_FILE, WRITER_LOCK, RunExists, run_state
from rethinker.schema import ConfigError

# What a job looks like from outside, without a model: it trains episodes until there are four or STOP is there.
FAKE = """
import json, os, signal, sys, time
from pathlib import Path
folder, what = Path(sys.argv[1]).resolve().parents[1], os.environ["FAKE"]
log = folder / "metrics.jsonl"

def say(state):
    (folder / "status.tmp").write_text(json.dumps({"state": state}))
    os.replace(folder / "status.tmp", folder / "status.json")

print("started", *sys.argv[2:], *({"FORCE_COLOR", "MPLBACKEND"} & set(os.environ)))
if what == "crash at once":
    sys.exit("ValueError: no such model")
if what == "starting":
    time.sleep(60)
(folder / "config.yaml").write_text(Path(sys.argv[1]).read_text())
say("running")
if what == "deaf":
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    time.sleep(60)
done = len(log.read_text().splitlines()) if log.exists() else 0
while done < 4 or what == "endless":
    done += 1
    with log.open("a") as file:
        record = {"record": "episode", "stage": "a", "episode": done, "step": done, "seconds": 1.5 * done}
        file.write(json.dumps(record) + "\\n")
    if what == "crash":
        print("Traceback (most recent call last):\\n  File x\\n[rank1]: RuntimeError: <boom>")
        print("====\\ntorch.distributed.elastic.multiprocessing.errors.ChildFailedError: y")
        sys.exit(3)
    if (folder / "STOP").exists():
        (folder / "STOP").unlink()
        say("stopped")
        sys.exit(0)
    time.sleep(0.02)
say("finished")
"""


@pytest.fixture
def fake(monkeypatch):
    """``fake("endless")``: jobs are stand-ins that do this."""
    monkeypatch.setattr(
        handle,
        "train_command",
        lambda file, *, resume: [sys.executable, "-Sc", FAKE, str(file), *(["again"] if resume else [])],
    )

    def use(what: str) -> None:
        monkeypatch.setenv("FAKE", what)

    return use


@pytest.fixture
def config(tmp_path) -> RunConfig:
    return make_config(tmp_path)


def make_config(folder: Path, *overrides: str) -> RunConfig:
    settings = [f"runs_dir={folder}", "name=run", "stages=[{name: a, episodes: 4}]", *overrides]
    return load_config(None, settings)


def wait_for(condition) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("did not come within 20 seconds")


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path):
    yield
    for file in tmp_path.rglob(claim.CONFIG_FILE):
        if (job := Job(file.parents[1])).alive:
            os.kill(job.record["pid"], signal.SIGKILL)
            job.wait(10)


# -- locks ------------------------------------------------------------------------------------------------------------


def test_a_lock_belongs_to_one(tmp_path):
    path = tmp_path / "job" / "lock"
    assert not locks.is_held(path) and not path.parent.exists()
    lock = locks.take(path)
    assert lock is not None and locks.is_held(path) and locks.take(path, patience=0) is None
    assert (
        locks.is_lock_of(lock, path) and not locks.is_lock_of(lock, Path(__file__)) and not locks.is_lock_of(99, path)
    )
    os.close(lock)
    assert not locks.is_held(path)


def test_a_lock_that_was_handed_down_is_freed_by_a_kill(tmp_path):
    path = tmp_path / "lock"
    lock = locks.take(path)
    assert lock is not None
    with subprocess.Popen(["sleep", "60"], pass_fds=(lock,)) as child:
        os.close(lock)
        assert locks.is_held(path)
        child.kill()
    assert not locks.is_held(path)


def test_who_asks_does_not_disturb_who_takes(tmp_path):
    """A look holds the lock for an instant; who takes it then tries again."""
    path = tmp_path / "lock"
    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(lambda: [locks.is_held(path) for _ in range(300)]) for _ in range(3)]
        for _ in range(30):
            lock = locks.take(path)
            assert lock is not None
            os.close(lock)
        for future in asking:
            future.result()


# -- states -----------------------------------------------------------------------------------------------------------


def test_a_job_that_finishes(config, fake, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as a notebook's kernel does
    fake("finish")
    job = launch.start(config)
    assert job.status().alive
    status = job.wait(20)
    assert status == launch.JobStatus("finished", 4, 4, "a", 6.0, 0)
    assert str(status) == "finished, episode 4/4, a" and repr(job) == "<Job run: finished, episode 4/4, a>"
    assert job.tail(5) == ["started"] and "episode 4 of 4, a (100%)" in job._repr_html_()
    assert job.config == config and job == Job(config.folder) and job.name == "run"
    assert job.resume().status() == status == job.stop() == job.kill()  # nothing is left to do
    assert not (config.folder / STOP_FILE).exists()


def test_stop_and_resume(config, fake):
    fake("endless")
    job = launch.start(config)
    wait_for(lambda: job.status().episode >= 2)
    assert job.status().state == "running" and job.status().exit_code is None
    assert job.stop().state in ("stopping", "stopped")
    status = job.wait(20)
    assert status.state == "stopped" and status.episode >= 2 and status.exit_code == 0 and not status.error
    fake("finish")
    again = job.resume()
    assert again == job and again.wait(20).state == "finished"
    assert job.tail() == ["started again"]
    assert (config.folder / "launch.log").read_text() == "started\nstarted again\n"


def test_stop_before_it_trains_is_not_lost(config, fake):
    fake("endless")
    job = launch.start(config)
    job.stop()
    assert job.wait(20).state == "stopped"


def test_stop_of_an_earlier_life_is_forgotten(config, fake):
    fake("finish")
    config.folder.mkdir()
    (config.folder / STOP_FILE).touch()
    assert launch.start(config).wait(20).state == "finished"


def test_starting_and_waiting(config, fake):
    fake("starting")
    job = launch.start(config)
    assert job.status() == launch.JobStatus("starting", 0, 4, "", 0.0, None)
    started = time.monotonic()
    assert job.wait(0.2).state == "starting" and time.monotonic() - started >= 0.2
    assert "not begun (0%)" in job._repr_html_()
    status = job.kill()
    assert status.state == "failed" and status.exit_code == -foreground.KILL_SIGNAL


@pytest.mark.parametrize(
    ("what", "code", "words"),
    [
        ("crash", 3, ("RuntimeError: <boom>",)),
        ("crash at once", 1, ("ValueError: no such model",)),
    ],
)
def test_a_crash_is_a_failure_with_its_last_words(config, fake, what, code, words):
    fake(what)
    status = launch.start(config).wait(20)
    assert (status.state, status.exit_code, status.error) == ("failed", code, words)
    html = Job(config.folder)._repr_html_()
    assert "failed (exit code" in html and "<boom>" not in html
    fake("finish")
    assert launch.ensure(config).wait(20).state == "finished"  # what was wrong has been mended: the same call goes on


def test_a_killed_job_is_a_failure_and_frees_the_folder(config, fake):
    fake("endless")
    job = launch.start(config)
    wait_for(lambda: job.status().episode >= 1)
    os.kill(job.record["pid"], signal.SIGKILL)
    status = job.wait(20)
    assert status.state == "failed" and status.exit_code == -signal.SIGKILL and run_state(job.folder) == "running"
    fake("finish")
    assert job.resume().wait(20).state == "finished"


def test_last_words_of_a_log_without_an_exception():
    assert last_words("one\n\ntwo\nthree\nfour\n") == ("two", "three", "four")
    assert last_words("") == ()


def test_episodes_are_those_that_have_ended(config, fake):
    fake("finish")
    job = launch.start(config)
    job.wait(20)
    with (job.folder / "metrics.jsonl").open("a") as file:
        file.write('{"record": "step", "stage": "a", "episode": 5, "step": 9, "seconds": 7}\n{"record": "ep')
    assert (job.status().episode, job.status().seconds) == (4, 7)


# -- one writer -------------------------------------------------------------------------------------------------------


def test_two_jobs_never_write_one_folder(config, fake, capsys, tmp_path):
    fake("endless")
    job = launch.start(config)
    wait_for(lambda: job.status().state == "running")
    pid = job.record["pid"]
    for start in (launch.start, launch.train):
        with pytest.raises(launch.RunBusy, match=rf"run is being written by another job \(process {pid} on "):
            start(config, resume=True)
    with pytest.raises(launch.RunBusy):
        job.resume()
    file = tmp_path / "config.yaml"
    file.write_text((job.folder / "config.yaml").read_text())
    assert cli.main(["train", str(file), "--resume"]) == 2
    error = capsys.readouterr().err
    assert (
        error.startswith("rethinker train: ") and f"another job (process {pid} on" in error and error.count("\n") == 1
    )
    assert job.alive and job.record["pid"] == pid and job.stop().alive
    assert job.wait(20).state == "stopped"


def test_of_many_who_start_at_once_one_wins(config, fake):
    """Threads stand for kernels: a lock belongs to an open file, not to a process."""
    fake("endless")

    def start(_: int) -> bool:
        try:
            launch.start(config)
        except launch.RunBusy:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(start, range(8))) == [False] * 7 + [True]


def test_of_many_who_ensure_at_once_all_get_the_one(config, fake):
    fake("endless")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: launch.ensure(config).record["pid"], range(8)))
    assert (config.folder / "launch.log").read_text() == "started\n" and len(set(found)) == 1


def test_a_writer_without_its_launcher_still_has_the_folder(config, fake):
    """Both who waited and accelerate's launcher were killed with SIGKILL; a worker goes on."""
    fake("finish")
    launch.start(config).wait(20)
    (config.folder / "status.json").write_text('{"state": "running"}')
    lock = locks.take(config.folder / WRITER_LOCK)
    assert lock is not None
    with subprocess.Popen(["sleep", "60"], pass_fds=(lock,)) as orphan:
        os.write(lock, f"{orphan.pid}\n".encode())
        os.close(lock)
        job = Job(config.folder)
        assert job.status().state == "running"
        with pytest.raises(launch.RunBusy, match=f"still being written by process {orphan.pid}, whose launcher was k"):
            launch.start(config, resume=True)
        assert not locks.is_held(config.folder / claim.LOCK)
        assert job.kill().state == "failed" and orphan.wait() == -signal.SIGKILL
    assert launch.start(config, resume=True).wait(20).state == "finished"


def test_another_process_of_the_same_number_is_not_signalled(config, fake, monkeypatch):
    fake("endless")
    monkeypatch.setattr(handle, "KILL_PATIENCE", 0.2)
    monkeypatch.setattr(handle, "LAST_PATIENCE", 0.2)
    job = launch.start(config)
    real = job.record
    file = job.folder / claim.RECORD_FILE
    with subprocess.Popen(["sleep", "60"]) as bystander:
        file.write_text(json.dumps(real | {"pid": bystander.pid}))
        (job.folder / claim.LAUNCHER_FILE).write_text(
            json.dumps({"pid": bystander.pid, "process": "other", "exit_code": None})
        )
        with pytest.raises(RuntimeError, match="does not die: end the processes"):
            job.kill()
        assert bystander.poll() is None and job.alive
        bystander.kill()
    file.write_text(json.dumps(real | {"host": "elsewhere"}))
    with pytest.raises(RuntimeError, match="runs on elsewhere: kill it there"):
        job.kill()
    file.write_text(json.dumps(real))
    assert not job.kill().alive


def test_kill_insists(config, fake, monkeypatch):
    fake("deaf")
    monkeypatch.setattr(handle, "KILL_PATIENCE", 0.3)
    job = launch.start(config)
    wait_for(lambda: job.status().state == "running")
    time.sleep(0.1)
    assert job.kill().exit_code == -signal.SIGKILL


def test_a_process_is_known_by_its_start():
    with subprocess.Popen(["sleep", "60"]) as one, subprocess.Popen(["sleep", "60"]) as two:
        words = [claim.process_started(process.pid) for process in (one, one, two)]
        assert words[0] == words[1] and None not in words
        one.kill()
        time.sleep(0.05)
        assert claim.process_started(one.pid) is None  # dead, though nobody has buried it
        two.kill()
    assert claim.process_started(one.pid) is None


# -- finding and ensuring ---------------------------------------------------------------------------------------------


def test_find(tmp_path, fake):
    fake("finish")
    runs = tmp_path / "runs"
    first, second = (launch.start(make_config(runs, f"name={name}")) for name in ("b", "a"))
    (runs / "notes").mkdir()
    assert launch.find(runs) == [second, first] and launch.find(runs / "a") == second
    for job in (first, second):
        job.wait(20)
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        launch.find(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="notes is not the folder of a run"):
        Job(runs / "notes")


def test_a_run_that_was_started_otherwise(config):
    """By an older version, or `python -m rethinker.experiment`."""
    config.folder.mkdir()
    (config.folder / "config.yaml").write_text("name: run\n")
    (config.folder / "status.json").write_text('{"state": "stopped"}')
    job = Job(config.folder)
    assert job.status() == launch.JobStatus("stopped", 0, 1, "", 0.0, None)
    with (job.folder / "config.yaml").open("a") as file:  # and with a key that this version does not know
        file.write("old: 1\nstages: [{name: a, episodes: 2}, {name: b, episodes: 3}, {name: c}]\n")
    assert job.status().episodes == 6
    assert job.record == {} and job.tail() == [] and "unknown" in job._repr_html_()


def test_ensure(config, fake, tmp_path):
    fake("endless")
    job = launch.ensure(config)
    pid = job.record["pid"]
    assert launch.ensure(config).record["pid"] == pid  # running: returned
    other = make_config(tmp_path, "optim.lr=1e-3", "seed=4")
    with pytest.raises(RunExists, match=r"was made with other settings \(optim.lr: 1e-06 -> 0.001, seed: 0 -> 4\)"):
        launch.ensure(other)
    job.stop()
    assert job.wait(20).state == "stopped"
    with pytest.raises(RunExists, match="was made with other settings"):
        launch.ensure(other)
    fake("finish")
    assert launch.ensure(config).wait(20).state == "finished" and job.record["pid"] != pid  # stopped: resumed
    pid, log = job.record["pid"], (job.folder / "launch.log").read_text()
    assert launch.ensure(config).record["pid"] == pid and (job.folder / "launch.log").read_text() == log  # loaded
    with pytest.raises(RunExists, match="was made with other settings"):
        launch.ensure(other)
    with pytest.raises(RunExists, match="exists already"):
        launch.start(config)


def test_a_bad_setting_is_an_error_at_once(tmp_path, fake):
    fake("finish")
    with pytest.raises(ConfigError, match=r"model\.dtype='bfloat16' with model\.lora_rank=0"):
        launch.start(make_config(tmp_path, "model.dtype=bfloat16"))
    with pytest.raises(ConfigError, match=r"launch\.accelerate='missing\.yaml'"):
        launch.start(make_config(tmp_path, "launch.accelerate=missing.yaml"))
    assert list(tmp_path.iterdir()) == []


def test_relative_paths_start_where_the_job_did(tmp_path, fake, monkeypatch):
    fake("endless")
    (tmp_path / "home").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    job = launch.start(make_config(Path("runs")))
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert job.stop().alive or job.status().state == "stopped"
    assert job.wait(20).state == "stopped"
    fake("finish")
    assert job.resume().wait(20).state == "finished"
    assert job.folder == tmp_path / "home" / "runs" / "run" and not list((tmp_path / "elsewhere").iterdir())
    assert job.config.runs_dir == "runs" and job.record["home"] == str(tmp_path / "home")
    assert launch.find(tmp_path / "home" / "runs") == [job]


def test_no_secret_is_written(config, fake, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "s3cret-k3y")
    fake("finish")
    launch.start(config).wait(20)
    files = [path for path in config.folder.rglob("*") if path.is_file()]
    assert len(files) >= 6 and not [path for path in files if b"s3cret-k3y" in path.read_bytes()]


def test_a_kernel_needs_no_torch():
    code = "import sys, rethinker.launch, rethinker.lab.live, rethinker.watch; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


# -- a real run -------------------------------------------------------------------------------------------------------

KERNEL = """
import sys
from rethinker import launch
from rethinker.config import load_config
print(launch.ensure(load_config(sys.argv[1])))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_outlives_who_started_it(tmp_path, world, guesser):
    """Two processes, started by a Python that ends; found, stopped, resumed and finished by another."""
    config = make_config(
        tmp_path / "runs",
        f"model.path={guesser}",
        f"data.train={world / 'train.parquet'}",
        "launch.processes=2",
        "queries_per_episode=4",
        "rollout.engine=transformers",
        "rollout.group_size=4",
        "rollout.max_new_tokens=32",
        "optim.train_batch_size=16",
        "evaluation.every=0",
        "stages=[{name: a, episodes: 8}]",
    )
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    first = subprocess.run([sys.executable, "-c", KERNEL, file], capture_output=True, text=True, check=True)
    assert "<Job run: starting, episode 0/8>" in first.stdout
    job = launch.find(config.folder)
    assert isinstance(job, Job) and job.status().state == "starting"
    wait_for_seconds(lambda: job.status().episode >= 1 or not job.alive, 200)
    assert job.status().state == "running", job.status()
    with pytest.raises(launch.RunBusy):
        launch.train(config, resume=True)
    job.stop()
    status = job.wait(120)
    assert status.state == "stopped" and 1 <= status.episode < 8 and status.exit_code == 0, status
    assert "stopped and saved" in job.tail(1)[0] and (job.folder / "checkpoints" / "last").exists()
    status = launch.ensure(config).wait(200)
    assert status.state == "finished" and status.episode == 8, job.tail(30)
    assert (job.folder / "report.html").exists() and json.loads((job.folder / "provenance.json").read_text())[
        "processes"
    ] == 2
    lines = [json.loads(line) for line in (job.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["episode"] for line in lines if line["record"] == "episode"] == list(range(1, 9))


def wait_for_seconds(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"did not come within {seconds} seconds"
        time.sleep(0.2)
