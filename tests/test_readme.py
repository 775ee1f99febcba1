"""The README names files that are there, settings that load, and the numbers of the result files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rethinker import cli  # noqa: F401  registers the commands
from rethinker.lab import command_line
from rethinker.lab.evidence.effects import effect
from rethinker.lab.evidence.tables import load

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
LINKS = sorted({link for link in re.findall(r'\]\(([^)#]+)\)|src(?:set)?="([^"]+)"', TEXT) for link in link if link})


@pytest.mark.parametrize("link", [link for link in LINKS if "://" not in link])
def test_links_lead_somewhere(link: str):
    assert (ROOT / link).exists()


def test_nothing_is_left_to_fill_in():
    assert not re.search(r"@@|TODO|TBD", TEXT)


def test_the_tree_names_every_module():
    tree = TEXT.partition("## The tree")[2]
    modules = {path.name for path in (ROOT / "rethinker").glob("*.py")} - {"__init__.py"}
    missing = {name for name in modules if not re.search(rf"\b{re.escape(name)}", tree)}
    assert not missing


def test_the_commands_parse():
    lines = re.findall(r"^    \.venv/bin/rethinker ([^#\n]+?)\s*(?:#.*)?$", TEXT, flags=re.MULTILINE)
    assert len(lines) >= 4
    for line in lines:
        command_line.parse(line.split())


# -- numbers ----------------------------------------------------------------------------------------------------------

RUNS = json.loads((ROOT / "experiments" / "results" / "default_runs.json").read_text(encoding="utf-8"))
WORDS = " ".join(TEXT.split())
RESULTS = dict(re.findall(r"^\| (\w+ \| \d+) \| (.+) \|$", TEXT, flags=re.MULTILINE))  # "vLLM | 0": its cells


def run_name(run: dict) -> str:
    return f"{run['engine']} | {run['seed']}"


def section(title: str) -> str:
    return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def numbers(text: str) -> list[str]:
    return re.findall(r"\d[\d,]*(?:\.\d+)?(?:e-?\d+)?", text)


@pytest.mark.parametrize("run", RUNS, ids=run_name)
def test_results_of_the_default_runs(run: dict):
    """Accuracy before and after each stage with its interval, reflection and tokens before, after stage 2 and after
    stage 3 where it was run; Fig. 7 of the first run."""
    plain = [modes["plain"] for modes in run["evaluations"].values()]
    expected = [f"{part:.3f}" for evaluation in plain for part in evaluation["pass@1"]]
    told = [plain[0], *plain[2:]]
    expected += [f"{values['reflection']:.3f}" for values in told]
    expected += [f"{values['tokens']:.0f}" for values in told if "tokens" in values]
    assert numbers(RESULTS[run_name(run)]) == expected
    if run_name(run) == "vLLM | 0":
        for modes in run["evaluations"].values():
            assert " / ".join(f"{modes[mode]['pass@1'][0]:.3f}" for mode in ("plain", "forced", "bound")) in WORDS


def test_where_the_first_run_thinks_twice():
    """Second looks after wrong and right first answers, after stages 2 and 3; of clocks, and of the kind that has least
    besides; tokens saved."""
    rethinker, chooser = (RUNS[0]["evaluations"][label]["plain"] for label in ("vl-rethinker", "vl-chooser"))
    for values in (rethinker, chooser):
        assert f"{values['second_looks']['wrong']:.2f} / {values['second_looks']['right']:.2f}" in WORDS
    assert f"{100 * (1 - chooser['tokens'] / rethinker['tokens']):.0f} % fewer tokens" in WORDS
    before, clocks, right = (
        f"{part['clock']:.2f}"
        for part in (rethinker["second_looks"], chooser["second_looks"], chooser["right_first_looks"])
    )
    assert f"whose first look is right in {right}, get a second one in {clocks} (before: {before})" in WORDS
    others = min(chooser["second_looks"][kind] for kind in chooser["right_first_looks"] if kind != "clock")
    assert f"other kinds in {others:.2f} or more" in WORDS


def test_every_default_run_has_its_numbers():
    assert sorted(RESULTS) == sorted(map(run_name, RUNS))
    assert f"{max(run['gap_max'] for run in RUNS):.1e}".replace("e-0", "e-") in numbers(section("Results"))
    assert f"{sum(run['episodes'] for run in RUNS)} weight syncs" in WORDS
    assert max(run["canary_max"] for run in RUNS) < 1e-6 and "1e-6" in numbers(section("Results"))


def test_where_it_thinks_twice():
    """The numbers of the first figure, from the committed tables of the evidence."""
    tables, chosen, always = load(ROOT / "experiments" / "evidence" / "results"), "price-0.008", "price-0"
    first = TEXT.partition("**It thinks twice where it pays.**")[2].partition("\n\n")[0]

    def words(measure, against=None, scale=100, digits=0, **how: bool) -> str:
        found = effect(tables, measure, "choose", chosen, against, **how)
        assert found.seeds == 5
        sign = "+" if against and scale > 1 else ""
        value, low, high = (f"{scale * each:{sign}.{digits}f}" for each in (found.value, found.low, found.high))
        return f"{value}|[{low}, {high}]"

    for text in (
        words("choice/wrong"),
        words("choice/right"),
        words("test/plain/accuracy", always, digits=1),
        words("test/plain/tokens", always, scale=1, digits=2, relative=True),
        words("choice/auc_within", scale=1, digits=2),
    ):
        value, _, interval = text.partition("|")
        assert re.search(rf"{re.escape(value)}\b[^\[\]]*{re.escape(interval)}", first), text


def test_what_replay_gains():
    """The table below the first figure, from the committed tables of the evidence."""
    tables = load(ROOT / "experiments" / "evidence" / "results")
    text = TEXT.partition("**Replay**")[2].partition("<picture>")[0]
    rivals = [("ssr", "grpo"), ("ssr", "filter"), ("ssr", "dynamic")]
    pairs = [("forced", pair) for pair in (*rivals, ("dr-ssr", "dr-grpo"))]
    pairs += [("stages", pair) for pair in rivals[:2]] + [("bare", pair) for pair in rivals]
    found = [effect(tables, "test/plain/accuracy", grid, *pair) for grid, pair in pairs]
    found.append(effect(tables, "test/plain/accuracy", "bare", "paper-ssr", "std-grpo"))
    assert {each.seeds for each in found} == {8} and "eight seeds" in text
    shown = [f"{100 * a.value:+.1f} [{100 * a.low:+.1f}, {100 * a.high:+.1f}]" for a in found]
    table = "".join(line for line in text.splitlines() if line.startswith("|"))
    assert re.findall(r"[+-][\d.]+ \[[^\]]*\]", table) == shown
    assert all(effect(tables, "tokens_to_match", "forced", "ssr", other).low > 0.6 for other in ("grpo", "filter"))


def test_what_did_not_appear_and_what_forced_rethinking_does():
    tables = load(ROOT / "experiments" / "evidence" / "results")
    points = [
        ("validation/end@updates", "forced", "dynamic", "ssr", "{:.1f} [{:.1f}, {:.1f}] points ahead of SSR"),
        ("test/plain/accuracy", "forced", "ssr", "bare:ssr", "{:.1f} [{:.1f}, {:.1f}] points above SSR alone"),
        ("test/plain/accuracy", "bare", "filter", "grpo", "({:.1f} [{:.1f}, {:.2f}])"),
    ]
    for measure, grid, variant, against, words in points:
        found = effect(tables, measure, grid, variant, against)
        assert words.format(*(100 * number for number in (found.value, found.low, found.high))) in TEXT, measure
    for grid, words in (
        ("bare", "falls to {:.2f} [{:.2f}, {:.2f}] of its start"),
        ("pool", "(to {:.2f} [{:.2f}, {:.2f}]"),
    ):
        found = effect(tables, "effective/ratio", grid, "grpo")
        assert words.format(found.value, found.low, found.high) in TEXT, grid
    equal = effect(tables, "validation/end@updates", "bare", "dynamic", "ssr")
    shown = "with bare answers {:+.1f} [{:+.1f}, {:+.1f}]"
    assert shown.format(*(100 * number for number in (equal.value, equal.low, equal.high))) in TEXT
    assert round(100 * effect(tables, "reflection/end", "forced", "ssr").value) == 91 and "from 0 to 91 %" in TEXT


def test_speed_beside_the_peer():
    benchmark = json.loads((ROOT / "experiments/benchmarks/results/trl.json").read_text(encoding="utf-8"))
    for scenario in benchmark["scenarios"]:
        sides, ratio = scenario["summary"], scenario["ratios_to_ours"]["TRL"]["step_s"]
        point, seconds = scenario["point"], [sides[side]["step_s"]["median"] for side in ("ours", "TRL")]
        expected = [point["pixels"], point["queries"], point["group"], point["tokens"]]
        expected += [f"{value:.2f}" if value < 10 else f"{value:.1f}" for value in seconds]
        expected += [f"{ratio[name]:.2f}" for name in ("of_medians", "paired_min", "paired_max")]
        expected += [f"{sides[side][name]['median']:,.0f}" for name in ("peak_mb", "images_encoded") for side in sides]
        (row,) = re.findall(rf"^\| {point['pixels']} px.*$", section("Speed"), flags=re.MULTILINE)
        assert numbers(row) == list(map(str, expected))


def test_growth_of_the_training_half():
    growth = json.loads((ROOT / "experiments/benchmarks/results/growth.json").read_text(encoding="utf-8"))
    for half in growth["training_halves"]:
        (growing,) = half["growth"]["training_s"]
        assert f"{100 * (growing['time'] - 1):.0f} %" in section("Speed")
