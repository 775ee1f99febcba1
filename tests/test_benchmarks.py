"""The benchmark against TRL: its arithmetic by hand, and a tiny run of both sides."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "experiments" / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark is a folder of scripts that import each other."""
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """The folder of a run with everything in it, at tiny sizes; about 40 seconds."""
    out = tmp_path_factory.mktemp("bench")
    run_bench(out, "--ours", "shared", "plain", "--dtypes", "float32")
    return out


def run_bench(out: Path, *options: str) -> None:
    """A run at tiny sizes."""
    command = [sys.executable, str(FOLDER / "bench.py"), "--quick", "--steps", "1", *options, "--out", str(out)]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stdout + run.stderr


def a_step(wall: float, *, images: int = 6) -> dict[str, Any]:
    """A step of ``wall`` seconds whose parts take 0.9 of 1 s, whatever it takes."""
    return {
        "wall": wall,
        "cpu": 0.5,
        "parts": {"generation": 0.4, "logprobs": 0.1, "forward": 0.15, "backward": 0.2, "optimiser": 0.05},
        "images": {"generation": images, "forward": images} if images else {},
        "vision_calls": {"generation": 1, "forward": 1},
        "preprocessed": images,
        "peak_mb": 10.0,
        "training": 0.6,
    }


def test_measures_of_a_step():
    from summary import measures
    from world import Point

    found = measures(a_step(1.0), Point(queries=2, group=3, tokens=10))
    assert found["orchestration_s"] == pytest.approx(0.1)
    assert found["orchestration_percent"] == pytest.approx(10.0)
    assert found["images_encoded"] == 12 and found["vision_calls"] == 2
    assert found["samples_per_s"] == pytest.approx(6.0)
    assert found["tokens_per_s"] == pytest.approx(150.0)  # 60 tokens in 0.4 s


def test_the_share_of_the_machines_rate_is_by_cpu_seconds():
    from summary import measures
    from world import Point

    step = a_step(1.0) | {
        "parts_cpu": {"generation": 0.2, "logprobs": 0.0, "forward": 0.1, "backward": 0.4},
        "rates": {"large": 50e9, "training": 40e9, "large_decoding": 25e9, "decoding": 20e9},
    }
    flops = {"generation": 2_000_000_000, "logprobs": 0, "forward": 4_000_000_000, "backward": 8_000_000_000}
    found = measures(step, Point(), flops)
    assert [found[f"{part}_percent"] for part in flops] == pytest.approx([40.0, 0.0, 80.0, 40.0])
    assert found["forward_gflop"] == 4.0 and found["decoding_gflops"] == 20.0


def test_operations_are_counted_in_their_parts():
    import torch
    from meter import Meter

    layer = torch.nn.Linear(8, 4)
    query, key = torch.randn(1, 2, 6, 8, requires_grad=True), torch.randn(1, 2, 10, 8)
    meter = Meter()
    meter.start(count=True)
    with meter.part("generation"), torch.no_grad():
        layer(torch.randn(3, 8))
    with meter.part("forward"):
        attended = torch.nn.functional.scaled_dot_product_attention(query, key, key)
    with meter.part("backward"):
        attended.sum().backward()
    with meter.part("optimiser"):
        pass
    attention = 2 * 2 * 6 * 10 * (8 + 8)  # two products of two heads
    assert meter.stop()["flops"] == {
        **{"generation": 2 * 3 * 8 * 4, "logprobs": 0, "optimiser": 0},
        **{"forward": attention, "backward": 5 * attention // 2},
    }
    meter.start()
    for part in ("generation", "forward", "backward", "optimiser"):
        with meter.part(part):
            layer(torch.randn(3, 8))
    assert "flops" not in meter.stop()


def test_the_machines_rates_are_of_the_language_models_layers():
    import torch
    from rates import linear_layers, machine_rates

    model = torch.nn.ModuleDict({"visual": torch.nn.Linear(3, 5), "layer": torch.nn.Linear(4, 6)})
    assert list(linear_layers(model)) == [(4, 6)]
    found = machine_rates(model, 2, torch.float32)
    assert set(found) == {"large", "training", "large_decoding", "decoding"} and min(found.values()) > 0


def test_medians_and_their_ratio():
    from summary import compare, summarise
    from world import Point

    ours, theirs = [a_step(1.0), a_step(2.0), a_step(4.0)], [a_step(6.0), a_step(6.0), a_step(20.0)]
    assert summarise(ours, Point())["step_s"] == {"median": 2.0, "min": 1.0, "max": 4.0}
    ratio = compare(theirs, ours, Point())["step_s"]
    assert ratio == {"of_medians": 3.0, "paired_min": 3.0, "paired_max": 6.0}  # pairs: 6, 3, 5


def test_a_ratio_to_nothing_is_none():
    from summary import compare
    from world import Point

    assert compare([a_step(1.0)], [a_step(1.0, images=0)], Point())["images_encoded"] is None


def test_no_steps_is_an_error():
    from summary import summarise
    from world import Point

    with pytest.raises(ValueError, match="112px-8x8x64: no measured steps"):
        summarise([], Point())


def test_growth_from_point_to_point():
    from summary import growth

    assert growth([2, 4, 12], [1.0, 1.5, 6.0]) == [
        {"from": 2, "to": 4, "size": 2.0, "time": 1.5},
        {"from": 4, "to": 12, "size": 3.0, "time": 4.0},
    ]


def test_image_curves_are_compared_by_area():
    from curves import CURVES, summarise_curve

    line = CURVES[0]
    steps = {point.name: [a_step(seconds)] for point, seconds in zip(line.points, (1.0, 2.0, 6.0), strict=True)}
    factors = [(step["size"], step["time"]) for step in summarise_curve(line, steps)["growth"]["step_s"]]
    assert factors == [(4.0, 2.0), (4.0, 3.0)]


def test_a_part_within_a_part_counts_to_the_outer_one():
    from meter import PARTS, Meter

    meter = Meter()
    meter.start()
    with meter.part("generation"):
        begun = time.perf_counter()
        with meter.part("forward"):
            pass
        while time.perf_counter() - begun < 0.01:
            pass
    for part in ("forward", "backward", "optimiser"):
        with meter.part(part):
            pass
    found = meter.stop()
    assert found["parts"]["generation"] >= 0.01
    assert set(found["parts"]) == set(PARTS)
    assert sum(found["parts"].values()) <= found["wall"]


def test_a_stopwatch_that_never_ran_is_an_error():
    from meter import Meter

    meter = Meter()
    meter.start()
    with meter.part("generation"), pytest.raises(RuntimeError, match="forward, backward, optimiser: never ran"):
        meter.stop()


def test_responses_of_the_wrong_length_are_an_error():
    from world import Point, check_lengths

    point = Point(queries=1, group=2, tokens=3)
    check_lengths("ours", [[1, 2, 3], [4, 5, 6]], point)
    with pytest.raises(RuntimeError, match=r"lengths \[2, 3\]"):
        check_lengths("ours", [[1, 2, 3], [4, 5]], point)


def test_different_prompts_are_an_error():
    from bench import check_prompts
    from channel import digest

    assert digest([1, 23]) != digest([12, 3])
    check_prompts({"ours": [digest([1, 2])], "TRL": [digest([1, 2])]}, "here")
    with pytest.raises(RuntimeError, match="here: ours and TRL read different prompts"):
        check_prompts({"ours": [digest([1, 2])], "TRL": [digest([2, 1])]}, "here")


def test_without_the_peer_the_driver_says_so(monkeypatch, capsys):
    import bench
    from rich.console import Console

    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    console = Console(record=True, quiet=False, width=200)
    assert [side.name for side in bench.sides_of(["shared", "plain"], console)] == ["ours", "plain"]
    assert console.export_text().strip().startswith("TRL is not installed (make setup-dev)")
    with pytest.raises(SystemExit):
        bench.parse([])  # its committed results would lose TRL's side
    assert "TRL is not installed (make setup-dev); --out FOLDER" in capsys.readouterr().err
    assert bench.parse(["--only", "growth"]).only == "growth"


@pytest.mark.slow
def test_our_sides_make_the_same_step_with_each_image_once_a_pass(results):
    found = json.loads((results / "trl.json").read_text())
    assert {"date", "machine", "versions", "git", "settings", "sides", "scenarios"} <= found.keys()
    (scenario,) = found["scenarios"]
    queries = scenario["point"]["queries"]
    for ours, plain in zip(scenario["steps"]["ours"], scenario["steps"]["plain"], strict=True):
        assert ours["prompts"] == plain["prompts"]
        assert len(set(ours["prompts"])) == queries
        for step in (ours, plain):
            assert step["images"].keys() == step["vision_calls"].keys() >= {"generation", "forward"}
            assert set(step["vision_calls"].values()) == {1}
            assert set(step["images"].values()) == {queries}
            assert step["preprocessed"] == queries
            assert 0 < sum(step["parts"].values()) < step["wall"]
            assert step["peak_mb"] > 0
    first, second = (set(step["prompts"]) for step in scenario["steps"]["ours"])
    assert not first & second  # no step meets an image again


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="the peer, trl, is not installed")
def test_the_peer_makes_the_same_step_with_each_image_once_a_response(results):
    (scenario,) = json.loads((results / "trl.json").read_text())["scenarios"]
    samples = scenario["point"]["queries"] * scenario["point"]["group"]
    assert {name: len(steps) for name, steps in scenario["steps"].items()} == {"ours": 2, "plain": 2, "TRL": 2}
    assert len({worker["parameters"] for worker in scenario["workers"].values()}) == 1
    for ours, theirs in zip(scenario["steps"]["ours"], scenario["steps"]["TRL"], strict=True):
        assert theirs["prompts"] == ours["prompts"]
        assert theirs["images"] == {"generation": samples, "forward": samples}
        assert 0 < sum(theirs["parts"].values()) < theirs["wall"]
        assert theirs["peak_mb"] > 0
    assert scenario["ratios_to_ours"].keys() == {"plain", "TRL"}
    summary = scenario["summary"]
    assert summary["ours"].keys() == summary["TRL"].keys() > scenario["ratios_to_ours"]["TRL"].keys()
    for part in ("generation", "forward", "backward"):  # a prompt is read once a query, or once a response
        ours, theirs = (summary[side][f"{part}_gflop"]["median"] for side in ("ours", "TRL"))
        assert 0 < ours < theirs, part


@pytest.mark.slow
def test_growth_has_every_point_and_a_picture(results):
    found = json.loads((results / "growth.json").read_text())
    assert [line["axis"] for line in found["curves"]] == ["pixels", "group", "tokens", "queries"]
    for line in [*found["curves"], *found["training_halves"]]:
        assert len(line["step_s"]) == len(line["values"]) == len(line["growth"]["training_s"]) + 1
        assert all(len(found["steps"][name]) == 2 for name in line["points"])
    assert (results / "growth.svg").read_text().startswith("<?xml")
    assert (results / "growth.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="the peer, trl, is not installed")
def test_bfloat16_on_both_sides(tmp_path: Path):
    run_bench(tmp_path, "--only", "trl", "--dtypes", "bfloat16")
    found = json.loads((tmp_path / "trl-bfloat16.json").read_text())
    assert found["settings"]["dtype"] == "bfloat16" and not (tmp_path / "trl.json").exists()
    (scenario,) = found["scenarios"]
    assert scenario["summary"].keys() == {"ours", "TRL"}
    assert all(side["forward_percent"]["median"] > 0 for side in scenario["summary"].values())
