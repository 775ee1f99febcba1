"""``rethinker data inspect``, and a data set of ViRL39K's size and form: opened, filtered and drawn from in little
memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from synthetic_virl import ROWS, write_virl

from rethinker.cli import main
from rethinker.lab.inspect.card import answer_type

FIRST_BATCH = """
import json, re, sys
from pathlib import Path
from rethinker.config import load_config
from rethinker.datasets.drawn import LEFT_TO_THE_DRAW, DrawnChecks
from rethinker.datasets.filters import training_filter
from rethinker.datasets.io import load_queries
from rethinker.datasets.order import QueryOrder
from rethinker.policy.pictures import open_image

keep = training_filter(load_config(None, [f"data.filter={sys.argv[2]}"]).data)
queries, _ = load_queries(sys.argv[1], keep=keep, **LEFT_TO_THE_DRAW)
batch = QueryOrder(queries, 0, DrawnChecks(None, print)).take(64)
pictures = [open_image(path) for query in batch for path in query.images]
# Not ru_maxrss, which begins with that of the process that started this one.
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
print(json.dumps([keep.read.total(), len(queries), len(batch), len(pictures), peak]))
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_kinds_of_answers():
    kinds = {
        "B": "letter of a choice",
        "(C)": "letter of a choice",
        "1,024": "whole number",
        "-3": "whole number",
        "0.5": "decimal",
        "\\frac{1}{2}": "fraction",
        "3/4": "fraction",
        "30^\\circ": "number with a unit",
        "12 cm": "number with a unit",
        "25\\%": "number with a unit",
        "Yes": "yes or no",
        "photosynthesis": "words",
        "2\\sqrt{3}": "expression",
        "x = 3": "expression",
    }
    assert {gold: answer_type(gold) for gold in kinds} == kinds


def test_the_card_of_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bad = write_virl(tmp_path / "virl", 140)
    assert main(["data", "inspect", str(tmp_path / "virl"), "--out", str(tmp_path / "card")]) == 0
    out = capsys.readouterr().out
    assert "140 rows, 137 usable" in out and "image                list<element: string>" in out
    assert "vl-rethinker-7b-no-text" in out and "the paper has about 13,000" in out
    assert "## PassRate_7BBase" in out and "none (text only)" in out and "## Unusable rows: 3" in out
    unusable = json.loads((tmp_path / "card" / "unusable.json").read_text(encoding="utf-8"))
    assert {row["qid"]: row["reason"] for row in unusable} == bad
    assert (tmp_path / "card" / "card.md").read_text(encoding="utf-8").strip() in out
    with Image.open(tmp_path / "card" / "contact-sheet.png") as sheet:
        assert sheet.width > 1000 and len(sheet.convert("RGB").getcolors(2**24) or ()) > 100
    assert not list(Path("runs", "inspect").glob("*virl*"))


def test_a_data_set_with_other_columns_says_what_it_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "x.jsonl").write_text('{"problem": "1 + 1?", "solution": "2"}\n', encoding="utf-8")
    place = ["data", "inspect", str(tmp_path / "x.jsonl"), "--out", str(tmp_path / "card")]
    assert main([*place, "data.columns={question: problem, answer: solution}"]) == 0
    assert "1 rows, 1 usable" in capsys.readouterr().out
    assert main([*place, "data.columns={question: problem, answr: solution}"]) == 2
    assert "no column 'answr' in the schema" in capsys.readouterr().err


def test_columns_are_those_that_a_run_uses(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Training data with the schema's own columns, beside a test split with others."""
    (tmp_path / "own.jsonl").write_text('{"qid": "a", "question": "1 + 1?", "answer": "2"}\n', encoding="utf-8")
    (tmp_path / "other.jsonl").write_text('{"problem": "1 + 2?", "solution": "3"}\n', encoding="utf-8")
    files = [f"data.train={tmp_path / 'own.jsonl'}", f"data.test={tmp_path / 'other.jsonl'}"]
    settings = [*files, "data.columns={question: problem, answer: solution}"]
    (tmp_path / "x.yaml").write_text("data: {columns_of: [test]}\n", encoding="utf-8")
    command = ["data", "inspect", str(tmp_path / "x.yaml"), *settings, "--out", str(tmp_path / "card")]
    assert main(command) == 0
    assert "1 rows, 1 usable" in capsys.readouterr().out
    assert main([*command, "data.columns_of=[train]"]) == 0
    assert "1 rows, 0 usable" in capsys.readouterr().out


@pytest.mark.long
def test_39000_rows_are_drawn_from_in_little_memory(tmp_path: Path):
    """The seconds are in experiments/LOG.md."""
    write_virl(tmp_path / "virl")
    command = [sys.executable, "-c", FIRST_BATCH, str(tmp_path / "virl"), "vl-rethinker-7b"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    read, kept, drawn, pictures, peak = json.loads(done.stdout.splitlines()[-1])
    assert read == ROWS and 15_000 < kept < 18_000 and drawn == 64 and pictures > 32
    assert peak < 500  # MB
    assert len(list((tmp_path / "cache").rglob("*.jpg"))) <= pictures  # nothing else was unpacked
