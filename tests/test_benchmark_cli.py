"""``rethinker evaluate --benchmarks`` and ``rescore``: a real model from the command line, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import benchmark_schemas
import pandas as pd
import pytest
import test_mega
import tiny_families

from rethinker import cli
from rethinker.benchmarks import checkpoint
from rethinker.benchmarks.registry import BENCHMARKS
from rethinker.benchmarks.tasks import load_task
from rethinker.datasets.io import load_queries
from rethinker.lab.benchmark_inputs import config_of, load_tasks
from rethinker.policy.families import FAMILIES
from rethinker.rollout import vllm_available
from rethinker.rundir.atomic import read_json

ROOT = Path(__file__).parents[1]
SMALL = (
    "rollout.max_new_tokens=24",
    "model.min_pixels=3136",
    "model.max_pixels=3136",
    "rethink.min_second_look_tokens=4",
)


@pytest.fixture
def maths(tmp_path: Path, image_files: list[str]) -> Path:
    """MathVision's official repository with five problems."""
    folder = tmp_path / "MATH-V"
    (folder / "data").mkdir(parents=True)
    rows = [
        {
            "id": str(number),
            "question": "How many red circles are there?\n<image1>",
            "options": ["23", "24", "25", "26", "27"] if number % 2 else [],
            "answer": "A" if number % 2 else "23",
            "level": number,
            "subject": "counting",
            "image": image_files[number],
        }
        for number in range(5)
    ]
    (folder / "data" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = cli.main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_real_model_from_the_command_line(tiny_folder, maths, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = (
        *("evaluate", str(tiny_folder), "--benchmarks", "mathvision", "--data", f"mathvision={maths}"),
        *("--mode", "bound,plain", "--engine", "transformers", "--samples", "1", "--chunk", "2", "name=toy", *SMALL),
    )
    code, out, err = run(*command, capsys=capsys)
    assert code == 0 and "MathVision" in out and "5 of 3040" in out and "pass@1" in out
    assert "warning: mathvision-test: 5 items, 3040 are published" in err
    folder = tmp_path / "runs" / "toy" / "benchmarks" / "boxed"
    rows = pd.read_parquet(folder / "mathvision-test.parquet")
    assert set(rows["qid"]) == set("01234") and len(rows) >= 10
    settings = read_json(folder / "settings.json")
    assert settings["prompt"]["suffix"] == checkpoint.SUFFIX and settings["rollout"]["engine"] == "transformers"
    assert settings["rollout"]["max_new_tokens"] == 24 and settings["rollout"]["temperature"] == 0.6
    before = (folder / "mathvision-test.parquet").read_bytes()
    monkeypatch.setattr(checkpoint, "policy_to_ask", lambda *_, **__: pytest.fail("nothing is missing"))
    assert run(*command, capsys=capsys)[0] == 0
    assert run("rescore", str(folder), capsys=capsys)[0] == 0
    again = pd.read_parquet(folder / "mathvision-test.parquet")
    pd.testing.assert_frame_equal(again, rows)
    assert (
        before
        and read_json(folder / "summary.json")["benchmarks"]["mathvision-test"]["modes"]["plain"]["score"]["n"] == 5
    )
    code, _, err = run(*command, "seed=7", capsys=capsys)
    assert code == 2 and "seed 0 -> 7" in err and "choose another --label or --out" in err


@pytest.mark.long
def test_every_benchmark_with_the_tiny_vlm(tmp_path, capsys, monkeypatch) -> None:
    """Files in the published schemas, both protocols; MEGA-Bench with a task that nothing here can score."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = benchmark_schemas.write_all(tmp_path / "data")
    judged = test_mega.info("program_judge")
    test_mega.written(tmp_path / "data" / "mega", [test_mega.row(1), test_mega.row(2, task="write", metrics=judged)])
    names = [*data, "mega"]
    assert set(names) == set(BENCHMARKS)
    for protocol in ("boxed", "official"):
        out = tmp_path / protocol
        command = (
            *("evaluate", str(ROOT / "experiments" / "tiny.yaml"), "--benchmarks", ",".join(names)),
            *("--data-root", str(tmp_path / "data"), "--engine", "transformers", "--mode", "plain,bound"),
            *("--protocol", protocol, "--out", str(out), "model.max_pixels=3136", "rollout.max_new_tokens=64"),
        )
        code, printed, _ = run(*command, capsys=capsys)
        assert code == 0 and all(benchmark.title in printed for benchmark in BENCHMARKS.values())
        for name, found in read_json(out / "summary.json")["benchmarks"].items():
            rows = pd.read_parquet(out / f"{name}.parquet")
            firsts = rows[rows["look"] == "first"]
            assert firsts["qid"].is_unique and len(firsts) == found["items"]
            plain = found["modes"]["plain"]
            assert plain["score"]["n"] + plain["unsupported"] == found["items"] and plain["skipped"] == 0
            assert plain["unsupported"] == (1 if name == "mega-core" else 0)
        code, _, err = run("rescore", str(out), capsys=capsys)
        assert code == 0 and err.count(": 0 scores changed") == len(names)


@pytest.mark.vllm
@pytest.mark.long
@pytest.mark.skipif(not vllm_available(), reason="vLLM is not installed")
def test_vllm_without_weights_beside_it_answers_as_transformers(tmp_path: Path) -> None:
    queries, _ = load_queries(ROOT / "data" / "visual_math" / "test.parquet", limit=16)
    (tmp_path / "data").mkdir()
    rows = [
        {"id": query.qid, "question": query.question.replace("<image>", ""), "options": [], "answer": query.answer}
        | {"level": query.level, "subject": query.category, "image": query.images[0]}
        for query in queries
    ]
    (tmp_path / "data" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tables = []
    for engine in ("vllm", "transformers"):  # processes of their own, as users have them
        command = (
            *("evaluate", str(ROOT / "experiments" / "tiny.yaml"), "--benchmarks", "mathvision", "--mode", "forced"),
            *("--data", f"mathvision={tmp_path}", "--engine", engine, "--out", str(tmp_path / engine)),
        )
        subprocess.run([sys.executable, "-m", "rethinker.cli", *command], check=True)
        tables.append(pd.read_parquet(tmp_path / engine / "mathvision-test.parquet"))
    assert len(tables[0]) > len(rows)  # second looks too
    pd.testing.assert_frame_equal(*tables)


def test_what_is_refused_is_one_line(tiny_folder, maths, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, data = str(tiny_folder), f"mathvision={maths}"
    for arguments, message in (
        (["--protocol", "official"], "--protocol is for benchmarks: add --benchmarks"),
        (["--judge-model", "m"], "--judge-model is for benchmarks"),
        (["--benchmarks", "mathvison"], "no benchmark 'mathvison'"),
        (["--benchmarks", "mathvision", "--data", "mathvision"], "is written NAME=PLACE"),
        (["--benchmarks", "mathvision", "--data", "math=x"], "no benchmark 'math'"),
        (["--benchmarks", "mathvision", "--data", "mathvision=nowhere"], "give --data mathvision=PLACE"),
        (["--benchmarks", "mathvision", "--mode", "forcd"], "'forcd' is none of plain, forced, bound"),
        (["--benchmarks", "mathvision", "--chunk", "0"], "--chunk 0: needs at least 1"),
        (["--benchmarks", "mathvision", "--judge", "http://x"], "--judge URL and --judge-model NAME belong together"),
        (["--benchmarks", "mathvision", "--data", data, "--limit", "-1"], "--limit -1: needs at least 1"),
        (["--benchmarks", "mathvision", "--data", data, "rollout.max_new_token=1"], "unknown setting"),
        (["--benchmarks", "mathvision", "evaluation.samples=8"], "evaluation.samples=8: has no effect on --benchmarks"),
        (["--benchmarks", "mathvision", "--protocol", "official", "data.prompt_hint=x"], "the benchmark's own prompt"),
    ):
        code, out, err = run("evaluate", model, *arguments, capsys=capsys)
        assert code == 2 and out == "" and err.count("\n") == 1 and message in err, (arguments, err)
    code, _, err = run("evaluate", "nowhere", "--benchmarks", "mathvision", capsys=capsys)
    assert code == 2 and "model.path=nowhere" in err
    code, _, err = run("rescore", "nothing", capsys=capsys)
    assert code == 2 and "nothing is not the folder of an evaluation" in err
    assert not (tmp_path / "runs").exists() and not (tmp_path / "nothing").exists()


def test_a_bare_checkpoint_has_the_papers_settings_and_a_config_its_own(tmp_path: Path) -> None:
    config, folder = config_of("Qwen/Qwen2.5-VL-7B-Instruct", ["rollout.max_new_tokens=100"])
    assert folder == Path("runs") / "Qwen2.5-VL-7B-Instruct" and config.model.path == "Qwen/Qwen2.5-VL-7B-Instruct"
    assert (config.model.min_pixels, config.model.max_pixels) == (256 * 28 * 28, 1280 * 28 * 28)
    assert config.rollout.max_new_tokens == 100 and config.data.prompt_suffix == checkpoint.SUFFIX
    assert config_of("m", [])[0].rollout.max_new_tokens == 8192
    assert config_of("m", ["data.prompt_suffix=x"])[0].data.prompt_suffix == "x"
    assert config_of("runs/a/checkpoints/best/model", [])[1].name == "a-best"
    config, folder = config_of(str(ROOT / "experiments" / "tiny.yaml"), [])
    assert config.rollout.max_new_tokens == 140 and config.data.prompt_suffix == "" and folder.name == "tiny"


def test_the_papers_pixel_limits_are_for_families_that_have_some(tmp_path: Path) -> None:
    for name, family in FAMILIES.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": name}))
        model = config_of(str(folder), [])[0].model
        limits = (256 * 28 * 28, 1280 * 28 * 28) if name.startswith("qwen") else (None, None)
        assert (model.min_pixels, model.max_pixels) == limits, name
        assert family.sized == name.startswith("qwen")
        assert config_of(str(folder), ["model.max_pixels=300000"])[0].model.max_pixels == 300000


@pytest.mark.long
@pytest.mark.parametrize("family", ["smolvlm", "idefics3", "internvl", "gemma3"])
def test_a_tiled_family_needs_no_other_command(family, maths, tmp_path, capsys) -> None:
    model = tiny_families.save_tiny(family, tmp_path / family)
    command = ("evaluate", str(model), "--benchmarks", "mathvision", "--data", f"mathvision={maths}", "--mode", "bound")
    small = ("--engine", "transformers", "--out", str(tmp_path / "out"), "rollout.max_new_tokens=16")
    code, out, _ = run(*command, *small, "rethink.min_second_look_tokens=4", capsys=capsys)
    assert code == 0 and "MathVision" in out
    rows = pd.read_parquet(tmp_path / "out" / "mathvision-test.parquet")
    assert set(rows["qid"]) == set("01234") and rows["skipped"].isna().all()


def test_items_that_cannot_be_asked_are_said(tiny_folder, maths, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = ("evaluate", str(tiny_folder), "--benchmarks", "mathvision", "--data", f"mathvision={maths}")
    code, _, err = run(*command, "--engine", "transformers", "rollout.max_new_tokens=100000", capsys=capsys)
    assert code == 2 and "mathvision-test: 5 of 5 items cannot be asked, e.g. 0: prompt too long: " in err
    task = load_task("mathvision", {"mathvision": str(maths)})
    checkpoint.say_skipped(task, {"3": "unreadable image: x"})
    text = "warning: mathvision-test: 1 of 5 items cannot be asked and score 0, e.g. 3: unreadable image: x\n"
    assert capsys.readouterr().err == text


def test_checkpoints_are_told_apart(tiny_folder: Path, tmp_path: Path) -> None:
    first = checkpoint.model_identity(str(tiny_folder))
    assert first == checkpoint.model_identity(str(tiny_folder)) and first["path"] == str(tiny_folder)
    other = tmp_path / "model"
    other.mkdir()
    for file in tiny_folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    assert checkpoint.model_identity(str(other))["digest"] == first["digest"]
    weights = other / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    assert checkpoint.model_identity(str(other))["digest"] != first["digest"]


def test_images_in_rows_are_files_once_and_it_says_where(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    benchmark_schemas.write_all(tmp_path / "data")
    cache = tmp_path / "cache" / "rethinker" / "images"

    def read() -> dict[Path, int]:
        (task,) = load_tasks("mathvista", "boxed", None, tmp_path / "data")
        images = {Path(path) for item in task.items for path in item.images}
        assert all(path.parent == cache for path in images) and set(cache.iterdir()) == images
        text = f"mathvista-testmini: {len(images)} images of its rows are files in {cache} (0 MB)\n"
        assert capsys.readouterr().err.endswith(text)
        return {path: path.stat().st_mtime_ns for path in images}

    found = read()
    assert read() == found  # none is written again
    damaged, *others = found
    content = damaged.read_bytes()
    damaged.write_bytes(b"")
    again = read()
    assert damaged.read_bytes() == content and [again[path] for path in others] == [found[path] for path in others]


def test_the_page_of_benchmarks_is_current() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for name, benchmark in BENCHMARKS.items():
        (line,) = (line for line in page.splitlines() if line.startswith(f"| `{name}:"))
        assert f"`{benchmark.hub}`" in line
        for split, count in benchmark.splits.items():
            assert f":{split}`" in line and f"{count:,}" in line, (name, split)
