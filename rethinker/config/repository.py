"""Where the repository is: notebooks run in their own folder, the command line where the user stands."""

from __future__ import annotations

import os
from pathlib import Path


def repository_root(start: str | Path | None = None) -> Path:
    """The nearest folder at or above ``start`` (default: the working directory) that holds this repository.

    Where there is none above: the folder that this package was installed from in editable mode.
    Raises FileNotFoundError where that is none either (an installed wheel outside a checkout).
    """
    here = Path(start) if start is not None else Path.cwd()
    package = Path(__file__).resolve().parents[2]
    for folder in (here.resolve(), *here.resolve().parents, package):
        if (folder / "rethinker" / "__init__.py").is_file() and (folder / "data" / "tiny-vlm").is_dir():
            return folder
    raise FileNotFoundError(f"no checkout of the repository at or above {here}: start from its folder")


def enter_repository() -> None:
    """Make the repository's root the working directory, so that ``runs/...`` and ``data/...`` mean the same
    everywhere: in JupyterLab opened at the root or in ``notebooks/``, and under papermill."""
    os.chdir(repository_root())
