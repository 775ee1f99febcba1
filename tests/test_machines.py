"""Runs of several machines: which one this is, what it starts, the shared folder; two machines give what one gives."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen
from types import SimpleNamespace

import psutil
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

from rethinker import processes
from rethinker.config import RunConfig, load_config, to_yaml
from rethinker.config.schema import ConfigError
from rethinker.lab import jobs
from rethinker.lab.jobs import Job
from rethinker.lab.jobs.accelerate import Machine, launch_command, this_machine
from rethinker.lab.jobs.foreground import REQUEUE
from rethinker.rundir import provenance
from rethinker.rundir.folder import run_state
from rethinker.rundir.paths import RunDir
from rethinker.rundir.provenance import check_same_data
from rethinker.types import Query

VARIABLES = ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "MASTER_ADDR", "MASTER_PORT")
FILE = "num_machines: 2\nnum_processes: 16\nmachine_rank: 1\nmain_process_ip: node-0\nmain_process_port: 1234\n"


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


# -- which machine this is --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "environment", "expected"),
    [
        ((), {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "MASTER_ADDR": "a"}, Machine()),
        (("machines=2", "machine_rank=1", "address=b", "port=7"), {}, Machine(2, 1, "b", 7)),
        (("machines=2",), dict(zip(VARIABLES, ("2", "1", "a", "5"), strict=True)), Machine(2, 1, "a", 5)),
        (("machines=2",), {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "MASTER_ADDR": "a"}, Machine(2, 0, "a")),
        (
            ("machines=2", "machine_rank=0", "address=b"),
            {"MASTER_ADDR": "a", "MASTER_PORT": "5"},
            Machine(2, 0, "b", 5),
        ),
        (("accelerate=FILE",), {}, Machine(2, 1, "node-0", 1234)),
        (("accelerate=FILE",), dict(zip(VARIABLES, ("2", "0", "a", "5"), strict=True)), Machine(2, 0, "a", 5)),
    ],
)
def test_which_machine_this_is(tmp_path, monkeypatch, settings, environment, expected):
    file = tmp_path / "accelerate.yaml"
    file.write_text(FILE)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = load_config(None, [f"launch.{item}".replace("FILE", str(file)) for item in settings])
    assert this_machine(config) == expected


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["launch.machines=2", "launch.address=a"], "set launch.machine_rank from 0 to 1"),
        (["launch.machines=2", "launch.address=a", "launch.machine_rank=2"], "set launch.machine_rank from 0 to 1"),
        (["launch.machines=2", "launch.machine_rank=0"], "set launch.address, or MASTER_ADDR"),
    ],
)
def test_what_is_not_known_of_a_machine_is_said(settings, words, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "16")  # one task a GPU: its rank is not the machine's
    monkeypatch.setenv("SLURM_PROCID", "0")
    with pytest.raises(ConfigError, match=words):
        this_machine(load_config(None, settings))


def test_the_file_for_two_machines():
    """accelerate reads it, and the command names what it leaves open."""
    file = str(Path(__file__).parents[1] / "experiments" / "accelerate" / "nodes-2.yaml")
    found = load_config_from_file(file)
    assert (found.num_machines, found.num_processes) == (2, 16)
    config = load_config(None, [f"launch.accelerate={file}", "launch.machine_rank=1", "launch.address=a"])
    assert this_machine(config) == Machine(2, 1, "a")
    command = " ".join(launch_command(config, Path("c.yaml"), this_machine(config), resume=False))
    assert f"--config_file {file} --machine_rank 1 --main_process_ip a --main_process_port 29500 " in command


def test_a_job_in_the_background_is_of_one_machine(tmp_path):
    with pytest.raises(ConfigError, match="2 machines: call `rethinker train` on each of them"):
        jobs.start(load_config(None, [f"runs_dir={tmp_path}", "launch.machines=2"]))
    assert not list(tmp_path.iterdir())


def test_the_command_on_a_machine():
    config = load_config(None, ["launch.machines=2", "launch.processes=4"])
    command = " ".join(launch_command(config, Path("c.yaml"), Machine(2, 1, "node-0", 7), resume=True))
    assert "--num_machines 2 --num_processes 8 " in command and command.endswith("rank c.yaml --resume")
    assert "--multi_gpu --machine_rank 1 --main_process_ip node-0 --main_process_port 7 " in command
    assert "--machine_rank" not in launch_command(config, Path("c.yaml"), Machine(), resume=False)


# -- the processes ----------------------------------------------------------------------------------------------------


def test_objects_go_over_gloo(monkeypatch):
    """On GPUs beside NCCL; a group of several backends sends objects by the CPU's, as torch documents."""
    assert "backend" not in processes.process_group_options().to_kwargs()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "backend" not in processes.process_group_options().to_kwargs()  # no group: one process without a launcher
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert processes.process_group_options().to_kwargs()["backend"] == "cuda:nccl,cpu:gloo"
    torch.distributed.init_process_group(
        "cpu:gloo,cuda:gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        assert torch.distributed.distributed_c10d._get_object_coll_device() == "cpu"
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("there", "words"),
    [
        (["a", "c", "d"], r"rank 0 has 3 usable rows, rank 1 has 3; 2 are on one of them only \(b, d\)"),
        (["a", "c", "b"], "their ids are the same, but not their text, pictures or order"),
    ],
)
def test_ranks_must_read_the_same_queries(monkeypatch, there, words):
    def facts(qids: list[str]) -> dict[str, dict[str, str]]:
        return {"train": {"path": "x.parquet", "queries": "".join(qids)}}

    here = [Query(name, "?", "1") for name in ("a", "b", "c")]
    check_same_data(facts(["a", "b", "c"]), train=here)  # one process
    monkeypatch.setattr(provenance, "gather", lambda own: [own, "".join(there) if isinstance(own, str) else there])
    with pytest.raises(ValueError, match=words):
        check_same_data(facts(["a", "b", "c"]), train=here)


def test_the_folder_is_probed(tmp_path, monkeypatch):
    accelerator = SimpleNamespace(is_main_process=True, process_index=0)
    folder = tmp_path / "runs" / "run"
    processes.check_machines(accelerator, folder, "settings")
    assert list(folder.iterdir()) == []

    def broadcast(objects: list) -> None:  # what rank 0 says, on a machine that has its word
        objects[0] = ("/there/.probe-word", theirs)

    monkeypatch.setattr(processes, "broadcast_object_list", broadcast)
    other, here = SimpleNamespace(is_main_process=False, process_index=8), socket.gethostname()
    (folder / ".probe-word").write_text(".probe-word")
    theirs = "settings"
    processes.check_machines(other, folder, "settings", patience=0)
    theirs = "other settings"
    with pytest.raises(RuntimeError, match=rf"{here} \(rank 8\) has other settings than rank 0"):
        processes.check_machines(other, folder, "settings", patience=0)
    theirs = "settings"
    (folder / ".probe-word").write_text("")  # not yet whole, or of another
    with pytest.raises(RuntimeError, match=rf"{here} \(rank 8\) does not see in {folder} what rank 0 has written"):
        processes.check_machines(other, folder, "settings", patience=0)


# -- real runs --------------------------------------------------------------------------------------------------------


def make_config(folder: Path, world: Path, guesser: Path, name: str, *overrides: str) -> RunConfig:
    settings = [
        f"runs_dir={folder}",
        f"name={name}",
        f"model.path={guesser}",
        f"data.train={world / 'train.parquet'}",
        "queries_per_episode=4",
        "rollout.engine=transformers",
        "rollout.group_size=4",
        "rollout.max_new_tokens=48",
        "rollout.canary=0",
        "rethink.min_second_look_tokens=8",
        "evaluation.every=0",
        "optim.train_batch_size=8",
        "optim.lr=1e-4",
        "stages=[{name: a, episodes: 3, overrides: {rethink: {fraction: 0.5}}}]",
        *overrides,
    ]
    return load_config(None, settings)


@contextmanager
def two_machines(config: RunConfig, folder: Path, homes: Sequence[Path | None] = (None, None)) -> Iterator[list[Popen]]:
    """`rethinker train` as on two machines, which is killed if it has not ended."""
    file = folder / f"{config.name}.yaml"
    file.write_text(to_yaml(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "rethinker.cli", "train", str(file), "--resume", "launch.machines=2"]
    command += ["launch.address=127.0.0.1", f"launch.port={port}"]
    started = [
        Popen([*command, f"launch.machine_rank={rank}"], cwd=home, stderr=PIPE, text=True)
        for rank, home in enumerate(homes)
    ]
    try:
        yield started
    finally:
        for process in started:
            if process.poll() is None:
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
                process.kill()


def trained(config: RunConfig) -> dict[str, torch.Tensor]:
    return load_file(config.folder / "checkpoints" / "last" / "model" / "model.safetensors")


def lines(config: RunConfig) -> list[dict]:
    """The lines of metrics.jsonl, without times, and images that a new process has to read again."""
    found = [json.loads(line) for line in RunDir(config.folder).metrics.read_text().splitlines()]
    left_out = ("time/", "seconds", "rollout/tokens_per_second", "images/decoded")
    return [{name: value for name, value in line.items() if not name.startswith(left_out)} for line in found]


@pytest.fixture(scope="module")
def one_machine(tmp_path_factory, world, guesser) -> RunConfig:
    config = make_config(tmp_path_factory.mktemp("one"), world, guesser, "run", "launch.processes=2")
    assert jobs.train(config) == 0
    return config


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_machines_give_what_one_gives(tmp_path, world, guesser, one_machine):
    """A process each, against two processes on one machine: the same weights and metrics, bit for bit."""
    config = make_config(tmp_path, world, guesser, "run")
    with two_machines(config, tmp_path) as machines:
        said = [machine.communicate(timeout=500)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    one, two = trained(one_machine), trained(config)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert lines(config) == lines(one_machine)
    assert Job(config.folder).status().state == "finished" and RunDir(config.folder).report.exists()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_machines_that_share_no_folder(tmp_path, world, guesser):
    """The same relative runs_dir, in two working directories: both machines end with the reason."""
    homes = [tmp_path / "a", tmp_path / "b"]
    for home in homes:
        home.mkdir()
    config = make_config(Path("runs"), world, guesser, "run")
    with two_machines(config, tmp_path, homes) as machines:
        said = [machine.communicate(timeout=500)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [1, 1], said
    assert all(
        f"{socket.gethostname()} (rank 1) does not see in {homes[1]}/runs/run what rank 0" in text for text in said
    )


# -- preemption -------------------------------------------------------------------------------------------------------

LONGER = ("stages=[{name: a, episodes: 12, overrides: {rethink: {fraction: 0.5}}}]", "tracking.save_every=4")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, world, guesser) -> RunConfig:
    config = make_config(tmp_path_factory.mktemp("whole"), world, guesser, "run", *LONGER, "launch.processes=2")
    assert jobs.train(config) == 0
    return config


def wait_for_episode(config: RunConfig, number: int, ended: Callable[[], bool]) -> None:
    metrics = RunDir(config.folder).metrics
    while not metrics.exists() or not [line for line in lines(config) if line["episode"] >= number]:
        assert not ended()
        time.sleep(0.05)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_an_abandoned_episode_leaves_an_exact_checkpoint(tmp_path, world, guesser, uninterrupted):
    """SIGTERM in episode 6 or later, without any grace: what came after the checkpoint of episode 4 or 8 is done again,
    and the run ends with the weights and metrics of one that nobody disturbed."""
    settings = (*LONGER, "launch.processes=2", "launch.grace_seconds=0")
    config = make_config(tmp_path, world, guesser, "run", *settings)
    job = jobs.start(config)
    wait_for_episode(config, 5, lambda: not job.alive)
    os.kill(job.record["pid"], signal.SIGTERM)
    status = job.wait(200)
    assert (status.state, status.exit_code) == ("stopped", REQUEUE), job.tail(20)
    assert any("the episode is abandoned" in line for line in job.tail(20)) and status.episode < 12
    assert jobs.ensure(config).wait(600).state == "finished", job.tail(20)
    whole, again = trained(uninterrupted), trained(config)
    assert all(torch.equal(whole[name], again[name]) for name in whole) and lines(config) == lines(uninterrupted)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_machines_that_are_preempted_resume(tmp_path, world, guesser, uninterrupted):
    """SIGTERM on both, as Slurm sends it: the episode ends in time, both ask to be started again."""
    config = make_config(tmp_path, world, guesser, "run", *LONGER)
    with two_machines(config, tmp_path) as machines:
        wait_for_episode(config, 2, lambda: any(machine.poll() is not None for machine in machines))
        for machine in machines:
            machine.terminate()
        said = [machine.communicate(timeout=500)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [REQUEUE, REQUEUE], said
    assert run_state(config.folder) == "stopped"
    with two_machines(config, tmp_path) as machines:
        said = [machine.communicate(timeout=500)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    whole, again = trained(uninterrupted), trained(config)
    assert all(torch.equal(whole[name], again[name]) for name in whole) and lines(config) == lines(uninterrupted)
