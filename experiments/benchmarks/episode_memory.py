"""What an episode's records cost a rank: memory, the gathers, and the replay file; a simulated episode, no model.

    .venv/bin/torchrun --nproc-per-node 2 experiments/benchmarks/episode_memory.py [--queries 1024] [--tokens 2048]

Every response is as long as it may be, of random tokens and text. Memory is what a rank takes at its peak above an
empty process, its own rollouts included; seconds are those of ``Trainer.collect`` and ``with_behavior_logprobs``.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psutil
import torch
from accelerate import Accelerator

from rethinker.actor import Rollouts, with_advantages
from rethinker.arrays import Floats
from rethinker.config import load_config
from rethinker.rundir.metrics import EpisodeRecord
from rethinker.rundir.samples import read_samples, write_samples
from rethinker.trainer import Trainer
from rethinker.types import Grade, Group, Query, Response, Sample

GROUP = 8
CHARACTERS = 4  # of text a token


def random_logprobs(_policy: Any, _forward: Any, samples: Any, **_: Any) -> dict[str, Floats]:
    """In place of a forward pass."""
    rng = np.random.default_rng(1)
    return {s.sample_id: Floats(rng.random(len(s.response.token_ids), np.float32)) for s in samples}


def make_group(query: Query, tokens: int, rng: np.random.Generator) -> Group:
    """First looks, half of them right."""
    samples = []
    for index in range(GROUP):
        text = rng.integers(97, 123, CHARACTERS * tokens, dtype=np.uint8).tobytes().decode()
        ids, logprobs = rng.integers(0, 150_000, tokens), rng.random(tokens, np.float32)
        response = Response(tuple(ids.tolist()), tuple(logprobs.tolist()), True, text)
        right = index % 2 == 0
        grade, mask = Grade(right, "1", "exact"), (True,) * tokens
        samples.append(Sample(f"1/{query.qid}/{index}", query, response, grade, float(right), 1, mask))
    return Group(query, tuple(samples), tuple(sample.grade.correct for sample in samples))


def main() -> None:
    """Print a line of JSON for every rank."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=2048)
    arguments = parser.parse_args()
    accelerator: Any = Accelerator(cpu=True)
    rank, ranks = accelerator.process_index, accelerator.num_processes
    queries = [Query(f"q{number}", "What?" * 20, "1") for number in range(arguments.queries)]
    config = load_config(None, [f"queries_per_episode={arguments.queries}", "optim.train_batch_size=8"])
    anything: Any = None
    trainer = Trainer(
        config, "simulated", policy=anything, forward=torch.nn.Identity(), engine=anything, order=anything,
        selector=anything, update=anything, tracker=anything, accelerator=accelerator, progress=anything,
    )  # fmt: skip
    empty = psutil.Process().memory_info().rss
    rng = np.random.default_rng(rank)
    firsts = [make_group(query, arguments.tokens, rng) for query in queries[rank::ranks]]
    groups = [with_advantages(group, "std") for group in firsts]
    own = psutil.Process().memory_info().rss
    record = EpisodeRecord(1, "simulated", arguments.queries, GROUP)
    accelerator.wait_for_everyone()
    cpu, start = time.process_time(), time.perf_counter()
    trainer.collect(record, queries, Rollouts(firsts, groups, [], 0))
    collected = time.perf_counter()
    with mock.patch("rethinker.trainer.score", random_logprobs):
        samples = trainer.with_behavior_logprobs(record)
    scored = time.perf_counter()
    cpu = time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found: dict[str, Any] = {
        "rank": rank,
        "samples": len(samples),
        "own GiB": round((own - empty) / 2**30, 2),
        "peak GiB": round((peak - empty) / 2**30, 2),
        "held GiB": round((psutil.Process().memory_info().rss - empty) / 2**30, 2),
        "collect s": round(collected - start, 2),
        "log-probs s": round(scored - collected, 2),
        "of both on the processor s": round(cpu, 2),
    }
    if rank == 0:
        found |= replay_file(samples)
    print(json.dumps(found), flush=True)
    accelerator.wait_for_everyone()


def replay_file(samples: list[Sample]) -> dict[str, float]:
    """Seconds and size of a buffer of all samples on the disk."""
    with tempfile.TemporaryDirectory() as folder:
        path, start = Path(folder, "replay.parquet"), time.perf_counter()
        write_samples(path, [(1, sample) for sample in samples])
        written = time.perf_counter()
        assert len(read_samples(path)) == len(samples)
        seconds = {"write s": round(written - start, 2), "read s": round(time.perf_counter() - written, 2)}
        return seconds | {"file GB": round(path.stat().st_size / 1e9, 2)}


if __name__ == "__main__":
    main()
