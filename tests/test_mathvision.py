"""MathVision's adapter on rows in its published schemas: the hub's parquet and the official repository's JSON lines."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rethinker.benchmarks.base import Item
from rethinker.benchmarks.registry import BENCHMARKS, find
from rethinker.benchmarks.sources import Source

CHOICE = {
    "id": "4",
    "question": "Which number should be written in place of the question mark?\n<image1>",
    "options": ["60", "48", "$\\frac{1}{2}$", "20", "15"],
    "answer": "C",
    "level": 1,
    "subject": "combinatorics",
}
DRAWN = CHOICE | {"id": "5", "options": list("ABCDE"), "answer": "E"}
FREE = CHOICE | {"id": "6", "options": [], "answer": "16", "subject": "algebra", "level": 5}
ROWS = [CHOICE, DRAWN, FREE]


def picture(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(params=["parquet", "json"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three rows; ``image`` is a path, as the hub has it too, beside ``decoded_image``."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = [row | {"image": f"images/{row['id']}.jpg", "solution": None} for row in ROWS]
    (tmp_path / "data").mkdir()
    if request.param == "json":
        (tmp_path / "data" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / "images").mkdir()
        for shade, row in enumerate(rows):
            (tmp_path / row["image"]).write_bytes(picture(shade))
        return tmp_path
    for shade, row in enumerate(rows):
        row["decoded_image"] = {"bytes": picture(shade), "path": row["image"]}
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / "test-00000-of-00001-3532b8d3f1b4047a.parquet")
    return tmp_path


def test_items_prompts_and_rules(place: Path) -> None:
    benchmark, split = find("mathvision")
    assert (split, benchmark.splits[split], find("mathvision:testmini")[1]) == ("test", 3040, "testmini")
    choice, drawn, free = benchmark.items(Source(str(place)), split)
    assert choice == Item(
        qid="4",
        question=CHOICE["question"],
        golds=("C",),
        images=choice.images,
        options=tuple(CHOICE["options"]),
        groups={"subject": ("combinatorics",), "level": ("1",), "subject_level": ("combinatorics, level 1",)},
    )
    assert [Path(item.images[0]).read_bytes() for item in (choice, drawn, free)] == [picture(n) for n in range(3)]
    head = 'Please solve the problem step by step and put your answer in one "\\boxed{}". If it is a multiple choice '
    head += 'question, only one letter is allowed in the "\\boxed{}".\n' + str(CHOICE["question"]) + "\n"
    options = "(A) 60\n(B) 48\n(C) $\\frac{1}{2}$\n(D) 20\n(E) 15"
    assert benchmark.prompt(choice, "official") == head + options + "\n"
    assert benchmark.prompt(drawn, "official") == benchmark.prompt(free, "official") == head
    assert benchmark.prompt(choice, "boxed") == f"{CHOICE['question']}\n{options}"
    assert benchmark.prompt(free, "boxed") == CHOICE["question"]
    for item, text, official, boxed in (
        (choice, r"So \boxed{C}.", 1.0, 1.0),
        (choice, r"So \boxed{\frac{1}{2}}.", 1.0, 1.0),  # the option's text counts, under both
        (choice, r"So \boxed{A}.", 0.0, 0.0),
        (choice, "The answer is C.", 1.0, 0.0),  # no box
        (free, r"So \boxed{16.001}.", 1.0, 0.0),  # two decimals
        (free, r"So \boxed{16\text{ cm}}.", 0.0, 1.0),  # a unit
        (drawn, "", 0.0, 0.0),
    ):
        verdicts = benchmark.score(item, text, "official"), benchmark.score(item, text, "boxed")
        assert [verdict.score for verdict in verdicts] == [official, boxed], (text, verdicts)


def test_names() -> None:
    assert all(name == benchmark.name for name, benchmark in BENCHMARKS.items())
    for text, message in (("mathvison", "no benchmark 'mathvison'; there are"), ("mathvision:dev", "no split 'dev'")):
        with pytest.raises(ValueError, match=message):
            find(text)
