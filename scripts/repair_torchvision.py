"""Make ``import torchvision`` work beside a CPU build of torch; ``--undo`` takes every change back.

    .venv/bin/python scripts/repair_torchvision.py [--undo]

PyPI's torchvision, torchaudio and torchcodec are CUDA builds. Beside a CPU build of torch their compiled parts cannot
be loaded; with them fall transformers' processors and vLLM's inspection of models. Only where an import fails, this
script changes the environment of the Python that runs it:

1. torchaudio and torchcodec are uninstalled if they cannot be imported (nothing here uses sound or video);
2. if torchvision cannot be imported, a file ``rethinker_torchvision_without_operators.pth`` in site-packages puts an
   empty module at ``torchvision._meta_registrations`` whenever this Python starts, in subprocesses too. Missing are
   then only torchvision's compiled operators (NMS, RoI align), which nothing here calls.

The file lists what was done. Called by scripts/install.py; running it again does nothing, and where torchvision has
come to work without the file, the file is removed. The way without a repair is torchvision's own CPU build, from
https://download.pytorch.org/whl/cpu, which setup installs where it can be had. Standard library only.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import subprocess
import sys
import sysconfig
from pathlib import Path

FILE_NAME = "rethinker_torchvision_without_operators.pth"
MODULE = "torchvision._meta_registrations"
# Python runs a line of a .pth file that starts with "import".
STUB = f'import sys, types; sys.modules.setdefault("{MODULE}", types.ModuleType("{MODULE}"))\n'
UNINSTALLED = "# uninstalled: "
COMPANIONS = ("torchaudio", "torchcodec")
PROCESSOR = "from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor"
WITHOUT_STUB = f"import sys; sys.modules.pop({MODULE!r}, None)\n"


def say(text: str) -> None:
    print(f"torchvision: {text}", flush=True)


def import_error(code: str) -> str:
    """The last line of the error that ``code`` ends with in a fresh interpreter; "" where there is none."""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return (child.stderr.strip() or f"exit code {child.returncode}").splitlines()[-1] if child.returncode else ""


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", *arguments], check=True)


def repair(file: Path) -> int:
    if not import_error(f"{WITHOUT_STUB}import torchvision\n{PROCESSOR}"):
        if file.exists() and STUB in (text := file.read_text()):
            say(f"works by itself now, taking back {file}")
            if UNINSTALLED in text:
                file.write_text(text.replace(STUB, ""))
            else:
                file.unlink()
        return 0
    note = file.read_text() if file.exists() else "# Written by scripts/repair_torchvision.py; --undo takes it back.\n"
    for package in COMPANIONS:
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        if error := import_error(f"import {package}"):
            pip("uninstall", "--quiet", "--yes", package)
            note += f"{UNINSTALLED}{package}=={version}\n"
            file.write_text(note)
            say(f"uninstalled {package} {version}, a build for another torch ({error})")
    if STUB not in note and (error := import_error(f"{WITHOUT_STUB}import torchvision")):
        file.write_text(note + STUB)
        say(f"it starts without its compiled operators now ({error}), by {file}")
    if error := import_error(f"import torchvision\n{PROCESSOR}"):
        say(f"the repair did not help: {error}")
        say("remove .venv and run `make setup` again; on a GPU machine `make setup EXTRA=gpu`")
        return 1
    return 0


def undo(file: Path) -> int:
    if not file.exists():
        say(f"nothing to undo: there is no {file}")
        return 0
    lines = file.read_text().splitlines()
    uninstalled = [line.removeprefix(UNINSTALLED) for line in lines if line.startswith(UNINSTALLED)]
    if uninstalled:
        pip("install", "--quiet", "--no-deps", *uninstalled)
        say(f"installed {', '.join(uninstalled)} again")
    file.unlink()
    say(f"removed {file}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--undo", action="store_true", help="take back what an earlier call changed")
    options = parser.parse_args()
    file = Path(sysconfig.get_path("purelib")) / FILE_NAME
    return undo(file) if options.undo else repair(file)


if __name__ == "__main__":
    sys.exit(main())
