"""Tables from run files: a hand-made run whose numbers can be counted, and a synthetic one; broken files are named."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from synthetic_run import write_run

from rethinker.lab.analysis import diagnostics
from rethinker.lab.report import gallery
from rethinker.lab.report.gallery import changed_responses
from rethinker.rundir.atomic import append_json_line
from rethinker.rundir.glossary import EPISODE, ROLLOUT_COLUMNS


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("world") / "run", stages=(3, 3), queries=12, held_out=24)


def line(record: str, episode: int, step: int, stage: str = "one", **metrics: object) -> dict:
    return {"record": record, "episode": episode, "step": step, "stage": stage, "seconds": 1.0, **metrics}


def write_lines(folder: Path, *records: dict) -> Path:
    for record in records:
        append_json_line(folder / "metrics.jsonl", record)
    return folder


def rollout(folder: Path, episode: int, rows: list[dict]) -> None:
    table = pd.DataFrame([dict.fromkeys(ROLLOUT_COLUMNS) | {"episode": episode, "stage": "one"} | row for row in rows])
    (folder / "rollouts").mkdir(exist_ok=True)
    table.to_parquet(folder / "rollouts" / f"episode-{episode:05d}.parquet")


def test_metrics_have_every_column_of_the_glossary(run: Path) -> None:
    metrics = diagnostics.load_metrics(run)
    assert set(EPISODE) <= set(metrics.episodes.columns)
    assert metrics.episodes["episode"].tolist() == [1, 2, 3, 4, 5, 6]
    assert metrics.notes == ()
    assert metrics.stages().to_dict("records") == [
        {"stage": "reasoner", "first": 1, "last": 3, "step": 0},
        {"stage": "rethinker", "first": 4, "last": 6, "step": 12},
    ]


def test_cut_line_is_noted_and_a_broken_one_is_an_error(tmp_path: Path) -> None:
    write_lines(tmp_path, line("episode", 1, 1))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"record": "episode", "epi')
    metrics = diagnostics.load_metrics(tmp_path)
    assert len(metrics.episodes) == 1 and "last line (2) is cut short" in metrics.notes[0]
    (tmp_path / "metrics.jsonl").write_text('{"record": "epi\n' + json.dumps(line("episode", 1, 1)) + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1: not a record of a run \(JSONDecodeError"):
        diagnostics.load_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"record": "dream", "episode": 1, "step": 1}\n')
    with pytest.raises(ValueError, match="line 1: not a record"):
        diagnostics.load_metrics(tmp_path)


def test_missing_and_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl is missing"):
        diagnostics.load_metrics(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no episode-\*\.parquet"):
        diagnostics.load_rollouts(tmp_path)
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts" / "episode-00001.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match=r"episode-00001\.parquet cannot be read"):
        diagnostics.load_rollouts(tmp_path)
    pd.DataFrame({"qid": ["a"]}).to_parquet(tmp_path / "rollouts" / "episode-00001.parquet")
    with pytest.raises(ValueError, match=r"lacks the columns .*correct"):
        diagnostics.load_rollouts(tmp_path)
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "start.json").write_text("{")
    with pytest.raises(ValueError, match=r"start\.json is not valid JSON"):
        diagnostics.load_evaluations(tmp_path)


def test_vanishing_by_hand(tmp_path: Path) -> None:
    verdicts = {"a": (True, True), "b": (False, False), "c": (True, False), "d": (False, False)}
    rows = [
        {"qid": qid, "category": "sum", "level": 1 + (qid > "b"), "pass": "first", "correct": correct, "tokens": 10}
        for qid, pair in verdicts.items()
        for correct in pair
    ]
    # A forced trajectory is right where y1 was wrong: it must not make query b effective.
    rows.append(rows[2] | {"pass": "forced", "correct": True, "tokens": 1000})
    rollout(tmp_path, 1, rows)
    (table,) = diagnostics.vanishing(tmp_path).to_dict("records")
    expected = {"queries": 4, "effective": 0.25, "all_correct": 0.25, "all_incorrect": 0.5, "wasted_tokens": 0.75}
    assert {name: table[name] for name in expected} == expected
    by_level = diagnostics.vanishing(tmp_path, "level").set_index("level")
    assert by_level["effective"].to_dict() == {1: 0.0, 2: 0.5}
    # A file that is written again is read again.
    rollout(tmp_path, 1, [row | {"correct": True, "qid": f"long-{row['qid']}"} for row in rows])
    assert diagnostics.vanishing(tmp_path)["all_correct"].tolist() == [1.0]


def test_vanishing_in_windows_and_by_both_keys(tmp_path: Path) -> None:
    for episode in range(1, 6):
        rows = [
            {"qid": qid, "category": kind, "level": 1, "pass": "first", "correct": correct, "tokens": 10}
            for qid, kind, pair in (("a", "sum", (True, episode > 3)), ("b", "clock", (False, False)))
            for correct in pair
        ]
        rollout(tmp_path, episode, rows)
    table = diagnostics.vanishing(tmp_path, windows=2)
    # Windows 1-3 and 4-5: query a is mixed in episodes 1, 2, 3 and all right afterwards; b is always wrong.
    assert table[["window", "first", "last", "queries"]].values.tolist() == [[1, 1, 3, 6], [2, 4, 5, 4]]
    assert table["effective"].tolist() == [0.5, 0.0]
    assert table["all_correct"].tolist() == [0.0, 0.5]
    both = diagnostics.vanishing(tmp_path, ("category", "level"), 1).set_index(["category", "level"])
    assert both.loc[("sum", 1), "effective"] == pytest.approx(3 / 5) and both.loc[("clock", 1), "all_incorrect"] == 1
    assert len(diagnostics.vanishing(tmp_path, windows=99)) == 5  # no window without an episode
    with pytest.raises(ValueError, match="at least 1"):
        diagnostics.vanishing(tmp_path, windows=0)
    with pytest.raises(ValueError, match="'colour'; allowed are category and level"):
        diagnostics.vanishing(tmp_path, "colour")


def test_waste_by_hand(tmp_path: Path) -> None:
    def row(name: str, category: str, tokens: int, advantage: float | None, **more: object) -> dict:
        common = {"sample_id": f"1/{name}", "qid": name[0], "level": 1, "pass": "first", "correct": True}
        return common | {"category": category, "tokens": tokens, "advantage": advantage} | more

    forced = {"pass": "forced", "first_tokens": 9, "trigger_tokens": 5}
    rollout(
        tmp_path,
        1,
        [
            row("a/0", "sum", 10, 0.5),
            row("a/1", "sum", 10, None),  # gave way to its trajectory, which has an advantage
            row("a/1", "sum", 34, -0.5, kept=True, **forced),  # 34 - 9 - 5 = 20 generated
            row("a/0", "sum", 26, None, kept=False, **forced),  # 12 generated, thrown away
            row("b/0", "clock", 40, 0.0),
            row("c/0", "clock", 8, None),  # of a group that was refused
        ],
    )
    write_lines(tmp_path, line("episode", 1, 1, **{"time/rollout": 17.0, "time/rethink": 8.0, "time/episode": 50.0}))
    (table,) = diagnostics.waste(tmp_path).to_dict("records")
    assert {name: table[name] for name in ("tokens", *diagnostics.FATES)} == {
        "tokens": 100.0,
        "signal": 40.0,
        "no_signal": 48.0,
        "not_kept": 12.0,
    }
    assert table["no_signal_share"] == pytest.approx(0.48)
    # 48 of the 68 tokens of y1, 12 of the 32 tokens of second looks.
    assert table["rollout_lost"] == pytest.approx(17 * 48 / 68) and table["rethink_lost"] == pytest.approx(8 * 12 / 32)
    assert table["lost_share"] == pytest.approx((12 + 3) / 50)
    kinds = diagnostics.waste_by(tmp_path, "category").set_index("category")
    assert kinds["no_signal_share"].to_dict() == {"clock": 1.0, "sum": 0.0}
    assert kinds["tokens"].to_dict() == {"clock": 48.0, "sum": 52.0}


def test_waste_agrees_with_the_metrics(run: Path) -> None:
    table, metrics = diagnostics.waste(run), diagnostics.load_metrics(run).episodes
    assert table["episode"].tolist() == metrics["episode"].tolist()
    assert (table[list(diagnostics.FATES)].sum(axis=1) == table["tokens"]).all()
    rows = diagnostics.load_rollouts(run)
    rows["used"] = rows["advantage"].astype(float).abs() > 0
    plain = (
        rows[(rows["stage"] == "reasoner")].groupby("episode").apply(lambda part: part["tokens"][part["used"]].sum())
    )
    assert table["signal"][:3].tolist() == plain.tolist()  # stage 1 forces nothing: every row stands for itself


def test_vanishing_agrees_with_the_metrics(run: Path) -> None:
    metrics, table = diagnostics.load_metrics(run).episodes, diagnostics.vanishing(run)
    for name in ("effective", "all_correct", "all_incorrect"):
        assert table[name].tolist() == pytest.approx(metrics[f"queries/{name}"].tolist())


def test_histograms(tmp_path: Path) -> None:
    shape = {"edges": [-1.0, 0.0, 1.0], "counts": [3, 5]}
    write_lines(tmp_path, line("episode", 1, 1, **{"advantages/before": shape, "advantages/after": None}))
    table = diagnostics.advantage_histograms(tmp_path)
    assert table[["which", "left", "right", "count"]].values.tolist() == [["before", -1, 0, 3], ["before", 0, 1, 5]]
    write_lines(tmp_path, line("episode", 2, 2, **{"advantages/before": {"edges": [0.0], "counts": [1]}}))
    with pytest.raises(ValueError, match="episode 2 has 1 edges for 1 counts"):
        diagnostics.advantage_histograms(tmp_path)


def test_rethinking_outcomes(tmp_path: Path) -> None:
    shares = {"wrong_to_right": 0.3, "wrong_to_wrong": 0.1, "right_to_wrong": 0.15, "right_to_right": 0.45}
    write_lines(
        tmp_path,
        line("episode", 1, 1, **{"rethink/forced": 0.0} | {f"rethink/{name}": None for name in shares}),
        line("episode", 2, 2, **{"rethink/forced": 0.5} | {f"rethink/{name}": value for name, value in shares.items()}),
    )
    table = diagnostics.rethinking_outcomes(tmp_path)
    assert pd.isna(table["rescued"][0])  # no case is no value, not 0
    assert table["rescued"][1] == pytest.approx(0.75) and table["lost"][1] == pytest.approx(0.25)


def test_other_tables(run: Path) -> None:
    curve = diagnostics.validation_curve(run)
    assert curve["episode"].tolist() == [0, 2, 3, 5, 6]
    assert ((curve["low"] <= curve["accuracy"]) & (curve["accuracy"] <= curve["high"])).all()


def test_evaluation_tables(run: Path) -> None:
    table = diagnostics.fig7_table(run)
    assert list(table["label"].unique()) == ["start", "reasoner", "rethinker"]
    assert set(table["mode"]) == {"plain", "forced", "bound"}
    assert set(table["measure"]) == {"greedy", "pass@1", "pass@2", "pass@4"}
    by_kind = diagnostics.accuracy_by(run, "category")
    plain = by_kind[(by_kind["label"] == "start") & (by_kind["mode"] == "plain") & (by_kind["measure"] == "pass@1")]
    assert plain["clusters"].sum() == 24 and plain["n"].sum() == 96
    outcomes = diagnostics.evaluation_outcomes(run)
    assert set(outcomes["kind"]) == {"forced", "independent"}
    with pytest.raises(ValueError, match="colour"):
        diagnostics.accuracy_by(run, "colour")


def test_no_evaluation_gives_empty_tables(tmp_path: Path) -> None:
    assert diagnostics.load_evaluations(tmp_path) == {}
    assert diagnostics.fig7_table(tmp_path).empty
    assert diagnostics.evaluation_outcomes(tmp_path).empty


def test_gallery(run: Path) -> None:
    table = changed_responses(run, 8)
    assert len(table) == 8 and table["qid"].is_unique
    assert (table["first_correct"] != table["correct"]).all()
    assert 1 <= (~table["correct"]).sum() <= 2  # a quarter, where there are enough of the others
    first = table.iloc[0]
    assert not first["forced"] and first["correct"] and first["source"].startswith("held out, after rethinker")
    assert "\\boxed" in first["first"] and first["second"].startswith("Wait")
    assert first["final_answer"] == first["gold"] != first["first_answer"]
    pd.testing.assert_frame_equal(table, changed_responses(run, 8))
    one = changed_responses(run, 1)
    assert len(one) == 1 and one["correct"].all()


def test_gallery_from_training_alone(tmp_path: Path) -> None:
    forced = {"category": "sum", "level": 1, "question": "?", "gold": "2", "images": ["/a.png"], "pass": "forced"}
    texts = {"first_text": "\\boxed{1}", "text": "\\boxed{1}\n\nWait, no: \\boxed{2}", "extracted": "2"}
    rollout(
        tmp_path,
        1,
        [
            forced | texts | {"qid": "a", "correct": True, "first_correct": False},
            forced | texts | {"qid": "b", "correct": True, "first_correct": True},
            forced | texts | {"qid": "c", "correct": True, "pass": "first"},
        ],
    )
    table = changed_responses(tmp_path, 5)
    assert table["qid"].tolist() == ["a"]
    assert table["second"].tolist() == ["Wait, no: \\boxed{2}"]
    assert table["source"].tolist() == ["training, episode 1: forced"]
    assert changed_responses(tmp_path / "nothing", 5).empty
    with pytest.raises(ValueError, match="0 responses cannot be shown: give 1 or more"):
        changed_responses(tmp_path, 0)


def test_the_gallery_reads_no_more_episodes_than_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the latest episodes that hold enough."""
    forced = {"category": "sum", "level": 1, "question": "?", "gold": "2", "images": ["/a.png"], "pass": "forced"}
    texts = {"first_text": "\\boxed{1}", "text": "\\boxed{1}\n\nWait, no: \\boxed{2}", "extracted": "2"}
    for episode in range(1, 9):
        rows = [
            forced | texts | {"qid": f"{episode % 3}-{number}", "correct": number > 0, "first_correct": number == 0}
            for number in range(4)
        ]
        rollout(tmp_path, episode, rows)
    read: list[str] = []
    load = gallery.load_episode
    monkeypatch.setattr(gallery, "load_episode", lambda path, names: (read.append(path.stem), load(path, names))[1])
    table = changed_responses(tmp_path, 4)
    assert table["correct"].tolist() == [True] * 3 + [False] and table["qid"].is_unique
    assert set(table["source"]) <= {f"training, episode {number}: forced" for number in (7, 8)}
    assert read == ["episode-00008", "episode-00007"], "two episodes are enough"
