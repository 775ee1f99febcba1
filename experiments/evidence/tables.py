"""``tables.py [GRID.yaml ...]``: collect the runs of grids into the tables of ``experiments/evidence/results``.

    .venv/bin/python experiments/evidence/tables.py                      # every grid of this folder
    .venv/bin/python experiments/evidence/tables.py experiments/evidence/forced.yaml --runs-dir runs
    .venv/bin/python experiments/evidence/tables.py --check forced ssr 3  # a run made again, against its committed rows

Runs that have not begun here keep the rows they have; sweeps are collected as a whole. Needs the runs' folders, where
``make evidence`` needs the tables only.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd

from rethinker.lab.ablation.grid import load_grid
from rethinker.lab.evidence.again import differences
from rethinker.lab.evidence.collect import collect
from rethinker.lab.evidence.tables import load, merge, save

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grids", nargs="*", type=Path, help="grid files; default: all of this folder")
    parser.add_argument("--runs-dir", help="where the runs are, if not where the grid files say")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--check", nargs=3, metavar=("GRID", "VARIANT", "SEED"), help="compare, and write nothing")
    options = parser.parse_args()
    files = options.grids or sorted(
        path for path in HERE.glob("*.yaml") if "\naxes:" in path.read_text(encoding="utf-8")
    )
    overrides = [f"runs_dir={options.runs_dir}"] if options.runs_dir else []
    before = load(options.out)
    grids = [load_grid(path, overrides) for path in files]
    if options.check:
        grid, variant, seed = options.check
        found = differences(before, collect(each for each in grids if each.name == grid), grid, variant, int(seed))
        sys.exit("\n".join(found) if found else 0)
    tables = merge(before, collect(grids))
    for path in save(tables, options.out):
        rows = f", {len(tables[path.stem])} rows" if path.stem in tables else ""
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB{rows}")
    states = pd.concat([tables["runs"], tables["sweeps"]])
    print(states.groupby(["grid", "variant", "state"]).size().to_string() if len(states) else "no run has begun")


if __name__ == "__main__":
    main()
