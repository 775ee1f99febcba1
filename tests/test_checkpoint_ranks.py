"""Checkpoints that several processes write together, and other numbers of processes read (checkpoint_ranks.py)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checkpoint_ranks import goes_on, save_and_go_on
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.long]

HERE = Path(__file__).parent


def torchrun(processes: int, function: str, folder: Path) -> list[dict[str, Any]]:
    """What the function returned on every rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", f"--master-port={port}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]), "OMP_NUM_THREADS": "1"}
    arguments = [str(HERE / "checkpoint_ranks.py"), function, str(folder)]
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / f"{function}.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def found(folder) -> list[dict[str, Any]]:
    save_and_go_on(folder / "one", sharded=False)
    return torchrun(2, "two_ranks", folder)


@pytest.mark.parametrize(
    "case",
    ["two to two", "one to two", "two to whole ones", "whole ones to two", "adapters", "adapters alone"],
)
def test_a_resume_on_two_ranks_is_exact(found, case):
    """Bit for bit. "whole ones": two ranks, each with all weights (DDP)."""
    assert [rank[case] for rank in found] == [True, True]


def test_a_resume_on_one_rank_is_exact(found, folder):
    for saved in ("two", "whole ones", "one"):
        assert goes_on(folder / saved, sharded=False), saved


def test_every_rank_writes_its_shards_once(found, folder):
    sizes = {}
    for saved in ("one", "two", "whole ones"):
        state = folder / saved / "step-000003" / "state"
        by_rank: dict[str, int] = {}
        for file in state.iterdir():
            held = sum(tensor.nbytes for tensor in load_file(file).values())
            by_rank[file.name[:11]] = by_rank.get(file.name[:11], 0) + held
        sizes[saved] = by_rank
    (whole,) = sizes["one"].values()
    for saved in ("two", "whole ones"):
        assert sorted(sizes[saved]) == ["shard-00001", "shard-00002"]
        assert sum(sizes[saved].values()) == whole
        assert all(0.45 * whole < size < 0.55 * whole for size in sizes[saved].values())


def test_what_one_rank_cannot_write_stops_all(found):
    """None hangs, all say the same reason, and the next save succeeds."""
    for rank in found:
        assert len(rank["errors"]) == 7
        for error in rank["errors"]:
            assert "the disk is full" in error and "step-000002 is untouched: resume from it" in error
    assert "rank 1" in found[0]["errors"][2] and "rank 1" in found[0]["errors"][4]
    assert "rank 0" in found[1]["errors"][0] and "rank 0" in found[1]["errors"][6]


def test_damage_that_one_rank_reads_is_known_to_all(found):
    assert found[0]["fallback"] == found[1]["fallback"]
    name, warning = found[0]["fallback"]
    assert name == "step-000002" and "step-000003: the content of replay.parquet is not what was written" in warning


def test_eight_ranks_to_four(tmp_path):
    """Also tensors with fewer rows than ranks, of which some have nothing."""
    torchrun(8, "save_many", tmp_path)
    assert len({file.name[:11] for file in (tmp_path / "many").iterdir()}) == 8
    assert torchrun(4, "load_many", tmp_path)[0] == {"equal": [True] * 4}
