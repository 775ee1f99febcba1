"""The allocator's settings."""

import platform
import subprocess
import sys

import pytest

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
