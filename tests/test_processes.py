"""Setup of a process: the allocator's settings, deterministic algorithms."""

import os
import platform
import subprocess
import sys

import psutil
import pytest
import torch

from rethinker.processes import return_freed_memory, use_deterministic_algorithms, warn_of_nondeterminism

# Takes and frees the same 8 MiB a hundred times, like a training step; prints the page faults that this cost.
CHURN = """
import resource, sys
from rethinker.processes import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(5):
    bytes(bytearray(2**23))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    bytes(bytearray(2**23))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_not_asked_for_again():
    faults = {}
    for word in ("keep", "leave"):
        child = subprocess.run([sys.executable, "-c", CHURN, word], capture_output=True, text=True, check=True)
        faults[word] = int(child.stdout)
    assert faults["keep"] < 100  # of 2 * 100 * 2048 pages
    assert faults["leave"] > 10_000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_below_what_is_in_use_goes_back():
    process = psutil.Process()
    blocks = [b"x" * 100_000 for _ in range(2000)]  # on the heap: too small for mappings of their own
    kept = blocks[-1]  # at its end, so that nothing below it is returned by itself
    del blocks
    before = process.memory_info().rss
    assert return_freed_memory()
    assert before - process.memory_info().rss > 100_000_000 and kept


def nondeterministic() -> torch.Tensor:
    """An operation without a deterministic algorithm on a CPU."""
    return torch.zeros(3).put_(torch.tensor([1]), torch.tensor([1.0]))


def test_deterministic_algorithms(untouched_determinism, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setenv("FLASH_ATTENTION_DETERMINISTIC", "0")  # a user's choice
    nondeterministic()
    use_deterministic_algorithms()
    with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        nondeterministic()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8" and not torch.backends.cudnn.benchmark
    assert os.environ["FLASH_ATTENTION_DETERMINISTIC"] == "0"
    with warn_of_nondeterminism(), pytest.warns(UserWarning, match="does not have a deterministic implementation"):
        nondeterministic()
    with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        nondeterministic()


def test_vllm_is_asked_for_it_on_gpus(untouched_determinism, monkeypatch):
    monkeypatch.delenv("VLLM_BATCH_INVARIANT", raising=False)
    use_deterministic_algorithms()
    assert "VLLM_BATCH_INVARIANT" not in os.environ
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    use_deterministic_algorithms()
    assert os.environ["VLLM_BATCH_INVARIANT"] == "1"
