"""A real model on 4,000 questions with images, killed three times at random moments: the table of one that was not."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rethinker.rundir.atomic import read_json

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]

ITEMS, CHUNK = 4000, 125
SMALL = ("rollout.max_new_tokens=8", "rollout.batch_size=25", "model.min_pixels=784", "model.max_pixels=3136")


@pytest.fixture(scope="module")
def maths(tmp_path_factory) -> Path:
    """MathVision's official repository: 4,000 problems, each with an image of its own."""
    folder = tmp_path_factory.mktemp("MATH-V")
    (folder / "data").mkdir()
    (folder / "images").mkdir()
    generator = np.random.default_rng(0)
    rows = []
    for number in range(ITEMS):
        name = f"images/{number}.png"
        Image.fromarray(generator.integers(0, 256, (28, 28, 3), np.uint8)).save(folder / name)
        options = ["23", "24", "25", "26", "27"] if number % 2 else []
        row = {"id": str(number), "question": "How many red circles?\n<image1>", "options": options, "image": name}
        rows.append(row | {"answer": "A" if options else "23", "level": number % 5 + 1, "subject": f"s{number % 16}"})
    (folder / "data" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def start(model: Path, maths: Path, out: Path) -> subprocess.Popen[bytes]:
    command = (
        *(sys.executable, "-m", "rethinker.cli", "evaluate", str(model), "--benchmarks", "mathvision"),
        *(
            "--data",
            f"mathvision={maths}",
            "--engine",
            "transformers",
            "--chunk",
            str(CHUNK),
            "--out",
            str(out),
            *SMALL,
        ),
    )
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def responses(out: Path) -> tuple[int, int]:
    """Whole chunks, and responses in the journal of the one that is being asked."""
    folder = out / "mathvision-test.parts"
    chunks = len(list(folder.glob("[0-9]*.parquet")))
    journal = folder / f"{chunks:05d}.jsonl"
    return chunks, journal.read_bytes().count(b"\n") if journal.exists() else 0


def test_killed_three_times_it_is_the_same_table(tiny_folder: Path, maths: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert start(tiny_folder, maths, whole).wait() == 0
    chance = random.Random(0)
    kept = []
    for reached in (5, 14, 23):
        process = start(tiny_folder, maths, out)
        while (responses(out)[0] < reached or not responses(out)[1]) and process.poll() is None:
            time.sleep(0.02)  # until there is a part of a chunk
        time.sleep(chance.uniform(0, 0.2))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        chunks, journal = responses(out)
        assert reached <= chunks < ITEMS // CHUNK
        kept.append(journal)
    assert any(0 < journal < CHUNK for journal in kept), kept
    assert start(tiny_folder, maths, out).wait() == 0
    name = "mathvision-test.parquet"
    table = pq.read_table(out / name)
    assert table.num_rows == ITEMS and table["qid"].to_pylist() == [str(number) for number in range(ITEMS)]
    assert table.equals(pq.read_table(whole / name))
    assert read_json(out / "mathvision-test.json") == read_json(whole / "mathvision-test.json")
