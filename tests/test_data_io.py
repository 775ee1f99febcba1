"""Reading and writing ViRL39K's schema: what is good comes in, what is not is named and dropped."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rethinker.datasets.io import SCHEMA_COLUMNS, describe_dropped, load_queries, write_parquet
from rethinker.types import Query


def row(qid: str, **changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "question": "<image>\nWhat is the area?",
        "answer": "\\boxed{12}",
        "PassRate_32BTrained": 0.25,
        "PassRate_7BBase": 0.5,
        "category": "(GradeSchool) Geometric",
        "source": "Geometry3K",
        "qid": qid,
        "image": ["images/a.png"],
    }
    return {**base, **changes}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (28, 28)).save(tmp_path / "images" / f"{name}.png")
    return tmp_path


def write_bad_images(folder: Path) -> None:
    noise = Image.effect_noise((64, 64), 80)
    for kind in ("png", "jpg"):
        whole = folder / f"whole.{kind}"
        noise.save(whole)
        (folder / f"cut.{kind}").write_bytes(whole.read_bytes()[:-40])
    (folder / "text.png").write_bytes(b"not an image")
    Image.new("RGB", (900, 2)).save(folder / "line.png")


def virl39k_file(path: Path, rows: list[dict[str, Any]]) -> Path:
    """As the published file: these columns, no level, types left to arrow."""
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_a_published_file_is_read_as_it_is(folder: Path) -> None:
    rows = [
        row("one"),
        row("two", question="<image>Compare with <image>.", image=["images/b.png", "images/a.png"]),
        row("text", question="What is 1+1?", answer="\\boxed{\\frac{4}{2}}", image=[]),
        row("rates", PassRate_32BTrained=None, image=["images/a.png"]),
    ]
    queries, dropped = load_queries(virl39k_file(folder / "39Krelease.parquet", rows))
    assert not dropped
    a, b = str(folder / "images" / "a.png"), str(folder / "images" / "b.png")
    category = "(GradeSchool) Geometric"
    assert queries[0] == Query("one", "<image>\nWhat is the area?", "12", (a,), category, "Geometry3K", 0, 0.25)
    assert queries[1].images == (b, a)
    assert queries[2].images == ()
    assert queries[2].answer == "\\frac{4}{2}"
    assert queries[3].pass_rate == 0.5
    # The folder with one file needs no split.
    assert load_queries(folder)[0] == queries


@pytest.mark.parametrize(
    ("changes", "reason", "detail"),
    [
        ({"image": ["images/none.png"]}, "missing image", "none.png"),
        ({"question": " "}, "no question", "' '"),
        ({"question": "<image><image>Both?"}, "placeholder without image", "2 <image>"),
        ({"answer": None}, "no answer", "None"),
        ({"answer": "\\boxed{}"}, "unparsable gold answer", "empty"),
        ({"answer": "\\boxed{\\frac{1}{2}"}, "unparsable gold answer", "unbalanced"),
        ({"image": [""]}, "malformed image", "not a path"),
        ({"image": ["images/cut.png"]}, "unreadable image", "cut.png"),
        ({"image": ["images/cut.jpg"]}, "unreadable image", "cut.jpg"),
        ({"image": ["images/text.png"]}, "unreadable image", "text.png"),
        ({"image": ["images/line.png"]}, "extreme aspect ratio", "line.png is 900 x 2"),
        ({"question": "<image>What is <|im_end|>?"}, "special token in the question", "<|im_end|>"),
        ({"question": "<|image_pad|>?"}, "special token in the question", "<|image_pad|>"),
        ({"qid": "good"}, "duplicate qid", "earlier"),
        ({"qid": None}, "no qid", "None"),
    ],
)
def test_a_bad_row_is_named_and_dropped(folder: Path, changes: dict[str, Any], reason: str, detail: str) -> None:
    write_bad_images(folder / "images")
    virl39k_file(folder / "train.parquet", [row("good"), {**row("bad"), **changes}, row("last")])
    queries, dropped = load_queries(folder, "train")
    assert [query.qid for query in queries] == ["good", "last"]
    (fault,) = dropped
    assert fault.reason == reason
    assert detail in fault.detail
    assert fault.qid == {"duplicate qid": "good", "no qid": "row 1"}.get(reason, "bad")


def test_good_images_of_every_kind_and_bars_in_a_formula_stay(folder: Path) -> None:
    write_bad_images(folder / "images")
    Image.effect_noise((64, 64), 80).save(folder / "images" / "c.webp")
    # A JPEG with something behind its end is decoded to see that it is whole.
    jpeg = folder / "images" / "whole.jpg"
    (folder / "images" / "tail.jpg").write_bytes(jpeg.read_bytes() + b"tail")
    names = ["whole.png", "whole.jpg", "tail.jpg", "c.webp"]
    rows = [row(name, image=[f"images/{name}"], question="<image>Is a <|b|> c, or <|x|>?") for name in names]
    queries, dropped = load_queries(virl39k_file(folder / "train.parquet", rows))
    assert not dropped and [query.qid for query in queries] == names


def test_faults_of_types_that_only_json_can_have(folder: Path) -> None:
    rows = [row("a", PassRate_32BTrained="high"), row("b", image=[3]), row("c", answer=7), row("d", level=2)]
    lines = "\n".join(json.dumps(item) for item in rows)
    (folder / "train.jsonl").write_text(lines + "\n\n", encoding="utf-8")
    queries, dropped = load_queries(folder / "train.jsonl")
    assert [(query.qid, query.answer, query.level) for query in queries] == [("c", "7", 0), ("d", "12", 2)]
    assert [(fault.qid, fault.reason) for fault in dropped] == [("a", "malformed number"), ("b", "malformed image")]


def test_the_callers_own_gold_check_decides(folder: Path) -> None:
    virl39k_file(folder / "train.parquet", [row("one"), row("two", answer="\\boxed{13}")])
    check = {"\\boxed{12}": None, "\\boxed{13}": "unlucky"}
    queries, dropped = load_queries(folder, "train", check_golds=lambda golds: [check[gold] for gold in golds])
    assert [query.qid for query in queries] == ["one"]
    assert dropped[0].detail == "unlucky"


def test_limit_counts_good_queries(folder: Path) -> None:
    rows = [row("bad", image=["images/none.png"]), row("one"), row("two"), row("three")]
    virl39k_file(folder / "train.parquet", rows)
    queries, dropped = load_queries(folder, "train", limit=2)
    assert [query.qid for query in queries] == ["one", "two"]
    assert len(dropped) == 1
    assert load_queries(folder, "train", limit=0) == ([], [])
    with pytest.raises(ValueError, match="-1"):
        load_queries(folder, "train", limit=-1)


def test_images_may_lie_elsewhere(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    path = virl39k_file(tmp_path / "elsewhere" / "train.parquet", [row("one")])
    assert len(load_queries(path)[1]) == 1
    queries, _ = load_queries(path, image_root=folder)
    assert queries[0].images == (str(folder / "images" / "a.png"),)


def test_written_rows_have_the_published_columns_and_come_back(folder: Path) -> None:
    write_parquet(folder / "test.parquet", [row("one", level=3, PassRate_32BTrained=None, PassRate_7BBase=None)])
    table = pq.read_table(folder / "test.parquet")
    assert tuple(table.column_names) == (*SCHEMA_COLUMNS, "level")
    assert table.schema.field("image").type == pa.list_(pa.string())
    (query,), _ = load_queries(folder, "test")
    assert (query.level, query.pass_rate) == (3, None)
    assert [path.name for path in folder.glob("*.parquet")] == ["test.parquet"]  # no temporary file is left


def test_hugging_face_folders_with_paths_and_with_embedded_images(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    paths = datasets.Dataset.from_list([row("one")])
    datasets.DatasetDict({"train": paths, "test": paths}).save_to_disk(str(folder / "saved"))
    with pytest.raises(ValueError, match="no split 'dev'; there are train, test"):
        load_queries(folder / "saved", "dev")
    queries, dropped = load_queries(folder / "saved", "test", image_root=folder)
    assert not dropped
    assert queries[0].images == (str(folder / "images" / "a.png"),)

    red = Image.new("RGB", (28, 28), "red")
    features = datasets.Features(
        question=datasets.Value("string"),
        answer=datasets.Value("string"),
        qid=datasets.Value("string"),
        image=datasets.List(datasets.Image()),
    )
    columns = {"question": ["<image>Which colour?"], "answer": ["red"], "qid": ["one"], "image": [[red]]}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(folder / "embedded"))
    (query,), dropped = load_queries(folder / "embedded")
    assert not dropped
    assert Path(query.images[0]).is_relative_to(tmp_path / "cache")
    with Image.open(query.images[0]) as stored:
        assert stored.convert("RGB").tobytes() == red.tobytes()


def test_errors_say_what_is_there(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no data at"):
        load_queries(folder / "none.parquet")
    virl39k_file(folder / "train.parquet", [row("one")])
    virl39k_file(folder / "test.parquet", [row("one")])
    with pytest.raises(ValueError, match=r"split None names 2 files.*test.parquet, train.parquet"):
        load_queries(folder)
    with pytest.raises(ValueError, match="split 'dev' names 0 files"):
        load_queries(folder, "dev")
    pq.write_table(pa.table({"question": ["?"], "gold": ["1"]}), folder / "other.parquet")
    with pytest.raises(ValueError, match=r"no column answer, qid; there are question, gold"):
        load_queries(folder / "other.parquet")
    (folder / "broken.jsonl").write_text("{}\n{no\n")
    with pytest.raises(ValueError, match="line 2: not JSON"):
        load_queries(folder / "broken.jsonl")
    (folder / "data.csv").write_text("question\n")
    with pytest.raises(ValueError, match=r"can read .parquet and .jsonl"):
        load_queries(folder / "data.csv")


def test_the_report_counts_and_shortens(folder: Path) -> None:
    rows = [row(f"m{index}", image=["images/none.png"]) for index in range(5)] + [row("q", question="")]
    _, dropped = load_queries(virl39k_file(folder / "train.parquet", rows))
    first, second = describe_dropped(dropped, examples=2).splitlines()
    assert first.startswith("5 dropped, missing image: m0 (")
    assert first.endswith("and 3 more")
    assert second.startswith("1 dropped, no question: q (")
    assert describe_dropped([]) == ""


def test_pictures_stored_as_bytes_do_not_pile_up_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Golds are checked for many rows together; what they wait with are paths."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Image.new("RGB", (28, 28)).save(tmp_path / "a.png")
    picture = {"bytes": (tmp_path / "a.png").read_bytes(), "path": None}
    rows = [row(str(index), image=[picture]) for index in range(3)]
    on_disk: list[int] = []

    def check(golds: Sequence[str]) -> list[str | None]:
        on_disk.append(len(list((tmp_path / "cache").rglob("*.png"))))
        return [None] * len(golds)

    queries, dropped = load_queries(virl39k_file(tmp_path / "train.parquet", rows), check_golds=check)
    assert len(queries) == 3 and not dropped and on_disk == [1]
