"""Subsets of the training data by the pass rate of a reference model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rethinker.config import ConfigError, load_config
from rethinker.datasets.filters import RowFilter, named_filters, training_filter
from rethinker.datasets.io import load_queries, write_parquet
from rethinker.datasets.pass_rate import PassRateFilter
from rethinker.lab.jobs.preflight import check_filter
from rethinker.queries import RunQueries

RATES = (0.0, 0.05, 0.5, 0.95, 1.0, None, float("nan"))


def row(name: str, rate: float | None, answer: str = "\\boxed{3}") -> dict:
    return {"question": "1 + 2?", "answer": answer, "qid": name, "PassRate_7BBase": rate, "image": []}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_parquet(tmp_path / "train.parquet", [row(f"q{rate}", rate) for rate in RATES])
    return tmp_path / "train.parquet"


def test_bounds_are_included_and_rows_without_a_rate_are_left_out(data: Path):
    keep = PassRateFilter("PassRate_7BBase", 0.05, 0.95)
    queries, dropped = load_queries(data, keep=keep)
    assert [query.qid for query in queries] == ["q0.05", "q0.5", "q0.95"] and not dropped
    assert str(keep) == "PassRate_7BBase from 0.05 to 0.95: 3 of 7 rows kept, 2 have no rate"


def test_a_limit_counts_what_was_kept(data: Path):
    keep = PassRateFilter("PassRate_7BBase", 0.5, 1)
    assert [query.qid for query in load_queries(data, limit=2, keep=keep)[0]] == ["q0.5", "q0.95"]


def test_rows_outside_are_not_reported_as_unusable(tmp_path: Path):
    write_parquet(
        tmp_path / "x.parquet", [row("bad", 1.0, "no number"), row("good", 0.5), row("worse", 0.5, "\\boxed{")]
    )
    queries, dropped = load_queries(tmp_path / "x.parquet", keep=PassRateFilter("PassRate_7BBase", 0, 0.9))
    assert [query.qid for query in queries] == ["good"] and [each.qid for each in dropped] == ["worse"]


def test_a_rate_that_is_no_number_is_an_error():
    with pytest.raises(ValueError, match=r"data\.pass_rate: level of 'a' is 'high', not a number"):
        PassRateFilter("level", 0, 1)({"qid": "a", "level": "high"})


def queries_of(said: list[str], *settings: str) -> RunQueries:
    anything: Any = None
    accelerator = SimpleNamespace(is_main_process=False, process_index=0, num_processes=1)
    return RunQueries(load_config(None, settings), anything, accelerator, said.append, resumed=False)


def test_a_run_says_how_many_rows_it_keeps(data: Path):
    said: list[str] = []
    assert len(queries_of(said, f"data.train={data}", "data.pass_rate=[0.05,0.95]").train) == 3
    assert said[0] == f"{data}: PassRate_7BBase from 0.05 to 0.95: 3 of 7 rows kept, 2 have no rate"
    assert training_filter(load_config().data) is None


def test_a_run_that_keeps_none_says_why(data: Path):
    with pytest.raises(ValueError, match=r"none of its 7 rows can be used \(PassRate_7BBase from 0.01 to 0.02: 0 of 7"):
        queries_of([], f"data.train={data}", "data.pass_rate=[0.01,0.02]")


def test_what_was_not_measured_has_no_rate(tmp_path: Path):
    """ViRL39K has -1 there."""
    write_parquet(tmp_path / "x.parquet", [row("unmeasured", -1.0), row("never", 0.0)])
    keep = PassRateFilter("PassRate_7BBase", 0, 1)
    queries, _ = load_queries(tmp_path / "x.parquet", keep=keep)
    assert [query.qid for query in queries] == ["never"] and keep.unrated == 1
    assert [query.pass_rate for query in load_queries(tmp_path / "x.parquet")[0]] == [None, 0.0]


def rated(name: str, category: str, image: bool, seven: float, big: float) -> dict:
    rates = {"PassRate_7BBase": seven, "PassRate_32BTrained": big}
    return row(name, None) | rates | {"category": category, "image": ["a.png"] if image else []}


ROWS = (
    rated("geometry", "(GradeSchool) Geometric", True, 0.5, 1.0),
    rated("science", "(GradeSchool) Science", True, 1.0, 1.0),
    rated("text", "(GradeSchool) Non-Geo Math", False, 0.25, 1.0),
    rated("never", "(GradeSchool) Geometric", True, 0.0, 1.0),
    rated("hard", "Broader STEM Topics", True, -1.0, 0.25),
    rated("hopeless", "Broader STEM Topics", True, -1.0, 0.0),
)


def test_the_named_filters_keep_what_they_say():
    kept = {name: [each["qid"] for each in ROWS if filter_of(name)(each)] for name in named_filters()}
    assert kept == {
        "vl-rethinker-7b": ["geometry", "science", "text"],
        "vl-rethinker-7b-no-text": ["geometry", "science"],
        "vl-rethinker-7b-no-science-no-text": ["geometry"],
        "vl-rethinker-32b": ["hard"],
        "vl-rethinker-72b": ["hard"],
    }
    assert all(each.source and each.ours for each in named_filters().values())


def filter_of(name: str) -> RowFilter:
    keep = training_filter(load_config(None, [f"data.filter={name}"]).data)
    assert keep
    return keep


def test_what_is_kept_is_said_by_category():
    keep = filter_of("vl-rethinker-7b-no-text")
    for each in ROWS:
        keep(each)
    assert str(keep).splitlines() == [
        "data.filter=vl-rethinker-7b-no-text: 2 of 6 rows kept (the paper has about 13,000)",
        "PassRate_7BBase from 0.01 to 1: 2 of 5 rows kept, 2 have no rate",
        "  (GradeSchool) Geometric: 1 of 2 kept",
        "  Broader STEM Topics: 0 of 2 kept",
        "  (GradeSchool) Science: 1 of 1 kept",
        "  (GradeSchool) Non-Geo Math: 0 of 1 kept",
    ]


def test_an_unknown_filter_is_an_error_before_a_run_starts(data: Path):
    config = load_config(None, ["data.filter=vl-rethinker-7"])
    with pytest.raises(
        ConfigError, match=r"data\.filter='vl-rethinker-7': there are .*; did you mean vl-rethinker-7b\?"
    ):
        check_filter(config)
