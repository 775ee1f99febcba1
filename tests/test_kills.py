"""A sharded run of two processes with real servers, killed ten times at random moments, is the run that was not."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import psutil
import pytest
import torch
from safetensors.torch import load_file
from served import lines, serve, train, write_config

from rethinker.config import load_config
from rethinker.rollout import vllm_available
from rethinker.rollout.server.folder import ServersDir
from rethinker.rundir.atomic import read_json
from rethinker.rundir.paths import RunDir
from rethinker.rundir.samples import read_samples
from rethinker.types import Sample

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not vllm_available(), reason="vLLM is not installed, or not built for this processor"),
]

EPISODES = 16
MOMENTS = ("start", "start", "save", "save", "save", "transfer", "transfer", "transfer", "any", "any")
VICTIMS = ("all", "all", "all", "all", "all", "all", "0", "0", "1", "1")  # every process, or one rank
# What is not the same in two runs: times, what new processes read again, and the rounding of servers, which answer in
# batches as requests arrive.
NOT_COMPARED = re.compile(r"seconds|time/.*|rollout/tokens_per_second|images/decoded|gap/.*|canary/.*")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_config(
        tmp_path_factory.mktemp("run"),
        replay={"lifetime": 3},
        grpo={"importance_cap": None},
        stages=[{"name": "s", "episodes": EPISODES}],
    )


@pytest.fixture(scope="module")
def servers(config):
    with serve(config) as process:
        yield process


@pytest.fixture(scope="module")
def whole(config, servers) -> RunDir:
    """The run that nobody disturbs."""
    assert train(config, "name=whole").wait(900) == 0
    return RunDir(Path(load_config(config).runs_dir) / "whole")


@dataclass(frozen=True)
class Kill:
    """``delay``: seconds between the moment and SIGKILL; ``passes``: moments of this kind that are let pass."""

    moment: str
    victim: str
    delay: float
    passes: int


def kills(seed: int) -> list[Kill]:
    """Ten of them, in random order."""
    generator = random.Random(seed)
    moments, victims = generator.sample(MOMENTS, len(MOMENTS)), generator.sample(VICTIMS, len(VICTIMS))
    longest = {"start": 12.0, "save": 0.1, "transfer": 0.02, "any": 8.0}
    return [
        Kill(moment, victim, generator.uniform(0, longest[moment]), generator.randint(0, 1))
        for moment, victim in zip(moments, victims, strict=True)
    ]


class Life:
    """One start of the run, until it ends or is killed."""

    def __init__(self, config: Path, folder: RunDir) -> None:
        self.folder, self.servers = folder, ServersDir(load_config(config).rollout.servers)
        self.client = httpx.Client(headers={"Authorization": f"Bearer {self.servers.token()}"}, trust_env=False)
        self.begun = time.time()
        self.process = train(config, f"name={folder.folder.name}", "--resume")

    def kill(self, kill: Kill) -> dict[str, Any]:
        """Kill it when ``kill`` says; returns what was found where it died."""
        if kill.moment == "start":
            self.until(lambda: kill.victim == "all" or self.rank(kill.victim))
        else:
            self.until(self.is_running)
        if kill.moment in ("start", "any"):
            self.wait(kill.delay)
        everything = self.all()  # now: looking takes longer than a transfer
        victims = everything if kill.victim == "all" else [self.rank(kill.victim)]
        if kill.moment in ("save", "transfer"):
            is_there = self.is_saving if kill.moment == "save" else self.is_paused
            for _ in range(kill.passes):
                self.until(is_there)
                self.until(lambda: not is_there())
            self.until(is_there)
            self.wait(kill.delay)
        for process in victims:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        assert self.process.wait(180) != 0  # where one rank was killed, the others have to find out
        _, left = psutil.wait_procs(everything, 60)
        assert not left
        return {"saving": self.is_saving(), "paused": self.is_paused(), "episodes": self.episodes()}

    def wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        self.until(lambda: time.monotonic() > deadline)

    def until(self, happens: Callable[[], Any]) -> None:
        deadline = time.monotonic() + 300
        while not happens():
            assert self.process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)

    def all(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def rank(self, number: str) -> psutil.Process | None:
        """The process of this rank; its helpers have its command line too."""
        found = []
        for child in self.process.children(recursive=True):
            with suppress(psutil.Error):
                if "rank" in child.cmdline() and child.environ().get("RANK") == number:
                    found.append(child)
        return min(found, key=lambda child: child.create_time(), default=None)

    def is_running(self) -> bool:
        file = self.folder.status
        return file.exists() and file.stat().st_mtime > self.begun and read_json(file)["state"] == "running"

    def is_saving(self) -> bool:
        return any(self.folder.checkpoints.glob(".step-*.tmp"))

    def is_paused(self) -> bool:
        """Whether a server is in the middle of a transfer."""
        urls = [url for served in self.servers.read() for url, _ in served.servers]
        return any(self.client.get(f"{url}/is_paused", timeout=60).json()["is_paused"] for url in urls)

    def episodes(self) -> int:
        return read_json(self.folder.status).get("progress", {}).get("episode", 0)


@pytest.mark.parametrize("seed", [0, 1])
def test_ten_kills(config, whole, seed):
    """Bit for bit, in everything that learning depends on: rewards, advantages, sampled tokens, the buffer, AdamW's
    moments, the weights. ``grpo.importance_cap`` is off: it weighs tokens by the servers' log-probs, whose last bits
    may depend on what is answered beside them (1e-7 nats), and AdamW can make 1e-6 of the weights of that. So the
    weights depend on which tokens were sampled, no more. Rounding could turn one: of 7,000 tokens drawn with errors of
    1e-7 nats, with a chance below 1 %.
    """
    killed = RunDir(whole.folder.parent / f"killed-{seed}")
    found = []
    for kill in kills(seed):
        found.append((kill, Life(config, killed).kill(kill)))
        print(*found[-1], flush=True)
    assert Life(config, killed).process.wait(900) == 0
    assert all(any(state[moment] for _, state in found) for moment in ("saving", "paused"))

    assert_same_files(whole, killed)
    assert_same_checkpoint(whole, killed)
    for folder in (whole, killed):
        names = json.loads((folder.checkpoints / "pointers.json").read_text())
        there = {path.name for path in folder.checkpoints.iterdir()}
        assert there == {"pointers.json", *names, *names.values()}
        assert not list(folder.folder.rglob("*.tmp"))


def assert_same_files(one: RunDir, other: RunDir) -> None:
    """Each rollout and each line of metrics once, and the same."""
    first, second = one.all_rollouts(), other.all_rollouts()
    assert list(first) == list(second) == list(range(1, EPISODES + 1))
    for episode, file in first.items():
        rows, same = pd.read_parquet(file), pd.read_parquet(second[episode])
        assert not rows.duplicated(["sample_id", "pass"]).any() and (rows["pass"] == "first").sum() == 16
        pd.testing.assert_frame_equal(rows, same, check_exact=True)
    for record in ("episode", "step"):
        kept = [
            [{name: value for name, value in line.items() if not NOT_COMPARED.fullmatch(name)} for line in found]
            for found in (lines(one, record), lines(other, record))
        ]
        assert kept[0] == kept[1]
    assert [line["episode"] for line in lines(other, "episode")] == list(range(1, EPISODES + 1))
    steps = [line["step"] for line in lines(other, "step")]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) > EPISODES


def assert_same_checkpoint(one: RunDir, other: RunDir) -> None:
    """The last one: weights, AdamW's moments and the buffer with its token ids."""
    first, second = (folder.checkpoints / "last" for folder in (one, other))
    for part in ("model", "state"):
        names = sorted(path.name for path in (first / part).glob("*.safetensors"))
        assert names and names == sorted(path.name for path in (second / part).glob("*.safetensors"))
        for name in names:
            tensors, same = load_file(first / part / name), load_file(second / part / name)
            assert tensors.keys() == same.keys()
            assert all(torch.equal(tensors[key], same[key]) for key in tensors)
    entries, others = (read_samples(folder / "replay.parquet") for folder in (first, second))
    assert entries and [exact(*entry) for entry in entries] == [exact(*entry) for entry in others]


def exact(added: int, sample: Sample) -> tuple[Any, ...]:
    """What is the same to the bit: all but the servers' log-probs."""
    ids, logprobs = tuple(sample.response.token_ids), tuple(sample.behavior_logprobs)
    return added, sample.sample_id, ids, sample.reward, sample.advantage, logprobs
