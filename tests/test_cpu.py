"""What a processor cannot do is said when the model or the engine is loaded; the processors are made up."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

import rethinker.rollout.vllm as vllm
from rethinker.config import ConfigError, ModelConfig, RolloutConfig, RunConfig
from rethinker.policy import cpu
from rethinker.policy.loading import load_policy
from rethinker.rollout import TransformersEngine, VllmEngine, make_engine

pytestmark = pytest.mark.numerics


@pytest.fixture
def processor(monkeypatch):
    """``processor(capability, feature=True)`` is torch's choice of kernels and what the machine has."""

    def be(capability, **features):
        monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
        monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
        monkeypatch.setattr(cpu.platform, "machine", lambda: "x86_64")

    return be


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bfloat16_is_refused_where_attention_cannot_pack_for_amx(processor, tiny_folder, monkeypatch, dtype):
    processor("AVX2", avx2=True, amx_tile=True)
    policy = load_policy(ModelConfig(path=str(tiny_folder)))
    settings = {"dtype": "bfloat16"} if dtype == "bfloat16" else {"autocast": True}
    with pytest.raises(ConfigError, match=r"model\.\w+.* torch uses AVX2: unset ATEN_CPU_CAPABILITY, or"):
        load_policy(ModelConfig(path=str(tiny_folder), **settings))
    with pytest.raises(ConfigError, match=r"rollout.dtype\) needs torch's AVX-512 kernels"):
        monkeypatch.setattr(vllm, "vllm_available", lambda: True)
        VllmEngine(policy, tiny_folder, max_new_tokens=8, dtype="bfloat16")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    load_policy(ModelConfig(path=str(tiny_folder), **settings))


@pytest.mark.parametrize(
    ("capability", "features"),
    [
        ("DEFAULT", {}),
        ("AVX2", {"avx2": True}),
        ("AVX512", {"avx2": True, "avx512_f": True}),
        ("AVX512", {"avx2": True, "avx512_f": True, "amx_tile": True}),
        ("SVE256", {"sve": True}),
    ],
)
def test_other_processors_compute_bfloat16(processor, capability, features):
    processor(capability, **features)
    cpu.check_bfloat16("model.autocast")


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
@pytest.mark.skipif(torch.version.cuda is not None, reason="vLLM's build for GPUs runs on any processor")
def test_without_avx2_the_engine_is_transformers(processor, tiny_folder):
    policy = load_policy(ModelConfig(path=str(tiny_folder)))
    processor("DEFAULT")
    assert isinstance(make_engine(RunConfig(), policy), TransformersEngine)
    with pytest.raises(ConfigError, match=r"rollout.engine=vllm needs a processor with AVX2: set rollout.engine=tra"):
        make_engine(RunConfig(rollout=RolloutConfig(engine="vllm")), policy)
    processor("AVX2", avx2=True)
    assert vllm.vllm_available()


COMPILE = """
import torch
from rethinker.policy.cpu import keep_compiled_code_apart

keep_compiled_code_apart()
x = torch.randn(5, 37, generator=torch.Generator().manual_seed(0))
function = lambda x: torch.softmax(x.sin() * 3, -1).cumsum(-1) + x.exp().mean(-1, keepdim=True)
torch.testing.assert_close(torch.compile(function)(x), function(x), rtol=0, atol=1e-5)
print(torch._dynamo.utils.counters["inductor"].get("fxgraph_cache_hit", 0))
"""


@pytest.mark.long
@pytest.mark.slow
def test_compiled_code_of_another_vector_width_is_not_found(tmp_path):
    """Without it, AVX2 finds the code for AVX-512 and is wrong by more than 1."""
    hits = []
    for capability in ("avx512", "avx2", "avx512"):  # the processor's own where it has less
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "ATEN_CPU_CAPABILITY": capability}
        done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        hits.append(int(done.stdout))
    assert hits[2] == 1
