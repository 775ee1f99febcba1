"""The race against TRL: what is read off its tables, what is left to run, and a small race of both sides."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from rethinker.datasets.world.visual_math import make_data
from rethinker.types import Grade

FOLDER = Path(__file__).parents[1] / "experiments" / "race"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of scripts that import each other, and those of the benchmark."""
    monkeypatch.syspath_prepend(str(FOLDER.parent / "benchmarks"))
    monkeypatch.syspath_prepend(str(FOLDER))


def a_run(method: str, seed: int, lr: float, *accuracies: float, test: float | None = None) -> list[dict[str, Any]]:
    """A run evaluated every 10 CPU seconds, which are 12 on the wall."""
    kept = [("validation", index, accuracy) for index, accuracy in enumerate(accuracies)]
    if test is not None:
        kept.append(("test", len(accuracies) - 1, test))
    return [
        {
            **{"method": method, "seed": seed, "lr": lr, "split": split, "accuracy": accuracy, "queries": 120},
            **{"wall_s": 12.0 * at, "cpu_s": 10.0 * at, "episode": 3 * at, "step": 12 * at, "tokens": 1000 * at},
            "load_1min": 0.5,
        }
        for split, at, accuracy in kept
    ]


def test_a_threshold_is_reached_when_two_evaluations_in_a_row_are_there():
    from records import time_to

    rows = pd.DataFrame(a_run("grpo", 0, 1e-4, 0.4, 0.6, 0.5, 0.6, 0.7, 0.8))
    assert time_to(rows, 0.6, "cpu_s") == 30.0 and time_to(rows, 0.6, "wall_s") == 36.0
    assert time_to(rows, 0.4, "cpu_s") == 0.0
    assert time_to(rows, 0.8, "cpu_s") is None  # the last one alone may be luck


def test_the_best_rate_is_that_of_the_last_evaluations_and_the_smallest_of_equals(tmp_path: Path):
    from records import add, best_rates, read

    sweep = tmp_path / "sweep.csv"
    add(sweep, a_run("grpo", 100, 2e-4, 0.1, 0.5, 0.6, 0.7))
    add(sweep, a_run("grpo", 100, 1e-4, 0.9, 0.5, 0.6, 0.7))
    add(sweep, a_run("grpo", 100, 5e-5, 0.9, 0.6, 0.6, 0.5))
    add(sweep, a_run("ssr", 100, 4e-4, 0.1, 0.2, 0.2))
    assert best_rates(read(sweep)) == {"grpo": 1e-4, "ssr": 4e-4}


def test_tables_are_sorted_and_read_as_they_were_written(tmp_path: Path):
    from records import COLUMNS, add, finished, read

    file = tmp_path / "race.csv"
    assert finished(read(file)) == set()
    add(file, a_run("ssr", 1, 1e-4, 0.4, 0.5, test=0.45))
    add(file, a_run("grpo", 0, 2.5e-5, 0.4, 0.5))
    table = read(file)
    assert finished(table) == {("ssr", 1, 1e-4), ("grpo", 0, 2.5e-5)}
    assert table["method"].tolist() == ["grpo"] * 2 + ["ssr"] * 3 and table["split"].iloc[-1] == "test"
    file.write_text("method,seed\nssr,1\n")
    with pytest.raises(ValueError, match=f"its columns are method, seed; expected {COLUMNS[0]}"):
        read(file)


def test_the_summary_says_what_was_not_reached(tmp_path: Path):
    from records import add, read, summary

    file = tmp_path / "race.csv"
    for seed in (0, 1):
        add(file, a_run("ssr-rethink", seed, 1e-4, 0.4, 0.6, 0.7 + seed / 10, 0.9, 0.9, test=0.88))
        add(file, a_run("trl-grpo", seed, 2e-4, 0.4, 0.5, 0.5, 0.6, test=0.5 + seed / 100))
    lines = summary(read(file), {"trl-grpo": "TRL GRPO", "grpo": "GRPO", "ssr-rethink": "ours"}, (0.6, 0.75)).split(
        "\n"
    )
    assert lines[0] == (
        "| method | lr | seeds | CPU s to 60% | wall s to 60% | CPU s to 75% | wall s to 75% | episodes "
        "| CPU s an episode | tokens a CPU s | validation | test |"
    )
    never, same = " | ".join(["not reached"] * 4), "3.33 (3.33 to 3.33) | 100 (100 to 100)"
    assert lines[2] == (
        f"| TRL GRPO | 0.0002 | 2 | {never} | 9 (9 to 9) | {same} | 0.533 (0.533 to 0.533) | 0.505 (0.500 to 0.510) |"
    )
    times = "10 (10 to 10) | 12 (12 to 12) | 25 (20 to 30) | 30 (24 to 36)"
    assert lines[3] == (
        f"| ours | 0.0001 | 2 | {times} | 12 (12 to 12) | {same} | 0.850 (0.833 to 0.867) | 0.880 (0.880 to 0.880) |"
    )
    assert lines[4:] == [""]
    add(file, a_run("ssr-rethink", 2, 1e-4, 0.4, 0.6, 0.6, 0.7, 0.7, test=0.7))
    third = summary(read(file), {"ssr-rethink": ""}, (0.6, 0.75))
    assert "| 10 (10 to 10) | 12 (12 to 12) | 25 (20 to 30), 2 of 3 |" in third


def test_a_failed_run_is_no_best_rate_and_is_said(tmp_path: Path):
    from records import FAILED, add, best_rates, finished, read, summary, sweep_summary

    file = tmp_path / "sweep.csv"
    diverged = a_run("grpo", 100, 4e-4, 0.5, 0.9, 0.9, 0.9)
    add(file, [*diverged, diverged[-1] | {"split": FAILED, "accuracy": math.nan}])
    add(file, a_run("grpo", 100, 1e-4, 0.5, 0.6, 0.6, 0.6))
    table = read(file)
    assert best_rates(table) == {"grpo": 1e-4} and finished(table) == {("grpo", 100, 1e-4)}
    assert sweep_summary(table, {"grpo": "GRPO"}).splitlines()[2] == "| GRPO | **0.600** | – |"
    assert "| 1, 1 failed |" in summary(table[table["lr"] == 4e-4], {"grpo": "GRPO"}, (0.6,))
    add(file, a_run("grpo", 100, 4e-4, 0.5, 0.7, 0.7, 0.7))  # again, in its place
    assert best_rates(read(file)) == {"grpo": 4e-4}


def test_the_committed_page_and_the_readme_are_of_the_committed_tables():
    from draw import page
    from entrants import STARTS
    from race import table_of
    from records import read, time_to, validations

    results = FOLDER / "results"
    shown = (results / "race.md").read_text()
    assert shown == page(results)
    speed = (FOLDER.parents[1] / "README.md").read_text().partition("\n## Speed\n")[2].partition("\n## ")[0]
    rows = [line[2:-2].split(" | ") for line in shown.splitlines() if line.count(" | ") == 11]
    heads = ["method", "CPU s to 60%", "CPU s to 75%", "tokens a CPU s", "validation", "test"]
    columns = [rows[0].index(head) for head in heads]
    raced = [row for row in rows if row[0] != "method"]
    assert len(raced) == sum(len(start.methods) for start in STARTS.values()) and {row[2] for row in raced} == {"3"}
    for row in raced:
        assert f"| {' | '.join(row[column] for column in columns)} |" in speed

    speeds = [float(row[columns[3]].split(" (")[0].replace(",", "")) for row in raced[-3:]]  # TRL, GRPO, SSR
    assert f"{speeds[1] / speeds[0]:.1f} times as many tokens a second" in speed
    earliest: dict[str, float] = {}
    for (method, _, _), run in validations(read(table_of(results, "sweep", "reflecting"))):
        if (time := time_to(run, 0.75, "cpu_s")) is not None:
            earliest[method] = min(time, earliest.get(method, math.inf))
    times = "TRL\nafter {trl-grpo:.0f} s, our GRPO after {grpo:.0f} s and SSR after {ssr:.0f} s"
    assert times.format(**earliest) in speed


def test_finished_runs_are_not_repeated(tmp_path: Path):
    from race import Run, parse, unfinished, wanted
    from records import add, finished, read

    out = ["--out", str(tmp_path)]
    options = parse(["sweep", "--rates", "1e-4", "2e-4", "--methods", "grpo", "ssr", *out])
    assert wanted(options) == [[Run(method, 100, lr)] for lr in (1e-4, 2e-4) for method in ("grpo", "ssr")]
    add(options.table, a_run("grpo", 100, 1e-4, 0.5))
    left = unfinished(wanted(options), finished(read(options.table)), "sweep")
    assert left == [[Run("ssr", 100, 1e-4)], [Run("grpo", 100, 2e-4)], [Run("ssr", 100, 2e-4)]]

    options = parse(["race", "--methods", "grpo", "ssr", "--seeds", "0", "1", *out])
    with pytest.raises(ValueError, match=r"sweep\.csv has no ssr: run the sweep first"):
        wanted(options)
    add(tmp_path / "sweep.csv", a_run("ssr", 100, 2e-4, 0.5))
    add(options.table, a_run("ssr", 0, 2e-4, 0.5, test=0.5))
    groups = [[Run("grpo", seed, 1e-4), Run("ssr", seed, 2e-4)] for seed in (0, 1)]
    assert unfinished(wanted(options), finished(read(options.table)), "race") == groups  # they take turns
    add(options.table, a_run("grpo", 0, 1e-4, 0.5, test=0.5))
    assert unfinished(wanted(options), finished(read(options.table)), "race") == groups[1:]
    killed = a_run("grpo", 0, 1e-4, 0.5)
    add(options.table, [*killed, killed[-1] | {"split": "failed", "accuracy": math.nan}])
    assert unfinished(wanted(options), finished(read(options.table)), "race") == groups  # again, both
    add(tmp_path / "sweep.csv", a_run("grpo", 100, 4e-4, 0.9))
    with pytest.raises(ValueError, match=r"grpo raced at 0\.0001, now it would at 0\.0004"):
        wanted(options)


def test_another_run_is_first_in_every_round():
    from race import rotated

    assert [rotated("abc", by) for by in range(4)] == [list("abc"), list("bca"), list("cab"), list("abc")]  # type: ignore[arg-type]


def test_other_settings_do_not_reach_the_committed_tables():
    from race import parse

    with pytest.raises(SystemExit):
        parse(["race", "--set", "queries_per_episode=4"])
    with pytest.raises(SystemExit):
        parse(["race", "--jobs", "2"])
    starts = ("base", "reflecting")
    tables = [parse([what, "--start", start]).table.name for what in ("sweep", "race") for start in starts]
    assert tables == ["sweep.csv", "sweep-reflecting.csv", "race.csv", "race-reflecting.csv"]


def test_the_clock_stands_while_a_run_is_evaluated():
    from laps import Laps

    asked = iter([{"step": "train"}, {"step": "test"}, None])
    answers: list[dict[str, Any]] = []
    driver = SimpleNamespace(send=answers.append, receive=lambda: next(asked))
    clock = iter(range(0, 1000, 100))  # an evaluation takes 100 s of it

    def accuracy(split: str) -> tuple[float, int]:
        next(clock)
        return 0.5, len(split)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("laps.now", lambda: 0.0)
        lasted = iter([(4.0, 3.0), (6.0, 5.0)])
        patch.setattr("laps.since", lambda start: next(lasted))
        laps = Laps(driver, 5.0, accuracy)  # type: ignore[arg-type]
        assert laps.wait()
        assert laps.after(episode=1, step=4, tokens=10) and len(answers) == 1  # the slice is not over
        assert not laps.after(episode=2, step=8, tokens=20)
    assert [(row["split"], row["wall_s"], row["cpu_s"], row["episode"]) for row in answers] == [
        ("validation", 0.0, 0.0, 0),
        ("validation", 6.0, 5.0, 2),
        ("test", 6.0, 5.0, 2),
    ]


def test_the_peer_is_told_what_ours_is_told(tmp_path: Path):
    pytest.importorskip("trl", reason="pip install 'trl>=1.16,<1.17'")
    from entrants import ENTRANTS, race_config
    from run_trl import settings

    config = race_config("trl-grpo", 3, 2e-4, str(tmp_path))
    for micro_batch, accumulated in ((64, 1), (16, 4)):
        told = settings(config, [7], micro_batch)
        assert told.generation_batch_size == config.samples_per_episode == 256
        assert told.gradient_accumulation_steps == accumulated and told.steps_per_generation == 4 * accumulated
    wanted = {"loss_type": "grpo", "scale_rewards": "none", "beta": 0.0, "num_iterations": 1, "learning_rate": 2e-4}
    wanted |= {"epsilon": 0.2, "epsilon_high": 0.3, "temperature": 1.0, "top_p": 1.0, "max_completion_length": 140}
    wanted |= {"num_generations": 8, "warmup_steps": 10, "adam_beta2": 0.98, "max_grad_norm": 1.0, "use_vllm": False}
    assert {name: getattr(told, name) for name in wanted} == wanted
    configs = {name: race_config(name, 3, 2e-4, str(tmp_path)) for name in ENTRANTS}
    assert all(len(found.stages) == 1 and not found.stages[0].overrides for found in configs.values())
    forced = {name for name, found in configs.items() if found.for_stage(0).rethink.fraction == 0.5}
    assert forced == {"grpo-rethink", "ssr-rethink", "ssr-rethink-vllm"}
    later = race_config("trl-grpo", 3, 2e-4, str(tmp_path), start="reflecting")
    assert later.model.path.endswith("data/generated/race-start") and config.model.path.endswith("data/tiny-vlm")


SMALL = (
    *("queries_per_episode=8", "rollout.group_size=4", "optim.train_batch_size=8"),
    *("rollout.max_new_tokens=24", "rethink.min_second_look_tokens=8"),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[str]:
    """Lines of config that name a small world."""
    folder = tmp_path_factory.mktemp("world")
    make_data(folder, 64, 6, 6)
    return [f"data.{split}={folder / split}.parquet" for split in ("train", "validation", "test")]


@pytest.mark.long
def test_a_small_race_of_both_sides(data: list[str], tmp_path: Path):
    pytest.importorskip("trl", reason="pip install 'trl>=1.16,<1.17'")
    from entrants import STARTS
    from records import read

    seconds = ["--seconds", "0.2", "--slice", "0.1", "--seeds", "5", "--rates", "1e-4", "--out", str(tmp_path)]
    command = [sys.executable, str(FOLDER / "race.py"), "race", *seconds, "--set", *SMALL, *data]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stdout + run.stderr
    table = read(tmp_path / "race.csv")
    for method in STARTS["base"].methods:
        rows = table[table["method"] == method]
        assert rows["split"].iloc[-1] == "test" and set(rows["split"].iloc[:-1]) == {"validation"}
        assert rows["cpu_s"].iloc[-1] >= 0.2 and rows["tokens"].iloc[-1] > 0 and rows["episode"].iloc[-1] >= 1
    assert table[table["episode"] == 0]["accuracy"].nunique() == 1  # the same base, by the same evaluation
    facts = json.loads((tmp_path / "race.json").read_text())["trl-grpo, seed 5, lr 0.0001"]
    assert facts["options"]["seeds"] == [5] and facts["versions"]["trl"].startswith("1.")
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.stdout.startswith("0 runs") and len(read(tmp_path / "race.csv")) == len(table)
    drawn = subprocess.run([sys.executable, str(FOLDER / "draw.py"), str(tmp_path)], capture_output=True, text=True)
    assert drawn.returncode == 0 and "not reached" in (tmp_path / "race.md").read_text()


@pytest.mark.long
def test_trl_learns_what_can_be_learned(data: list[str], tmp_path: Path):
    """A reward for short answers: TRL's trainer, as it is set up here, finds them within 20 updates."""
    pytest.importorskip("trl", reason="pip install 'trl>=1.16,<1.17'")
    from entrants import race_config
    from run_trl import Race
    from tiny_training import fresh_process

    seen: list[float] = []

    def grade(items: list[tuple[str, str, str]]) -> list[Grade]:
        found = [Grade("1" in text, None, "has a 1") for text, _, _ in items]
        seen.append(sum(grade.correct for grade in found) / len(found))
        return found

    laps = SimpleNamespace(wait=lambda: True, after=lambda **done: done["step"] < 20)
    with fresh_process():
        race = Race(race_config("trl-grpo", 0, 1e-3, str(tmp_path), [*SMALL, *data]), grade)
        race.train(laps)  # type: ignore[arg-type]
    assert len(seen) == 5
    assert seen[-1] > seen[0] + 0.2, seen
