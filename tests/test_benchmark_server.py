"""Benchmarks asked of real vLLM servers: the table of the transformers engine, also after a kill; what is refused."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from served import DATA, MODEL, serve

from rethinker import cli
from rethinker.datasets.io import load_queries
from rethinker.rollout import vllm_available
from rethinker.rundir.atomic import read_json

pytestmark = [
    pytest.mark.long,
    pytest.mark.vllm,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not vllm_available(), reason="vLLM is not installed, or not built for this processor"),
]
SMALL = ("model.min_pixels=3136", "model.max_pixels=100352", "rollout.max_new_tokens=140", "data.prompt_suffix=''")
NAMES = "mathvision,mathvista"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's own questions as MathVision's, and as MathVista's with images as bytes, some of them twice."""
    root = tmp_path_factory.mktemp("bench")
    queries, _ = load_queries(DATA, limit=24)
    (root / "mathvision" / "data").mkdir(parents=True)
    rows = [
        {"id": query.qid, "question": query.question.replace("<image>", ""), "options": [], "answer": query.answer}
        | {"level": query.level, "subject": query.category, "image": query.images[0]}
        for query in queries
    ]
    (root / "mathvision" / "data" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "mathvista").mkdir()
    vista = [
        {"pid": str(number), "question": query.question.replace("<image>", ""), "image": f"images/{number % 5}.png"}
        | {"decoded_image": {"bytes": Path(queries[number % 5].images[0]).read_bytes(), "path": None}, "choices": None}
        | {"unit": None, "precision": None, "answer": query.answer, "question_type": "free_form"}
        | {"answer_type": "integer", "query": f"Hint: how many?\n{query.question}", "metadata": METADATA}
        for number, query in enumerate(queries[:8])
    ]
    pd.DataFrame(vista).to_parquet(root / "mathvista" / "testmini.parquet")
    return root


METADATA = {
    **dict.fromkeys(("split", "language", "source", "category", "task", "context", "grade"), "x"),
    **{"img_width": 1, "img_height": 1, "skills": ["arithmetic"]},
}


@pytest.fixture(scope="module")
def servers(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("servers")
    told = ("--benchmarks", NAMES, "--data-root", str(data), f"rollout.servers={folder}", *SMALL)
    with serve(MODEL, *told, servers=1, folder=folder):
        yield folder


def words(data: Path, servers: Path, engine: str, out: Path) -> list[str]:
    wanted = ["evaluate", str(MODEL), "--benchmarks", NAMES, "--data-root", str(data), "--mode", "plain,forced"]
    place = [f"rollout.servers={servers}"] if engine == "server" else []
    return [*wanted, "--engine", engine, "--chunk", "16", "--out", str(out), *place, *SMALL]


def test_servers_answer_as_transformers_and_a_kill_loses_nothing(data: Path, servers: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert cli.main(words(data, servers, "transformers", whole)) == 0
    process = subprocess.Popen([sys.executable, "-m", "rethinker.cli", *words(data, servers, "server", out)])
    journal = out / "mathvision-test.parts" / "00000.jsonl"
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") >= 5):
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    kept = journal.read_bytes()
    assert kept.count(b"\n") >= 5 and not journal.with_suffix(".parquet").exists()
    assert cli.main(words(data, servers, "server", out)) == 0
    for name in ("mathvision-test", "mathvista-testmini"):
        tables = [pd.read_parquet(folder / f"{name}.parquet") for folder in (whole, out)]
        assert (tables[0]["look"] == "second").any()
        pd.testing.assert_frame_equal(*tables)
        assert read_json(whole / f"{name}.json") == read_json(out / f"{name}.json")


def test_servers_that_were_started_for_others_are_refused(data: Path, servers: Path, tmp_path: Path, capsys) -> None:
    assert cli.main([*words(data, servers, "server", tmp_path / "out"), "rollout.dtype=bfloat16"]) == 2
    err = capsys.readouterr().err
    assert "run in float32, not in bfloat16" in err and "the same --benchmarks (rethinker serve)" in err
