"""Notebooks: their sources keep the conventions, parameters are checked, and every one runs from top to bottom."""

from __future__ import annotations

import ast
import base64
import importlib.util
import inspect
import io
import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from PIL import Image

from rethinker import cli
from rethinker.config import load_config
from rethinker.lab.ablation.grid import load_grid
from rethinker.lab.notebook import execute as notebooks
from rethinker.lab.notebook.cut_down import cut_down
from rethinker.lab.notebook.execute import (
    ParameterError,
    check_parameters,
    find_notebooks,
    load_params,
    read_parameters,
)

ROOT = Path(__file__).parents[1]
SOURCES = find_notebooks()
KINDS = ("int", "float", "str", "bool")
LONGEST = 20  # lines per cell; the style asks for about 15
LOGIC = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.While, ast.Try)  # belongs into rethinker/


def is_logic(node: ast.AST) -> bool:
    """Definitions and loops; a loop over one call, such as printing, is none."""
    if isinstance(node, ast.For):
        return len(node.body) > 1 or not isinstance(node.body[0], ast.Expr)
    return isinstance(node, LOGIC)


def code_cells(path: Path) -> list:
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def hook():
    spec = importlib.util.spec_from_file_location("check_notebooks", ROOT / "scripts" / "check_notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
class TestSources:
    def test_no_outputs(self, path: Path, hook, capsys):
        assert hook.main([str(path)]) == 0, capsys.readouterr().out

    def test_the_title_has_the_number_and_the_question_comes_first(self, path: Path):
        first = nbformat.read(path, 4).cells[0]
        assert first.cell_type == "markdown"
        assert re.match(rf"# {path.stem[:2]}\b.*\S", first.source)
        for words in (("question",), ("inputs", "**in.**"), ("outputs", "**out.**"), ("time",), ("two cpu cores",)):
            assert any(word in first.source.lower() for word in words), f"it does not say its {words[0]}"

    def test_a_picture_of_the_result_stands_at_the_top(self, path: Path):
        """In the notebooks' own folder: JupyterLab shows nothing from above its root."""
        top = nbformat.read(path, 4).cells[0].source
        (alt, where), *_ = re.findall(r"^!\[(.+)\]\((.+)\)$", top, flags=re.MULTILINE)
        assert where == f"images/{path.stem[:2]}.png" and len(alt.split()) > 8
        assert Image.open(path.parent / where).format == "PNG"

    def test_there_are_exercises_with_hints_and_one_thing_to_change(self, path: Path):
        texts = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown"]
        (exercises,) = [text for text in texts if "## Exercises" in text]
        assert 1 <= len(re.findall(r"^\d\. ", exercises, flags=re.MULTILINE)) == exercises.count("*Hint: ") <= 3
        assert any("Change one thing" in text for text in texts)
        for cell in code_cells(path):
            assert ("change" in cell.metadata.get("tags", ())) == ("# <- change this line" in cell.source), cell.id

    def test_parameters_are_flat_annotated_constants_before_all_other_code(self, path: Path):
        """And papermill's own reader, which skips a line that it does not understand, finds them all."""
        first, *others = code_cells(path)
        assert first.metadata["tags"] == ["parameters"]
        assert not any("parameters" in cell.metadata.get("tags", ()) for cell in others)
        kinds = {}
        for line in ast.parse(first.source).body:
            assert isinstance(line, ast.AnnAssign), ast.unparse(line)
            kinds[line.target.id] = ast.unparse(line.annotation)
            assert type(ast.literal_eval(line.value)).__name__ == kinds[line.target.id] in KINDS, ast.unparse(line)
        assert read_parameters(path) == kinds

    def test_cells_hold_no_logic(self, path: Path):
        for cell in code_cells(path):
            found = [type(node).__name__ for node in ast.walk(ast.parse(cell.source)) if is_logic(node)]
            assert not found, f"{found} in cell {cell.id}: move it to rethinker/"
            assert len(cell.source.splitlines()) <= LONGEST, cell.id

    def test_no_paths_of_a_machine(self, path: Path):
        assert not re.search(r"/(?:home|work|tmp|root|Users)/", path.read_text(encoding="utf-8"))

    def test_ids_are_unique_and_the_kernel_is_python(self, path: Path):
        book = nbformat.read(path, 4)
        nbformat.validate(book)
        assert len({cell.id for cell in book.cells}) == len(book.cells)
        assert book.metadata.kernelspec.name == "python3"


@pytest.mark.parametrize("path", sorted(ROOT.glob("experiments/*/params.yaml")), ids=lambda path: path.parent.name)
def test_parameter_files_name_what_is_there(path: Path):
    assert set(load_params(path)) <= set(SOURCES)


def test_the_full_parameters_are_of_one_run_as_its_config_says():
    """Notebook 00 trains what the others read; 06 cuts nothing of it; 09 evaluates on what training tested on."""
    values = {path.stem[:2]: given for path, given in load_params(ROOT / "experiments/full/params.yaml").items()}
    trained = load_config(ROOT / values["00"]["config"], shlex.split(values["00"]["overrides"]))
    taken = inspect.signature(cut_down).parameters
    cell = ast.parse(code_cells(find_notebooks(["06"])[0])[0].source)
    defaults = {line.target.id: ast.literal_eval(line.value) for line in cell.body}
    assert cut_down(**{name: value for name, value in {**defaults, **values["06"]}.items() if name in taken}) == trained
    own = load_config(ROOT / values["00"]["config"])
    assert (
        (trained.launch.processes, trained.rollout.engine) == (own.launch.processes, own.rollout.engine) == (8, "auto")
    )
    assert trained.stages == own.stages and trained.data.validation
    assert {given["run"] for given in values.values() if "run" in given} == {str(trained.folder)}
    assert values["09"]["data"] == trained.data.test and values["09"]["samples"] == 0
    assert load_grid(ROOT / values["07"]["grid_file"]).runs


def write_notebook(folder: Path, name: str, parameters: str, *cells: str) -> Path:
    book = new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})
    book.cells = [new_markdown_cell(f"# {name}"), new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    book.cells += [new_code_cell(cell) for cell in cells]
    path = folder / f"{name}.ipynb"
    nbformat.write(book, path)
    return path


def test_an_unknown_parameter_is_an_error_that_names_the_nearest(tmp_path):
    path = write_notebook(tmp_path, "01_a", "draws: int = 3\nrate: float = 0.5\nrun: str = ''\nquick: bool = True")
    with pytest.raises(ParameterError, match=r"01_a: unknown parameter 'drows'; did you mean 'draws'\?"):
        check_parameters(path, {"drows": 4})
    assert check_parameters(path, {"draws": 4, "rate": "1e-3", "quick": False}) == {
        "draws": 4,
        "rate": 1e-3,
        "quick": False,
    }
    for name, value in (("draws", "4"), ("draws", True), ("draws", 1.5), ("rate", "much"), ("run", 7), ("quick", 1)):
        with pytest.raises(ParameterError, match=f"parameter {name}="):
            check_parameters(path, {name: value})


def test_notebooks_are_found_by_their_beginning(tmp_path):
    for name in ("00_first", "01_second", "10_tenth"):
        write_notebook(tmp_path, name, "a: int = 1")
    write_notebook(tmp_path, "scratch", "a: int = 1")
    assert [path.stem for path in find_notebooks(folder=tmp_path)] == ["00_first", "01_second", "10_tenth"]
    assert [path.stem for path in find_notebooks(["10", "00_first.ipynb"], tmp_path)] == ["10_tenth", "00_first"]
    with pytest.raises(ParameterError, match=r"'0' names 2 notebooks"):
        find_notebooks(["0"], tmp_path)
    with pytest.raises(ParameterError, match=r"'01_secnd' names 0 notebooks; did you mean '01_second'\?"):
        find_notebooks(["01_secnd"], tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- 1", "needs names of notebooks"),
        ("00_first: 3", "needs names of notebooks"),
        ("00_first: {b: 1}", "unknown parameter 'b'; did you mean 'a'"),
        ("02_what: {}", "'02_what' names 0 notebooks"),
        ("a: [", "while parsing"),
    ],
)
def test_broken_parameter_files(tmp_path, text, expected):
    write_notebook(tmp_path, "00_first", "a: int = 1")
    file = tmp_path / "params.yaml"
    file.write_text(text)
    with pytest.raises(ParameterError, match=expected):
        load_params(file, tmp_path)


def test_mistakes_on_the_command_line_are_one_line(tmp_path, capsys):
    file = tmp_path / "params.yaml"
    file.write_text("04_selective_replay: {drows: 1}")
    assert cli.main(["notebooks", "02", "--params", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rethinker notebooks: ") and "did you mean 'draws'?" in error and error.count("\n") == 1
    assert cli.main(["notebooks", "--params", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err


@pytest.mark.slow
def test_executed_copies(tmp_path, monkeypatch, capsys):
    """One that works, one whose second cell fails, one whose kernel dies; what is reported, what stays."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    here = f"print('{tmp_path}/runs/a', '{tmp_path}: {tmp_path}-old')"
    write_notebook(folder, "00_good", "a: int = 1", "from pathlib import Path\nprint(a + 1, Path.cwd().name)", here)
    write_notebook(folder, "01_bad", "a: int = 1", "1 / 0", "print('not reached')")
    write_notebook(folder, "02_dead", "a: int = 1", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    params = tmp_path / "some" / "params.yaml"
    params.parent.mkdir()
    params.write_text("00_good: {a: 41}")
    monkeypatch.setattr(notebooks, "repository_root", lambda: tmp_path)
    code = cli.main(["notebooks", "--params", str(params)])
    out = capsys.readouterr().out
    assert code == 1 and "ok" in out and "In [2]: ZeroDivisionError: division by zero" in out and "DeadKernel" in out
    copies = tmp_path / "experiments" / "results" / "notebooks" / "some"
    good = nbformat.read(copies / "00_good.ipynb", 4)
    assert good.cells[-2].outputs[0]["text"] == "42 notebooks\n"
    assert good.cells[-1].outputs[0]["text"] == f"runs/a .: {tmp_path}-old\n"  # no path of the machine
    assert (
        "ZeroDivisionError" in (copies / "01_bad.ipynb").read_text()
        and "not reached'" in before[folder / "01_bad.ipynb"].decode()
    )
    assert str(tmp_path) not in json.dumps(good.metadata)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert cli.main(["notebooks", "00", "--params", str(params), "--out", str(tmp_path / "out")]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["00_good.ipynb"]


def test_pictures_come_from_the_tagged_cell(tmp_path):
    spec = importlib.util.spec_from_file_location("notebook_pictures", ROOT / "scripts" / "notebook_pictures.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    buffer = io.BytesIO()
    Image.new("RGB", (2000, 500), "#0072b2").save(buffer, "PNG")
    path = write_notebook(tmp_path, "07_a", "a: int = 1", "a", "b")
    book = nbformat.read(path, 4)
    book.cells[3].metadata["tags"] = ["picture"]
    nbformat.write(book, path)
    with pytest.raises(SystemExit, match="has no figure"):
        script.main([str(tmp_path), "--out", str(tmp_path)])
    png = base64.b64encode(buffer.getvalue()).decode()
    book.cells[3].outputs = [nbformat.v4.new_output("display_data", {"image/png": png})]
    nbformat.write(book, path)
    assert script.main([str(tmp_path), "--out", str(tmp_path)]) == 0
    made = Image.open(tmp_path / "07.png")
    assert made.size == (960, 240) and made.convert("RGB").getpixel((5, 5)) == (0, 0x72, 0xB2)


def test_the_hook_finds_and_strips_outputs(tmp_path, hook, capsys):
    path = write_notebook(tmp_path, "00_a", "a: int = 1", "a")
    assert hook.main([str(path)]) == 0
    book = nbformat.read(path, 4)
    book.cells[2].outputs = [nbformat.v4.new_output("stream", text="1\n")]
    book.cells[2].execution_count = 3
    book.metadata["widgets"] = {"state": {}}
    nbformat.write(book, path)
    assert hook.main([str(path)]) == 1 and "has outputs" in capsys.readouterr().out
    assert hook.main(["--strip", str(path)]) == 1
    stripped = nbformat.read(path, 4)
    assert not stripped.cells[2].outputs and stripped.cells[2].execution_count is None
    assert "widgets" not in stripped.metadata and hook.main([str(path)]) == 0


@pytest.mark.parametrize("trace", ["execution", "papermill"])
def test_the_hook_finds_what_a_session_leaves_in_cells(tmp_path, hook, capsys, trace):
    path = write_notebook(tmp_path, "00_a", "a: int = 1", "a")
    book = nbformat.read(path, 4)
    book.cells[2].metadata[trace] = {"started": "today"}
    nbformat.write(book, path)
    assert hook.main([str(path)]) == 1 and "traces of a session" in capsys.readouterr().out
    assert hook.main(["--strip", str(path)]) == 1 and hook.main([str(path)]) == 0
    assert trace not in nbformat.read(path, 4).cells[2].metadata


def test_the_hook_finds_parameters_that_papermill_put_in(tmp_path, hook):
    path = write_notebook(tmp_path, "00_a", "a: int = 1", "a")
    clean = path.read_text()
    book = nbformat.read(path, 4)
    book.cells.insert(2, new_code_cell("a = 41", metadata={"tags": ["injected-parameters"]}))
    nbformat.write(book, path)
    assert hook.main([str(path)]) == 1 and hook.main(["--strip", str(path)]) == 1
    assert json.loads(path.read_text()) == json.loads(clean)


def test_the_hook_runs_without_the_package(tmp_path):
    """As git would run it: with any Python, in any environment."""
    path = write_notebook(tmp_path, "00_a", "a: int = 1", "a")
    command = ["python3", "-I", str(ROOT / "scripts" / "check_notebooks.py"), str(path)]
    assert subprocess.run(command, check=False).returncode == 0
    path.write_text(path.read_text().replace('"execution_count": null', '"execution_count": 1', 1))
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1


def test_the_hook_is_the_one_that_is_configured(hook):
    import yaml

    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (entry,) = config["repos"][0]["hooks"]
    assert entry["entry"].split()[-1] == "scripts/check_notebooks.py" and hook.FOLDER == ROOT / "notebooks"
    assert re.search(entry["files"], "notebooks/00_first_run.ipynb")


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory) -> Path:
    """Where notebooks write runs: one place for all, so that the demo run is made once, by whichever comes first."""
    base = tmp_path_factory.getbasetemp()  # below that of the session where xdist's workers have one each
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "notebook-runs"


@pytest.mark.slow
@pytest.mark.timeout(600)  # with the demo run to be made, on a busy machine
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path: Path, runs_dir: Path, tmp_path: Path):
    values = {"runs_dir": str(runs_dir)} if "runs_dir" in read_parameters(path) else {}
    result = notebooks.run_notebook(path, tmp_path / path.name, values)
    assert not result.error
    for cell in code_cells(tmp_path / path.name):
        assert not any(output.output_type == "error" for output in cell.outputs)
