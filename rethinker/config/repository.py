"""Where the repository is: notebooks run in their own folder, the command line where the user stands."""

from __future__ import annotations

import os
from pathlib import Path


def find_repository(start: str | Path | None = None) -> Path | None:
    """The nearest folder at or above ``start`` (default: the working directory) that holds this repository.

    Where there is none above: the folder that this package was installed from in editable mode; None where that is none
    either (an installed wheel outside a checkout).
    """
    here = Path(start or ".").resolve()
    package = Path(__file__).resolve().parents[2]
    for folder in (here, *here.parents, package):
        if (folder / "rethinker" / "__init__.py").is_file() and (folder / "data" / "tiny-vlm").is_dir():
            return folder
    return None


def repository_root(start: str | Path | None = None) -> Path:
    """``find_repository``. Raises FileNotFoundError if there is none."""
    root = find_repository(start)
    if root is None:
        raise FileNotFoundError(f"no checkout of the repository at or above {start or Path.cwd()}: start in its folder")
    return root


def enter_repository() -> None:
    """Make the repository's root the working directory, so that ``runs/...`` and ``data/...`` mean the same
    everywhere: in JupyterLab opened at the root or in ``notebooks/``, and under papermill."""
    os.chdir(repository_root())
