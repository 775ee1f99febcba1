"""Subsets of the training data by the pass rate of a reference model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from rethinker.config import load_config
from rethinker.datasets.io import load_queries, write_parquet
from rethinker.datasets.pass_rate import PassRateFilter, pass_rate_filter
from rethinker.run import TrainingRun

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


def run(said: list[str]) -> SimpleNamespace:
    return SimpleNamespace(room=None, tracker=SimpleNamespace(say=said.append))


def test_a_run_says_how_many_rows_it_keeps(data: Path):
    said: list[str] = []
    keep = pass_rate_filter(load_config(None, ["data.pass_rate=[0.05,0.95]"]).data)
    assert keep == PassRateFilter("PassRate_7BBase", 0.05, 0.95)
    assert len(TrainingRun.read(run(said), "train", str(data), None, keep)) == 3  # type: ignore[arg-type]
    assert said == [f"{data}: PassRate_7BBase from 0.05 to 0.95: 3 of 7 rows kept, 2 have no rate"]
    assert pass_rate_filter(load_config().data) is None


def test_a_run_that_keeps_none_says_why(data: Path):
    keep = PassRateFilter("PassRate_7BBas", 0, 1)
    with pytest.raises(ValueError, match=r"none of its 7 rows can be used \(PassRate_7BBas from 0 to 1: 0 of 7 rows"):
        TrainingRun.read(run([]), "train", str(data), None, keep)  # type: ignore[arg-type]
