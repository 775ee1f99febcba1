"""GPUs that a plan can be made for, by NVIDIA's data sheets. None of them was at hand: nothing here was measured."""

from __future__ import annotations

from dataclasses import dataclass

GB, TERA = 10**9, 10**12


@dataclass(frozen=True)
class Gpu:
    """One GPU; arithmetic is dense (data sheets give twice that, "with sparsity").

    ``memory`` in bytes, a data sheet's GB read as 10^9: what nvidia-smi shows is up to 7 % more, which is left to the
    CUDA context and NCCL. ``bandwidth``: of that memory, bytes/s. ``link``: to a GPU of the same machine, in one
    direction, bytes/s (NVLink; PCIe where there is none).
    """

    name: str
    memory: float
    bfloat16: float  # FLOP/s of the tensor cores
    float32: float  # FLOP/s without tensor cores: torch's default for float32
    bandwidth: float
    link: float
    source: str


def _gpu(name: str, gigabytes: int, bf16: float, fp32: float, bandwidth: float, link: float, source: str) -> Gpu:
    return Gpu(name, gigabytes * GB, bf16 * TERA, fp32 * TERA, bandwidth * TERA, link * GB, source)


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("h100-80", 80, 989.4, 66.9, 3.35, 450, "NVIDIA H100 Tensor Core GPU data sheet, SXM"),
        _gpu("h200-141", 141, 989.4, 66.9, 4.8, 450, "NVIDIA H200 Tensor Core GPU data sheet, SXM"),
        _gpu("a100-80", 80, 312, 19.5, 2.039, 300, "NVIDIA A100 Tensor Core GPU data sheet, SXM"),
        _gpu("a100-40", 40, 312, 19.5, 1.555, 300, "NVIDIA A100 Tensor Core GPU data sheet, SXM"),
        _gpu("l40s", 48, 362, 91.6, 0.864, 32, "NVIDIA L40S data sheet; PCIe 4.0 x16"),
        _gpu("b200", 180, 2250, 75, 8.0, 900, "NVIDIA DGX B200 data sheet, an eighth of the system"),
        _gpu("rtx4090-24", 24, 165.2, 82.6, 1.008, 32, "NVIDIA Ada GPU architecture white paper; PCIe 4.0 x16"),
    )
}

NETWORK = 50 * GB  # bytes/s of a GPU to other machines: one 400 Gbit/s adapter a GPU (as in NVIDIA's DGX H100)
