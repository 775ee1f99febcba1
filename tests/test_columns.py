"""Data sets with other columns, by ``data.columns``: what each column of the schema is made of."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rethinker.config import ConfigError, load_config
from rethinker.datasets.columns import ColumnMap
from rethinker.evaluation.held_out import read_split
from rethinker.lab.jobs.preflight import check_data

ROW = {
    "problem": "How long is x?",
    "answer": 1,
    "choices": ["2 cm", "4 cm"],
    "extra": {"truth": "4", "tags": ["geo", "plane"]},
    "image_1": "a.png",
    "image_2": None,
    "empty": None,
}


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"question": "problem"}, {"qid": "row-0", "question": "How long is x?", "answer": 1}),
        ({"answer": "extra.truth", "category": "extra.tags.1"}, {"answer": "4", "category": "plane"}),
        ({"category": "extra.tags.9", "source": "extra.none.at.all"}, {"category": None, "source": None}),
        ({"answer": "{answer:letter}"}, {"answer": "B"}),
        (
            {"question": "<image>{problem}\n{choices:options}"},
            {"question": "<image>How long is x?\n(A) 2 cm\n(B) 4 cm"},
        ),
        ({"answer": "\\boxed{{{extra.truth}}}"}, {"answer": "\\boxed{4}"}),
        ({"qid": "geo3k-{row}", "source": "=Geometry3K"}, {"qid": "geo3k-0", "source": "Geometry3K"}),
        ({"image": ["image_1", "image_2"]}, {"image": ["a.png"]}),
        ({"image": "image_1", "question": "{problem} {empty}"}, {"image": "a.png", "question": None}),
    ],
)
def test_what_a_column_is_made_of(columns: dict[str, Any], expected: dict[str, Any]) -> None:
    (made,) = ColumnMap(columns).rows([ROW])
    assert {name: made[name] for name in expected} == expected
    assert set(made) <= {"question", "answer", "qid", "image", "category", "source"}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"questoin": "problem"}, r"no column 'questoin' in the schema .*; did you mean question\?"),
        ({"question": 3}, r"data\.columns\.question=3: give a column's name, a template"),
        ({"question": ["a", "b"]}, r"data\.columns\.question=\['a', 'b'\]: give"),
        ({"image": []}, r"data\.columns\.image=\[\]: give .*; for images also a list"),
        ({"question": "{problem"}, r"'\{problem': .*; a brace is written \{\{ or \}\}"),
        (
            {"answer": "{answer:leter}"},
            r"\{answer:leter\} is none of \{column\}, \{column:letter\}",
        ),
        ({"answer": "{}"}, r"\{\} is none of"),
        ({"question": "title"}, r"no column title \(of data\.columns\.question\); there are problem, answer"),
        (
            {"image": "image"},
            r"no column image \(of data\.columns\.image\), question \(map it: data\.columns",
        ),
    ],
)
def test_a_mapping_that_does_not_fit_is_an_error_before_a_run_starts(
    tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    pq.write_table(pa.Table.from_pylist([ROW]), tmp_path / "train.parquet")
    with pytest.raises(ConfigError, match=message):
        check_data("data.train", str(tmp_path / "train.parquet"), columns)


def test_geometry3k_as_the_hub_has_it(tmp_path: Path) -> None:
    """In shards under data/, with embedded pictures; the test split of the same config has the schema's own columns."""
    buffer = io.BytesIO()
    Image.new("RGB", (28, 28)).save(buffer, format="PNG")
    images = [{"bytes": buffer.getvalue(), "path": None}]
    (tmp_path / "geo3k" / "data").mkdir(parents=True)
    for shard in range(2):
        rows = [{"images": images, "problem": f"<image>Find x{shard}.", "answer": answer} for answer in ("3", "{")]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "geo3k" / "data" / f"train-0000{shard}-of-00002.parquet")
    line = {"question": "1 + 1?", "answer": "2", "qid": "own"}
    (tmp_path / "own.jsonl").write_text(json.dumps(line), encoding="utf-8")
    config = load_config(
        None,
        [
            f"data.train={tmp_path / 'geo3k'}:train",
            "data.columns={question: problem, image: images, source: =Geometry3K}",
            f"data.test={tmp_path / 'own.jsonl'}",
            "data.columns_of=[train]",
        ],
    )
    queries, dropped = read_split(config, "train")
    assert [(query.qid, query.question) for query in queries] == [
        ("row-0", "<image>Find x0."), ("row-2", "<image>Find x1.")
    ]  # fmt: skip
    assert [fault.qid for fault in dropped] == ["row-1", "row-3"]
    assert Path(queries[0].images[0]).is_file() and queries[0].source == "Geometry3K"
    assert [query.qid for query in read_split(config, "test")[0]] == ["own"]
