"""What torch and vLLM cannot do on this processor: found out when a model is loaded, not in the middle of a run."""

from __future__ import annotations

import os
import platform

import torch

from rethinker.config.schema import ConfigError


def check_bfloat16(setting: str) -> None:
    """Raises ConfigError, naming ``setting``, where bfloat16 attention would end in "pack_vnni2 is only supported when
    avx512 is supported": oneDNN finds AMX, and torch was told to use kernels that cannot pack for it.

    Processors without AMX or without AVX-512 compute bfloat16 in other ways, and are none of this.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "ALL"
    amx = torch.cpu.get_capabilities().get("amx_tile", False) and (limit in ("ALL", "DEFAULT") or "AMX" in limit)
    if amx and capability != "AVX512":
        raise ConfigError(
            f"{setting} needs torch's AVX-512 kernels on a processor with AMX, but torch uses {capability}: unset "
            "ATEN_CPU_CAPABILITY, or set ONEDNN_MAX_CPU_ISA=AVX2 beside it"
        )


def missing_for_vllm() -> str | None:
    """What this processor lacks to run vLLM's build for CPUs, which dies of an illegal instruction without it."""
    if torch.version.cuda or platform.machine() not in ("x86_64", "AMD64"):
        return None
    return None if torch.cpu.get_capabilities().get("avx2", False) else "AVX2"


def keep_compiled_code_apart() -> None:
    """Let torch's cache of compiled code on disk tell vector widths apart, where ``torch.compile`` is used on a CPU.

    Its key holds torch's settings but not the processor. Code for AVX-512 that AVX2 finds again (in a folder shared
    between machines, or after a change of ATEN_CPU_CAPABILITY) steps over 16 numbers and computes 8 of them: wrong
    values or NaN, without an error.
    """
    from torch._inductor import config
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    if config.cpp.simdlen is None:
        config.cpp.simdlen = pick_vec_isa().bit_width()
