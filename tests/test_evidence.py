"""Evidence: tables from runs, intervals that cover what they should, verdicts by rule, and the page from the tables."""

from __future__ import annotations

import json
import math
import re
import runpy
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from synthetic_run import write_run

from rethinker.config.schema import ConfigError, plain
from rethinker.evaluation.statistics import over_seeds
from rethinker.lab.ablation.grid import load_grid
from rethinker.lab.analysis import choice
from rethinker.lab.evidence import bootstrap, collect, measures, page, series, words
from rethinker.lab.evidence.again import differences
from rethinker.lab.evidence.bootstrap import FAILS, HOLDS, NOTHING, UNKNOWN, Effect, all_of, mean_effect, verdict
from rethinker.lab.evidence.claims import Part, judge, read_claims
from rethinker.lab.evidence.effects import effect
from rethinker.lab.evidence.tables import TABLES, Tables, load, merge, save
from rethinker.lab.figures.style import NoData
from rethinker.rethink import REFLECTION_PATTERN
from rethinker.rundir.reader import load_evaluations, load_metrics, load_rollouts

ROOT = Path(__file__).parents[1]
SEEDS = (0, 1)
START = {"git": {"commit": "0123abc", "changed": False}}
PROVENANCE = START | {"starts": [START], "engine": "TransformersEngine", "processes": 1, "data": {}}
PROVENANCE |= {"versions": {"python": "3.11", "torch": "2.13.0"}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Runs of a grid of two labels and two seeds, one of them not finished, and of a sweep."""
    folder = tmp_path_factory.mktemp("evidence")
    base, made = folder / "base.yaml", list[Path]()
    base.write_text(
        "queries_per_episode: 4\nrollout: {group_size: 4}\noptim: {train_batch_size: 8}\ndata: {train: x}\n"
    )
    for name, axis, labels in (
        (
            "main",
            "method",
            {"ssr": ["replay.mode=ssr"], "filter": ["replay.mode=filter"], "never": ["grpo.clip_low=0.1"]},
        ),
        ("sweep", "lr", {"high": ["optim.lr=1e-3"], "low": ["optim.lr=1e-4"]}),
    ):
        grid = {"base": str(base), "axes": {axis: labels}, "seeds": SEEDS, "common": [f"runs_dir={folder / 'runs'}"]}
        (folder / f"{name}.yaml").write_text(json.dumps(grid))
        for label in labels:
            for seed in SEEDS if label != "never" else ():
                run = folder / "runs" / f"{name}-{label}-s{seed}"
                if not made or (name, label, seed) == ("main", "ssr", 1):
                    made.append(write_run(run, stages=(2, 2), queries=4, held_out=8, seed=len(made)))
                else:  # the numbers of another will do
                    shutil.copytree(made[0], run)
                state = "running" if (label, seed) == ("filter", 1) else "finished"
                (run / "status.json").write_text(json.dumps({"state": state}))
                (run / "provenance.json").write_text(json.dumps(PROVENANCE | {"seed": seed}))
                (run / "config.yaml").write_text(f"name: {run.name}\nseed: {seed}\nreplay:\n  mode: {label}\n")
    return folder


@pytest.fixture(scope="module")
def collected(runs) -> Tables:
    return collect.collect([load_grid(runs / "main.yaml"), load_grid(runs / "sweep.yaml")])


def made_up(effects: dict[str, float], seeds: int = 8, queries: int = 40, noise: float = 0.02) -> Tables:
    """Tables of variants whose accuracy rises from 0.4 by what ``effects`` says in 1,000 tokens, with noise by seed."""
    random = np.random.default_rng(7)
    tables: dict[str, list] = {name: [] for name in TABLES}
    ease = random.normal(0, 0.15, queries)
    for variant, gain in effects.items():
        for seed in range(seeds):
            run = {"grid": "g", "variant": variant, "seed": seed}
            tables["runs"].append(
                run
                | {
                    "state": "finished",
                    "settings": f"x={variant}",
                    "commit": "0123abc",
                    "tokens": 1000,
                    "steps": 10,
                    "episodes": 10,
                }
            )
            shift = random.normal(0, noise)
            for at in range(11):
                accuracy = 0.4 + gain * at / 10 + shift * (at > 0)
                time = {"stage": "a", "episode": at, "step": at, "tokens": 100 * at, "seconds": at}
                tables["validations"].append(run | time | {"accuracy": accuracy, "queries": 100})
                if at:
                    signal = {"effective": 0.5 - 0.3 * at / 10, "effective_after": 1.0, "batch_fill": 1.0}
                    tables["episodes"].append(run | time | signal | {"reflection": at / 10, "accuracy": accuracy})
            for mode, extra in (("plain", 0.0), ("forced", 0.1)):
                rate = np.clip(0.4 + gain + shift + extra + ease, 0, 1)
                counts = random.binomial(4, rate)
                about = run | {"label": "a", "last": True, "mode": mode}
                for number, correct in enumerate(counts):
                    wrong = 4 - int(correct)
                    second = {"samples": 4, "second": wrong, "second_wrong": wrong, "unknown_first": 0}
                    second |= {"tokens": 80, "second_tokens": 20 * wrong}
                    kind = {"qid": f"q{number:02d}", "category": "ab"[number % 2], "level": 1 + number % 3}
                    tables["queries"].append(about | kind | second | {"correct": correct, "first_correct": correct})
                shares = {"accuracy": counts.mean() / 4, "second": 0.5, "reflection": 0.5}
                tables["tests"].append(about | shares | {"tokens": 20.0 + 10 * (mode == "forced"), "n": 4 * queries})
            edges = np.linspace(-1.0, 1.0, 6)
            bins = [{"left": left, "right": right, "count": 10} for left, right in pairwise(edges)]
            tables["advantages"] += [run | {"which": which} | each for which in ("before", "after") for each in bins]
            word = {"responses": 50, "share": 0.5, "before": 0.1, "forced": 0.2, "reflecting": 100}
            tables["words"] += [run | word | {"word": word_} for word_ in ("wait", "check")]
    return Tables({name: pd.DataFrame(rows, columns=list(TABLES[name])) for name, rows in tables.items()})


# -- collecting -------------------------------------------------------------------------------------------------------


def test_every_number_of_a_run_is_that_of_its_files(runs, collected):
    folder = runs / "runs" / "main-ssr-s1"
    metrics, tables = load_metrics(folder), {k: collected.of(k, "main", "ssr", 1) for k in collected}
    assert tables["episodes"]["tokens"].tolist() == metrics.episodes["tokens/generated"].tolist()
    np.testing.assert_allclose(tables["episodes"]["effective"], metrics.episodes["queries/effective"], rtol=1e-6)
    np.testing.assert_allclose(tables["validations"]["accuracy"], metrics.validations["validation/accuracy"], atol=1e-6)
    assert tables["validations"]["tokens"].iloc[0] == 0
    assert tables["validations"]["tokens"].iloc[-1] == metrics.episodes["tokens/generated"].iloc[-1]
    summary = load_evaluations(folder)["rethinker"]
    rows = pd.read_parquet(folder / "evaluation" / "rethinker.parquet")
    for mode, result in summary["modes"].items():
        queries = tables["queries"]
        queries = queries[queries["last"] & (queries["mode"] == mode)]
        test = tables["tests"][tables["tests"]["last"] & (tables["tests"]["mode"] == mode)].iloc[0]
        assert queries["correct"].sum() / queries["samples"].sum() == pytest.approx(result["pass@1"]["value"])
        assert test["accuracy"] == pytest.approx(result["pass@1"]["value"], abs=1e-6)
        assert queries["greedy"].sum() == rows[(rows["mode"] == mode) & rows["greedy"]]["correct"].sum()
        looks = choice.looks(rows[(rows["mode"] == mode) & ~rows["greedy"]])
        assert queries["second"].sum() == looks["second"].sum()
        assert queries["first_correct"].sum() == (looks["first_correct"] == 1).sum()
        assert queries["second_wrong"].sum() == (looks["second"] & (looks["first_correct"] == 0)).sum()
    assert tables["tests"]["mode"].nunique() == len(summary["modes"]) == 3


def test_advantages_and_words_of_a_run_are_those_of_its_files(runs, collected):
    folder = runs / "runs" / "main-ssr-s1"
    records = load_metrics(folder).episodes
    table = collected.of("advantages", "main", "ssr", 1)
    for which in ("before", "after"):
        recorded: dict[tuple[float, float], int] = {}
        for histogram in records[f"advantages/{which}"]:
            for edges, count in zip(pairwise(histogram["edges"]), histogram["counts"], strict=True):
                recorded[edges] = recorded.get(edges, 0) + count
        part = table[table["which"] == which]
        kept = dict(zip(zip(part["left"], part["right"], strict=True), part["count"], strict=True))
        assert {edges: count for edges, count in kept.items() if count} == {e: n for e, n in recorded.items() if n}
        assert part["left"].tolist()[1:] == part["right"].tolist()[:-1]  # no gap, or a drawn step would cover it
    words = collected.of("words", "main", "ssr", 1)
    texts = load_rollouts(folder, ["pass", "text"])
    texts = [text for text in texts[texts["pass"] == "first"]["text"] if REFLECTION_PATTERN.search(text)]
    assert set(words["reflecting"]) == {len(texts)} and len(texts) > 0
    for row in words.to_dict("records"):
        after = [text[REFLECTION_PATTERN.search(text).start() :].lower() for text in texts]
        assert row["responses"] == sum(bool(re.search(rf"\b{re.escape(row['word'])}\b", text)) for text in after)
        assert row["share"] == pytest.approx(row["responses"] / len(texts), abs=1e-6)
    assert collected.of("advantages", "main", "filter", 1).empty  # not finished


def test_words_over_runs_by_hand():
    rows = [("a", 0, "wait", 0.9, 0.1, 100), ("a", 0, "check", 0.5, 0.0, 100), ("a", 1, "wait", 0.7, 0.3, 300)]
    rows.append(("a", 2, "let", 1.0, 0.0, 2))  # hardly reflects: its words would cut the list of the others
    table = pd.DataFrame(rows, columns=["variant", "seed", "word", "share", "before", "reflecting"])
    tables = Tables({"words": table.assign(grid="g", forced=np.nan, responses=1)})
    found = series.words(tables, "g", ["a"])
    assert found[["word", "share", "before"]].to_numpy().tolist() == [["wait", pytest.approx(0.8), pytest.approx(0.2)]]
    assert found.attrs == {"runs": 2, "reflecting": 400} and series.words(tables, "g", ["b"]).empty


def test_what_is_not_finished_is_not_tested_and_what_has_not_begun_is_named(collected):
    states = collected["runs"].set_index(["variant", "seed"])["state"]
    assert states.to_dict() == {("ssr", 0): "finished", ("ssr", 1): "finished", ("filter", 0): "finished"} | {
        ("filter", 1): "running", ("never", 0): "not begun", ("never", 1): "not begun"
    }  # fmt: skip
    assert collected.of("episodes", "main", "never").empty
    assert len(collected.of("episodes", "main", "filter", 1)) == 4
    assert collected.of("tests", "main", "filter", 1).empty
    assert measures.finished_seeds(collected, ("main", "ssr"), ("main", "filter")) == [0]
    assert collected["runs"]["settings"].tolist()[-1] == "grpo.clip_low=0.2 replay.mode=ssr"


def test_a_sweep_has_its_own_table(collected):
    found = collected["sweeps"]
    assert sorted(zip(found["lr"], found["seed"], strict=True)) == [(1e-4, 0), (1e-4, 1), (1e-3, 0), (1e-3, 1)]
    assert set(collected["runs"]["grid"]) == {"main"} and found["accuracy"].between(0, 1).all()


def test_tables_are_the_same_when_read_again(collected, tmp_path):
    save(collected, tmp_path)
    again = load(tmp_path)
    for name, table in collected.items():
        pd.testing.assert_frame_equal(table, again[name], check_dtype=False)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    save(again, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix == ".csv"} == {
        name: text for name, text in first.items() if name.endswith(".csv")
    }
    other = made_up({"ssr": 0.1}, seeds=1, queries=2)
    both = merge(again, other)
    assert set(both["runs"]["grid"]) == {"main", "g"} and len(both["queries"]) == len(again["queries"]) + 4
    assert len(merge(both, other)["queries"]) == len(both["queries"])


def test_a_run_whose_folder_is_gone_keeps_its_rows_while_it_is_planned(collected):
    """Found here: one of the runs made again, another not begun, a third not in the grid's file any more."""
    gone = ("main", "filter", 0)
    found = {name: table.drop(table[table["variant"] != "ssr"].index) for name, table in collected.items()}
    unknown = collected["runs"][collected["runs"]["variant"] == "never"].head(1)
    planned = unknown.assign(variant="filter", seed=0)
    found["runs"] = pd.concat([found["runs"], planned, planned.assign(seed=7)], ignore_index=True)
    found["queries"] = found["queries"].assign(samples=9)
    found["words"] = found["words"].head(0)  # the responses were deleted
    merged = merge(collected, found)
    for name in ("runs", "episodes", "tests", "queries"):
        assert len(merged.of(name, *gone)) == len(collected.of(name, *gone)) > 0
    states = merged["runs"].set_index(["variant", "seed"])["state"].to_dict()
    assert states == {("ssr", 0): "finished", ("ssr", 1): "finished", ("filter", 0): "finished"} | {
        ("filter", 7): "not begun"
    }
    assert set(merged.of("queries", "main", "ssr")["samples"]) == {9}
    assert set(merged.of("queries", *gone)["samples"]) != {9}
    assert len(merged.of("words", "main", "ssr")) == len(collected.of("words", "main", "ssr")) > 0


def test_a_run_that_remains_gets_the_words_for_its_settings_of_now(collected):
    """The grid's file has a variant more, so that its runs differ in a setting more."""
    new = {name: table.copy() for name, table in collected.items()}
    new["runs"] = new["runs"].assign(state="not begun", settings="optim.lr=1e-4 replay.mode=?")
    merged = merge(collected, new)["runs"].set_index(["variant", "seed"])
    assert set(merged["settings"]) == {"optim.lr=1e-4 replay.mode=?"} and merged.loc[("ssr", 0), "state"] == "finished"
    new["runs"] = new["runs"].assign(config="other")
    merged = merge(collected, new)["runs"]
    assert merged["settings"].tolist() == collected["runs"]["settings"].tolist()


def test_a_setting_that_came_later_does_not_change_a_digest():
    settings = {"name": "x", "seed": 3, "optim": {"lr": 0.5}, "replay": {"mode": "filter"}}
    first = collect.digest(settings)
    assert collect.digest(settings | {"name": "y", "seed": 4, "evaluation": {"every_tokens": 0}}) == first
    assert collect.digest(settings | {"evaluation": {"every_tokens": 7}}) != first


def test_every_committed_run_has_the_settings_of_its_grids_file():
    committed = load(ROOT / "experiments" / "evidence" / "results")["runs"]
    for name, rows in committed[committed["state"] == "finished"].groupby("grid"):
        grid = load_grid(ROOT / "experiments" / "evidence" / f"{name.replace('-', '_')}.yaml")
        there = {(run.label, run.config.seed): collect.digest(plain(run.config)) for run in grid.runs}
        for row in rows.itertuples():
            assert there[row.variant, row.seed] == row.config, (name, row.variant, row.seed)


def test_the_command_collects_and_checks(runs, tmp_path, monkeypatch, capsys):
    script = str(ROOT / "experiments" / "evidence" / "tables.py")
    arguments = [script, str(runs / "main.yaml"), "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", arguments)
    runpy.run_path(script, run_name="__main__")
    assert re.search(r"ssr +finished +2", capsys.readouterr().out)
    assert "second_wrong" in (tmp_path / "README.md").read_text() and len(load(tmp_path)["runs"]) == 6
    monkeypatch.setattr("sys.argv", [*arguments, "--check", "main", "ssr", "0"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(script, run_name="__main__")
    assert ended.value.code == 0


def test_a_run_made_again_is_compared_row_by_row(collected):
    assert differences(collected, collected, "main", "ssr", 0) == []
    changed = Tables({name: table.copy() for name, table in collected.items()})
    at = changed["validations"].query("variant == 'ssr' and seed == 0").index[1]
    changed["validations"].loc[at, "accuracy"] += 0.01
    changed["validations"].loc[at - 1, "accuracy"] += 1e-8  # rounding: not named
    changed["validations"].loc[at, "seconds"] += 5
    (found,) = differences(collected, changed, "main", "ssr", 0)
    assert found.startswith("validations.accuracy: from row 1")
    assert differences(collected, collected, "main", "ssr", 9) == ["the tables have no run of main, ssr, seed 9"]


# -- intervals --------------------------------------------------------------------------------------------------------


def test_an_interval_of_many_seeds_is_students():
    values = np.random.default_rng(0).normal(0.3, 0.1, 30)
    found, (mean, low, high) = mean_effect(values), over_seeds(values.tolist())
    assert found.value == pytest.approx(mean)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.15 * (high - low))


def test_intervals_of_eight_seeds_cover_the_truth():
    """600 normal samples; the count has a standard deviation of 5, a miss by chance is below 1e-5."""
    samples = np.random.default_rng(1).normal(0, 1, (600, 8))
    hits = sum(found.low <= 0 <= found.high for found in map(mean_effect, samples))
    assert 545 <= hits <= 595


def test_intervals_of_five_seeds_cover_the_truth():
    """1,500 normal samples, a standard deviation of 9 hits."""
    samples = np.random.default_rng(5).normal(0, 1, (1500, 5))
    hits = sum(found.low <= 0 <= found.high for found in map(mean_effect, samples))
    assert hits >= 1390  # 92.7 %; at a coverage of 95 % a miss by chance is below 1e-4


def test_no_interval_of_a_mean_is_narrower_than_students():
    for values in ([-0.8, -0.7, -4.9, -1.3, -2.1], [1.0, 1.0, 1.0, 1.0, 9.0], [0.0] * 5):
        found, (_, low, high) = mean_effect(np.array(values)), over_seeds(values)
        assert found.low <= low + 1e-12 and found.high >= high - 1e-12
    assert mean_effect(np.array([-0.8, -0.7, -4.9, -1.3, -2.1])).high > 0


def test_queries_are_drawn_again_with_the_seeds():
    """Runs that agree to the last query: all of the interval is that of the queries; and the other way round."""
    row = (np.random.default_rng(2).random(50) < 0.5).astype(float)
    found = mean_effect(np.tile(row, (8, 1)))
    spread = row.std(ddof=1) / math.sqrt(50)
    assert found.high - found.value == pytest.approx(2.01 * spread, rel=0.05)  # t with 49 degrees of freedom
    assert found.queries == 50 and found.seeds == 8
    same = mean_effect(np.tile(np.arange(8.0)[:, None], (1, 50)))
    alone = mean_effect(np.arange(8.0))
    assert (same.low, same.high) == pytest.approx((alone.low, alone.high), abs=0.15)
    assert mean_effect(np.full((8, 50), 0.25)).low == mean_effect(np.full((8, 50), 0.25)).high == 0.25


def test_intervals_over_seeds_and_queries_cover_the_truth():
    """500 crossed samples with effects of runs, of queries and of single answers; a miss by chance is below 1e-4."""
    random, hits = np.random.default_rng(4), 0
    for _ in range(500):
        table = random.normal(0, 1, (8, 1)) + random.normal(0, 3, 60) + random.normal(0, 4, (8, 60))
        found = mean_effect(table)
        hits += found.low <= 0 <= found.high
    assert 455 <= hits <= 494


def test_the_interval_is_the_same_every_time_and_none_with_one_seed():
    values = np.random.default_rng(3).random(8)
    assert mean_effect(values) == mean_effect(values.copy())
    single = mean_effect(values[:1])
    assert math.isnan(single.low) and single.value == values[0]
    assert mean_effect(np.array([])) == NOTHING


def test_verdicts_follow_from_the_interval():
    cases = [
        (Effect(0.1, 0.05, 0.2, 8), {"above": 0.0}, HOLDS),
        (Effect(0.1, -0.05, 0.2, 8), {"above": 0.0}, UNKNOWN),
        (Effect(-0.1, -0.2, -0.05, 8), {"above": 0.0}, FAILS),
        (Effect(0.1, 0.05, 0.2, 8), {"above": 0.1}, UNKNOWN),
        (Effect(0.5, 0.4, 0.55, 8), {"below": 0.6}, HOLDS),
        (Effect(0.9, 0.7, math.inf, 8), {"below": 0.6}, FAILS),
        (Effect(0.1, 0.05, 0.2, 4), {"above": 0.0}, UNKNOWN),  # too few seeds
        (Effect(0.1, math.nan, math.nan, 8), {"above": 0.0}, UNKNOWN),
        (NOTHING, {"below": 0.0}, UNKNOWN),
    ]
    for found, bound, expected in cases:
        assert verdict(found, **bound) == expected, (found, bound)
    assert all_of([HOLDS, HOLDS]) == HOLDS and all_of([]) == UNKNOWN
    assert all_of([HOLDS, UNKNOWN]) == UNKNOWN and all_of([FAILS, UNKNOWN, HOLDS]) == FAILS


# -- measures ---------------------------------------------------------------------------------------------------------


def test_areas_ends_and_tokens_of_straight_lines():
    tables = made_up({"fast": 0.4, "slow": 0.2}, seeds=5, noise=0.0)
    value = {name: effect(tables, name, "g", "fast").value for name in ("validation/area", "validation/end", "updates")}
    assert value["validation/area"] == pytest.approx(0.6) and value["updates"] == 10
    assert value["validation/end"] == pytest.approx(0.4 + 0.4 * 0.95)
    assert effect(tables, "validation/fall", "g", "fast").value == pytest.approx(0.0, abs=1e-9)
    assert effect(tables, "tokens_to/0.6", "g", "fast").value == pytest.approx(500)
    assert effect(tables, "tokens_to/0.603", "g", "fast").value == pytest.approx(507.5)  # between two points
    assert effect(tables, "tokens_to/0.3", "g", "fast").value == 0.0
    assert math.isinf(effect(tables, "tokens_to/0.7", "g", "slow").value)
    # fast reaches slow's end, 0.59, at 475 tokens, where slow needs 950
    assert effect(tables, "tokens_to_match", "g", "fast", "slow").value == pytest.approx(0.5)
    assert math.isinf(effect(tables, "tokens_to_match", "g", "slow", "fast").value)
    assert effect(tables, "validation/area", "g", "fast", "slow").value == pytest.approx(0.1)
    assert effect(tables, "effective/ratio", "g", "fast").value == pytest.approx(0.2 / 0.47)
    assert effect(tables, "reflection/end", "g", "fast").value == pytest.approx(1.0)


def test_curves_are_cut_where_the_shortest_run_ends():
    tables = made_up({"long": 0.4, "short": 0.4}, seeds=3, noise=0.0)
    rows = tables["validations"]
    tables["validations"] = rows[(rows["variant"] == "long") | (rows["tokens"] <= 500)]
    assert measures.budget(tables, ("g", "long")) == 1000
    assert measures.budget(tables, ("g", "long"), ("g", "short")) == 500
    assert effect(tables, "validation/end", "g", "long", "short").value == pytest.approx(0.0)


def test_updates_can_be_equal_in_place_of_tokens():
    """As fast by tokens, `few` makes half as many updates, so by update it is twice as fast."""
    tables = made_up({"many": 0.4, "few": 0.4}, seeds=5, noise=0.0)
    for name in ("validations", "episodes"):
        rows = tables[name]
        tables[name] = rows.assign(step=rows["step"].where(rows["variant"] == "many", rows["step"] / 2))
    assert effect(tables, "validation/end", "g", "few", "many").value == pytest.approx(0.0)
    # by update 5 `few` is at its end, and `many` half way: over the last tenth 0.78 and 0.59
    assert effect(tables, "validation/end@updates", "g", "few", "many").value == pytest.approx(0.78 - 0.59)
    assert effect(tables, "validation/area@updates", "g", "few", "many").value == pytest.approx(0.6 - 0.5)


def test_the_difference_of_two_differences():
    tables = made_up({"a": 0.4, "b": 0.1, "c": 0.3, "d": 0.2}, seeds=5)
    one, two = (effect(tables, "test/plain/accuracy", "g", *pair) for pair in (("a", "b"), ("c", "d")))
    found = effect(tables, "test/plain/accuracy", "g", "a", "b", beyond=("c", "d"))
    assert found.value == pytest.approx(one.value - two.value) and (found.seeds, found.queries) == (5, 40)
    part = Part(grid="g", measure="validation/end", of="a", against="b", beyond=("c", "d"), above=0.0)
    assert part.effect(tables).value == pytest.approx(0.95 * 0.2, abs=0.02) and part.planned(tables) == 5
    row = {"measure": "m", "grid": "g", "of": "a", "against": "b", "minus": "", "relative": False, "beyond": ("c", "d")}
    assert words.measured_words(row) == "`m`, g: (a − b) − (c − d)"


def test_questions_of_different_worlds_are_not_paired():
    tables = made_up({"a": 0.3, "b": 0.1}, seeds=2, queries=4)
    runs = tables["runs"]
    tables["runs"] = runs.assign(data=runs["variant"].map({"a": "sha256:1", "b": "sha256:2"}))
    with pytest.raises(ValueError, match=r"different data cannot be paired by question .*g:a: sha256:1; g:b: sha256:2"):
        effect(tables, "test/plain/accuracy", "g", "a", "b")
    assert effect(tables, "validation/end", "g", "a", "b").seeds == 2


def test_test_accuracy_is_paired_by_seed_and_query():
    tables = made_up({"a": 0.3, "b": 0.1})
    found = effect(tables, "test/plain/accuracy", "g", "a", "b")
    rows = tables["queries"][tables["queries"]["mode"] == "plain"].groupby("variant")[["correct", "samples"]].sum()
    shares = rows["correct"] / rows["samples"]
    assert found.value == pytest.approx(shares["a"] - shares["b"]) and (found.seeds, found.queries) == (8, 40)
    assert found.low > 0
    itself = effect(tables, "test/forced/accuracy", "g", "a", "a", minus="test/plain/accuracy")
    assert itself.low <= itself.value <= itself.high and itself.value > 0
    assert effect(tables, "test/plain/accuracy@a", "g", "a", "b") == found
    assert effect(tables, "test/plain/accuracy@b", "g", "a", "b").seeds == 0
    ratio = effect(tables, "test/forced/tokens", "g", "a", "a", minus="test/plain/tokens", relative=True)
    assert ratio.value == pytest.approx(1.5) and ratio.low == pytest.approx(1.5)
    other = {name: table.assign(grid="h") for name, table in tables.items()}
    both = Tables({name: pd.concat([table, other[name]]) for name, table in tables.items()})
    assert effect(both, "test/plain/accuracy", "g", "a", "h:b") == found
    one_less = Tables(tables | {"queries": tables["queries"].query("not (variant == 'a' and seed == 3)")})
    assert effect(one_less, "test/plain/accuracy", "g", "a", "b").seeds == 7


def test_choice_from_counts_is_choice_from_responses(collected, runs):
    rows = pd.read_parquet(runs / "runs" / "main-ssr-s0" / "evaluation" / "reasoner.parquet")
    rows = rows[(rows["mode"] == "plain") & ~rows["greedy"]]
    random = np.random.default_rng(0)
    table = choice.looks(rows).assign(second=random.random(len(rows)) < 0.5)
    counts = table.assign(
        samples=1,
        unknown_first=table["first_correct"].isna(),
        second_wrong=table["second"] & (table["first_correct"] == 0),
        first_correct=table["first_correct"] == 1,
    )
    numbers = ["samples", "unknown_first", "second_wrong", "first_correct", "second"]
    counts = counts.groupby(["qid", "category", "level"], as_index=False)[numbers].sum()
    found = {name: measure(counts) for name, measure in measures.CHOICE.items()}
    rates = choice.rates(table)
    expected = {name: rates[name] for name in ("wrong", "right")} | {
        "auc": choice.knows_when_wrong(table),
        "auc_within": choice.knows_when_wrong(table, ["category", "level"]),
        "over_rule": rates["wrong"] - choice.best_rule(table)["wrong"],
    }
    assert found == pytest.approx(expected)


def test_unknown_measures_are_refused():
    tables = made_up({"a": 0.1}, seeds=2, queries=2)
    for name in ("test/plain/speed", "validation/middle", "effective/middle", "choice/luck", "nothing"):
        with pytest.raises(ValueError, match="no measure"):
            effect(tables, name, "g", "a")


def test_spread():
    tables = made_up({"a": 0.3, "b": 0.1})
    found = series.spread(tables, "g", ["a", "b"], "test/plain/accuracy").set_index("variant")
    rows = tables["tests"].query("mode == 'plain' and variant == 'a'")["accuracy"]
    assert found.loc["a", "sd"] == pytest.approx(rows.std()) and found.loc["a", "largest"] == pytest.approx(rows.max())


# -- the page ---------------------------------------------------------------------------------------------------------

PLAN = """
grids:
  g: {title: Made up, against: b, figures: [validation, differences]}
  other: {title: Not run}
claims:
  - id: better
    title: A beats B
    source: this test
    parts:
      - {grid: g, measure: test/plain/accuracy, of: a, against: b, above: 0, says: more accurate}
      - {grid: g, measure: tokens_to_match, of: a, against: b, below: 0.6, says: with fewer tokens}
  - id: worse
    title: B beats A
    source: this test
    parts: [{grid: g, measure: test/plain/accuracy, of: b, against: a, above: 0, says: more accurate}]
"""


def test_all_claims_or_one():
    tables, plan = made_up({"a": 0.3, "b": 0.1}, seeds=5), yaml.safe_load(PLAN)
    judged = judge(tables, read_claims(plan["claims"], {"g", "other"}))
    assert re.findall("^### (.*)$", page.claims(judged), re.MULTILINE) == ["A beats B", "B beats A"]
    assert re.findall("^### (.*)$", page.claims(judged, "worse"), re.MULTILINE) == ["B beats A"]
    with pytest.raises(ValueError, match="no claim is called 'best': there are better, worse"):
        page.claims(judged, "best")


def test_what_second_looks_gain_and_cost_by_hand():
    """Two kinds; `always` looks twice at all and mends 4 of 8 of kind a; `some` at kind a only."""
    runs = [{"variant": name, "seed": 0, "state": "finished", "settings": f"reward.token_price={price} x=1"}
            for name, price in (("always", "0"), ("some", "1e-2"))]  # fmt: skip
    queries = [
        ("always", "a", 8, 6, 2, 8, 0, 8 * 24, 8 * 24),
        ("always", "b", 8, 7, 6, 8, 1, 8 * 40, 8 * 40),  # one reflects before it answers: 6 of 7 first looks are right
        ("some", "a", 8, 5, 3, 8, 0, 8 * 30, 8 * 30),
        ("some", "b", 8, 8, 8, 0, 0, 8 * 4, 0),
    ]
    columns = ("variant", "category", "samples", "correct", "first_correct", "second", "unknown_first")
    columns += ("tokens", "second_tokens")
    about = {"grid": "g", "seed": 0, "last": True, "mode": "plain", "level": 1, "qid": "q", "label": "x"}
    tests = [{"variant": "always", "tokens": 40.0, "second": 1.0}, {"variant": "some", "tokens": 22.0, "second": 0.5}]
    made = {
        "runs": pd.DataFrame([{"grid": "g"} | run for run in runs]),
        "queries": pd.DataFrame([about | dict(zip(columns, row, strict=True)) for row in queries]),
        "tests": pd.DataFrame([about | row | {"accuracy": 0.5} for row in tests]),
        "validations": pd.DataFrame(columns=list(TABLES["validations"])),
    }
    tables = Tables(made)
    found = series.gains(tables, "g", "some", "always").set_index("category")
    assert found["gain"].tolist() == pytest.approx([4 / 8, 7 / 8 - 6 / 7])
    assert found["second"].tolist() == [1.0, 0.0] and found["first"].tolist() == [3 / 8, 1.0]
    assert found["cost"].tolist() == pytest.approx([0.01 * (24 - 4), 0.01 * (40 - 4)])
    assert series.gains(tables, "g", "always", "always")["cost"].tolist() == [0.0, 0.0]


def test_the_interval_of_what_second_looks_gain_is_over_queries():
    """Three queries of one cell gain 0, 1/2 and 1: mean 1/2, standard deviation 1/2, two degrees of freedom."""
    about = {"grid": "g", "variant": "v", "seed": 0, "last": True, "mode": "plain", "label": "x", "category": "a"}
    about |= {"level": 1, "samples": 4, "second": 4, "unknown_first": 0, "tokens": 120, "second_tokens": 120}
    queries = [about | {"qid": qid, "correct": 2 * gain, "first_correct": 0} for gain, qid in enumerate("pqr")]
    runs = pd.DataFrame([{"grid": "g", "variant": "v", "seed": 0, "state": "finished", "settings": ""}])
    (found,) = series.gains(Tables({"runs": runs, "queries": pd.DataFrame(queries)}), "g", "v", "v").to_dict("records")
    assert found["gain"] == pytest.approx(0.5)
    assert 0.5 - found["low"] >= 4.302 * 0.5 / math.sqrt(3) and found["high"] - 0.5 >= 4.302 * 0.5 / math.sqrt(3)


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "evidence.yaml").write_text(PLAN)
    return page.load_plan(tmp_path / "evidence.yaml")


def test_the_page_is_made_from_the_tables(plan):
    tables = made_up({"a": 0.4, "b": 0.1}, queries=10)
    names = ("verdicts", "claim better", "grid g", "grid other", "sweeps", "runs")
    text = "By hand.\n" + "\n".join(f"<!-- begin: {name} -->\nstale\n<!-- end: {name} -->" for name in names)
    made = page.make_page(text, tables, plan)
    assert made.startswith("By hand.\n") and "stale" not in made
    assert "| [A beats B](#a-beats-b) | this test | **holds** | holds: 2 |" in made
    assert "| [B beats A](#b-beats-a) | this test | **does not hold** |" in made
    assert "**Verdict: holds.**" in made and "*No run of this grid is finished yet.*" in made
    found = effect(tables, "test/plain/accuracy", "g", "a", "b")
    assert f"{100 * found.value:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}] | 8 | above 0 | holds |" in made
    reached = effect(tables, "tokens_to/0.6", "g", "a")
    assert f"| {words.in_words({'measure': 'tokens_to/0.6', **reached.__dict__})} |" in made and "| not reached" in made
    assert page.make_page(made, tables, plan) == made
    for wrong in ("<!-- begin: nothing -->\n<!-- end: nothing -->", "<!-- begin: runs -->\n"):
        with pytest.raises(ValueError, match="generated part"):
            page.make_page(wrong, tables, plan)


def test_the_best_rate_is_that_of_the_end_and_of_equal_ones_that_of_the_whole_run():
    rows = [(1e-4, 0.6, 0.4), (2e-4, 0.6, 0.5), (4e-4, 0.5, 0.9)]
    table = pd.DataFrame(rows, columns=["lr", "accuracy", "mean"]).assign(grid="s", variant="v", state="finished")
    assert "| s | v | 0.0001: 60.0 (1), **0.0002: 60.0 (1)**, 0.0004: 50.0 (1) |" in page.sweeps(
        Tables({"sweeps": table})
    )


def test_without_runs_nothing_can_be_said(plan):
    empty = Tables({name: pd.DataFrame(columns=list(columns)) for name, columns in TABLES.items()})
    text = "\n".join(f"<!-- begin: {x} -->\n<!-- end: {x} -->" for x in ("verdicts", "claim worse", "grid g"))
    made = page.make_page(text, empty, plan)
    assert "nan" not in made and made.count("**cannot be said: not run yet**") == 2 and "holds**" not in made
    for kind in page.FIGURES:
        with pytest.raises(NoData):
            page.draw(empty, "g", plan.grids["g"], kind)


def test_every_figure_is_drawn(plan):
    tables = made_up({"a": 0.4, "b": 0.1}, seeds=3, queries=8)
    for kind in page.FIGURES:
        drawing = page.draw(tables, "g", plan.grids["g"], kind)
        assert drawing.figure.axes and drawing.caption.startswith("Grid g: ")


def test_mistakes_in_the_plan_are_named(tmp_path):
    path = tmp_path / "evidence.yaml"
    for change, said in (
        (("above: 0, says", "above: 0, below: 1, says"), "one of above, below and not_below"),
        (("grid: g, measure: tokens", "grid: x, measure: tokens"), "no grid 'x'"),
        (("id: worse", "id: better"), "an id of its own"),
        (("validation,", "validations,"), "no validations"),
        (("source", "sources"), "did you mean"),
    ):
        path.write_text(PLAN.replace(*change))
        with pytest.raises(ConfigError, match=said):
            page.load_plan(path)


def test_words_of_effects():
    share = {"value": 0.5, "low": 0.4, "high": 0.6, "measure": "test/plain/accuracy"}
    assert (
        words.in_words(share) == "50.0 [40.0, 60.0]"
        and words.in_words(share | {"against": "b"}) == "+50.0 [+40.0, +60.0]"
    )
    tokens = {"value": 5e5, "low": 4e5, "high": math.inf, "measure": "tokens_to/0.75"}
    assert words.in_words(tokens) == "500k [400k, not reached]"
    assert words.in_words(share | {"measure": "effective/ratio"}) == "0.50 [0.40, 0.60]"
    below = share | {"measure": "choice/over_rule", "value": -0.02, "low": -0.04, "high": 0.01}
    assert words.in_words(below) == "-2.0 [-4.0, +1.0]"  # a difference of shares, of one variant
    assert (
        words.in_words(share | {"measure": "test/plain/tokens", "against": "b", "relative": True})
        == "0.50 [0.40, 0.60]"
    )
    assert words.in_words(share | {"value": math.nan}) == "–"
    length = {"value": 20.26, "low": 18.0, "high": 21.0, "measure": "test/plain/tokens"}
    assert words.in_words(length) == "20.3 [18.0, 21.0]"
    assert words.in_words(length | {"measure": "updates", "against": "b"}) == "+20 [+18, +21]"
    assert words.in_words(tokens | {"value": math.inf, "low": math.inf}) == "not reached"


def test_tokens_to_an_accuracy_against_another_are_a_ratio():
    """As ``effect`` has it: a gets there with half of the tokens."""
    tables = made_up({"a": 0.4, "b": 0.2}, seeds=5, noise=0.0)
    row = {"measure": "tokens_to/0.5", "grid": "g", "of": "a", "against": "b", "minus": "", "relative": False}
    row |= Part("g", "tokens_to/0.5", "a", "b", below=0.6).effect(tables).__dict__
    assert row["value"] == pytest.approx(0.5, abs=0.01)
    assert words.in_words(row | {"value": 0.5, "low": 0.4, "high": math.inf}) == "0.50 [0.40, not reached]"
    assert words.measured_words(row) == "`tokens_to/0.5`, g: a / b"
    assert words.bound_words(row | {"side": "below", "bound": 0.6}) == "below 0.6"


# -- what is committed ------------------------------------------------------------------------------------------------


def test_the_committed_page_is_that_of_the_committed_tables():
    folder = ROOT / "experiments" / "evidence"
    plan, tables = page.load_plan(folder / "evidence.yaml"), load(folder / "results")
    text = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    assert page.make_page(text, tables, plan) == text, "run `make evidence`"
    for claim in plan.claims:
        assert f"\n## {claim.title}\n" in text and f"<!-- begin: claim {claim.id} -->" in text
    for name in plan.grids:
        assert f"<!-- begin: grid {name} -->" in text


def test_the_committed_figures_are_made_of_the_committed_tables():
    folder = ROOT / "experiments" / "evidence"
    assert (folder / "figures" / page.MADE_OF).read_text(encoding="utf-8") == page.digests(folder), (
        "run `make evidence`"
    )


def test_a_part_of_a_claim_names_a_measure_that_there_is():
    tables = made_up({"a": 0.1, "b": 0.1}, seeds=2, queries=3)
    for claim in page.load_plan(ROOT / "experiments" / "evidence" / "evidence.yaml").claims:
        for part in claim.parts:
            pair = "b" if part.against else None
            Part("g", part.measure, "a", pair, part.minus, part.relative, above=0.0).effect(tables)


def test_tails_of_the_expanded_interval():
    assert bootstrap.tail_share(8) == pytest.approx(0.00573, abs=2e-5)  # Phi(-2.365 * sqrt(8 / 7))
    assert bootstrap.tail_share(1000) == pytest.approx(0.025, abs=2e-4)
