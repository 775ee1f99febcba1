"""Benchmarks on a scripted engine: tables, numbers by hand, SIGKILL at any moment, refusals, scoring again, a judge."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from letters import POLICY
from PIL import Image
from toy_benchmark import Engine, Toy, asking, settings, write_rows

from rethinker.benchmarks import registry
from rethinker.benchmarks.asking import Asking, find_skipped
from rethinker.benchmarks.base import Item, Verdict
from rethinker.benchmarks.journal import Journal, request_key
from rethinker.benchmarks.judge import Judge, judge_prompt, verdict_of
from rethinker.benchmarks.rescoring import rescore
from rethinker.benchmarks.running import only_writer, run_tasks
from rethinker.benchmarks.sources import Source
from rethinker.benchmarks.summary import write_summaries
from rethinker.benchmarks.table import COLUMNS, Shards, item_of, make_row
from rethinker.benchmarks.tasks import Task, load_task
from rethinker.rundir.atomic import read_json
from rethinker.types import Query, Request, Response, Sampling

ROWS = [
    {"id": "a", "question": "1+1?", "answer": "2", "subject": "sum", "skills": ["plus", "easy"], "problem": "p"},
    {"id": "b", "question": "2*2?", "answer": "4", "subject": "product", "skills": ["times"], "problem": "p"},
    {"id": "c", "question": "3+3?", "answer": "6", "subject": "sum", "skills": ["plus"], "unit": "m"},
    {"id": "d", "question": "0+0?", "answer": "0", "subject": "sum"},
]
FIRST = {"a": "=3", "b": "=4", "c": "I do not know", "d": "=0/2~"}
SECOND = {"a": "=2", "b": "=9", "c": "=6", "d": "=0"}


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    benchmark = Toy()
    monkeypatch.setitem(registry.BENCHMARKS, "toy", benchmark)
    return benchmark


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return load_task("toy", {"toy": str(write_rows(tmp_path / "data", ROWS))})


def engine(**changes: Any) -> Engine:
    return Engine(lambda qid, index: FIRST[qid], lambda qid, index: SECOND[qid], **changes)


def run(
    folder: Path, tasks: Sequence[Task], with_engine: Engine, how: Asking | None = None, **changes: Any
) -> dict[str, Any]:
    how = how or asking()
    values: dict[str, Any] = {"chunk": 3, "settings": settings(how)} | changes
    skipped = values.pop("skipped", {})
    return run_tasks(folder, tasks, how, values.pop("settings"), lambda left: (POLICY, with_engine, skipped), **values)


def rows_of(folder: Path, name: str = "toy-test") -> pd.DataFrame:
    return pd.DataFrame(pq.read_table(folder / f"{name}.parquet").to_pylist())


def test_a_table_has_everything_that_scoring_needs(tmp_path: Path, task: Task) -> None:
    run(tmp_path / "out", [task], engine(), asking(("forced",)))
    rows = rows_of(tmp_path / "out")
    assert list(rows) == list(COLUMNS)
    looks = [f"{row.qid} {row.look}" for row in rows.itertuples()]  # d was cut: no second look
    assert looks == ["a first", "a second", "b first", "b second", "c first", "c second", "d first"]
    assert rows["score"].tolist() == [0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.5]
    assert [item_of(row) for row in pq.read_table(tmp_path / "out" / "toy-test.parquet").to_pylist()][::2] == [
        task.items[0], task.items[1], task.items[2], task.items[3],
    ]  # fmt: skip
    c = rows.iloc[4]
    assert (c["prompt"], c["reason"], c["guessed"]) == ("Answer: 3+3?", "nothing found", 0.25) and pd.isna(
        c["extracted"]
    )
    assert not (tmp_path / "out" / "toy-test.parts").exists()


def test_numbers_by_hand(tmp_path: Path, task: Task) -> None:
    summary = run(tmp_path / "out", [task], engine(), asking(("forced", "bound")))
    found = read_json(tmp_path / "out" / "toy-test.json")
    assert (found["items"], found["published"], found["unsupported"], found["skipped"]) == (4, 4, {}, {})
    values = {mode: found["modes"][mode]["greedy"]["score"]["value"] for mode in ("plain", "forced", "bound")}
    # plain 0 1 0 .5; forced 1 0 1 .5; bound 1 1 1 .5: half a point is wrong, but it was cut and not continued
    assert values == {"plain": 1.5 / 4, "forced": 2.5 / 4, "bound": 3.5 / 4}
    plain, forced = found["modes"]["plain"]["greedy"], found["modes"]["forced"]["greedy"]
    assert plain["with_guesses"]["value"] == 1.75 / 4
    assert (plain["unparsed"], plain["truncated"], plain["unsupported"], plain["forced"]) == (1, 1, 0, 0)
    assert (forced["unparsed"], forced["forced"], forced["wrong_to_right"], forced["right_to_wrong"]) == (0, 3, 2, 1)
    assert plain["score"]["n"] == 4 and plain["score"]["clusters"] == 3  # a and b are one problem
    assert {name: score["value"] for name, score in plain["groups"]["subject"].items()} == {
        "sum": 0.5 / 3,
        "product": 1.0,
    }
    assert {name: score["n"] for name, score in plain["groups"]["skills"].items()} == {"easy": 1, "plus": 2, "times": 1}
    assert summary["benchmarks"]["toy-test"]["modes"]["forced"]["score"] == forced["score"]
    assert read_json(tmp_path / "out" / "summary.json") == summary


def test_samples_beside_the_greedy_response(tmp_path: Path, task: Task) -> None:
    texts = {"a": ("=2", "=3"), "b": ("=4", "=4"), "c": ("=1", "=1"), "d": ("=?", "=0")}
    model = Engine(lambda qid, index: FIRST[qid] if index < 0 else texts[qid][index])
    run(tmp_path / "out", [task], model, asking(samples=2))
    plain = read_json(tmp_path / "out" / "toy-test.json")["modes"]["plain"]
    assert plain["greedy"]["score"]["value"] == 1.5 / 4
    assert plain["sampled"]["score"]["value"] == 4 / 7 and plain["sampled"]["unsupported"] == 1
    assert plain["sampled"]["score"]["n"] == 7


def test_pass_at_k_and_repeated_samples(tmp_path: Path, task: Task) -> None:
    texts = {"a": ("=2", "=3"), "b": ("=4", "=4"), "c": ("=1", "=1"), "d": ("=1", "=0")}
    model = Engine(lambda qid, index: FIRST[qid] if index < 0 else texts[qid][index])
    run(tmp_path / "out", [task], model, asking(samples=2))
    plain = read_json(tmp_path / "out" / "toy-test.json")["modes"]["plain"]
    assert plain["pass@1"] == plain["sampled"]["score"] and plain["pass@1"]["value"] == 4 / 8
    assert plain["pass@2"]["value"] == 3 / 4
    assert (plain["pass@2"]["n"], plain["pass@2"]["clusters"]) == (8, 3)  # a and b are one problem
    assert len(rows_of(tmp_path / "out")) == 12
    headline = read_json(tmp_path / "out" / "summary.json")["benchmarks"]["toy-test"]["modes"]["plain"]
    assert headline["pass@2"] == plain["pass@2"] and headline["sampled"] == plain["sampled"]["score"]


def test_samples_of_means_of_means_and_of_what_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: Task
) -> None:
    monkeypatch.setattr(Toy, "mean_over", "subject")
    texts = {"a": ("=2", "=3"), "b": ("=1", "=4"), "c": ("=?", "=6")}
    model = Engine(lambda qid, index: FIRST[qid] if index < 0 else texts[qid][index])
    run(tmp_path / "out", [task], model, asking(samples=2), skipped={"toy-test": {"d": "prompt too long: 9"}})
    plain = read_json(tmp_path / "out" / "toy-test.json")["modes"]["plain"]
    # product: b 1 of 2; sum: a 1 of 2, d was not asked (0 of 2), and c has one response that nothing can score.
    assert plain["sampled"]["score"]["value"] == (1 / 2 + 2 / 5) / 2 and plain["sampled"]["skipped"] == 1
    assert plain["pass@1"]["value"] == (1 / 2 + 1 / 4) / 2
    assert plain["pass@2"]["value"] == (1 + 1 / 2) / 2


def test_a_mean_of_means_and_what_nothing_can_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: Task
) -> None:
    monkeypatch.setattr(Toy, "mean_over", "subject")
    model = Engine(lambda qid, index: {"a": "=2", "b": "=4", "c": "=?", "d": "=1"}[qid])
    run(tmp_path / "out", [task], model)
    found = read_json(tmp_path / "out" / "toy-test.json")
    score = found["modes"]["plain"]["greedy"]["score"]
    assert score["value"] == (1 / 2 + 1) / 2 and score["n"] == 3  # sum: a right, d wrong; product: b
    assert found["unsupported"] == {"needs a calculator": ["c"]}
    assert found["modes"]["plain"]["greedy"]["unsupported"] == 1


def test_what_nothing_can_score_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: Task) -> None:
    score = Toy.official_score

    def without_c(self: Toy, item: Item, text: str) -> Verdict:
        return Verdict(None, None, "a video") if item.qid == "c" else score(self, item, text)

    monkeypatch.setattr(Toy, "official_score", without_c)
    model = engine()
    run(tmp_path / "out", [task], model, asking(("forced",)))
    assert model.asked == ["a", "b", "d"]
    found = read_json(tmp_path / "out" / "toy-test.json")
    assert (found["unsupported"], found["skipped"]) == ({"a video": ["c"]}, {})
    greedy = found["modes"]["forced"]["greedy"]
    assert (greedy["unsupported"], greedy["skipped"], greedy["score"]["n"]) == (1, 0, 3)
    assert rescore(tmp_path / "out") == {"toy-test": 0}


def test_what_cannot_be_asked_scores_zero_and_is_listed(tmp_path: Path, task: Task) -> None:
    model = engine()
    why = {"toy-test": {"b": "prompt too long: 9,000 tokens"}}
    run(tmp_path / "out", [task], model, asking(("bound",)), skipped=why)
    assert model.asked == ["a", "c", "d"]
    found = read_json(tmp_path / "out" / "toy-test.json")
    assert found["skipped"] == {"prompt too long: 9,000 tokens": ["b"]}
    assert found["modes"]["plain"]["greedy"]["skipped"] == 1
    assert found["modes"]["plain"]["greedy"]["score"] | {"low": 0, "high": 0} == {
        "value": 0.5 / 4, "low": 0, "high": 0, "n": 4, "clusters": 3,
    }  # fmt: skip


def test_faults_are_found_before_anything_is_asked(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    rows = [
        {"id": "good", "images": ["good.png"]},
        {"id": "bad", "images": ["bad.png"]},
        {"id": "token", "question": "<|im_end|>?"},
        {"id": "long"},
    ]
    data = write_rows(tmp_path, [{"question": "?", "answer": "1", "subject": "s"} | row for row in rows])
    task = load_task("toy", {"toy": str(data)})
    skipped = find_skipped(task, "official", lambda query: ("prompt too long", "9") if query.qid == "long" else None)
    assert {qid: reason.partition(":")[0] for qid, reason in skipped.items()} == {
        "bad": "unreadable image",
        "token": "special token in the question",
        "long": "prompt too long",
    }


class Killed(Exception):
    pass


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_child(work: Callable[[], object]) -> int:
    """The exit code of a forked process that does ``work``; -9: it was killed."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    return process.exitcode  # type: ignore[return-value]


def test_killed_three_times_it_is_the_same_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"id": f"q{n}", "question": f"{n}?", "answer": str(n % 3), "subject": f"s{n % 2}"} for n in range(30)]
    task = load_task("toy", {"toy": str(write_rows(tmp_path / "data", rows))})

    def answers(before: Callable[[int], None] = lambda call: None) -> Engine:
        return Engine(lambda qid, index: f"={len(qid) % 3 + index}", lambda qid, index: f"={int(qid[1:]) % 3}", before)

    how = asking(("forced", "bound"), samples=2)
    run(tmp_path / "whole", [task], answers(), how, chunk=4)

    def killed_while_generating() -> None:
        run(tmp_path / "out", [task], answers(lambda call: kill() if call == 9 else None), how, chunk=4)

    def killed_while_writing() -> None:
        replaced, original = [], os.replace

        def replace(source: Any, target: Any) -> None:
            if str(target).endswith(".parquet") and len(replaced) == 3:
                kill()
            replaced.append(target)
            original(source, target)

        os.replace = replace  # type: ignore[assignment]
        run(tmp_path / "out", [task], answers(), how, chunk=4)

    def killed_while_merging() -> None:
        Shards.discard = lambda self: kill()  # type: ignore[method-assign]
        run(tmp_path / "out", [task], answers(), how, chunk=4)

    for attempt in (killed_while_generating, killed_while_writing, killed_while_merging):
        assert in_child(attempt) == -signal.SIGKILL
    parts = tmp_path / "out" / "toy-test.parts"
    assert len(list(parts.glob("*.parquet"))) == 8 and list(parts.glob(".*.tmp"))  # all whole, and what a kill left
    model = answers()
    run(tmp_path / "out", [task], model, how, chunk=4)
    assert model.calls == 0  # the merge had been done
    for name in ("toy-test.parquet", "toy-test.json", "summary.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not parts.exists() and not list((tmp_path / "out").glob(".*.tmp"))


def test_a_resumed_run_asks_only_what_is_missing(tmp_path: Path, task: Task) -> None:
    def stop(call: int) -> None:
        if call == 1:
            raise Killed

    first = engine(before=stop)
    with pytest.raises(Killed):
        run(tmp_path / "out", [task], first)
    assert first.closed and first.asked == ["a", "b", "c"]
    second = engine()
    run(tmp_path / "out", [task], second)
    assert second.asked == ["d"] and second.closed
    third = engine()
    run(tmp_path / "out", [task], third)
    assert third.calls == 0 and rows_of(tmp_path / "out")["qid"].tolist() == ["a", "b", "c", "d"]


def test_stopped_after_any_response_it_asks_the_others_only(tmp_path: Path, task: Task) -> None:
    how = asking(("forced", "bound"), samples=2)

    def answers(stop_after: int = -1) -> Engine:
        def after(count: int) -> None:
            if count == stop_after:
                raise Killed

        texts = {"a": ("=2", "=3"), "b": ("=4", "=4"), "c": ("=1", "?"), "d": ("=1", "=0")}
        return Engine(
            lambda qid, index: FIRST[qid] if index < 0 else texts[qid][index],
            lambda qid, index: SECOND[qid] if index < 0 else f"={index}",
            after=after,
        )

    whole = answers()
    run(tmp_path / "whole", [task], whole, how)
    assert whole.responses == 23  # 4 greedy, 8 sampled, and a second look at each but d's greedy one, which was cut
    expected = {name: (tmp_path / "whole" / name).read_bytes() for name in ("toy-test.parquet", "toy-test.json")}
    counts, journals = range(1, whole.responses, 4), 0
    for count in counts:
        out = tmp_path / str(count)
        with pytest.raises(Killed):
            run(out, [task], answers(count), how)
        for journal in (out / "toy-test.parts").glob("*.jsonl"):
            journals += 1
            with journal.open("ab") as file:  # what SIGKILL makes of the line that is being written
                file.write(journal.read_bytes()[: 5 + count])
        rest = answers()
        run(out, [task], rest, how)
        assert rest.responses == whole.responses - count
        assert {name: (out / name).read_bytes() for name in expected} == expected
        assert not (out / "toy-test.parts").exists()
    assert journals == len(counts)


def test_a_journal_gives_back_what_it_was_given(tmp_path: Path) -> None:
    responses = {
        "a": Response((1, 2), (-0.1, np.float32(-1e-7).item()), True, "\u2028 \ud800 \n\r \u00e9"),
        "b": Response((), (), False, ""),
    }
    path = tmp_path / "parts" / "0.jsonl"
    for key, response in responses.items():
        Journal(path).keep({key: response})
    lines = path.read_bytes()
    assert Journal(path).kept == responses and lines.count(b"\n") == 2
    for damage in (b"x", b"[1, 2]\n", lines.splitlines()[0], b"\x00" * 9 + b"\n" + lines):
        path.write_bytes(lines + damage)
        journal = Journal(path)
        assert journal.kept == responses and path.read_bytes() == lines, damage
        journal.keep({"c": responses["a"]})
        assert list(Journal(path).kept) == ["a", "b", "c"]


def test_a_response_is_that_of_its_request_only() -> None:
    sampling = Sampling(temperature=0.6)
    request = Request("x", Query("q", "?", ""), seed=1, prefix_ids=(1, 2))
    others = [
        replace(request, query=Query("r", "?", "")),
        replace(request, seed=2),
        replace(request, first=1),
        replace(request, prefix_ids=(1, 3)),
    ]
    keys = {request_key(one, sampling) for one in (request, *others)}
    keys |= {request_key(request, replace(sampling, **change)) for change in ({"temperature": 0.0}, {"top_p": 0.5})}
    assert len(keys) == 7 and request_key(replace(request, request_id="y"), sampling) in keys


def test_other_settings_or_data_are_refused(tmp_path: Path, task: Task) -> None:
    out, how = tmp_path / "out", asking()
    run(out, [task], engine())
    before = (out / "settings.json").read_text()
    for changes, message in (
        ({"how": asking(samples=2)}, r"samples 0 -> 2"),
        ({"settings": settings(how, model={"path": "other"})}, r"model\.path 'toy' -> 'other'"),
        ({"settings": settings(how, limit=3)}, r"limit None -> 3"),
        ({"chunk": 2}, r"chunk 3 -> 2"),
    ):
        with pytest.raises(ValueError, match=rf"was made otherwise: {message}; choose another --label"):
            run(out, [task], engine(), **changes)
    for rows, message in ((ROWS[:3], "4 -> 3 items"), ([ROWS[0] | {"answer": "3"}, *ROWS[1:]], "the content")):
        other = load_task("toy", {"toy": str(write_rows(tmp_path / "data", rows))})
        with pytest.raises(ValueError, match=rf"the data of toy-test \({message}\)"):
            run(out, [other], engine())
    assert (out / "settings.json").read_text() == before
    moved = load_task("toy", {"toy": str(write_rows(tmp_path / "moved", ROWS))})
    mini = load_task("toy:mini", {"toy": str(write_rows(tmp_path / "moved", ROWS[:2], "mini"))})
    summary = run(out, [moved, mini], engine())  # a place may change, and a benchmark be added
    assert list(summary["benchmarks"]) == ["toy-test", "toy-mini"]


def test_one_writer_at_a_time(tmp_path: Path, task: Task) -> None:
    with only_writer(tmp_path / "out"), pytest.raises(ValueError, match="another process writes there"):
        run(tmp_path / "out", [task], engine())


def test_data_that_cannot_be_used(tmp_path: Path) -> None:
    for rows, split, message in (
        ([], "toy", r"no rows in split 'test'"),
        ([ROWS[0], ROWS[0]], "toy", r"two rows have the id 'a'"),
        ([ROWS[0], {"id": "x"}], "toy", r"behind 'a': no column 'question'"),
        (ROWS, "toy:dev", r"no split 'dev'; there are test, mini"),
        (ROWS, "toys", r"no benchmark 'toys'; there are"),
    ):
        data = write_rows(tmp_path / "data", rows)
        with pytest.raises(ValueError, match=message):
            load_task(split, {"toy": str(data)})
    pictured = write_rows(tmp_path / "pictured", [ROWS[0] | {"images": ["images/1.png", "images/2.png"]}])
    with pytest.raises(FileNotFoundError, match=r"2 images are missing, e\.g\. .*images/1\.png"):
        load_task("toy", {"toy": str(pictured)})
    with pytest.raises(FileNotFoundError, match="give --data toy=PLACE"):
        load_task("toy", {"toy": str(tmp_path / "nowhere")})
    assert load_task("toy", {}, write_rows(tmp_path / "root" / "toy", ROWS).parent, limit=2).items[1].qid == "b"


def test_scoring_again_after_a_rule_was_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: Task) -> None:
    out = tmp_path / "out"
    run(out, [task], engine(), asking(("forced", "bound")))
    assert rescore(out) == {"toy-test": 0}
    before = rows_of(out)

    def mended(self: Toy, item: Item, text: str) -> Verdict:
        answer = text.rpartition("=")[2]
        assert item.extra == {"unit": "m" if item.qid == "c" else None}
        return Verdict(float(answer == "3" if item.qid == "a" else answer == item.golds[0]), answer, "mended")

    monkeypatch.setattr(Toy, "official_score", mended)
    assert rescore(out) == {"toy-test": 3}  # a's first and second look, d's half a point
    summary = write_summaries(out)
    after = rows_of(out)
    unchanged = [name for name in COLUMNS if name not in ("score", "extracted", "reason", "guessed")]
    pd.testing.assert_frame_equal(after[unchanged], before[unchanged])
    values = {mode: found["score"]["value"] for mode, found in summary["benchmarks"]["toy-test"]["modes"].items()}
    assert values == {"plain": 2 / 4, "forced": 1 / 4, "bound": 3 / 4}  # bound keeps a's first look now


def test_nothing_finished_is_nothing_to_score_again(tmp_path: Path, task: Task) -> None:
    def stop(call: int) -> None:
        raise Killed

    with pytest.raises(Killed):
        run(tmp_path / "out", [task], engine(before=stop))
    with pytest.raises(FileNotFoundError, match="no benchmark is finished yet"):
        rescore(tmp_path / "out")


def test_a_rule_reads_the_same_when_it_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tuple in ``extra`` would come back as a list."""
    items = Toy.items

    def with_tuples(self: Toy, source: Source, split: str) -> Iterator[Item]:
        return (replace(item, extra={"pair": (1, 2), 3: "x"}) for item in items(self, source, split))

    monkeypatch.setattr(Toy, "items", with_tuples)
    seen: list[Any] = []
    score = Toy.official_score
    monkeypatch.setattr(
        Toy, "official_score", lambda self, item, text: (seen.append(item.extra), score(self, item, text))[1]
    )
    run(tmp_path / "out", [load_task("toy", {"toy": str(write_rows(tmp_path / "data", ROWS))})], engine())
    rescore(tmp_path / "out")
    assert len(seen) == 12 and all(extra == {"pair": [1, 2], "3": "x"} for extra in seen)


@contextmanager
def endpoint(reply: Callable[[dict[str, Any], int], tuple[int, Any]]) -> Iterator[tuple[str, list[Any]]]:
    """An OpenAI-compatible stand-in; ``reply(body, number)`` gives status and the message (or a whole body)."""
    seen: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, self.headers.get("Authorization"), body))
            status, content = reply(body, len(seen))
            if isinstance(content, str):
                content = {"choices": [{"message": {"content": content}}]}
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        server.server_close()


def by_content(body: dict[str, Any], number: int) -> tuple[int, Any]:
    """Right for b; nonsense for c; not reachable at first."""
    prompt = body["messages"][0]["content"]
    if number == 1:
        return 429, {"error": "slow down"}
    return 200, "Correct." if "2*2?" in prompt else "hm" if "3+3?" in prompt else "This is incorrect"


def test_a_judge_beside_the_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: Task) -> None:
    monkeypatch.setenv("RETHINKER_JUDGE_KEY", "secret")
    out = tmp_path / "out"
    with endpoint(by_content) as (url, seen):
        run(out, [task], engine(), judge=Judge(url, "m", workers=2, pause=0.01))
        path, key, body = seen[0]
        assert (path, key, body["model"], body["temperature"]) == ("/v1/chat/completions", "Bearer secret", "m", 0)
        assert len(seen) == 5  # four rows, one of them twice
        rows = rows_of(out)
        assert [None if pd.isna(value) else value for value in rows["judge"]] == [0.0, 1.0, None, 0.0]
        assert rows["judge_reply"].tolist() == ["This is incorrect", "Correct.", "hm", "This is incorrect"]
        judged = read_json(out / "toy-test.json")["modes"]["plain"]["greedy"]["judge"]
        assert (judged["score"]["value"], judged["score"]["n"], judged["agreement"]) == (1 / 3, 3, 1.0)
        rescore(out, Judge(url, "m", pause=0.01))
        assert len(seen) == 5  # kept
        rescore(out, Judge(url, "other", pause=0.01))
        assert len(seen) == 9 and set(rows_of(out)["judge_model"]) == {"other"}
    settings_file = (out / "settings.json").read_text() + (out / "toy-test.json").read_text()
    assert "secret" not in settings_file


def test_a_judge_that_is_gone_loses_nothing(tmp_path: Path, task: Task) -> None:
    out = tmp_path / "out"
    run(out, [task], engine(), chunk=1)
    before = rows_of(out)
    with endpoint(lambda body, number: (200, "correct") if number <= 2 else (503, {})) as (url, seen):
        with pytest.raises(OSError, match=r"did not answer in 5 tries \(status 503\); the same command resumes"):
            rescore(out, Judge(url, "m", pause=0.001))
        assert len(seen) == 7
        pd.testing.assert_frame_equal(rows_of(out), before)
    with endpoint(lambda body, number: (200, "correct")) as (url, seen):
        rescore(out, Judge(url, "m", pause=0.001))
        assert len(seen) == 2 and rows_of(out)["judge"].tolist() == [1.0] * 4
    with endpoint(lambda body, number: (401, {})) as (url, seen), pytest.raises(OSError, match="refused: 401"):
        rescore(out, Judge(url, "n", pause=0.001))


def test_a_judges_words_and_what_it_reads() -> None:
    for reply, verdict in (("correct", 1.0), ("Incorrect.", 0.0), ("not correct? No: incorrect", 0.0), ("?", None)):
        assert verdict_of(reply) == verdict, reply
    item = Item("x", "Which {one}?", ("A",), options=("{12}", "13"))
    prompt = judge_prompt(make_row(item, "", text="x" * 9000 + "END"))
    assert "Which {one}?\n(A) {12}\n(B) 13" in prompt and "Correct answer: A" in prompt
    assert prompt.count("x" * 100) and len(prompt) < 5000 and "END" in prompt
