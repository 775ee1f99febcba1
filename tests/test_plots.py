"""Every figure draws from run files alone, in both themes; captions carry the numbers."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from synthetic_run import write_run

from rethinker import cli
from rethinker.evaluation.result import load
from rethinker.lab.analysis import diagnostics
from rethinker.lab.figures import catalogue as plots
from rethinker.rundir.reader import load_settings


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("world") / "run", stages=(2, 2), queries=10, held_out=16)


@pytest.mark.parametrize("theme", plots.THEMES)
@pytest.mark.parametrize("name", plots.FIGURES)
def test_figures(run: Path, name: str, theme: str) -> None:
    drawing = plots.draw(run, name, plots.THEMES[theme])
    assert "n\u00a0=\u00a0" in drawing.caption or "held-out queries" in drawing.caption
    assert re.search(r"95% (Wilson )?interval|middle 90%", drawing.caption)
    assert drawing.caption.endswith("One run, seed\u00a00.") and "nan" not in drawing.caption
    paper = {"light": [1, 1, 1], "dark": [0x15 / 255, 0x17 / 255, 0x1A / 255]}[theme]
    assert drawing.figure.get_facecolor()[:3] == pytest.approx(paper)
    assert ElementTree.fromstring(plots.render(drawing, "svg")).tag.endswith("svg")
    assert plots.render(drawing, "png").startswith(b"\x89PNG")


@pytest.mark.parametrize("name", plots.FIGURES)
def test_a_run_of_one_episode(tmp_path: Path, name: str) -> None:
    """Draws, or says what is missing."""
    run = write_run(tmp_path / "run", stages=(1,), queries=4, held_out=6)
    try:
        caption = plots.draw(run, name).caption
    except plots.NoData as error:
        assert name in ("rethinking", "pays", "words", "second_looks", "frontier") and str(error).endswith(
            ("yet.", "yet).")
        )
    else:
        assert "nan" not in caption


def test_without_roll_outs_the_reason_is_given(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", stages=(1, 2), queries=4, held_out=6)
    shutil.rmtree(run / "rollouts")
    for name in ("vanishing_kinds", "vanishing_map", "waste", "reflection", "pays", "words"):
        with pytest.raises(plots.NoData, match="no rollout file"):
            plots.draw(run, name)
    assert "no rollout files" in plots.draw(run, "vanishing").caption
    assert re.search(r"[1-9]\d* forced in \d episode", plots.draw(run, "rethinking").caption)


def test_captions_give_the_numbers(run: Path) -> None:
    assert "16 held-out queries, n\u00a0=\u00a064 responses per bar" in plots.draw(run, "fig7").caption
    assert "95% Wilson interval" in plots.draw(run, "validation").caption
    assert "n\u00a0=\u00a010 queries per episode" in plots.draw(run, "vanishing").caption


def test_a_price_gives_unanimous_groups_a_gradient(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", stages=(1, 2), queries=4, held_out=6)
    assert "gives no gradient; the share" in plots.draw(run, "vanishing").caption
    stages = [{"name": "first"}, {"name": "chooser", "overrides": {"reward": {"token_price": 0.008}}}]
    settings = load_settings(run) | {"stages": stages}
    (run / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    words = "gives no gradient (in chooser only one by length, as tokens have a price there); the share"
    assert words in plots.draw(run, "vanishing").caption


def test_forced_responses_are_counted(run: Path) -> None:
    rollouts = diagnostics.load_rollouts(run, ["pass", "first_correct", "correct"])
    forced = rollouts[rollouts["pass"] == "forced"]
    wrong = forced[~forced["first_correct"].astype(bool)]
    caption = plots.draw(run, "rethinking").caption
    assert f"n\u00a0=\u00a0{len(forced)} forced in" in caption
    assert f"turned {wrong['correct'].mean():.0%} (95% interval " in caption and "of wrong answers right" in caption


def test_where_it_thinks_twice(run: Path) -> None:
    """Counted again from the rows of the two evaluations around the last stage; greedy responses are not among them."""
    shares = []
    for label in ("reasoner", "rethinker"):
        rows = load(run, label).rows
        rows = rows[(rows["mode"] == "plain") & ~rows["greedy"]]
        first = rows["text"].str.partition("}")[0].str.rpartition("{")[2] == rows["gold"]
        shares.append(
            (rows["reflects"].mean(), rows.loc[~first, "reflects"].mean(), rows.loc[first, "reflects"].mean())
        )
    drawing = plots.draw(run, "second_looks")
    for label, (every, wrong, right) in zip(("reasoner", "rethinker"), shares, strict=True):
        words = (
            f"a second look after {label}, {every:.0%} ({wrong:.0%} after wrong first looks, {right:.0%} after right"
        )
        assert words in drawing.caption
    kinds, _, verdicts = drawing.figure.axes
    heights = [bar.get_height() for bar in verdicts.patches]
    assert heights == pytest.approx([*shares[0][1:], *shares[1][1:]])
    assert [text.get_text() for text in verdicts.get_xticklabels()] == ["wrong", "right"]
    assert len(kinds.patches) == 2 * len(load(run, "start").rows["category"].unique())


def test_the_frontier_has_a_point_for_every_evaluation_and_mode(run: Path) -> None:
    drawing = plots.draw(run, "frontier")
    points = [
        tuple(xy)
        for line in drawing.figure.axes[0].get_lines()
        if line.get_marker() in "o^s"
        for xy in line.get_xydata()
    ]
    rows = load(run, "rethinker").rows
    rows = rows[(rows["mode"] == "forced") & ~rows["greedy"]]
    assert len(points) == 9 and any(
        point == pytest.approx((rows["tokens"].mean(), rows["correct"].mean())) for point in points
    )


def test_stage_boundary_is_marked(run: Path) -> None:
    for axis in plots.draw(run, "overview").figure.axes:
        assert [text.get_text() for text in axis.texts] == ["reasoner", "rethinker"]
        assert any(list(line.get_xdata()) == [2.5, 2.5] for line in axis.lines)


def test_legends_cover_no_data(run: Path) -> None:
    for name in ("overview", "validation", "vanishing", "waste", "advantages", "reflection"):
        figure = plots.draw(run, name).figure
        figure.draw_without_rendering()
        shown = [axis for axis in figure.axes if axis.get_legend()]
        assert shown
        for axis in shown:
            assert axis.get_legend().get_window_extent().y1 < axis.xaxis.label.get_window_extent().y0 + 2, name


def test_ticks_say_what_they_are(run: Path) -> None:
    """The advantages' axis has ticks of 2.5 points, and ends where the data do."""
    axis = plots.draw(run, "advantages").figure.axes[-1]
    formatter = axis.yaxis.get_major_formatter()
    assert [formatter(value, 0) for value in (0.0, 0.025, 0.1, 0.175, 0.6000000001)] == [
        "0%", "2.5%", "10%", "17.5%", "60%"
    ]  # fmt: skip
    table = diagnostics.advantage_histograms(run)
    largest = table.loc[table["count"] > 0, ["left", "right"]].abs().to_numpy().max()
    assert largest <= axis.get_xlim()[1] <= 1.1 * largest


def test_effective_queries_and_effective_samples_have_different_names(run: Path) -> None:
    from rethinker.lab.notebook.live import charts

    assert "Effective samples" in [
        axis.get_title(loc="left") for axis in charts(diagnostics.load_metrics(run)).figure.axes
    ]
    titles = [axis.get_title(loc="left") for axis in plots.draw(run, "vanishing").figure.axes]
    assert titles[1] == "Effective queries by difficulty"


def test_shares_that_leave_out_unanimous_groups_say_by_correctness(run: Path) -> None:
    """With a price of tokens those have advantages too: the histogram shows them, the shares do not count them."""
    from rethinker.lab.notebook.live import charts

    assert "whose advantage, by correctness, is not zero" in plots.draw(run, "overview").caption
    assert "whose advantage, by correctness, is not zero" in charts(diagnostics.load_metrics(run)).caption
    shares = re.findall(r"not zero, by correctness: \d+% \(.*?\) before, 100% ", plots.draw(run, "advantages").caption)
    assert len(shares) == 2  # one a stage


def test_the_word_of_the_caption_is_one_of_reflection(run: Path) -> None:
    caption = plots.draw(run, "words").caption
    assert re.search(r"“wait” is in \d+% \(95% interval .*\), queries as clusters; diamonds: .*; rings: n =", caption)


def test_self_corrections_are_sampled_ones_and_say_so(run: Path) -> None:
    from rethinker.lab.analysis import reflection

    last = reflection.self_corrections(run).iloc[-1]
    caption = plots.draw(run, "pays").caption
    assert "sampled plain held-out responses that reflect" in caption
    assert f"n = {last['responses']} responses to {last['queries']} queries" in caption


def test_same_run_same_bytes(run: Path) -> None:
    first, second = (plots.render(plots.draw(run, "fig7"), "svg") for _ in range(2))
    assert first == second


def test_save_skips_what_has_no_data(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", stages=(1,), queries=4, held_out=6)
    with pytest.raises(plots.NoData, match="Nothing was forced"):
        plots.draw(run, "rethinking")
    paths = plots.save_figures(run, tmp_path / "figures", ["kinds", "rethinking"])
    assert [path.name for path in paths] == ["kinds-light.svg", "kinds-light.png", "kinds-dark.svg", "kinds-dark.png"]
    assert paths[1].read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no figure 'pie'"):
        plots.draw(run, "pie")


def test_the_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures"
    assert cli.main(["figures", str(run), "kinds", "--out", str(out)]) == 0
    names = ["kinds-light.svg", "kinds-light.png", "kinds-dark.svg", "kinds-dark.png"]
    assert capsys.readouterr().out.splitlines() == [f"written: {out / name}" for name in names]
    assert cli.main(["figures", str(run), "pie", "--out", str(out)]) == 2
    assert "no figure 'pie'" in capsys.readouterr().err


def test_long_runs_are_smoothed_and_say_so() -> None:
    from rethinker.lab.figures.timeline import smoothing

    assert smoothing(40) == ""
    assert "running means over 10 episodes" in smoothing(200)
