"""Jobs in the background: the states of one, its lock, races, process ids of others, crashes; and a real run."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from rethinker import cli, run
from rethinker.config import RunConfig, load_config, to_yaml
from rethinker.config.schema import ConfigError
from rethinker.lab import jobs
from rethinker.lab.jobs import Job, foreground, processes
from rethinker.lab.jobs.ownership import write_record
from rethinker.rundir import locks
from rethinker.rundir.folder import RunExists, RunMoved, check_folder, check_writer, exclusive_writer, run_state
from rethinker.rundir.paths import RunDir
from rethinker.rundir.phases import Phases

TINY = Path(__file__).parents[1] / "experiments" / "tiny.yaml"

FAKE = [sys.executable, "-S", str(Path(__file__).with_name("fake_train.py"))]


@pytest.fixture
def fake(monkeypatch):
    """``fake("endless")``: jobs are stand-ins that do this (see fake_train.py)."""

    def command(config: RunConfig, *, resume: bool) -> list[str]:
        return [*FAKE, str(RunDir(config.folder).job_config), *(["again"] if resume else [])]

    monkeypatch.setattr(jobs.job, "train_command", command)
    return lambda what: monkeypatch.setenv("FAKE", what)


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
    for file in tmp_path.rglob("job/config.yaml"):
        processes.kill(file.parents[1])


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
            lock = locks.take(path, patience=60)  # more than those who ask can take
            assert lock is not None
            os.close(lock)
        for future in asking:
            future.result()


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, capsys):
    def flock(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    expected = (
        r"lock cannot be locked \(Function not implemented\): .* keep the runs on a local disk \(runs_dir=\.\.\.\)"
    )
    for ask in (locks.take, locks.is_held):
        with pytest.raises(locks.NoLocks, match=expected):
            ask(tmp_path / "lock")
    assert cli.main(["launch", str(TINY), f"runs_dir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"rethinker launch: {tmp_path}") and error.count("\n") == 1


def test_a_writer_knows_whether_the_folder_is_still_its_own(tmp_path):
    """Moved, or removed and made anew by another run of its name."""
    folder = tmp_path / "run"
    with exclusive_writer(folder) as lock:
        check_writer(folder, lock)
        folder.rename(tmp_path / "elsewhere")
        with pytest.raises(RunMoved, match="run was removed or moved"):
            check_writer(folder, lock)
        with exclusive_writer(folder) as other:
            check_writer(folder, other)
            with pytest.raises(RunMoved):
                check_writer(folder, lock)
    check_writer(folder, None)  # not the main process


@pytest.mark.parametrize(("moved", "raised"), [(True, RunMoved), (False, FileNotFoundError)])
def test_a_file_that_is_not_found_is_told_from_a_folder_that_was_moved(tmp_path, config, monkeypatch, moved, raised):
    """In the middle of an episode, where nothing has looked whether the folder is still there."""
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))

    class Writing:
        phases = Phases(tmp_path, 0, 1)

        def __init__(self, config, **_):
            self.folder = config.folder

        def run(self):
            if moved:
                self.folder.rename(tmp_path / "moved")
            raise FileNotFoundError("metrics.jsonl")

    monkeypatch.setattr(run, "TrainingRun", Writing)
    monkeypatch.setattr(sys, "argv", ["run", str(file)])
    monkeypatch.setattr(run.signal, "signal", lambda *_: None)
    with pytest.raises(raised):
        run.main(lambda _: None)


# -- states -----------------------------------------------------------------------------------------------------------


def test_a_job_that_finishes(config, fake, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as a notebook's kernel does
    fake("episodes")
    job = jobs.start(config)
    status = job.wait(20)
    assert status == jobs.JobStatus("finished", 4, 4, "a", 6.0, 0)
    assert str(status) == "finished, episode 4/4, a" and repr(job) == "<Job run: finished, episode 4/4, a>"
    assert job.tail(5) == ["started"]
    assert job.config == config and job == Job(config.folder) and job.name == "run"
    assert job.resume().status() == status == job.stop() == job.kill()  # nothing is left to do
    assert not RunDir(config.folder).stop_request.exists()


def test_stop_and_resume(config, fake):
    fake("endless")
    job = jobs.start(config)
    wait_for(lambda: job.status().episode >= 2)
    assert job.status().state == "running" and job.status().exit_code is None
    assert job.stop().state in ("stopping", "stopped")
    status = job.wait(20)
    assert status.state == "stopped" and status.episode >= 2 and status.exit_code == 0 and not status.error
    fake("episodes")
    again = job.resume()
    assert again == job and again.wait(20).state == "finished"
    assert job.tail() == ["started again"]
    assert (config.folder / "launch.log").read_text() == "started\nstarted again\n"


def test_stop_from_a_machine_that_sees_no_lock(config, fake, capsys):
    """A run that was started elsewhere and has not said how it ended is asked; one that has is left alone."""
    fake("endless")
    job = jobs.start(config)
    wait_for(lambda: job.status().episode >= 1)
    assert job.elsewhere is None
    job.kill()
    assert job.elsewhere is None
    job.files.job_record.write_text(json.dumps(job.record | {"host": "node-7"}))
    assert job.elsewhere == "node-7"
    assert cli.main(["stop", str(job.folder), "--kill"]) == 1 and not job.files.stop_request.exists()
    assert cli.main(["stop", str(job.folder)]) == 0 and job.files.stop_request.exists()
    assert "run was started on node-7, whose locks are not seen here" in capsys.readouterr().out
    job.files.job_exit_code.write_text("0\n")
    assert job.elsewhere is None


def test_stop_before_it_trains_is_not_lost(config, fake):
    fake("endless")
    job = jobs.start(config)
    job.stop()
    assert job.wait(20).state == "stopped"


def test_stop_of_an_earlier_life_is_forgotten(config, fake):
    fake("episodes")
    config.folder.mkdir()
    RunDir(config.folder).stop_request.touch()
    assert jobs.start(config).wait(20).state == "finished"


def test_starting_and_waiting(config, fake):
    fake("starting")
    job = jobs.start(config)
    assert job.status() == jobs.JobStatus("starting", 0, 4, "", 0.0, None)
    started = time.monotonic()
    assert job.wait(0.2).state == "starting" and time.monotonic() - started >= 0.2
    assert job.kill().state == "failed"


@pytest.mark.parametrize(
    ("what", "code", "words"),
    [
        ("crash", 3, ("Traceback (most recent call last):", "  File x", "RuntimeError: <boom>")),
        ("crash at once", None, ("started", "ValueError: no such model")),
    ],
)
def test_a_crash_is_a_failure_with_its_last_words(config, fake, what, code, words):
    fake(what)
    status = jobs.start(config).wait(20)
    assert (status.state, status.exit_code, status.error) == ("failed", code, words)
    fake("episodes")
    assert jobs.ensure(config).wait(20).state == "finished"  # the cause has been fixed: the same call resumes


def test_a_stopped_job_tells_why_its_processes_failed_afterwards(config, fake):
    fake("endless")
    job = jobs.start(config)
    wait_for(lambda: job.status().episode >= 1)
    job.stop()
    assert job.wait(20).error == ()
    job.files.job_exit_code.write_text("75\n")  # SIGTERM: it saved, and asks to be started again
    assert job.status().error == ()
    job.files.job_exit_code.write_text("1\n")
    job.files.errors.write_text("== 2026-01-01T00:00:00 rank 1: RuntimeError: connection reset\n")
    status = job.status()
    assert (status.state, status.exit_code) == ("stopped", 1)
    assert status.error[0] == "rank 1: RuntimeError: connection reset", status


def test_a_killed_job_is_a_failure_and_frees_the_folder(config, fake):
    fake("endless")
    job = jobs.start(config)
    wait_for(lambda: job.status().episode >= 1)
    os.kill(job.record["pid"], signal.SIGKILL)
    status = job.wait(20)
    assert status.state == "failed" and run_state(job.folder) == "running"
    fake("episodes")
    assert job.resume().wait(20).state == "finished"


def test_episodes_are_those_that_have_ended(config, fake):
    fake("episodes")
    job = jobs.start(config)
    job.wait(20)
    with (job.folder / "metrics.jsonl").open("a") as file:
        file.write('{"record": "step", "stage": "a", "episode": 5, "step": 9, "seconds": 7}\n{"record": "ep')
    assert (job.status().episode, job.status().seconds) == (4, 7)


# -- what it prints ---------------------------------------------------------------------------------------------------


def test_follow(config, fake):
    """Lines as they come, whole ones; those of earlier starts are left out."""
    fake("episodes")
    job = jobs.start(config)
    assert list(job.follow(5)) == ["started"]
    assert list(job.follow()) == [] == list(job.follow(0)) and list(job.follow(1)) == ["started"]
    lock, log = locks.take(job.files.job_lock), job.files.log
    assert lock is not None
    with log.open("a") as file:
        lines = job.follow(1)
        assert next(lines) == "started"
        file.write("one\n\ntw")
        file.flush()
        assert [next(lines), next(lines)] == ["one", ""]
        file.write("o\nthree")
        file.flush()
        assert next(lines) == "two"
        os.close(lock)
        assert list(lines) == ["three"]
    job.files.job_record.unlink()
    assert list(job.follow(5)) == [] == job.tail()


# -- the command line -------------------------------------------------------------------------------------------------


def test_commands(config, fake, tmp_path, capsys):
    """launch, jobs, tail, stop: exit codes and what they say."""
    file = tmp_path / "some.yaml"
    file.write_text(to_yaml(config))

    def run(*arguments: str) -> tuple[int, str]:
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    fake("endless")
    code, out = run("launch", file)
    folder, job = config.folder, Job(config.folder)
    assert code == 0 and f"run is started in the background (process {job.record['pid']})" in out
    assert f"rethinker.cli watch {folder}\n" in out and f"tail -f {folder}\n" in out and f"stop {folder}\n" in out
    wait_for(lambda: job.status().episode >= 1)
    assert run("launch", file, "--resume")[0] == 2
    code, out = run("jobs", tmp_path)
    assert code == 0 and out.startswith("run  running, episode ") and out.count("\n") == 1
    assert run("tail", folder) == (0, "started\n") and run("tail", folder, "-n", "0") == (0, "")
    code, out = run("stop", folder)
    assert code == 0 and out.startswith("run saves and ends after its episode")
    assert job.wait(20).state == "stopped" and run("tail", "-f", folder) == (0, "started\n")
    code, out = run("stop", folder)
    assert code == 0 and out.startswith("run does not run: stopped, episode ")
    code, out = run("launch", file)
    assert code == 2 and out.startswith(f"rethinker launch: {folder} exists already: resume it (--resume)")
    assert run("launch", file, "--resume")[0] == 0
    wait_for(lambda: job.status().state == "running")
    assert run("stop", folder, "--kill")[1].startswith("run: failed")
    assert run("tail", "-f", folder) == (1, "started again\n")
    fake("episodes")
    assert run("launch", file, "--resume")[0] == 0 and job.wait(20).state == "finished"
    assert run("launch", file) == (0, f"{folder} is finished; its report: {folder / 'report.html'}\n")
    assert run("jobs", folder) == (0, "run  " + str(job.status()) + "\n")
    assert run("tail", tmp_path)[0] == 2 and run("jobs", tmp_path / "nowhere")[0] == 2
    job.files.job_record.unlink()
    assert run("tail", folder)[0] == 2


def test_launch_says_that_checkpoints_may_not_find_room(config, fake, tmp_path, capsys, monkeypatch):
    """Free is what a run needs at least; the tiny VLM's checkpoints need more."""
    file = tmp_path / "some.yaml"
    file.write_text(to_yaml(config))
    fake("episodes")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=200 * 2**20))
        assert cli.main(["launch", str(file)]) == 0
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 1 and warnings[0].startswith(f"warning: 200 MiB free on the disk of {tmp_path}; the ")
    assert Job(config.folder).wait(20).state == "finished"


# -- interrupts -------------------------------------------------------------------------------------------------------


@pytest.fixture
def foreground_fake(config, monkeypatch):
    """``foreground_fake(what, meanwhile)``: train, where the processes are the stand-in, while ``meanwhile`` runs."""

    def train(what: str, meanwhile, config: RunConfig = config) -> int:
        monkeypatch.setenv("FAKE", what)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job does not hear it
        monkeypatch.setattr(foreground, "launch_command", lambda _, file, machine, *, resume: [*FAKE, str(file)])
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(meanwhile)
            code = foreground.train(config, resume=True)
            future.result()
        return code

    return train


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def when_it_trains(config: RunConfig) -> None:
    wait_for(lambda: run_state(config.folder) == "running")


def when_it_listens() -> None:
    wait_for(lambda: signal.getsignal(signal.SIGTERM) != signal.SIG_DFL)


def test_an_interrupt_saves_and_stops(config, foreground_fake, capsys):
    def meanwhile():
        when_it_trains(config)
        interrupt()

    assert foreground_fake("endless", meanwhile) == 0
    assert Job(config.folder).status().state == "stopped"
    assert "stopping after this episode, with a checkpoint" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_an_interrupt_while_starting_ends_it(config, foreground_fake, capsys):
    def meanwhile():
        when_it_listens()
        interrupt()

    assert foreground_fake("starting", meanwhile) == foreground.INTERRUPTED
    assert not Job(config.folder).alive and Job(config.folder).status().exit_code == foreground.INTERRUPTED
    assert "stopped before training began" in capsys.readouterr().err


@pytest.mark.parametrize("first", [interrupt, terminate])
def test_an_interrupt_after_another_signal_kills(config, foreground_fake, capsys, first):
    def meanwhile():
        when_it_trains(config)
        first()
        wait_for(RunDir(config.folder).stop_request.exists)
        interrupt()

    code = foreground_fake("deaf", meanwhile)
    assert code == (foreground.INTERRUPTED if first is interrupt else foreground.REQUEUE)
    assert not Job(config.folder).alive and "killed; the last checkpoint is unchanged" in capsys.readouterr().err


# -- SIGTERM ----------------------------------------------------------------------------------------------------------


def test_sigterm_saves_stops_and_asks_for_another_start(config, foreground_fake, capsys):
    """The episode ends in time; further signals change nothing."""

    def meanwhile():
        when_it_trains(config)
        terminate()
        terminate()

    assert foreground_fake("endless", meanwhile) == foreground.REQUEUE
    status = Job(config.folder).status()
    assert (status.state, status.exit_code) == ("stopped", foreground.REQUEUE)
    assert "abandoned if it does not end in 25 seconds" in capsys.readouterr().err


def test_sigterm_while_starting(config, foreground_fake, capsys):
    def meanwhile():
        when_it_listens()
        terminate()

    assert foreground_fake("starting", meanwhile) == foreground.REQUEUE
    assert not Job(config.folder).alive and "stopped before training began" in capsys.readouterr().err


def test_an_episode_that_outlasts_the_grace_is_abandoned(config, foreground_fake, capsys):
    """Whether the run counts as stopped depends on a checkpoint: without one it may get other settings."""
    config = replace(config, launch=replace(config.launch, grace_seconds=0.3))
    files = RunDir(config.folder)

    def meanwhile():
        when_it_trains(config)
        files.status.write_text(json.dumps({"state": "running", "progress": {"episode": 2}}))
        terminate()

    assert foreground_fake("deaf", meanwhile, config) == foreground.REQUEUE
    status = Job(config.folder).status()
    assert (status.state, status.exit_code) == ("stopped", foreground.REQUEUE) and not Job(config.folder).alive
    assert "the episode is abandoned; the last checkpoint is unchanged" in capsys.readouterr().err
    files.status.write_text(json.dumps({"state": "starting"}))
    assert foreground_fake("deaf", lambda: (when_it_trains(config), terminate()), config) == foreground.REQUEUE
    assert Job(config.folder).status().state == "failed"


def test_sigterm_after_the_end_changes_nothing(config, foreground_fake):
    def meanwhile():
        wait_for(lambda: run_state(config.folder) == "finished")
        terminate()

    assert foreground_fake("finish slowly", meanwhile) == 0


def test_a_run_in_the_foreground_is_killed_from_elsewhere(config, foreground_fake):
    def meanwhile():
        when_it_trains(config)
        code = "import sys; from rethinker.lab.jobs import Job; Job(sys.argv[1]).kill()"
        subprocess.run([sys.executable, "-c", code, config.folder], check=True)

    assert foreground_fake("deaf", meanwhile) == -signal.SIGKILL
    status = Job(config.folder).status()
    assert status.state == "failed" and status.error == ("exit code -9",)  # what it printed went where it was started
    assert cli.main(["tail", str(config.folder)]) == 2


def test_a_folder_that_was_moved_gets_no_more_files(config, foreground_fake, tmp_path):
    def meanwhile():
        when_it_trains(config)
        config.folder.rename(tmp_path / "moved")
        config.folder.mkdir()
        (config.folder / "status.json").write_text('{"state": "running"}')
        interrupt()
        wait_for(RunDir(config.folder).stop_request.exists)
        interrupt()

    assert foreground_fake("deaf", meanwhile) == foreground.INTERRUPTED
    assert set(os.listdir(config.folder)) == {"STOP", "status.json"} and not Job(tmp_path / "moved").alive


# -- one writer -------------------------------------------------------------------------------------------------------


def test_two_jobs_never_write_one_folder(config, fake, capsys, tmp_path):
    fake("endless")
    job = jobs.start(config)
    wait_for(lambda: job.status().state == "running")
    pid = job.record["pid"]
    for start in (jobs.start, jobs.train):
        with pytest.raises(jobs.RunBusy, match=rf"run is being written by another job \(process {pid} on "):
            start(config, resume=True)
    with pytest.raises(jobs.RunBusy):
        job.resume()
    file = tmp_path / "config.yaml"
    file.write_text((job.folder / "config.yaml").read_text())
    assert cli.main(["train", str(file), "--resume"]) == 2
    error = capsys.readouterr().err
    assert (
        error.startswith("rethinker train: ") and f"another job (process {pid} on" in error and error.count("\n") == 1
    )
    assert job.alive and job.record["pid"] == pid
    job.stop()
    assert job.wait(20).state == "stopped"


def test_of_many_who_start_at_once_one_wins(config, fake):
    """Threads stand for kernels: a lock belongs to an open file, not to a process."""
    fake("endless")

    def start(_: int) -> bool:
        try:
            jobs.start(config)
        except jobs.RunBusy:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(start, range(8))) == [False] * 7 + [True]


def test_of_many_who_ensure_at_once_all_get_the_one(config, fake):
    fake("endless")
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: jobs.ensure(config), range(8)))
    wait_for(lambda: Job(config.folder).status().state == "running")
    assert (config.folder / "launch.log").read_text() == "started\n" and len(found) == 1


def test_a_writer_without_its_launcher_still_has_the_folder(config, fake):
    """Both who waited and accelerate's launcher were killed with SIGKILL; a worker goes on."""
    fake("episodes")
    jobs.start(config).wait(20)
    (config.folder / "status.json").write_text('{"state": "running"}')
    lock = locks.take(RunDir(config.folder).writer_lock)
    assert lock is not None
    with subprocess.Popen(["sleep", "60"], pass_fds=(lock,)) as orphan:
        os.write(lock, f"{orphan.pid}\n".encode())
        os.close(lock)
        job = Job(config.folder)
        assert job.status().state == "running"
        with pytest.raises(jobs.RunBusy, match="is being written by another job"):
            jobs.start(config, resume=True)
        assert not locks.is_held(RunDir(config.folder).job_lock)
        assert job.kill().state == "failed" and orphan.wait() == -signal.SIGKILL
    assert jobs.start(config, resume=True).wait(20).state == "finished"


def test_another_process_of_the_same_number_is_not_signalled(config, fake):
    fake("endless")
    job = jobs.start(config)
    real = job.record
    with subprocess.Popen(["sleep", "60"]) as bystander:
        job.files.job_record.write_text(json.dumps(real | {"pid": bystander.pid}))
        assert not job.kill().alive and bystander.poll() is None
        bystander.kill()


def test_what_cannot_be_killed_is_said(config, fake, monkeypatch):
    fake("endless")
    job = jobs.start(config)
    real = job.record
    with monkeypatch.context() as patch:
        patch.setattr(processes, "PATIENCE", 0.2)
        for change, words in (
            ({"mark": "another start's"}, "could not be killed: end the processes"),
            ({"host": "elsewhere"}, "runs on elsewhere: kill it there"),
        ):
            job.files.job_record.write_text(json.dumps(real | change))
            with pytest.raises(RuntimeError, match=words):
                job.kill()
    assert job.alive
    job.files.job_record.write_text(json.dumps(real))


def test_kill_ends_what_is_left_of_a_run(config):
    """A process whose launcher was killed, that nobody waits for and that hears nothing; and its child in a session of
    its own."""
    lock = locks.take(RunDir(config.folder).job_lock)
    assert lock is not None
    code = (
        "import signal, subprocess\n"
        "for number in (signal.SIGTERM, signal.SIGHUP): signal.signal(number, signal.SIG_IGN)\n"
        "subprocess.Popen(['sleep', '60'], start_new_session=True).wait()"
    )
    write_record(RunDir(config.folder), "mark")
    environment = os.environ | {processes.MARK: "mark"}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, pass_fds=(lock,)) as process:
        os.close(lock)
        wait_for(psutil.Process(process.pid).children)
        (child,) = psutil.Process(process.pid).children()
        processes.kill(config.folder)
        assert process.wait() == -signal.SIGKILL
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


# -- finding and ensuring ---------------------------------------------------------------------------------------------


def test_find(tmp_path, fake):
    fake("episodes")
    runs = tmp_path / "runs"
    first, second = (jobs.start(make_config(runs, f"name={name}")) for name in ("b", "a"))
    (runs / "notes").mkdir()
    assert jobs.find(runs) == [second, first] and jobs.find(runs / "a") == second
    for job in (first, second):
        job.wait(20)
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        jobs.find(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="notes is not the folder of a run"):
        Job(runs / "notes")


def test_a_run_that_was_started_otherwise(config):
    """By an older version, or `python -m rethinker.lab.jobs rank`."""
    config.folder.mkdir()
    (config.folder / "config.yaml").write_text("name: run\n")
    (config.folder / "status.json").write_text('{"state": "stopped"}')
    job = Job(config.folder)
    assert job.status() == jobs.JobStatus("stopped", 0, 1, "", 0.0, None)
    with (job.folder / "config.yaml").open("a") as file:  # and with a key that this version does not know
        file.write("old: 1\nstages: [{name: a, episodes: 2}, {name: b, episodes: 3}, {name: c}]\n")
    assert job.status().episodes == 6
    assert job.record == {} and job.tail() == []


def test_ensure(config, fake, tmp_path):
    fake("endless")
    job = jobs.ensure(config)
    pid = job.record["pid"]
    assert jobs.ensure(config).record["pid"] == pid  # running: returned
    other = make_config(tmp_path, "optim.lr=1e-3", "seed=4")
    with pytest.raises(RunExists, match=r"was made with other settings \(optim.lr: 1e-06 -> 0.001, seed: 0 -> 4\)"):
        jobs.ensure(other)
    job.stop()
    assert job.wait(20).state == "stopped"
    with pytest.raises(RunExists, match="was made with other settings"):
        jobs.ensure(other)
    fake("episodes")
    assert jobs.ensure(config).wait(20).state == "finished" and job.record["pid"] != pid  # stopped: resumed
    pid, log = job.record["pid"], (job.folder / "launch.log").read_text()
    assert jobs.ensure(config).record["pid"] == pid and (job.folder / "launch.log").read_text() == log  # loaded
    with pytest.raises(RunExists, match="was made with other settings"):
        jobs.ensure(other)
    with pytest.raises(RunExists, match="exists already"):
        jobs.start(config)


STAGES = "stages=[{name: a, episodes: 2}, {name: b, episodes: 4, overrides: {optim: {lr: 1e-5}}}]"


def begin(config: RunConfig, state: str = "running") -> None:
    """The files of a run that has trained an episode, as far as a resume looks at them."""
    (config.folder / "rollouts").mkdir(parents=True)
    (config.folder / "rollouts" / "episode-00001.parquet").touch()
    (config.folder / "config.yaml").write_text(to_yaml(config))
    (config.folder / "status.json").write_text(json.dumps({"state": state}))


@pytest.mark.parametrize(
    "changes",
    [
        ["optim.micro_batch_tokens=512", "model.gradient_checkpointing=true"],
        ["rollout.batch_size=8", "rollout.gpu_memory_utilization=0.3", "rollout.tensor_parallel_size=2"],
        ["launch.processes=4", "tracking.save_every=1"],
        ["stages.1.overrides={optim: {lr: 1e-5, micro_batch_tokens: 99}, tracking: {save_every: 2}}"],
        ["stages.1.episodes=9"],
    ],
)
def test_what_may_change_when_a_run_goes_on(tmp_path, changes):
    """What fits into memory, where it runs, who watches; and its last stage may get more episodes."""
    begin(make_config(tmp_path, STAGES))
    assert check_folder(make_config(tmp_path, STAGES, *changes), resume=True) is None


@pytest.mark.parametrize(
    ("state", "change", "words"),
    [
        ("running", "rollout.temperature=0.5", r"rollout\.temperature: 1\.0 -> 0\.5"),
        ("running", "model.autocast=true", r"model\.autocast: False -> True"),
        ("running", "stages.1.episodes=3", "stages: "),
        ("running", "stages.0.episodes=3", "stages: "),
        ("running", "stages.1.overrides.optim.lr=1e-4", "stages: "),
        ("finished", "stages.1.episodes=9", "stages: "),
    ],
)
def test_what_may_not_change_when_a_run_goes_on(tmp_path, state, change, words):
    begin(make_config(tmp_path, STAGES), state)
    with pytest.raises(RunExists, match=rf"was made with other settings \({words}"):
        check_folder(make_config(tmp_path, STAGES, change), resume=True)


def test_a_run_of_which_nothing_was_trained_may_get_any_settings(tmp_path):
    """As one that ran out of memory in its first episode. One that another process starts or writes is locked."""
    config, other = make_config(tmp_path), make_config(tmp_path, "rollout.group_size=4")
    begin(config)
    with pytest.raises(RunExists):
        check_folder(other, resume=True)
    (config.folder / "rollouts" / "episode-00001.parquet").unlink()
    assert check_folder(other, resume=True) is None
    with pytest.raises(RunExists, match="exists already"):
        check_folder(other, resume=False)
    (config.folder / "checkpoints" / "last").mkdir(parents=True)
    with pytest.raises(RunExists):
        check_folder(other, resume=True)


def test_a_bad_setting_is_an_error_at_once(tmp_path, fake):
    fake("episodes")
    with pytest.raises(ConfigError, match=r"model\.dtype='bfloat16' with model\.lora_rank=0"):
        jobs.start(make_config(tmp_path, "model.dtype=bfloat16"))
    with pytest.raises(ConfigError, match=r"launch\.accelerate='missing\.yaml'"):
        jobs.start(make_config(tmp_path, "launch.accelerate=missing.yaml"))
    assert list(tmp_path.iterdir()) == []


def test_relative_paths_start_where_the_job_did(tmp_path, fake, monkeypatch):
    fake("endless")
    (tmp_path / "home").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    job = jobs.start(make_config(Path("runs")))
    monkeypatch.chdir(tmp_path / "elsewhere")
    job.stop()
    assert job.wait(20).state == "stopped"
    fake("episodes")
    assert job.resume().wait(20).state == "finished"
    assert job.folder == tmp_path / "home" / "runs" / "run" and not list((tmp_path / "elsewhere").iterdir())
    assert job.config.runs_dir == "runs" and job.record["home"] == str(tmp_path / "home")
    assert jobs.find(tmp_path / "home" / "runs") == [job]


def test_no_secret_is_written(config, fake, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "s3cret-k3y")
    fake("episodes")
    jobs.start(config).wait(20)
    files = [path for path in config.folder.rglob("*") if path.is_file()]
    assert len(files) >= 6 and not [path for path in files if b"s3cret-k3y" in path.read_bytes()]


def test_a_kernel_needs_no_torch():
    code = (
        "import sys, rethinker.lab.jobs, rethinker.lab.notebook.live, rethinker.lab.watch.terminal\n"
        "print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


# -- real runs --------------------------------------------------------------------------------------------------------

KERNEL = """
import sys
from rethinker.lab import jobs
from rethinker.config import load_config
print(jobs.ensure(load_config(sys.argv[1])))
"""


@pytest.fixture
def real(tmp_path, world, guesser):
    """``real(episodes)``: the config of a run of two processes, some 0.1 s an episode."""

    def make(episodes: int) -> RunConfig:
        return make_config(
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
            f"stages=[{{name: a, episodes: {episodes}}}]",
        )

    return make


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_outlives_who_started_it(tmp_path, real):
    """Two processes, started by a Python that ends; found, stopped and resumed by another. Then its folder is moved
    away, and it ends before anybody could start another run of this name. It has no end of its own that it could reach
    while we look."""
    config = real(1_000_000)
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    first = subprocess.run([sys.executable, "-c", KERNEL, file], capture_output=True, text=True, check=True)
    assert first.stdout.startswith("<Job run: ")
    job = jobs.find(config.folder)
    assert isinstance(job, Job)
    wait_for_seconds(lambda: job.status().episode >= 1 or not job.alive, 200)
    assert job.status().state == "running", job.status()
    with pytest.raises(jobs.RunBusy):
        jobs.train(config, resume=True)
    job.stop()
    stopped = job.wait(120)
    assert stopped.state == "stopped" and stopped.episode >= 1 and stopped.exit_code == 0, stopped
    assert "stopped and saved" in job.tail(1)[0] and (job.folder / "checkpoints" / "last").exists()
    again = jobs.ensure(config)
    wait_for_seconds(lambda: again.status().episode > stopped.episode or not again.alive, 200)
    assert again.status().state == "running", again.status()
    moved = Job(again.folder.rename(tmp_path / "moved"))
    status = moved.wait(120)
    assert status.state == "failed", status
    assert any("was removed or moved while this run wrote it" in words for words in status.error), status
    assert not (config.folder / "config.yaml").exists()


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_is_resumed_to_its_end(real, monkeypatch):
    """Asked to stop before it has begun, it ends after its first episode, whoever is faster."""
    config, command = real(3), jobs.job.train_command

    def asked_to_stop(config, *, resume):
        RunDir(config.folder).stop_request.touch()
        return command(config, resume=resume)

    with monkeypatch.context() as patch:
        patch.setattr(jobs.job, "train_command", asked_to_stop)
        status = jobs.start(config).wait(200)
    assert (status.state, status.episode, status.exit_code) == ("stopped", 1, 0), status
    job = jobs.ensure(config)
    status = job.wait(200)
    assert (status.state, status.episode) == ("finished", 3), job.tail(30)
    assert (job.folder / "report.html").exists()
    assert json.loads((job.folder / "provenance.json").read_text())["processes"] == 2
    lines = [json.loads(line) for line in (job.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["episode"] for line in lines if line["record"] == "episode"] == [1, 2, 3]


def wait_for_seconds(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"did not come within {seconds} seconds"
        time.sleep(0.2)
