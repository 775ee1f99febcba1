"""A policy in shards over two processes computes what the whole one computes (tests/sharded.py has the cases)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from bounds import EXACT, LOGPROB, STEPS, rounding
from tiny_families import BUILDERS, save_tiny

pytestmark = [pytest.mark.slow, pytest.mark.numerics]

HERE = Path(__file__).parent
EXACT_CASES = (
    "full",
    "hybrid",
    "frozen_tower",
    "uneven_passes",
    "checkpointing",
    "chunked_head",
    "lora",
    "reference",
    "lora_reference",
    "offload",
)


def run_cases(folder: Path, *arguments: str, **variables: str) -> dict:
    """What tests/sharded.py finds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    paths = os.pathsep.join([str(HERE.parent), str(HERE)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **variables}
    command += [str(HERE / "sharded.py"), str(folder), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "sharded.json").read_text())


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    return run_cases(tmp_path_factory.mktemp("sharded"))


@pytest.mark.parametrize("case", EXACT_CASES)
def test_loss_and_gradients_of_a_sharded_policy(found, case):
    """In float64, where sums in another order differ by rounding alone."""
    assert found[case]["loss"] < EXACT and found[case]["gradient"] < EXACT


def test_a_rank_holds_its_share(found):
    """Half of what is sharded; everything where each machine has one process."""
    assert found["full"]["share"] == pytest.approx(0.5, abs=0.01) and found["hybrid"]["share"] == 1.0
    assert 0.5 < found["frozen_tower"]["share"] < 1.0


def test_float32(found):
    assert found["float32"]["loss"] < rounding(LOGPROB) and found["float32"]["gradient"] < rounding(steps=3 * STEPS)


def test_bfloat16_layers_on_float32_weights(found):
    """A bfloat16 has 8 bits: 2e-3 of a value at every rounding, and some hundred roundings a layer add up at random."""
    assert 0 < found["bfloat16"]["gradient"] < 0.1


def test_ten_steps(found):
    case = found["ten_steps"]
    assert case["weights"] < EXACT and max(case["logprobs"]) < EXACT and case["norms"] < EXACT


def test_all_weights_whole_for_an_engine(found):
    assert found["whole_for_an_engine"]["False"] < EXACT and found["whole_for_an_engine"]["True"] < 0.05


def test_the_stream_of_whole_weights(found):
    assert found["streamed_weights"] == {"rank_0": 0.0, "rank_4": 0.0}


@pytest.mark.parametrize("options", ["full", "hybrid", "frozen_tower", "lora", "offloaded"])
def test_ranks_load_without_a_copy_each(found, options):
    assert found["loading"][options] == {"meta": 0, "tied": True, "gap": 0.0}


@pytest.mark.parametrize("case", ["unequal_adapters", "unequal_replicas"])
def test_weights_that_differ_before_training_are_found(found, case):
    assert "differ over the ranks" in found[case]["error"]


def test_a_time_out_says_what_each_rank_does(found):
    said = found["time_out"]["error"]
    assert said.startswith("rank 0 waited for the other processes")
    assert "rank 0: train of episode 3, for " in said and "rank 1: rollout of episode 3, for " in said


@pytest.mark.long
def test_every_option_in_float32(tmp_path):
    """The table of experiments/LOG.md. With bfloat16 layers float32 weights move by at most the learning rate a step,
    wherever a bfloat16's rounding points them."""
    table = run_cases(tmp_path, "--float32", *EXACT_CASES, "ten_steps", "ten_steps_hybrid", "ten_steps_bfloat16")
    rounded = table["ten_steps_bfloat16"]
    assert 0 < rounded["weights"] < 2 * 10 * 1e-4 and rounded["norms"] < 0.1
    for case in EXACT_CASES:
        assert table[case]["gradient"] < 1e-6, (case, table[case])
    for case in ("ten_steps", "ten_steps_hybrid"):
        assert table[case]["weights"] < 1e-5, (case, table[case])


@pytest.mark.long
@pytest.mark.parametrize("family", BUILDERS)
def test_other_families_in_shards(family, tmp_path):
    """In float64: gradients, also of a rank whose queries have no image, and what an engine is sent."""
    cases = ("full", "frozen_tower", "uneven_passes", "lora")
    model = str(save_tiny(family, tmp_path / family))
    table = run_cases(tmp_path, *cases, "streamed_weights", "loading", SHARDED_MODEL=model)
    for case in cases:
        assert table[case]["loss"] < EXACT and table[case]["gradient"] < EXACT, (case, table[case])
    assert table["full"]["share"] < 0.52
    assert table["streamed_weights"] == {"rank_0": 0.0, "rank_4": 0.0}
    assert all(found == {"meta": 0, "tied": True, "gap": 0.0} for found in table["loading"].values()), table["loading"]
