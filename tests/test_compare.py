"""``rethinker compare``: evaluations beside the paper's rows, differences paired by item, marks of what is less."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest
from letters import POLICY
from PIL import Image
from toy_benchmark import Engine, Toy, asking, settings, write_rows

from rethinker import cli
from rethinker.benchmarks import checkpoint, paper, registry
from rethinker.benchmarks.running import run_tasks
from rethinker.benchmarks.tasks import load_task
from rethinker.config import load_config
from rethinker.lab.compare import pairs, rows, tables
from rethinker.lab.compare.command import write
from rethinker.lab.figures.benchmarks import draw

MODEL = Path(__file__).parents[1] / "data" / "tiny-vlm"


class Small(Toy):
    """A benchmark that the paper has, four items long."""

    name, title = "mathvision", "MathVision"
    splits = {"test": 4, "testmini": 4}  # noqa: RUF012


DATA = [
    {"id": name, "question": "?", "answer": "1", "subject": "sum" if name < "c" else "product", "problem": problem}
    for name, problem in (("a", "p"), ("b", "p"), ("c", "q"), ("d", "r"))
]
FIRST = {"a": "=0", "b": "=1", "c": "I do not know", "d": "=1"}
SECOND = dict.fromkeys("abcd", "=1")
BETTER = {"a": "=1", "b": "=1", "c": "=1", "d": "=0~"}
SAMPLES = {"a": ("=1", "=1"), "b": ("=1", "=0"), "c": ("=0", "=1"), "d": ("=0", "=0")}


@pytest.fixture
def evaluations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two runs with an evaluation each."""
    monkeypatch.setitem(registry.BENCHMARKS, "mathvision", Small())
    data = write_rows(tmp_path / "data", DATA)
    write_rows(data, DATA, "testmini")
    for run, answers, how, names in (
        ("base", FIRST, asking(("forced",)), ("mathvision", "mathvision:testmini")),
        ("trained", BETTER, asking(samples=2), ("mathvision",)),
    ):
        tasks = [load_task(name, {"mathvision": str(data)}, limit=4) for name in names]
        engine = Engine(
            lambda qid, index, answers=answers: answers[qid] if index < 0 else SAMPLES[qid][index],
            lambda qid, index: SECOND[qid],
        )
        folder = tmp_path / "runs" / run / "benchmarks" / "official"
        run_tasks(folder, tasks, how, settings(how), lambda left, engine=engine: (POLICY, engine, {}), chunk=4)
    return tmp_path / "runs"


def test_rows_beside_the_papers(evaluations: Path) -> None:
    table = rows.collect(rows.find([evaluations]), paper.choose(["32b", "fig7"]))
    assert list(table) == list(rows.COLUMNS)
    test = table[table["title"] == "MathVision test"].set_index("row")
    expected = {
        "Qwen-2.5-VL-32B": 0.384,
        "VL-Rethinker-32B": 0.405,
        "VL-Reasoner-7B, Fig. 7": 0.2975,
        "VL-Reasoner-7B (forced), Fig. 7": 0.3049,
        "VL-Reasoner-7B (bound), Fig. 7": 0.3368,
        "VL-Rethinker-7B, Fig. 7": 0.3227,
        "base (official)": 0.5,
        "base (official), forced": 1.0,
        "trained (official)": 0.75,
        "trained (official), mean of 2 samples": 0.5,
    }
    assert test["value"].to_dict() == pytest.approx(expected)
    assert test[test["kind"] == "paper"][["low", "high", "n", "unparsed"]].isna().all().all()
    base = test.loc["base (official)"]
    assert 0 < base["low"] < 0.5 < base["high"] < 1
    assert (base["n"], base["clusters"], base["unparsed"], base["with_guesses"]) == (4, 3, 1, 0.5625)
    assert (base["protocol"], base["decoding"], base["mode"], base["mark"]) == ("official", "greedy", "plain", "")
    assert test.loc["trained (official), mean of 2 samples", "decoding"].startswith("2 samples")
    assert "MathVision testmini" in set(table["title"])


def test_pass_at_k_is_shown_where_samples_were_drawn(evaluations: Path, tmp_path: Path) -> None:
    found = rows.pass_at_k(rows.find([evaluations]))
    assert found[["row", "title", "samples", "k", "value", "n", "clusters"]].to_dict("records") == [
        {"row": "trained (official)", "title": "MathVision test", "samples": 2, "n": 8, "clusters": 3, "k": k} | value
        for k, value in ((1, {"value": 0.5}), (2, {"value": 0.75}))
    ]
    shown = tables.passed(found, ["MathVision test", "MathVision testmini"])
    assert list(shown.headers) == ["", "k", "MathVision test", "MathVision testmini"]
    assert [(row[1], row[2].partition(" ")[0], row[3]) for row in shown.rows] == [
        ("1", "50.0", "-"),
        ("2", "75.0", "-"),
    ]
    base = rows.find([evaluations / "base"])
    assert rows.pass_at_k(base).empty
    assert all("pass@k" not in table.title for table in write(base, [], tmp_path / "greedy"))


def test_what_is_not_the_whole_benchmark_is_marked(evaluations: Path) -> None:
    place = evaluations / "base" / "benchmarks" / "official" / "mathvision-test.json"
    counted = json.loads(place.read_text())
    counted["published"] = 3040
    counted["modes"]["plain"]["greedy"]["unsupported"] = 2
    place.write_text(json.dumps(counted))
    table = rows.collect(rows.find([evaluations]), [])
    marks = table[table["title"] == "MathVision test"].set_index("row")["mark"]
    assert marks["base (official)"] == "4 of 3040 items; without 2 responses that cannot be scored here"
    assert marks["trained (official)"] == ""
    shown = tables.results(table)
    assert [row[1].endswith("‡") for row in shown.rows] == [True, True, False, False]
    assert any(note.startswith("‡") for note in shown.notes)


def test_differences_are_paired_by_item_and_respect_clusters_and_means_of_means(evaluations: Path) -> None:
    found = pairs.differences(rows.find([evaluations]))
    (row,) = found.to_dict("records")  # what both have: the split test, plain, greedy
    assert (row["before"], row["after"], row["mode"]) == ("base (official)", "trained (official)", "plain")
    assert (row["difference"], row["n"], row["clusters"]) == (0.25, 4, 3)
    # Differences 1, 0, 1, -1 around 1/4; of clusters p, q, r: (0.75 - 0.25) / 4, 0.75 / 4, -1.25 / 4.
    variance = sum((sum_ / 4) ** 2 for sum_ in (0.5, 0.75, -1.25)) * 3 / 2
    assert row["high"] == pytest.approx(min(1, 0.25 + 1.959964 * math.sqrt(variance)))

    def scores(*values):
        groups = [{"task": (task,)} for task in ("x", "x", "x", "y")]
        return pd.DataFrame({"qid": list("abcd"), "cluster": list("abcd"), "groups": groups, "score": values})

    before, after = scores(0.0, 0.0, 0.0, 0.0), scores(1.0, 0.0, 0.5, 1.0)
    assert pairs.paired(before, after, None).value == pytest.approx(2.5 / 4)
    assert pairs.paired(before, after, "task").value == pytest.approx((0.5 + 1) / 2)
    assert pairs.paired(before[:0], after, None).value is None
    one = pairs.paired(before[:1], after, None)
    assert (one.low, one.high) == (-1.0, 1.0)


def asked(label: str, *changes: str, modes: tuple[str, ...] = (), samples: int = 0, **counts: dict) -> rows.Evaluation:
    """An evaluation with the settings that ``rethinker evaluate`` records."""
    config = load_config(None, [f"model.path={MODEL}", "rollout.engine=transformers", *changes])
    how = checkpoint.asking(config, "boxed", modes, samples)
    return rows.Evaluation(Path(label), label, checkpoint.settings_of(config, how, None), counts or {"emma-full": {}})


def test_evaluations_that_were_asked_with_other_settings_are_named() -> None:
    base = asked("base", "rollout.max_new_tokens=8192", "data.prompt_suffix=Think.", "rollout.temperature=0.6")
    trained = asked("trained", "rollout.max_new_tokens=2048", "model.max_pixels=1003520", "rollout.dtype=float32")
    same = asked("same", "rollout.max_new_tokens=8192", "data.prompt_suffix=Think.", modes=("forced",), samples=4)
    (warning,) = pairs.asked_otherwise([base, same, trained])
    assert warning.startswith("Warning: base and trained were asked with other settings (")
    for text in ("'Think.' -> ''", "model.max_pixels None -> 1003520", "rollout.max_new_tokens 8192 -> 2048"):
        assert text in warning
    assert "temperature" not in warning and "dtype" not in warning  # greedy responses have none; types round
    drawn = [asked(str(t), f"rollout.temperature={t}", "rethink.seam=spliced", samples=2) for t in (0.6, 1.0)]
    assert "(rollout.temperature 0.6 -> 1.0)" in pairs.asked_otherwise(drawn)[0]
    seams = [asked(seam, f"rethink.seam={seam}", modes=("bound",)) for seam in ("natural", "spliced")]
    assert "(rethink.seam 'natural' -> 'spliced')" in pairs.asked_otherwise(seams)[0]
    elsewhere = asked("elsewhere", "rollout.max_new_tokens=9", **{"mmmu-validation": {}})
    assert pairs.asked_otherwise([base, elsewhere]) == []


def test_the_command_warns_of_other_settings(evaluations: Path, capsys) -> None:
    for run, tokens in (("base", 8192), ("trained", 2048)):
        file = evaluations / run / "benchmarks" / "official" / "summary.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"rollout": {"max_new_tokens": tokens}}))
    assert cli.main(["compare", str(evaluations), "--paper", "none"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for text in (said, *((evaluations / "comparison" / f"comparison.{kind}").read_text() for kind in ("md", "html"))):
        assert "Warning: base (official) and trained (official)" in text and "8192 -" in text


def test_the_command_writes_tables_and_figures(evaluations: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    arguments = [
        "compare",
        str(evaluations),
        "--paper",
        "72b,VL-Rethinker-7B",
        "--groups",
        "subject",
        "--out",
        str(out),
    ]
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    for text in ("VL-Rethinker-72B", "trained (official)", "44.9", "By subject", "product", "paired by item", "+25.0"):
        assert text in said, text
    assert "pass@k, in percent" in said
    assert sorted(path.name for path in out.iterdir()) == [
        *(f"comparison-{theme}.{kind}" for theme in ("dark", "light") for kind in ("png", "svg")),
        *("comparison.csv", "comparison.html", "comparison.md", "differences.csv", "groups.csv", "pass_at_k.csv"),
    ]
    page = (out / "comparison.html").read_text()
    for text in (
        "No answer found: base (official)",
        "I do not know",
        "Right in one of both",
        "nothing found",
        "✓ 1",
        "pass@k",
    ):
        assert text in page, text
    assert page.count('<article class="sample">') == 1 + 1 + 3  # of two splits, and three items that changed
    markdown = (out / "comparison.md").read_text()
    assert "| VL-Rethinker-7B | 32.3 | - |" in markdown
    assert "981/3040" in markdown  # the notes on the paper's numbers
    assert len(pd.read_csv(out / "comparison.csv").columns) == len(rows.COLUMNS)
    with Image.open(out / "comparison-light.png") as image:
        assert image.width > 1000
    assert "paper" not in tables.results(rows.collect(rows.find([evaluations]), [])).markdown()


def test_every_column_of_the_paper_is_what_a_benchmark_evaluates() -> None:
    splits = paper.about()["splits"]
    for name, benchmark in registry.BENCHMARKS.items():
        assert next(iter(benchmark.splits)) == splits[name], name


def test_the_paper_alone_can_be_drawn() -> None:
    table = rows.collect([], paper.choose(["72b", "proprietary"]))
    figure = draw(table, tables.columns(table)).figure
    assert [axis.get_title() or axis.get_title("left") for axis in figure.axes if axis.get_visible()] == list(
        paper.about()["columns"].values()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{runs}/none"], "no summary.json of an evaluation"),
        (["{runs}", "--paper", "13b"], "'13b' is no row of the paper"),
        (["{runs}", "--groups", "colour"], "no evaluation has the group 'colour'; there are"),
    ],
)
def test_errors_say_what_to_do(arguments, message, evaluations: Path, tmp_path: Path, capsys) -> None:
    given = [text.format(runs=evaluations) for text in arguments]
    assert cli.main(["compare", *given, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
