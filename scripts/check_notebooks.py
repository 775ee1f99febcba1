"""Notebooks are committed without outputs: say which have any, or take them out. Needs nothing but Python.

    python3 scripts/check_notebooks.py [--strip] [FILES]

The hook of .pre-commit-config.yaml; exit code 1 where a file has (or, with --strip, had) outputs. Default: notebooks/.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"


def strip(content: dict[str, Any]) -> int:
    """Empty the outputs and execution counts of a notebook, in place; returns the number of cells that had any.

    What a session leaves in the metadata (widget states, papermill's record) goes too.
    """
    found = 0
    for cell in content["cells"]:
        if cell["cell_type"] == "code" and (cell["outputs"] or cell["execution_count"] is not None):
            cell["outputs"], cell["execution_count"] = [], None
            found += 1
        for key in ("execution", "papermill"):
            cell["metadata"].pop(key, None)
    for key in ("widgets", "papermill"):
        if content["metadata"].pop(key, None) is not None:
            found += 1
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--strip", action="store_true", help="take the outputs out")
    options = parser.parse_args(argv)
    failed = 0
    for path in options.files or sorted(FOLDER.glob("*.ipynb")):
        content = json.loads(path.read_text(encoding="utf-8"))
        found = strip(content)
        if found and options.strip:
            path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            print(f"{path}: stripped")
        elif found:
            print(f"{path}: has outputs or traces of a session; python3 scripts/check_notebooks.py --strip {path}")
        failed |= bool(found)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
