"""Reflection: rates, words and what it is worth, by numbers that can be counted by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
from synthetic_run import write_run

from rethinker.evaluation.statistics import wilson
from rethinker.lab.analysis import diagnostics, reflection
from rethinker.rethink import TRIGGERS
from rethinker.rundir.glossary import ROLLOUT_COLUMNS

WAIT = "\\boxed{1}\n\nWait, let's double check: \\boxed{2}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("world") / "run", stages=(3, 3), queries=12, held_out=24)


def write(folder: Path, rows: list[dict], episode: int = 1) -> Path:
    shared = {"episode": episode, "stage": "one", "category": "sum", "level": 1, "pass": "first", "text": ""}
    table = pd.DataFrame([dict.fromkeys(ROLLOUT_COLUMNS) | shared | row for row in rows])
    (folder / "rollouts").mkdir(exist_ok=True)
    table.to_parquet(folder / "rollouts" / f"episode-{episode:05d}.parquet")
    return folder


def cases(qid: str, *, level: int, reflecting: tuple[int, int], others: tuple[int, int]) -> list[dict]:
    """(right, wrong) responses of each sort."""
    return [
        {"qid": qid, "level": level, "reflects": reflects, "correct": correct}
        for reflects, (right, wrong) in ((True, reflecting), (False, others))
        for correct in [True] * right + [False] * wrong
    ]


def forced(qid: str, trigger: str, first: str, second: str) -> dict:
    row = {"qid": qid, "pass": "forced", "reflects": False, "trigger": trigger, "first_text": first}
    return row | {"text": first + TRIGGERS[trigger] + second}


def test_rates_agree_with_the_metrics(run: Path) -> None:
    metrics = diagnostics.load_metrics(run).episodes
    assert reflection.reflection_over_time(run)["share"].tolist() == pytest.approx(metrics["reflection/share"].tolist())
    by_kind = reflection.reflection_over_time(run, "category").groupby("episode")[["responses", "reflects"]].sum()
    assert by_kind["responses"].tolist() == [96] * 6
    stages = reflection.reflection_by(run).set_index("stage")
    assert stages.loc["reasoner", "share"] == 0 and stages.loc["reasoner", "high"] > 0  # nothing seen is not zero
    assert stages.loc["rethinker", "n"] == 3 * 96 and stages.loc["rethinker", "clusters"] == 12
    with pytest.raises(ValueError, match="'colour'"):
        reflection.reflection_by(run, "colour")


def test_difficulty_does_not_confound(tmp_path: Path) -> None:
    """Easy queries reflect often and hard ones seldom: raw, reflection seems to help; within queries it does harm."""
    write(
        tmp_path,
        [
            *cases("easy", level=1, reflecting=(4, 2), others=(2, 0)),  # 2/3 against 1, weight 6*2/8 = 1.5
            *cases("hard", level=2, reflecting=(0, 2), others=(1, 5)),  # 0 against 1/6, weight 1.5
            *cases("never", level=2, reflecting=(0, 0), others=(0, 8)),  # no comparison
        ],
    )
    table = reflection.does_reflection_pay(tmp_path).set_index(["what", "key"])
    assert table.loc[("raw", "all"), "value"] == pytest.approx(4 / 8 - 3 / 16)
    within = table.loc[("within", "all")]
    assert within["value"] == pytest.approx((-1 / 3 - 1 / 6) / 2)
    assert (within["groups"], within["queries"]) == (2, 2)
    assert (within["with_reflection"], within["without_reflection"]) == (8, 8)
    # Residuals 1.5 * (-1/3 + 1/4) = -0.125 and 0.125; variance 2 * 0.125^2 * 2 / 1 / 3^2 = 1/144.
    assert within["high"] - within["value"] == pytest.approx(1.959964 / 12, abs=1e-6)
    assert table.loc[("level", "1"), "value"] == pytest.approx(-1 / 3)
    assert math.isnan(table.loc[("level", "1"), "low"])  # one query tells nothing about the others
    assert "category" not in table.index.get_level_values("what")  # there is one only


def test_no_comparison_is_no_number(tmp_path: Path) -> None:
    write(tmp_path, cases("a", level=1, reflecting=(0, 0), others=(1, 1)))
    table = reflection.does_reflection_pay(tmp_path)
    assert table["value"].isna().all() and table["groups"].tolist() == [1, 0]


def test_words(tmp_path: Path) -> None:
    write(
        tmp_path,
        [
            {"qid": "a", "reflects": True, "text": f"the bars are 4 high {WAIT} x"},
            {"qid": "a", "reflects": True, "text": "Hold on, the left bar, the left bar! \\frac{1}{2}"},
            {"qid": "b", "reflects": False, "text": "The left bar is high."},
            {"qid": "a", "reflects": True, "text": "By rows. Wait, by rows again, the bar"},
            forced("b", "self-correction", "By rows.", ". The left bar. Wait, again."),
            forced("b", "self-questioning", "By rows.", " The angle."),
        ],
    )
    table = reflection.reflection_words(tmp_path).set_index("word")
    assert table.attrs == {"reflecting": 3, "queries": 1, "forced": 2}
    assert set(table.index) == {"wait", "let's", "double", "check", "hold", "left", "bar", "rows", "again"}
    assert table.loc["wait", ["responses", "share", "before", "forced"]].tolist() == [2, 2 / 3, 0, 0]  # the trigger's
    assert table.loc["left", ["responses", "before", "forced"]].tolist() == [1, 0, 1 / 2]
    assert table.loc["rows", ["responses", "before", "forced"]].tolist() == [1, 1 / 3, 0]  # y1 is not the second look
    assert table.loc["again", "forced"] == 0  # it is in a reflection of its own
    assert table.loc["bar", ["responses", "before", "forced"]].tolist() == [2, 0, 1 / 2]
    assert reflection.words("Don\u2019t re-check \\text{abc} x 12 3rd") == {"don't", "re-check", "abc", "rd"}
    assert reflection.reflection_words(tmp_path, 3)["word"].tolist() == ["bar", "wait", "again"]  # ties by name


def test_the_interval_of_a_word_takes_queries_as_clusters(tmp_path: Path) -> None:
    """Four of eight responses, from two of four queries as a whole: as wide as two of four."""
    texts = {"a": "Wait, a bar", "b": "Wait, a bar", "c": "Wait", "d": "Wait"}
    write(tmp_path, [{"qid": qid, "text": text} for qid, text in texts.items() for _ in range(2)])
    row = reflection.reflection_words(tmp_path).set_index("word").loc["bar"]
    assert (row["responses"], row["share"]) == (4, 0.5) and math.isnan(row["forced"])
    assert (row["low"], row["high"]) == pytest.approx(wilson(2, 4))


def test_stages_come_in_order_and_levels_in_theirs(tmp_path: Path) -> None:
    for episode, stage, levels in ((1, "z-first", (3, 1)), (2, "a-second", (2, 3, 1))):
        rows = [{"qid": f"q{level}", "level": level, "reflects": False, "correct": True} for level in levels]
        write(tmp_path, [row | {"stage": stage} for row in rows], episode)
    table = reflection.reflection_by(tmp_path, "level")
    assert list(zip(table["stage"], table["level"], strict=True)) == [
        ("z-first", 1), ("z-first", 3), ("a-second", 1), ("a-second", 2), ("a-second", 3)
    ]  # fmt: skip


def test_self_corrections(run: Path) -> None:
    table = reflection.self_corrections(run).set_index("label")
    assert table.loc["start", "responses"] == 0  # no reflection before training
    last = table.loc["rethinker"]
    assert last[list(reflection.OUTCOMES)].sum() == last["responses"] > 60
    rows = pd.read_parquet(run / "evaluation" / "rethinker.parquet")
    rows = rows[(rows["mode"] == "plain") & rows["reflects"] & ~rows["greedy"].astype(bool)]
    assert last["responses"] + last["ungraded"] == len(rows)
    first = [text.split("\\boxed{")[1].split("}")[0] for text in rows["text"]]
    right = [a == gold for a, gold in zip(first, rows["gold"], strict=True)]
    assert last["wrong_to_right"] == sum(
        after and not before for before, after in zip(right, rows["correct"], strict=True)
    )
    assert last["right_to_wrong"] == sum(
        before and not after for before, after in zip(right, rows["correct"], strict=True)
    )


def test_no_evaluation_is_an_empty_table(tmp_path: Path) -> None:
    assert reflection.self_corrections(tmp_path).empty
