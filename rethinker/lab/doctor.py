"""``rethinker doctor``: what is installed here, what is broken, and the command that repairs it.

Libraries are imported in child processes: one that is missing, raises or crashes the interpreter is a row of the table.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from safetensors import SafetensorError, safe_open

Status = Literal["ok", "warning", "broken"]

PROBE_TIMEOUT = 240  # seconds; far more than a busy machine with a cold disk takes to import torch
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


# Name: (code for a child process, fix where it fails). The code sets ``found``, and ``hint`` where a warning is due.
LIBRARIES = {
    "torch": (
        """
import shutil, torch
gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
names = "; ".join(f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in gpus)
found = f"{torch.__version__}; {names or 'no GPU: runs use the CPU'}"
if shutil.which("nvidia-smi") and not gpus:
    found, hint = f"{torch.__version__}; nvidia-smi is here, but torch sees no GPU", "make setup EXTRA=gpu"
""",
        "make setup (or `make setup EXTRA=gpu`)",
    ),
    "torchvision": (
        """
import sys, torchvision
found = torchvision.__version__
if sys.modules["torchvision._meta_registrations"].__spec__ is None:
    found += " without its compiled operators (scripts/repair_torchvision.py; --undo takes it back)"
""",
        "python scripts/repair_torchvision.py",
    ),
    "transformers": (
        """
import accelerate, transformers
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
found = f"{transformers.__version__}; accelerate {accelerate.__version__}"
""",
        "python scripts/repair_torchvision.py, then make setup",
    ),
    "vLLM": (
        """
import importlib.util
if importlib.util.find_spec("vllm") is None:
    found = "not installed: rollouts use the transformers engine"
    hint = "make setup (README: the wheel index for CPUs)"
else:
    import vllm
    from vllm.platforms import current_platform
    found = f"{vllm.__version__} for {current_platform.device_type}"
""",
        "uninstall vllm (the transformers engine is used then), or remove .venv and make setup",
    ),
    "math-verify": (
        """
import importlib.metadata
from math_verify import parse, verify
assert verify(parse("$1/2$"), parse("$0.5$")), "1/2 is not found equal to 0.5"
found = importlib.metadata.version("math-verify")
""",
        "make setup",
    ),
    # Whether wandb finds a key for its host, by its own search. The key is neither kept nor shown; nothing is sent.
    "W&B": (
        """
import wandb
from wandb.sdk.lib import wbauth
host = wandb.setup().settings.base_url
try:
    key = wbauth.authenticate_session(host=host, source="doctor", prompt=False, update_session=False)
    state = f"a key for {host}" if key else f"not logged in ({host})"
except wandb.errors.AuthenticationError:
    key, state = None, f"the key is not a valid one ({host})"
found = f"{wandb.__version__}, {state}"
if key is None:
    hint = "wandb login (only to upload; runs work without it)"
""",
        "make setup",
    ),
}


def check_library(name: str) -> Check:
    """Import a library of ``LIBRARIES`` in a child process."""
    code, fix = LIBRARIES[name]
    report = "import json; print('\\n' + json.dumps([found, hint]))"
    try:
        child = subprocess.run(
            [sys.executable, "-c", f"hint = ''\n{code}\n{report}"],
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Check(name, "broken", f"no answer within {PROBE_TIMEOUT} s", fix)
    if child.returncode:
        errors = re.findall(r"^[\w.]*(?:Error|Exception|Exit|Interrupt)\b.*", child.stderr, re.MULTILINE)
        return Check(name, "broken", [f"ended with exit code {child.returncode}", *errors][-1], fix)
    found, hint = json.loads(child.stdout.splitlines()[-1])
    return Check(name, "warning" if hint else "ok", found, hint)


def check_packages() -> Check:
    """Every requirement of the installed package: present, and in the range that was tried."""
    missing, untried = [], []
    requirements = [Requirement(text) for text in importlib.metadata.requires("rethinker") or []]
    requirements = [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    for requirement in requirements:
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(requirement.name)
        else:
            if not requirement.specifier.contains(version, prereleases=True):
                untried.append(f"{requirement.name} {version} (tried: {requirement.specifier})")
    if missing or untried:
        found = "; ".join([*untried, *(["missing: " + ", ".join(missing)] if missing else [])])
        return Check("packages", "broken" if missing else "warning", found, "make setup (or `pip install -e .`)")
    return Check("packages", "ok", f"{len(requirements)} installed, all in the ranges that were tried")


def check_checkpoint(folder: Path) -> Check:
    """The committed tiny model: its files, and that the weights are as long as their header says."""
    fix = "git checkout data/tiny-vlm, or rethinker pretrain-tiny"
    if not folder.is_dir():
        return Check("tiny model", "warning", f"no {folder}", f"run from the repository's folder; {fix}")
    missing = [name for name in ("config.json", "model.safetensors", "tokenizer.json") if not (folder / name).is_file()]
    if missing:
        return Check("tiny model", "broken", f"{folder} lacks {', '.join(missing)}", fix)
    try:
        with safe_open(folder / "model.safetensors", framework="numpy") as weights:
            return Check("tiny model", "ok", f"{folder}, {len(weights.keys())} tensors")
    except (SafetensorError, OSError) as error:
        return Check("tiny model", "broken", f"{folder}: {error}", fix)


def check_disk(folder: Path) -> Check:
    """Free space where runs are written."""
    free = shutil.disk_usage(folder).free / GIB
    found = f"{free:.1f} GiB free in {folder}"
    if free >= ENOUGH_FREE_GIB:
        return Check("disk", "ok", found)
    fix = "free some space; checkpoints of a 7B model take 15 GiB each, without the optimiser"
    return Check("disk", "broken" if free < MIN_FREE_GIB else "warning", found, fix)


def check_machine() -> Check:
    """Python, the cores that this process may use, and memory."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    python = f"Python {sys.version.split()[0]} in {sys.prefix}"
    found = f"{python}; {cores} CPU core{'s' * (cores > 1)}, {memory:.0f} GiB memory"
    if cores < 2 or memory < ENOUGH_MEMORY_GIB:
        fix = f"the tiny run is made for 2 cores and {ENOUGH_MEMORY_GIB} GiB; it will be slow or run out of memory"
        return Check("machine", "warning", found, fix)
    return Check("machine", "ok", found)


def run_checks(root: Path | None = None) -> list[Check]:
    """All checks, in the table's order. ``root``: the folder with ``data/`` and ``runs/`` (default: the current)."""
    root = root or Path.cwd()
    with ThreadPoolExecutor(max_workers=3) as pool:
        libraries = list(pool.map(check_library, LIBRARIES))
    checkpoint = check_checkpoint(root / "data" / "tiny-vlm")
    return [check_machine(), check_packages(), *libraries, checkpoint, check_disk(root)]


def print_checks(checks: Sequence[Check]) -> int:
    """Print the table and a closing line; return the exit code, 1 where something required is broken."""
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
