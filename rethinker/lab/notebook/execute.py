"""Execute the numbered notebooks by papermill, with parameters from a file, and say how they went.

A parameter file (``experiments/*/params.yaml``) maps names of notebooks to values of their parameters. Papermill only
warns about a parameter that a notebook does not have; here it is an error, as is a value of another type. Everything
is checked before the first notebook starts. Sources stay as they are; executed copies go to a results folder.
"""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rethinker.config.repository import repository_root
from rethinker.rundir.atomic import atomic_write_text

FOLDER = "notebooks"
PARAMS = "experiments/smoke/params.yaml"
RESULTS = "experiments/results/notebooks"
KERNEL_START_S = 120  # a cold disk; papermill's minute is short for it


class ParameterError(ValueError):
    """A parameter, or a notebook, that is not there, or a value that does not fit."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a notebook went. ``error`` is "" if all went well, else the failing cell and its message."""

    notebook: str
    seconds: float
    output: Path
    error: str = ""


def find_notebooks(names: Sequence[str] = (), folder: Path | None = None) -> list[Path]:
    """The notebooks in ``folder`` (default: the repository's), in order; those of ``names`` where given.

    A name is a stem or the beginning of one ("04"). ParameterError if it names none, or several.
    """
    folder = folder or repository_root() / FOLDER
    there = {path.stem: path for path in sorted(folder.glob("[0-9]*.ipynb"))}
    if not names:
        return list(there.values())
    chosen = []
    for name in names:
        wanted = Path(name).stem
        found = [wanted] if wanted in there else [stem for stem in there if stem.startswith(wanted)]
        if len(found) != 1:
            hint = "" if found else _nearest(wanted, there)
            raise ParameterError(f"{name!r} names {len(found)} notebooks{hint}")
        chosen.append(there[found[0]])
    return chosen


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"; did you mean {near[0]!r}?" if near else ""


def read_parameters(notebook: Path) -> dict[str, str]:
    """Name -> type, as annotated in the cell of ``notebook`` that is tagged ``parameters``, read by papermill."""
    try:
        import papermill
    except ImportError as missing:
        raise ImportError(f"{missing}: notebooks need the extra lab (make setup-dev)") from missing
    return {name: found["inferred_type_name"] for name, found in papermill.inspect_notebook(notebook).items()}


def check_parameters(notebook: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` as ``notebook`` takes them. ParameterError for an unknown name or a value of another type."""
    if not values:
        return {}
    known, checked = read_parameters(notebook), {}
    for name, value in values.items():
        if name not in known:
            raise ParameterError(f"{notebook.stem}: unknown parameter {name!r}{_nearest(name, known)}")
        if known[name] == "float" and re.fullmatch(r"[-+.\de]+", str(value)):
            value = float(value)  # an integer, or what YAML reads as text, such as 1e-4
        if type(value).__name__ != known[name]:
            kind = type(value).__name__
            raise ParameterError(f"{notebook.stem}: parameter {name}={value!r} is {kind}, not {known[name]}")
        checked[name] = value
    return checked


def load_params(path: Path, folder: Path | None = None) -> dict[Path, dict[str, Any]]:
    """The parameters of every notebook that the file at ``path`` names, checked against the notebooks.

    ParameterError for a file that is no mapping of mappings, and for what ``check_parameters`` refuses.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        if not isinstance(content, dict) or not all(isinstance(values or {}, dict) for values in content.values()):
            raise ParameterError("needs names of notebooks, each with its parameters below it")
        notebooks = find_notebooks([str(name) for name in content], folder) if content else []
        given = zip(notebooks, content.values(), strict=True)
        return {notebook: check_parameters(notebook, values or {}) for notebook, values in given}
    except (yaml.YAMLError, ParameterError) as error:
        raise ParameterError(f"{path}: {' '.join(str(error).split())}") from error


def run_notebook(notebook: Path, output: Path, values: Mapping[str, Any] | None = None) -> Result:
    """Execute a copy of ``notebook`` with parameters ``values`` in a fresh kernel; the copy is written to ``output``.

    The working directory is the notebook's folder, as in JupyterLab. A failing cell is part of the result; the copy
    then holds everything up to it and its traceback. ParameterError for unknown parameters, ImportError where papermill
    is not installed.
    """
    values = check_parameters(notebook, values or {})
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    output.parent.mkdir(parents=True, exist_ok=True)
    started, error = time.monotonic(), ""
    try:
        papermill.execute_notebook(
            notebook.resolve(),
            output.resolve(),
            parameters=values,
            kernel_name="python3",
            progress_bar=False,
            start_timeout=KERNEL_START_S,
            extra_arguments=["--IPKernelApp.log_level=40"],  # it warns that loopback is not encrypted
            cwd=notebook.resolve().parent,
        )
    except papermill.PapermillExecutionError as failed:
        error = f"In [{failed.exec_count}]: {failed.ename}: {' '.join(failed.evalue.split())[:300]}"
    except (DeadKernelError, CellTimeoutError) as failed:
        error = f"{type(failed).__name__}: {' '.join(str(failed).split())[:300]}"
    if output.is_file():
        atomic_write_text(output, _without_paths(output.read_text(encoding="utf-8")))
    return Result(notebook.stem, time.monotonic() - started, output, error)


def _without_paths(text: str) -> str:
    """Absolute paths tell of the machine and nothing else: papermill's own become file names, and those below the
    repository relative to it."""
    text = re.sub(r'("(?:in|out)put_path": ")[^"]*/', r"\1", text)
    root = re.escape(str(repository_root()))
    return re.sub(root + r"(/|(?![\w.-]))", lambda found: "" if found[1] else ".", text)


def run_notebooks(params: Path, names: Sequence[str] = (), out: Path | None = None) -> list[Result]:
    """Execute the notebooks (all, or those of ``names``) one after the other; a failure does not stop the others.

    ``params``: a parameter file, relative to the repository's root; notebooks that it does not name keep their own
    values. ``out``: where the executed copies go (default: ``experiments/results/notebooks/<folder of params>``).
    """
    root = repository_root()
    chosen, values = find_notebooks(names), load_params(root / params)
    folder = out or root / RESULTS / (root / params).parent.name
    results = []
    for notebook in chosen:
        print(f"{notebook.stem} ...", flush=True)
        results.append(run_notebook(notebook, folder / notebook.name, values.get(notebook)))
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
