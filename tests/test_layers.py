"""Imports go down only: the contracts are in pyproject.toml, import-linter checks them."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_import_contracts_hold() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_algorithm_contract_covers_its_whole_layer() -> None:
    """A module added to the layer and forgotten in the contract would be free to import anything."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    by_id = {contract["id"]: contract for contract in contracts}
    layers = [{name.strip("() ") for name in layer.replace("|", ":").split(":")} for layer in by_id["layers"]["layers"]]
    top = next(index for index, layer in enumerate(layers) if "grpo" in layer)
    modules = {name.removeprefix("rethinker.") for name in by_id["algorithm"]["source_modules"]}
    assert modules == set().union(*layers[top:])
