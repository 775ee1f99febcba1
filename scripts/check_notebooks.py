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
INJECTED = "injected-parameters"  # papermill's tag
CELL_TRACES = ("execution", "papermill")  # in a cell's metadata
RECORDS = ("widgets", "papermill")  # in a notebook's


def strip(content: dict[str, Any]) -> int:
    """Empty the outputs and execution counts of a notebook, in place; returns how many cells and records had any.

    What a session leaves goes too: times of execution, papermill's record and the cell of parameters that it adds,
    states of widgets.
    """
    before = content["cells"]
    content["cells"] = [cell for cell in before if INJECTED not in cell["metadata"].get("tags", ())]
    found = len(before) - len(content["cells"])
    for cell in content["cells"]:
        traces = [cell["metadata"].pop(key, None) for key in CELL_TRACES]
        ran = cell["cell_type"] == "code" and (cell["outputs"] or cell["execution_count"] is not None)
        if ran:
            cell["outputs"], cell["execution_count"] = [], None
        found += bool(ran) or any(trace is not None for trace in traces)
    records = [content["metadata"].pop(key, None) for key in RECORDS]
    return found + sum(record is not None for record in records)


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
