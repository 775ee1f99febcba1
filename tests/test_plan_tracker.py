"""The memory of a sharded training pass against torch's FSDPMemTracker."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rethinker.config import RunConfig
from rethinker.config.settings import ModelConfig
from rethinker.lab.plan.case import Case
from rethinker.lab.plan.hardware import GPUS
from rethinker.lab.plan.memory import passes
from rethinker.lab.plan.shapes import KNOWN


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [8, 64])
def test_a_pass_of_7b_has_the_trackers_peak(ranks):
    """16,384 packed tokens, no image, optimiser and tower aside; half a minute each."""
    name, tokens = "Qwen2.5-VL-7B-Instruct", 16384
    command = [sys.executable, str(Path(__file__).parent / "fsdp_memory.py"), name, str(ranks), str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    peak = json.loads(done.stdout.splitlines()[-1])
    model = ModelConfig(freeze_vision=True, autocast=True, gradient_checkpointing=True)
    case = Case(RunConfig(model=model), KNOWN[name], GPUS["h100-80"], ranks, sharding="full", prompt_tokens=130)
    weights = 4 * case.shape.language / ranks
    assert peak["Sharded Param"] == pytest.approx(weights, rel=1e-3)
    computed = weights + max(moment.bytes for moment in passes(case, tokens, again=False))
    assert computed == pytest.approx(peak["Total"], rel=0.15), peak
