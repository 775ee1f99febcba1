"""Training rows that are checked when an episode draws them: what fails is passed over and reported, exactly again on a
resume, and nothing else changes."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from accelerate.state import AcceleratorState
from test_run import assert_same_run, comparable, make_config, resume, stop_when

from rethinker.config import RunConfig
from rethinker.datasets.drawn import DrawnChecks
from rethinker.datasets.io import Dropped, load_queries, write_parquet
from rethinker.datasets.order import QueryOrder
from rethinker.run import TrainingRun
from rethinker.types import Query

QUERIES = [Query(str(index), "?", "\\frac{1}{" if index % 3 == 0 else "1") for index in range(10)]
BAD = {"0", "3", "6", "9"}


def checks(said: list[Dropped]) -> DrawnChecks:
    return DrawnChecks(
        None, said.extend, check_golds=lambda golds: [None if gold == "1" else "unbalanced" for gold in golds]
    )


def test_an_episode_is_full_and_the_order_is_that_of_all_rows_without_the_bad_ones():
    said: list[Dropped] = []
    order, plain = QueryOrder(QUERIES, 3, checks(said)), QueryOrder(QUERIES, 3)
    taken = [query.qid for _ in range(4) for query in order.take(3)]
    expected = [query.qid for _ in range(3) for query in plain.take(10) if query.qid not in BAD]
    assert taken == expected[:12]
    assert {fault.qid for fault in said} == BAD and len(said) == 4  # each once


def test_a_resumed_order_goes_on_as_it_would_have():
    order = QueryOrder(QUERIES, 0, checks([]))
    order.take(4)
    state = order.state_dict()
    rest = [order.take(4) for _ in range(5)]
    again = QueryOrder(QUERIES, 0, checks([]))
    again.load_state_dict(state)
    assert [again.take(4) for _ in range(5)] == rest


def test_more_than_there_is_and_nothing_that_can_be_used():
    assert {query.qid for query in QueryOrder(QUERIES, 0, checks([])).take(8)} == {str(i) for i in range(10)} - BAD
    with pytest.raises(ValueError, match="every row that was drawn had to be dropped"):
        QueryOrder(QUERIES[:1], 0, checks([])).take(2)


def test_ranks_share_the_checks_and_agree():
    """Each rank looks at its part; all pass over what any of them found."""
    found: list[list[Dropped]] = []
    for rank in range(2):
        part = DrawnChecks(None, print, check_golds=lambda golds: [None if gold == "1" else "bad" for gold in golds])
        found.append(part.faults(QUERIES[rank::2]))
    everything = found[0] + found[1]
    for rank in range(2):
        said: list[Dropped] = []
        mine = DrawnChecks(
            None,
            said.extend,
            rank=rank,
            ranks=2,
            gather=lambda own: everything if own in found else pytest.fail("another part"),
            check_golds=lambda golds: [None if gold == "1" else "bad" for gold in golds],
        )
        assert mine(QUERIES) == [query.qid not in BAD for query in QUERIES]
        assert [fault.qid for fault in said] == ["0", "3", "6", "9"]  # in the order of the queries, on every rank


# -- whole runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def zipped(tmp_path_factory, world) -> Path:
    """The toy world with its training images in images.zip, and three bad rows more."""
    folder = tmp_path_factory.mktemp("zipped")
    rows = pq.read_table(world / "train.parquet").to_pylist()
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        archive.writestr("images/bad.png", b"no picture")
        for path in sorted({path for row in rows for path in row["image"]}):
            archive.write(path, f"images/{Path(path).name}")
    for row in rows:
        row["image"] = [f"images/{Path(path).name}" for path in row["image"]]
    bad = {"bad-image": {"image": ["images/bad.png"]}, "bad-gold": {"answer": "\\boxed{1 + + \\sin}"}}
    write_parquet(folder / "train.parquet", [*rows, *({**rows[1], "qid": qid} | bad[qid] for qid in bad)])
    write_parquet(folder / "good.parquet", rows)
    return folder


def start(config: RunConfig) -> str:
    AcceleratorState._reset_state(True)
    return TrainingRun(config).run()


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


SHORT = ("data.test=null", "data.validation=null", "stages=[{name: only, episodes: 4}]")


@pytest.mark.slow
@pytest.mark.usefixtures("untouched_process")
def test_a_run_passes_over_bad_rows_and_resumes_exactly(tmp_path, world, guesser, zipped, monkeypatch):
    settings = (*SHORT, f"data.train={zipped / 'train.parquet'}", "data.checks=when_drawn")
    whole = make_config(tmp_path / "whole", world, guesser, *settings)
    assert start(whole) == "finished"
    dropped = {row["qid"]: row["reason"] for row in json.loads((whole.folder / "dropped" / "train.json").read_text())}
    assert dropped == {"bad-image": "unreadable image", "bad-gold": "unparsable gold answer"}
    seen = {qid for file in (whole.folder / "rollouts").iterdir() for qid in pq.read_table(file)["qid"].to_pylist()}
    assert len(seen) == 12 and not seen & dropped.keys()
    config = make_config(tmp_path / "cut", world, guesser, *settings)
    with monkeypatch.context() as patch:
        stop_when(patch, config, 2, lambda: (config.folder / "STOP").touch())
        assert start(config) == "stopped"
    assert resume(config) == "finished"
    assert_same_run(config, whole)
    assert {row["qid"] for row in json.loads((config.folder / "dropped" / "train.json").read_text())} == dropped.keys()


@pytest.mark.long
@pytest.mark.usefixtures("untouched_process")
def test_good_rows_give_the_same_run_whenever_they_are_checked(tmp_path, world, guesser, zipped):
    runs = []
    for when in ("at_start", "when_drawn"):
        settings = (*SHORT, f"data.train={zipped / 'good.parquet'}", f"data.checks={when}")
        runs.append(make_config(tmp_path / when, world, guesser, *settings))
        assert start(runs[-1]) == "finished"
    assert comparable(runs[0]) == comparable(runs[1])
    assert load_queries(zipped / "good.parquet")[1] == []
