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
from rethinker.lab.sizes.shapes import KNOWN


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("ranks", "tokens", "moment"), [(8, 4096, "first layer"), (64, 16384, "last layer")])
def test_a_pass_of_7b_has_the_trackers_peak(ranks, tokens, moment):
    """Optimiser and tower aside; half a minute each on an idle core."""
    name = "Qwen2.5-VL-7B-Instruct"
    command = [sys.executable, str(Path(__file__).parent / "fsdp_memory.py"), name, str(ranks), str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    peak = json.loads(done.stdout.splitlines()[-1])
    model = ModelConfig(freeze_vision=True, autocast=True, gradient_checkpointing=True)
    case = Case(RunConfig(model=model), KNOWN[name], GPUS["h100-80"], ranks, sharding="full", prompt_tokens=130)
    weights = 4 * case.shape.language / ranks
    assert peak["Sharded Param"] == pytest.approx(weights, rel=1e-3)
    heaviest = max(passes(case, tokens, again=False), key=lambda moment: moment.bytes)
    assert heaviest.name == moment
    assert weights + heaviest.bytes == pytest.approx(peak["Total"], rel=0.15), peak
