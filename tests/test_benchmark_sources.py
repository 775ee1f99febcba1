"""Rows of benchmarks from every kind of place, with the hub's file names; verdicts and prompts of the protocol."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rethinker.benchmarks.base import Benchmark, Item, Verdict, letters, listed
from rethinker.benchmarks.sources import Source, text_in, texts_in


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def ids(rows: Iterator[dict[str, Any]]) -> list[str]:
    return [row["id"] for row in rows]


def test_a_folder_gives_the_files_of_the_split_and_of_no_other(tmp_path: Path) -> None:
    write(tmp_path / "data" / "test-00001-of-00002-3b1c.parquet", [{"id": "c"}])
    write(tmp_path / "data" / "test-00000-of-00002-9f2e.parquet", [{"id": "a"}, {"id": "b"}])
    write(tmp_path / "data" / "testmini-00000-of-00001-77aa.parquet", [{"id": "mini"}])
    assert ids(Source(str(tmp_path)).rows("test")) == ["a", "b", "c"]
    assert ids(Source(str(tmp_path)).rows("testmini")) == ["mini"]
    with pytest.raises(FileNotFoundError, match=r"no validation\.parquet or .* or data/v\.json"):
        Source(str(tmp_path)).rows("validation", files=("data/v.json",))


def test_configs_are_subfolders_in_the_order_asked_for(tmp_path: Path) -> None:
    for config in ("standard (10 options)", "standard (4 options)", "vision"):
        write(tmp_path / config / "test-00000-of-00001.parquet", [{"id": config}])
    source = Source(str(tmp_path))
    wanted = ("vision", "standard (10 options)")
    assert ids(source.rows("test", configs=wanted)) == list(wanted)
    assert ids(source.rows("test", configs=("elsewhere",))) == sorted(
        ["standard (10 options)", "standard (4 options)", "vision"]
    )


def test_json_of_the_official_repositories(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "list.json").write_text(json.dumps([{"id": "a"}, {"id": "b"}]))
    (tmp_path / "data" / "keys.json").write_text(json.dumps({"7": {"id": "a"}}))
    (tmp_path / "data" / "lines.jsonl").write_text('\ufeff{"id": "a"}\n\n{"id": "b"}\n', encoding="utf-8")
    (tmp_path / "data" / "broken.jsonl").write_text('{"id": "a"}\n{"id":\n')
    (tmp_path / "data" / "number.json").write_text("7")
    source = Source(str(tmp_path))
    assert ids(source.rows("test", files=("gone.json", "data/list.json"))) == ["a", "b"]
    assert list(source.rows("test", files=("data/keys.json",))) == [{"_key": "7", "id": "a"}]
    assert ids(source.rows("test", files=("data/lines.jsonl",))) == ["a", "b"]
    assert ids(Source(str(tmp_path / "data" / "lines.jsonl")).rows("whatever")) == ["a", "b"]
    with pytest.raises(ValueError, match=r"broken\.jsonl, line 2: not JSON"):
        list(source.rows("test", files=("data/broken.jsonl",)))
    with pytest.raises(ValueError, match="neither a list nor an object"):
        list(source.rows("test", files=("data/number.json",)))
    with pytest.raises(FileNotFoundError, match="give a folder, a file, or owner/name"):
        Source(str(tmp_path / "nowhere")).rows("test")


def test_a_saved_data_set_and_its_images_as_they_are_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "a.png").write_bytes(png(200))
    features = datasets.Features({"id": datasets.Value("string"), "image": datasets.Image()})
    data = datasets.Dataset.from_dict({"id": ["a"], "image": [str(tmp_path / "a.png")]}, features=features)
    datasets.DatasetDict({"test": data}).save_to_disk(str(tmp_path / "saved"))
    source = Source(str(tmp_path / "saved"))
    (row,) = source.rows("test")
    assert Path(source.image(row["image"])).read_bytes() == png(200)
    with pytest.raises(FileNotFoundError, match="no split 'dev'; there are test"):
        source.rows("dev")


def test_images_are_bytes_or_paths_beside_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(png(1))
    source = Source(str(tmp_path))
    assert source.image("images/1.png") == source.image({"bytes": None, "path": "1.png"}, "images")
    assert source.image("images/1.png") == str(tmp_path / "images" / "1.png")
    stored = source.image({"bytes": png(2), "path": "2.png"})
    assert Path(stored).read_bytes() == png(2) and stored == source.image({"bytes": png(2)})
    assert source.image("gone.png") == str(tmp_path / "gone.png")  # the runner lists what is missing
    for nothing in (None, "", {"bytes": None, "path": None}, 7):
        with pytest.raises(ValueError, match="neither bytes nor a path"):
            source.image(nothing)


def test_pictures_in_rows_do_not_pile_up_in_memory(tmp_path: Path) -> None:
    pictures = [os.urandom(20_000) for _ in range(400)]
    table = pa.table({"pid": [str(number) for number in range(400)], "decoded_image": [{"bytes": p} for p in pictures]})
    pq.write_table(table, tmp_path / "test.parquet", row_group_size=20)
    del table
    before, most = pa.total_allocated_bytes(), 0
    for row, picture in zip(Source(str(tmp_path)).rows("test"), pictures, strict=True):
        assert row["decoded_image"]["bytes"] == picture
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 4e6  # of 8 million bytes; more than the 0.4 of a row group, as Arrow keeps copies of what it reads


def test_columns_are_texts_or_say_what_they_are() -> None:
    row = {"a": "x", "n": 5, "none": None, "list": ["1", 2], "truth": True}
    assert [text_in(row, name) for name in ("a", "n", "none")] == ["x", "5", ""]
    assert texts_in(row, "list") == ("1", "2") and texts_in(row, "none") == ()
    for read, name, message in (
        (text_in, "gone", "no column 'gone'; there are a, n, none, list, truth"),
        (text_in, "list", "not a text"),
        (text_in, "truth", "not a text"),
        (texts_in, "a", "not a list"),
        (texts_in, "gone", "no column"),
    ):
        with pytest.raises(ValueError, match=message):
            read(row, name)


class Toy(Benchmark):
    name = "toy"
    title = "Toy"
    hub = "owner/toy"
    splits: ClassVar[Mapping[str, int]] = {"test": 2}

    def items(self, source: Source, split: str) -> Iterator[Item]:
        yield from ()

    def official_prompt(self, item: Item) -> str:
        return f"official: {item.question}"

    def official_score(self, item: Item, text: str) -> Verdict:
        return Verdict(1.0, text, "official") if text in item.golds else Verdict(0.0, None, "not found", guessed=1.0)


def test_the_two_protocols() -> None:
    choice = Item("1", "Which is <image>?", ("B",), images=("a.png",), options=("12", "13"))
    several = Item("2", "Where?", ("Tampa", "Florida"))
    toy = Toy()
    assert toy.prompt(choice, "official") == "official: Which is <image>?"
    assert toy.prompt(choice, "boxed") == "Which is <image>?\n(A) 12\n(B) 13"
    assert toy.prompt(several, "boxed") == "Where?"
    assert toy.score(choice, "B", "official").correct
    assert toy.score(choice, "b", "official") == Verdict(0.0, None, "not found", guessed=1.0)
    for item, text, score, extracted in (
        (choice, r"so \boxed{B}", 1.0, "B"),
        (choice, r"so \boxed{13}", 1.0, "13"),  # the option's text names its letter
        (choice, r"so \boxed{A}", 0.0, "A"),
        (choice, "so B", 0.0, None),
        (several, r"\boxed{Florida}", 1.0, "Florida"),
        (several, r"\boxed{Miami}", 0.0, "Miami"),
    ):
        verdict = toy.score(item, text, "boxed")
        assert (verdict.score, verdict.extracted) == (score, extracted), (item, text)


def test_verdicts_and_options() -> None:
    assert [Verdict(score, "x", "").correct for score in (None, 0.0, 0.5, 0.51, 1.0)] == [False] * 3 + [True] * 2
    with pytest.raises(AssertionError, match="not in"):
        Verdict(1.5, "x", "")
    assert letters(["a"] * 10) == "ABCDEFGHIJ"
    assert listed(["{x}", "y"], "{letter}. {text}") == "A. {x}\nB. y"
