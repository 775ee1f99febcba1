"""experiments/foreign: the data sets that it writes are read through the mappings of its configs."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rethinker.config import load_config
from rethinker.evaluation.held_out import read_split
from rethinker.lab.jobs.preflight import missing_generated

FOLDER = Path(__file__).parents[1] / "experiments" / "foreign"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A few queries of both."""
    out = tmp_path_factory.mktemp("foreign")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        patch.setattr(sys, "argv", ["", "--out", str(out), "--train", "30", "--validation", "6", "--test", "9"])
        from make_foreign import main

        main()
    return out


@pytest.mark.parametrize("name", ["easy_vqa", "digits"])
def test_every_row_of_every_split_can_be_used(made: Path, name: str, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = load_config(FOLDER / f"{name}.yaml")
    assert not missing_generated([config])  # what is missing is not drawn from another world
    places = {use: f"{made / name / Path(getattr(config.data, use)).name}" for use in ("train", "validation", "test")}
    config = replace(config, data=replace(config.data, **places))
    pictures = {}
    for use, size in (("train", 30), ("validation", 6), ("test", 9)):
        queries, dropped = read_split(config, use)  # type: ignore[arg-type]
        assert not dropped and len(queries) == size
        assert all(len(query.images) == 1 and query.question.startswith("<image>") for query in queries)
        assert all(query.answer.isdecimal() and query.source and query.category for query in queries)
        pictures[use] = {query.images[0] for query in queries}
    assert not pictures["test"] & (pictures["train"] | pictures["validation"])


def test_validation_asks_other_questions_about_pictures_that_may_be_trained_on(made: Path):
    """As its docstring says; the digits' parts are tested by their places."""
    import make_foreign

    rows = {
        use: pq.read_table(made / "easy_vqa" / f"questions-{use}.parquet").to_pylist() for use in make_foreign.SPLITS
    }
    assert not {row["id"] for row in rows["train"]} & {row["id"] for row in rows["validation"]}
    parts = {use: {row["picture"].partition("-")[0] for row in found} for use, found in rows.items()}
    assert parts == {"train": {"train"}, "validation": {"train"}, "test": {"test"}}
    places = [set(range(*make_foreign.PARTS[use])) for use in make_foreign.SPLITS]
    assert sum(map(len, places)) == len(set.union(*places)) == 1797


def test_the_number_of_an_answer_stands_behind_the_question(made: Path, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = load_config(FOLDER / "easy_vqa.yaml")
    config = replace(config, data=replace(config.data, train=str(made / "easy_vqa" / "questions-train.parquet")))
    queries, _ = read_split(config, "train")
    assert Counter(query.category for query in queries) == {"yes or no": 10, "shape": 10, "colour": 10}
    assert all(f" {query.answer} " in query.question for query in queries)
    assert any(query.question.endswith("? 1 yes 2 no") for query in queries)
