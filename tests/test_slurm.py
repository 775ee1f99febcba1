"""Slurm: the examples of experiments/slurm under stand-ins for Slurm's commands, and grids as jobs of submitit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

from rethinker import cli
from rethinker.config.schema import ConfigError
from rethinker.lab.ablation import run as ablation
from rethinker.lab.ablation.cluster import ClusterJobs
from rethinker.lab.ablation.grid import load_grid
from rethinker.lab.jobs import Job
from rethinker.rundir.folder import run_state
from rethinker.rundir.paths import RunDir

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "experiments" / "slurm").glob("*.sbatch"))

# srun runs the first task of a step; its options are written down, and its signals passed on, as srun does.
SRUN = """#!/bin/bash
options=()
while [[ $1 == --* ]]; do options+=("$1"); shift; done
echo "srun ${options[*]}" >> "$LOG"
task= term=
trap 'term=1; [[ -z $task ]] || kill -TERM "$task"' TERM
"$@" & task=$!
[[ -z $term ]] || kill -TERM "$task"
wait "$task"; code=$?
while ((code > 128)) && kill -0 "$task" 2> /dev/null; do wait "$task"; code=$?; done
exit "$code"
"""
RETHINKER = """#!/bin/bash
if [[ $1 == serve ]]; then trap 'echo "servers end" >> "$LOG"; exit 0' TERM; else trap 'exit 75' TERM; fi
echo "rethinker $*; $MASTER_ADDR" >> "$LOG"
for item; do [[ $1 == serve && $item == rollout.servers=* ]] && mkdir -p "${item#*=}" && touch "${item#*=}/a.json"; done
if [[ $1 == serve || -n $WAIT ]]; then for _ in {1..1000}; do sleep 0.05; done; fi
exit "$CODE"
"""
SCONTROL = """#!/bin/bash
if [[ $1 == show ]]; then printf 'node-%d\\n' 0 1 2; else echo "scontrol $*" >> "$LOG"; fi
"""


@pytest.fixture
def batch(tmp_path, monkeypatch):
    """``batch(script, code)``: how a job of the script goes whose training ends with this code."""
    log = tmp_path / "log"
    for name, text in (("srun", SRUN), ("rethinker", RETHINKER), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node-[0-2]", "SLURM_NNODES": "3"}
    environment |= {"SLURM_GPUS_ON_NODE": "4", "LOG": str(log), "WAIT": "", "TRAINERS": "2", "MASTER_ADDR": ""}

    def run(script: str, code: int, **more: str) -> tuple[subprocess.Popen, Path]:
        variables = os.environ | environment | more | {"CODE": str(code), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        return subprocess.Popen(
            ["bash", str(ROOT / "experiments" / "slurm" / script), "c.yaml", "seed=1"], cwd=tmp_path, env=variables
        ), log

    return run


@pytest.mark.parametrize("script", [path.name for path in SCRIPTS])
@pytest.mark.parametrize("code", [0, 1, 75])
def test_a_job_is_queued_again_where_sigterm_ended_it_unfinished(batch, script, code):
    process, log = batch(script, code)
    assert process.wait(100) == code
    assert ("scontrol requeue 7\n" in log.read_text()) == (code == 75)


def test_what_the_scripts_start(batch):
    for script, expected in (
        ("one_node.sbatch", "rethinker train c.yaml seed=1 --resume launch.processes=4; \n"),
        (
            "several_nodes.sbatch",
            "rethinker train c.yaml seed=1 --resume launch.machines=3 launch.processes=4; node-0\n",
        ),
    ):
        process, log = batch(script, 0)
        assert process.wait(100) == 0 and expected in log.read_text()
    process, log = batch("with_servers.sbatch", 0)
    assert process.wait(100) == 0
    said = log.read_text()
    assert "srun --nodes=1 --ntasks=1 --nodelist=node-2\n" in said
    assert "srun --nodes=2 --ntasks=2 --nodelist=node-0,node-1 --kill-on-bad-exit=1\n" in said
    assert "launch.machines=2 launch.processes=4 rollout.engine=server rollout.servers=runs/servers-7; node-0\n" in said
    assert (
        "rethinker serve c.yaml seed=1 rollout.engine=server rollout.servers=runs/servers-7 --servers 4 --host" in said
    )
    assert batch("with_servers.sbatch", 0, TRAINERS="3")[0].wait(100) == 2
    process, log = batch("with_servers.sbatch", 0, SERVERS="2")
    assert process.wait(100) == 0 and "rollout.servers=runs/servers-7 --servers 2 --host" in log.read_text()


def test_servers_outlive_the_last_episode(batch):
    """SIGTERM to the batch shell reaches the trainers only; the servers end after them."""
    process, log = batch("with_servers.sbatch", 0, WAIT="1")
    while not log.exists() or "rethinker train" not in log.read_text():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(100) == 75
    assert log.read_text().endswith("servers end\nscontrol requeue 7\n")


# -- grids ------------------------------------------------------------------------------------------------------------


def write_grid(folder: Path, runs: Path, world: Path, guesser: Path, episodes: int = 2, **more) -> Path:
    """A grid of two runs, some 0.1 s an episode."""
    base = folder / "base.yaml"
    base.write_text(
        f"model: {{path: {guesser}}}\ndata: {{train: {world / 'train.parquet'}, test: {world / 'test.parquet'}}}\n"
        "queries_per_episode: 4\nrollout: {engine: transformers, group_size: 4, max_new_tokens: 32, canary: 0}\n"
        "optim: {train_batch_size: 16}\nevaluation: {every: 0, samples: 1}\ntracking: {save_every: 1}\n"
        f"stages: [{{name: a, episodes: {episodes}}}]\n"
    )
    grid = {"base": str(base), "axes": {"replay": {"ssr": ["replay.mode=ssr"], "filter": ["replay.mode=filter"]}}}
    path = folder / "small.yaml"
    path.write_text(json.dumps(grid | {"slots": 2, "common": [f"runs_dir={runs}"]} | more))
    return path


def test_what_submitit_refuses_is_said(tmp_path):
    for where, options, words in (
        ("local", {"partitions": "gpu"}, "--on local: .*'partitions' need to be prefixed by an executor name"),
        ("local", {"timeout_min": "long"}, 'Parameter "timeout_min" expected type'),
        ("slurm", {}, '--on slurm: Could not detect "srun"'),
    ):
        with pytest.raises(ConfigError, match=words):
            ClusterJobs(where, tmp_path, options, print)


def test_the_grids_own_parameters(tmp_path):
    path = write_grid(tmp_path, tmp_path / "runs", Path("world"), Path("guesser"), slurm={"gpus_per_node": 8})
    grid = load_grid(path, ["slurm.slurm_partition=gpu", "slurm.gpus_per_node=4"])
    assert grid.slurm == {"gpus_per_node": 4, "slurm_partition": "gpu"}


def comparable(table: pd.DataFrame) -> pd.DataFrame:
    return table[~table["measure"].isin(["seconds"])].reset_index(drop=True)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_grid_on_a_cluster_has_the_same_table(tmp_path, world, guesser):
    """Two jobs of submitit's local executor, against two slots."""
    tables = []
    for name, on in (("slots", []), ("cluster", ["--on", "local"])):
        path = write_grid(tmp_path, tmp_path / name, world, guesser)
        assert cli.main(["ablate", str(path), *on]) == 0
        tables.append(pd.read_parquet(tmp_path / name / "small" / "table.parquet"))
    pd.testing.assert_frame_equal(*map(comparable, tables))
    assert set(json.loads((tmp_path / "cluster" / "small" / "submitted.json").read_text())) == {
        "small-ssr-s0",
        "small-filter-s0",
    }


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_job_that_is_preempted_resumes(tmp_path, world, guesser):
    """Submitit's signal in mid-run: the run saves and stops, and is queued again; the second life ends it."""
    path = write_grid(tmp_path, tmp_path / "runs", world, guesser, episodes=40)
    grid = load_grid(path)
    (config,) = [run.config for run in grid.runs if run.config.replay.mode == "ssr"]
    jobs = ClusterJobs("local", grid.folder, {}, print)
    job = jobs._submit([config])[config.name]
    metrics = RunDir(config.folder).metrics
    while not metrics.exists() or '"episode": 3, ' not in metrics.read_text():
        assert not job.done(), job.stderr()
        time.sleep(0.2)
    task = next(
        child for child in psutil.Process(int(job.job_id)).children() if "submitit" in " ".join(child.cmdline())
    )
    task.send_signal(signal.SIGUSR2)
    while not job.done():
        time.sleep(0.2)
    assert run_state(config.folder) == "finished", job.stderr()
    starts = json.loads(RunDir(config.folder).provenance.read_text())["starts"]
    assert len(starts) == 2 and Job(config.folder).status().episode == 40
    assert ablation.collect(grid).query("run == 'small-ssr-s0'")["state"].eq("finished").all()
