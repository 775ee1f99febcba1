"""Execute the numbered notebooks by papermill, with parameters from a file, and say how they went.

A parameter file (``experiments/*/params.yaml``) maps names of notebooks to values of their parameters. Papermill only
warns about a parameter that a notebook does not have; here it is an error, as is a value of another type. Everything
is checked before the first notebook starts. Sources stay as they are; executed copies go to a results folder.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rethinker.config.repository import repository_root
from rethinker.rundir.atomic import atomic_write_text

FOLDER = "notebooks"
PARAMS = "experiments/smoke/params.yaml"
RESULTS = "experiments/results/notebooks"
TYPES: dict[str, type] = {"int": int, "float": float, "str": str, "bool": bool}
KERNEL_START_S = 120  # a cold disk; papermill's minute is short for it


class ParameterError(ValueError):
    """A parameter, or a notebook, that is not there, or a value that does not fit."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One line of a notebook's parameters cell: ``name: kind = default``."""

    name: str
    kind: str  # a key of TYPES
    default: int | float | str | bool


@dataclass(frozen=True, slots=True)
class Result:
    """How a notebook went. ``error`` is "" where all went well, else the failing cell and its message."""

    notebook: str
    seconds: float
    output: Path
    error: str = ""


def find_notebooks(names: Sequence[str] = (), folder: Path | None = None) -> list[Path]:
    """The notebooks in ``folder`` (default: the repository's), in order; those of ``names`` where given.

    A name is a stem or the beginning of one ("04"). ParameterError where it names none, or several.
    """
    folder = folder or repository_root() / FOLDER
    there = sorted(path for path in folder.glob("*.ipynb") if path.name[:1].isdigit())
    return [_named(name, there) for name in names] if names else there


def _named(name: str, there: Sequence[Path]) -> Path:
    wanted = Path(name).stem
    found = [path for path in there if path.stem == wanted] or [p for p in there if p.stem.startswith(wanted)]
    if len(found) != 1:
        near = difflib.get_close_matches(wanted, [path.stem for path in there], n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ParameterError(f"{name!r} names {len(found)} notebooks{hint}")
    return found[0]


def read_parameters(notebook: Path) -> dict[str, Parameter]:
    """The parameters of ``notebook``, from its one cell tagged ``parameters``.

    ParameterError where there is not exactly one such cell, or a line of it is not ``name: kind = constant``.
    """
    content = json.loads(notebook.read_text(encoding="utf-8"))
    cells = [cell for cell in content["cells"] if "parameters" in cell["metadata"].get("tags", ())]
    if len(cells) != 1:
        raise ParameterError(f"{notebook.name}: {len(cells)} cells are tagged parameters, it needs one")
    source = cells[0]["source"]
    found = {}
    for line in ast.parse(source if isinstance(source, str) else "".join(source)).body:
        parameter = _parameter(line)
        if parameter is None:
            raise ParameterError(
                f"{notebook.name}: {ast.unparse(line)!r} in the parameters cell is not "
                f"`name: kind = constant` with one of {', '.join(TYPES)}"
            )
        found[parameter.name] = parameter
    return found


def _parameter(line: ast.stmt) -> Parameter | None:
    if not (isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value is not None):
        return None
    kind = ast.unparse(line.annotation)
    try:
        value: Any = ast.literal_eval(line.value)
    except ValueError:
        return None
    fits = kind in TYPES and type(value) is TYPES[kind]
    return Parameter(line.target.id, kind, value) if fits else None


def check_parameters(notebook: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` as ``notebook`` takes them. ParameterError for an unknown name or a value of another type."""
    known = read_parameters(notebook)
    checked = {}
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ParameterError(f"{notebook.stem}: unknown parameter {name!r}{hint}")
        checked[name] = _convert(value, known[name], notebook)
    return checked


def _convert(value: Any, parameter: Parameter, notebook: Path) -> Any:
    kind = TYPES[parameter.kind]
    if type(value) is kind:
        return value
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-4 as text
        except ValueError:
            pass
    raise ParameterError(
        f"{notebook.stem}: parameter {parameter.name}={value!r} is {type(value).__name__}, not {parameter.kind}"
    )


def load_params(path: Path, folder: Path | None = None) -> dict[Path, dict[str, Any]]:
    """The parameters of every notebook that the file at ``path`` names, checked against the notebooks.

    ParameterError for a file that is no mapping of mappings, and for what ``check_parameters`` refuses.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ParameterError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not all(isinstance(values or {}, dict) for values in content.values()):
        raise ParameterError(f"{path}: needs names of notebooks, each with its parameters below it")
    try:
        return {
            notebook: check_parameters(notebook, values or {})
            for name, values in content.items()
            for notebook in find_notebooks([str(name)], folder)
        }
    except ParameterError as error:
        raise ParameterError(f"{path}: {error}") from None


def run_notebook(notebook: Path, output: Path, values: Mapping[str, Any] | None = None) -> Result:
    """Execute a copy of ``notebook`` with parameters ``values`` in a fresh kernel; the copy is written to ``output``.

    The working directory is the notebook's folder, as in JupyterLab. A failing cell is part of the result; the copy
    then holds everything up to it and its traceback. ParameterError for unknown parameters, ImportError where papermill
    is not installed.
    """
    try:
        import papermill
        from nbclient.exceptions import CellTimeoutError, DeadKernelError
    except ImportError as missing:
        raise ImportError(
            f"{missing}: notebooks need the extra lab (make setup-dev, or pip install -e '.[lab]')"
        ) from missing
    values = check_parameters(notebook, values or {})
    output.parent.mkdir(parents=True, exist_ok=True)
    started, error = time.monotonic(), ""
    try:
        papermill.execute_notebook(
            str(notebook.resolve()),
            str(output.resolve()),
            parameters=values,
            kernel_name="python3",
            progress_bar=False,
            start_timeout=KERNEL_START_S,
            extra_arguments=["--IPKernelApp.log_level=40"],  # it warns that loopback is not encrypted
            cwd=str(notebook.resolve().parent),
        )
    except papermill.PapermillExecutionError as failed:
        error = f"In [{failed.exec_count}]: {failed.ename}: {' '.join(failed.evalue.split())[:300]}"
    except (DeadKernelError, CellTimeoutError) as failed:
        error = f"{type(failed).__name__}: {' '.join(str(failed).split())[:300]}"
    if output.is_file():
        _forget_paths(output)
    return Result(notebook.stem, time.monotonic() - started, output, error)


def _forget_paths(output: Path) -> None:
    """Absolute paths tell of the machine and nothing else: papermill's own, and those below the repository that the
    notebook showed become relative to it."""
    content = json.loads(output.read_text(encoding="utf-8"))
    record = content["metadata"].get("papermill", {})
    for key in ("input_path", "output_path"):
        if record.get(key):
            record[key] = Path(record[key]).name
    root = re.compile(re.escape(str(repository_root())) + r"(/|(?![\w.-]))")
    text = json.dumps(_relative(content, root), indent=1, ensure_ascii=False)
    atomic_write_text(output, text + "\n")


def _relative(content: Any, root: re.Pattern[str]) -> Any:
    if isinstance(content, str):
        return root.sub(lambda found: "" if found[1] else ".", content)
    if isinstance(content, list):
        return [_relative(item, root) for item in content]
    if isinstance(content, dict):
        return {key: item if key.startswith("image/") else _relative(item, root) for key, item in content.items()}
    return content


def run_notebooks(params: Path, names: Sequence[str] = (), out: Path | None = None) -> list[Result]:
    """Execute the notebooks (all, or those of ``names``) one after the other; a failure does not stop the others.

    ``params``: a parameter file, relative to the repository's root; notebooks that it does not name keep their own
    values. ``out``: where the executed copies go (default: ``experiments/results/notebooks/<folder of params>``).
    """
    root = repository_root()
    params = root / params
    chosen, values = find_notebooks(names), load_params(params)
    for notebook in chosen:
        read_parameters(notebook)
    folder = out or root / RESULTS / params.parent.name
    results = []
    for notebook in chosen:
        print(f"{notebook.stem} ...", flush=True)
        results.append(run_notebook(notebook, folder / notebook.name, values.get(notebook, {})))
    return results


def print_results(results: Sequence[Result]) -> int:
    """The table of ``results``; returns the exit code, 1 where one failed."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="notebooks", title_justify="left")
    table.add_column("notebook", no_wrap=True)
    table.add_column("seconds", justify="right")
    table.add_column("state", overflow="fold")
    for result in results:
        state = f"[bold red]failed[/] {escape(result.error)}" if result.error else "[green]ok"
        table.add_row(result.notebook, f"{result.seconds:.1f}", state)
    Console().print(table)
    if results:
        print(f"executed copies: {results[0].output.parent}")
    return int(any(result.error for result in results))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``rethinker notebooks`` and ``python -m rethinker.lab.notebook.execute``."""
    parser.add_argument("names", nargs="*", help="notebooks to run, such as 04; default: all")
    parser.add_argument("--params", type=Path, default=Path(PARAMS), help="parameter file (default: %(default)s)")
    parser.add_argument("--out", type=Path, help=f"folder for executed copies; default: {RESULTS}/<name of the folder>")


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m rethinker.lab.notebook.execute [NAMES] [--params FILE]``; user errors are exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m rethinker.lab.notebook.execute", description="Execute the notebooks."
    )
    add_arguments(parser)
    options = parser.parse_args(argv)
    try:
        return print_results(run_notebooks(options.params, options.names, options.out))
    except (ParameterError, FileNotFoundError, ImportError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
