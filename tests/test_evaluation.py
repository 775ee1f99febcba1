"""Evaluation modes on a scripted engine; statistics against enumeration, published numbers and simulation."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pytest
from letters import EOS, POLICY, encode

from rethinker.config import RethinkConfig
from rethinker.evaluation.evaluate import evaluate, validate
from rethinker.evaluation.result import Evaluation, load
from rethinker.evaluation.statistics import (
    binomial,
    clustered,
    mean_of_means,
    mean_pass_at_k,
    paired_difference,
    pass_at_k,
    wilson,
)
from rethinker.rethink import TRIGGERS
from rethinker.rundir.atomic import append_json_line, atomic_write_text
from rethinker.types import Grade, Query, Request, Response, Sampling


@dataclass
class Script:
    """What the engine says: ``first[qid]`` = (greedy, sampled...), ``second[qid]``; "~": cut at the token limit."""

    first: dict[str, tuple[str, ...]]
    second: dict[str, str]
    calls: list[tuple[list[Request], Sampling]] = field(default_factory=list)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Mapping[str, tuple[Response, ...]]:
        self.calls.append((list(requests), sampling))
        results = {}
        for request in requests:
            texts = self.first[request.query.qid]
            if request.prefix_ids:
                assert EOS not in request.prefix_ids and request.prefix_ids[-1] >= 1000  # y1 without EOS, a trigger
                chosen: tuple[str, ...] = (self.second[request.query.qid],)
            else:
                chosen = texts[:1] if sampling.temperature == 0 else texts[1:]
            results[request.request_id] = tuple(self.response(text) for text in chosen)
        return results

    @staticmethod
    def response(text: str) -> Response:
        finished = not text.endswith("~")
        ids = encode(text.rstrip("~")) + ((EOS,) if finished else ())
        return Response(ids, (0.0,) * len(ids), finished, text.rstrip("~"))

    def sync_weights(self, model: object) -> None: ...

    def sleep(self) -> None: ...

    def close(self) -> None: ...


def grade_many(items: Sequence[tuple[str, str, str]]) -> list[Grade]:
    grades = []
    for text, gold, _ in items:
        answer = text.rpartition("=")[2] if "=" in text else None
        grades.append(Grade(answer == gold, answer, "exact" if answer == gold else "different"))
    return grades


def run(script: Script, queries: Sequence[Query], **changes: object) -> Evaluation:
    settings: dict = {
        "modes": ("plain", "forced", "bound"),
        "samples": 2,
        "sampling": Sampling(temperature=1.0, top_p=0.9, max_new_tokens=60),
        "rethink": RethinkConfig(temperature=0.7, min_second_look_tokens=8),
        "seed": 3,
        "grade": grade_many,
    }
    return evaluate(script, POLICY, queries, **(settings | changes))


QUERIES = [
    Query("a", "1+1?", "2", ("/images/a.png",), "sum", level=1),  # wrong, a second look helps
    Query("b", "2+2?", "4", (), "sum", level=2),  # right, a second look harms
    Query("c", "3+3?", "6", (), "count", level=1),  # one sample right, one cut at the limit
]
SCRIPT = {
    "first": {"a": ("=3", "=3", "=2"), "b": ("=4", "=4", "wait, =4"), "c": ("=5", "=6", "=6~")},
    "second": {"a": "=2", "b": "=9", "c": "=6"},
}


def cell(evaluation: Evaluation, qid: str, mode: str, greedy: bool, index: int = 0) -> pd.Series:
    rows = evaluation.rows
    hit = (rows["qid"] == qid) & (rows["mode"] == mode) & (rows["greedy"] == greedy) & (rows["index"] == index)
    assert hit.sum() == 1
    return rows[hit].iloc[0]


def test_modes_continue_the_right_responses() -> None:
    evaluation = run(Script(**SCRIPT), QUERIES)
    assert len(evaluation.rows) == 3 * 3 * 3  # modes x queries x (greedy + 2)
    for mode, expected in {"plain": False, "forced": True, "bound": True}.items():
        assert bool(cell(evaluation, "a", mode, True)["correct"]) is expected
    for mode, expected in {"plain": True, "forced": False, "bound": True}.items():
        row = cell(evaluation, "b", mode, False, 1)
        assert bool(row["correct"]) is expected
        assert row["reflects"]  # its own "wait"; the trigger of the others is not counted
    assert not cell(evaluation, "b", "forced", True)["reflects"]
    cut = cell(evaluation, "c", "forced", False, 1)
    assert pd.isna(cut["trigger"]) and not cut["finished"] and cut["correct"]
    forced = cell(evaluation, "a", "forced", True)
    assert forced["text"] == "=3" + TRIGGERS[forced["trigger"]] + "=2"
    assert forced["tokens"] == len("=3") + 1 + len("=2") + 1
    assert not forced["first_correct"] and forced["first_text"] == "=3"
    assert forced["extracted"] == "2"


def test_sampling_of_each_pass() -> None:
    script = Script(**SCRIPT)
    run(script, QUERIES)
    assert [sampling.temperature for _, sampling in script.calls] == [0.0, 1.0, 0.0, 0.7]
    assert [sampling.top_p for _, sampling in script.calls] == [1.0, 0.9, 1.0, 0.9]
    assert {sampling.max_new_tokens for _, sampling in script.calls} == {60}


def test_bound_alone_continues_wrong_responses_only() -> None:
    script = Script(**SCRIPT)
    evaluation = run(script, QUERIES, modes=("bound",))
    continued = [request.query.qid for requests, _ in script.calls for request in requests if request.prefix_ids]
    assert continued == ["a", "c", "a"]  # greedy a and c, then a's wrong sample
    everything = run(Script(**SCRIPT), QUERIES)
    bound = everything.rows[everything.rows["mode"] == "bound"].reset_index(drop=True)
    pd.testing.assert_frame_equal(evaluation.rows, bound)


def test_no_room_no_second_look() -> None:
    # y1 has 2 tokens and the trigger 1: 8 more fit into 11, not into 10
    fits = run(Script(**SCRIPT), QUERIES[:1], sampling=Sampling(max_new_tokens=11))
    tight = run(Script(**SCRIPT), QUERIES[:1], sampling=Sampling(max_new_tokens=10))
    assert cell(fits, "a", "forced", True)["trigger"] in TRIGGERS
    assert pd.isna(cell(tight, "a", "forced", True)["trigger"])


def test_summary_counts() -> None:
    summary = run(Script(**SCRIPT), QUERIES).summary()
    plain, forced = summary["modes"]["plain"], summary["modes"]["forced"]
    assert plain["greedy"]["value"] == pytest.approx(1 / 3)
    assert plain["pass@1"]["value"] == pytest.approx(5 / 6)  # a: 1 of 2, b: 2 of 2, c: 2 of 2
    assert plain["pass@2"]["value"] == 1.0
    assert plain["pass@1"]["n"] == 6 and plain["pass@1"]["clusters"] == 3
    assert plain["rethinking"]["value"] == pytest.approx(1 / 6)
    outcomes = forced["outcomes"]["sampled"]
    assert outcomes["counts"] == {"wrong_to_right": 1, "right_to_wrong": 2, "right_to_right": 2, "wrong_to_wrong": 0}
    assert outcomes["forced"] == 5 and outcomes["responses"] == 6
    assert outcomes["rescued"]["value"] == 1.0 and outcomes["lost"]["value"] == 0.5
    assert forced["independent"]["rescued"]["value"] == 1.0  # a's wrong sample: its other sample is right
    # Of the four right ones that were continued a's alone has another sample that is wrong.
    assert forced["independent"]["lost"]["value"] == pytest.approx(1 / 4) and forced["independent"]["lost"]["n"] == 4
    assert summary["by_category"]["plain"]["sum"]["greedy"]["value"] == 0.5
    assert set(summary["by_level"]["plain"]) == {"1", "2"}
    json.dumps(summary, allow_nan=False)


def test_an_independent_sample_is_compared_on_the_responses_that_were_continued() -> None:
    """Cut responses get no second look: those of a are no case of the comparison, but answers of an independent sample
    they are, as a second look can be cut."""
    script = Script({"a": ("=3", "=2", "=3", "=9~", "=9~"), "b": ("=3",) * 5}, {"a": "=2", "b": "=9"})
    forced = run(script, QUERIES[:2], samples=4).summary()["modes"]["forced"]
    outcomes, independent = forced["outcomes"]["sampled"], forced["independent"]
    assert outcomes["rescued"]["n"] == 5 and outcomes["rescued"]["value"] == 1 / 5  # a's, and b's four
    assert independent["rescued"]["n"] == 5 * 3  # each with three others
    assert independent["rescued"]["value"] == pytest.approx(1 / 15)  # 1 / 7 over all wrong first responses
    assert independent["lost"]["n"] == 3 and independent["lost"]["value"] == 1.0
    bound = run(script, QUERIES[:2], samples=4).summary()["modes"]["bound"]["independent"]
    assert bound["rescued"] == independent["rescued"] and bound["lost"]["value"] is None  # it continues wrong ones


def test_shards_merge_to_the_whole() -> None:
    whole = Evaluation.merge([run(Script(**SCRIPT), QUERIES)])
    parts = [run(Script(**SCRIPT), QUERIES[2:]), run(Script(**SCRIPT), QUERIES[:2]), run(Script(**SCRIPT), [])]
    pd.testing.assert_frame_equal(Evaluation.merge(parts).rows, whole.rows)
    assert Evaluation.merge(parts).summary() == whole.summary()
    with pytest.raises(ValueError, match="'a' is in more than one part"):
        Evaluation.merge([parts[1], parts[1]])
    with pytest.raises(ValueError, match="different modes"):
        Evaluation.merge([parts[0], run(Script(**SCRIPT), QUERIES[:2], samples=2, modes=("plain",))])


def test_save_and_load(tmp_path) -> None:
    evaluation = Evaluation.merge([run(Script(**SCRIPT), QUERIES)])
    path = evaluation.save(tmp_path, "start")
    assert json.loads(path.read_text())["label"] == "start"
    again = load(tmp_path, "start")
    assert again.summary() == evaluation.summary()
    assert list(again.rows["images"][0]) == ["/images/a.png"]
    assert again.rows["trigger"].isna().sum() == evaluation.rows["trigger"].isna().sum()
    assert sorted(file.name for file in (tmp_path / "evaluation").iterdir()) == ["start.json", "start.parquet"]
    with pytest.raises(FileNotFoundError, match="stage"):
        load(tmp_path, "stage")
    with pytest.raises(ValueError, match="not a file name"):
        evaluation.save(tmp_path, "a/b")


def test_validation_is_greedy_and_has_the_glossary_names() -> None:
    from rethinker.rundir.glossary import VALIDATION

    script = Script(**SCRIPT)
    evaluation = validate(script, POLICY, QUERIES, sampling=Sampling(max_new_tokens=60), seed=0, grade=grade_many)
    metrics = evaluation.validation_metrics()
    assert metrics.keys() == VALIDATION.keys()
    assert metrics["validation/accuracy"] == pytest.approx(1 / 3) and metrics["validation/queries"] == 3
    assert [sampling.temperature for _, sampling in script.calls] == [0.0]


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="unique; repeated"):
        run(Script(**SCRIPT), [QUERIES[0], QUERIES[0]])
    with pytest.raises(ValueError, match=r"\['best'\]"):
        run(Script(**SCRIPT), QUERIES, modes=("best",))


def test_pass_at_k_is_the_mean_over_all_subsets() -> None:
    for n in range(1, 8):
        for correct, k in itertools.product(range(n + 1), range(1, n + 1)):
            verdicts = [True] * correct + [False] * (n - correct)
            subsets = list(itertools.combinations(verdicts, k))
            expected = sum(any(subset) for subset in subsets) / len(subsets)
            assert pass_at_k(n, correct, k) == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match="k=3"):
        pass_at_k(2, 1, 3)


def test_wilson_against_published_numbers() -> None:
    # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3 (score, no continuity correction).
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (successes, n), interval in published.items():
        assert wilson(successes, n) == pytest.approx(interval, abs=5e-5)
    with pytest.raises(ValueError, match="3 of 2"):
        wilson(3, 2)


def test_an_interval_contains_its_share() -> None:
    """Also by the last bit: a figure's error bar cannot have a negative length."""
    for n in range(1, 400):
        assert wilson(0, n)[0] == 0 and wilson(n, n)[1] == 1
        for totals in ([0] * n, [1] * n, [1] + [0] * (n - 1)):
            found = clustered(totals, [1] * n)
            assert found.low is not None and found.value is not None and found.high is not None
            assert found.low <= found.value <= found.high


def test_clustered_interval() -> None:
    binary = [1.0] * 30 + [0.0] * 70
    assert clustered(binary, [1] * 100) == pytest.approx(binomial([bool(value) for value in binary]))  # type: ignore[arg-type]
    # Four equal samples a query tell no more than one.
    same = clustered([4 * value for value in binary], [4] * 100)
    assert (same.low, same.high) == pytest.approx(wilson(30, 100))
    assert same.n == 400 and same.clusters == 100
    assert clustered([4.0] * 10, [4] * 10).low == pytest.approx(wilson(10, 10)[0])
    assert clustered([], []).value is None


def test_clustered_interval_covers() -> None:
    """Beta-binomial queries: 2,000 evaluations of 60 queries x 4. Coverage 0.93-0.97: a false alarm is about 1e-4."""
    generator = np.random.default_rng(0)
    hits = naive = 0
    for _ in range(2000):
        rates = generator.beta(0.6, 0.9, size=60)
        right = generator.binomial(4, rates)
        estimate = clustered(right.tolist(), [4] * 60)
        assert estimate.low is not None and estimate.high is not None
        hits += estimate.low <= 0.4 <= estimate.high
        low, high = wilson(int(right.sum()), 240)
        naive += low <= 0.4 <= high
    assert 0.93 <= hits / 2000 <= 0.97
    assert naive / 2000 < 0.85  # taking samples of one query as independent would be too sure


def test_mean_pass_at_k_and_paired_difference() -> None:
    counts = {"a": (4, 1), "b": (4, 4), "c": (4, 0)}
    assert mean_pass_at_k(counts, 1).value == pytest.approx(5 / 12)
    assert mean_pass_at_k(counts, 2).value == pytest.approx((0.5 + 1 + 0) / 3)
    with pytest.raises(ValueError, match="different numbers"):
        mean_pass_at_k({"a": (4, 1), "b": (3, 1)}, 1)
    difference = paired_difference({"a": 0.0, "b": 0.5, "c": 0.0}, {"a": 1.0, "b": 0.5, "c": 0.5})
    assert difference.value == pytest.approx(0.5)
    # standard deviation 0.5 of three differences: 0.5 +- 1.96 * 0.5 / sqrt(3)
    assert difference.low == pytest.approx(0.5 - 0.5658, abs=1e-4)
    with pytest.raises(ValueError, match="different queries"):
        paired_difference({"a": 0.0}, {"b": 0.0})


def test_files_are_whole(tmp_path, monkeypatch) -> None:
    path = tmp_path / "folder" / "file.txt"
    atomic_write_text(path, "old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            atomic_write_text(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in path.parent.iterdir()] == ["file.txt"]


def test_json_lines(tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_json_line(path, {"step": np.int64(1), "counts": np.array([1, 2])})
    append_json_line(path, {"step": 3, "accuracy": None})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"step": 1, "counts": [1, 2]}, {"step": 3, "accuracy": None}]
    with pytest.raises(ValueError, match="Out of range float"):
        append_json_line(path, {"loss": float("nan")})
    assert len(path.read_text().splitlines()) == 2


def test_a_mean_of_means_is_clustered_for_one_stratum_and_by_hand_for_two() -> None:
    values, clusters = [1.0, 0.0, 0.5, 1.0, 1.0], ["a", "a", "b", "c", "d"]
    assert mean_of_means(values, [""] * 5, clusters).to_dict() == pytest.approx(
        clustered([1.0, 0.5, 1.0, 1.0], [2, 1, 1, 1]).to_dict()
    )
    outcomes = [True, True, False, True]
    assert mean_of_means([1.0, 1.0, 0.0, 1.0], ["s"] * 4, list("abcd")).to_dict() == pytest.approx(
        binomial(outcomes).to_dict()
    )
    # Two strata, 1/2 and 3/4: mean 5/8. Cases weigh 1/4 and 1/8: variance 2 * (1/8)^2 + 3 * (1/32)^2 + (3/32)^2.
    found = mean_of_means([1.0, 0.0, 1.0, 1.0, 1.0, 0.0], list("sstttt"), list("abcdef"))
    assert found.value == 5 / 8 and (found.n, found.clusters) == (6, 6)
    size = (5 / 8 * 3 / 8) / (11 / 256)
    assert (found.low, found.high) == pytest.approx(wilson(5 / 8 * size, size))
    # The same two problems in both strata: what they share counts twice.
    shared = mean_of_means([1.0, 0.0, 1.0, 0.0], list("sstt"), list("abab"))
    apart = mean_of_means([1.0, 0.0, 1.0, 0.0], list("sstt"), list("abcd"))
    assert shared.value == apart.value and shared.clusters == 2 and shared.high - shared.low > apart.high - apart.low
    for same in (0.0, 1.0):
        assert mean_of_means([same] * 3, list("sst"), list("abc")).value == same
    assert mean_of_means([], [], []).value is None
    with pytest.raises(ValueError, match="2 values, 1 strata"):
        mean_of_means([1.0, 0.0], ["s"], ["a", "b"])
