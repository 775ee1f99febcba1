"""The metrics of an episode, by hand."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from builders import make_query, make_sample

from rethinker.lab.evidence.measures import MEASURES, TRAINING
from rethinker.rethink import keep, mark_kept
from rethinker.rundir.glossary import EPISODE, RECORDS, ROLLOUT_COLUMNS
from rethinker.rundir.metrics import (
    ADVANTAGE_EDGES,
    EpisodeRecord,
    episode_metrics,
    generated_tokens,
    histogram,
    replay_ages,
    rollout_rows,
)
from rethinker.types import Grade, Group, Response, Rethinking, Sample

CORRECT = Grade(True, "1", "exact")
WRONG = Grade(False, "2", "different")


def first(qid: str, index: int, correct: bool, *, tokens: int = 4, text: str = "so \\boxed{1}", **changes) -> Sample:
    query = make_query(qid, images=("/a.png",), category="sum", level=2)
    settings = {"tokens": (5,) * tokens, "text": text, "query": query} | changes
    return make_sample(f"3/{qid}/{index}", correct=correct, **settings)


def group(qid: str, correct: list[bool], **changes) -> Group:
    samples = tuple(first(qid, index, value, **changes) for index, value in enumerate(correct))
    return Group(samples[0].query, samples, tuple(correct))


def forced(sample: Sample, correct: bool, finished: bool = True) -> Sample:
    """y1 of 3 tokens (EOS removed), a trigger of 2, y2 of 5."""
    return replace(
        sample,
        response=Response((5,) * 10, (-0.5,) * 10, finished, "so \\boxed{1}\n\nWait, \\boxed{1}"),
        grade=CORRECT if correct else WRONG,
        reward=float(correct),
        rethinking=Rethinking("self-correction", sample.response.text, 3, 2, sample.grade.correct, own_answer=True),
    )


def rethought_episode(placement) -> EpisodeRecord:
    """Query a: wrong, wrong, right, wrong; the second is put right and kept, the third goes wrong. b: all wrong."""
    a, b = group("a", [False, False, True, False]), group("b", [False] * 4, tokens=6)
    candidates = [forced(a.samples[1], True), forced(a.samples[2], False), forced(b.samples[0], False, finished=False)]
    marked = mark_kept(a, candidates[:2]) + mark_kept(b, candidates[2:])
    groups = [keep(a, marked[:2], placement), keep(b, marked[2:], placement)]
    values = {True: 0.5, False: -0.5}
    groups[0] = replace(
        groups[0], samples=tuple(replace(s, advantage=values[s.grade.correct]) for s in groups[0].samples)
    )
    episode = EpisodeRecord(3, "second", 2, 4, firsts=[a, b], candidates=marked, all_groups=groups, groups=groups)
    episode.eligible, episode.rounds = 6, 1
    effective = [s for s in groups[0].samples if s.effective]
    old = replace(effective[0], sample_id="1/z/0", episode=1, replayed=True)
    episode.trained = [*effective, replace(effective[1], replayed=True), old]
    return episode


def test_metrics_by_hand():
    episode = rethought_episode("replace")
    episode.images_decoded, episode.images_encoded = 3, 7
    metrics = episode_metrics(episode)
    expected = {
        "queries/effective": 0.5,  # y1 decides, not what took its place
        "queries/all_correct": 0.0,
        "queries/all_incorrect": 0.5,
        "accuracy/first": 1 / 8,
        "reward/mean": 2 / 8,
        "reward/correctness": 2 / 8,
        "reflection/share": 0.0,
        "reflection/accuracy_with": None,
        "reflection/accuracy_without": 1 / 8,
        "rethink/eligible": 6 / 8,
        "rethink/forced": 3 / 8,
        "rethink/kept": 1 / 8,
        "rethink/no_answer": 0.0,
        "rethink/trained": 1.0,
        "rethink/wrong_to_right": 1 / 3,
        "rethink/right_to_wrong": 1 / 3,
        "rethink/right_to_right": 0.0,
        "rethink/wrong_to_wrong": 1 / 3,
        "replay/effective_before": 4 / 8,
        "replay/effective_after": 1.0,
        "replay/share": 2 / 6,
        "replay/batch_fill": 6 / 8,
        "replay/unfilled": 0,
        "replay/skipped_steps": 0,
        "rollout/rounds": 1,
        "rollout/responses": 11,
        "rollout/tokens": 4 * 4 + 4 * 6 + 3 * 5,
        "rollout/length_mean": 5.0,
        "rollout/empty": 0,
        "rollout/truncated": 1,
        "images/distinct": 1,  # both queries show it
        "gap/mean": None,
        "gap/max": None,
        "canary/gap": None,
        "canary/usual": None,
        "images/decoded": 3,
        "images/encoded": 7,
        "grader/failures": 0,
        "grader/no_answer": 0,
    }
    for name, value in expected.items():
        assert metrics[name] == (value if value is None else pytest.approx(value)), name
    assert sum(metrics["advantages/before"]["counts"]) == 8 and sum(metrics["advantages/after"]["counts"]) == 6
    assert set(metrics) == {*expected, "advantages/before", "advantages/after"}


def test_every_name_is_explained():
    assert set(episode_metrics(rethought_episode("replace"))) | set(replay_ages(rethought_episode("replace"))) <= set(
        EPISODE
    )


def test_every_metric_that_the_code_reads_exists():
    """Tables, figures and W&B name metrics in strings: a metric that is renamed must be renamed there. What the
    evidence makes of them has names of the same form."""
    metrics = {name for names in RECORDS.values() for name in names}
    made = {f"{kind}/{place}" for kind in (*TRAINING, "validation") for place in ("start", "end", "ratio")}
    known = metrics | made | set(MEASURES)
    kinds = "|".join(sorted({name.partition("/")[0] for name in metrics}))
    literal = re.compile(rf'"((?:{kinds})/[a-z_][a-z_]+)"')
    sources = [path for path in (Path(__file__).parents[1] / "rethinker").rglob("*.py") if path.name != "glossary.py"]
    found = {name: path.name for path in sources for name in literal.findall(path.read_text(encoding="utf-8"))}
    assert len(found) > 50
    assert {name: file for name, file in found.items() if name not in known} == {}


def test_counts_of_bad_responses():
    bad = group("a", [True, False])
    samples = (
        replace(bad.samples[0], response=Response((1, 2), (0.0, 0.0), False, "  \n")),
        replace(bad.samples[1], grade=Grade(False, None, "no boxed answer")),
        first("a", 2, False, text="Wait, let's double check."),
        first("a", 3, False, grade=Grade(False, "x", "error: worker died")),
        first("a", 4, False, grade=Grade(False, "x", "timeout")),
    )
    whole = Group(bad.query, samples, (True, False, False, False, False))
    metrics = episode_metrics(EpisodeRecord(1, "s", 1, 5, firsts=[whole], all_groups=[whole], groups=[whole]))
    assert (metrics["rollout/empty"], metrics["rollout/truncated"]) == (1, 1)
    assert (metrics["grader/no_answer"], metrics["grader/failures"]) == (1, 2)
    assert metrics["reflection/share"] == pytest.approx(1 / 5)
    assert metrics["reflection/accuracy_with"] == 0.0 and metrics["reflection/accuracy_without"] == 0.25


def test_an_episode_that_trains_on_nothing_has_nulls_and_no_nan():
    """Dynamic sampling can end with no group at all; what has no cases is null, what was rolled out is measured."""
    firsts = [group("a", [False, False])]
    metrics = episode_metrics(EpisodeRecord(1, "s", 2, 2, firsts=firsts, all_groups=firsts, skipped_steps=2))
    for name in ("replay/effective_after", "replay/share", "rethink/trained", "rethink/wrong_to_right"):
        assert metrics[name] is None, name
    assert (metrics["reward/mean"], metrics["replay/effective_before"], metrics["replay/batch_fill"]) == (0.0, 0.0, 0.0)
    assert metrics["replay/unfilled"] == 2 and metrics["replay/skipped_steps"] == 2
    assert replay_ages(EpisodeRecord(1, "s", 2, 2)) == {"replay/age_mean": None, "replay/age_max": None}


def test_what_dynamic_sampling_drops_is_measured_and_has_its_row():
    """Of three queries rolled out, for an episode of two, one has an advantage."""
    whole = [group("a", [True, True]), group("b", [True, False]), group("c", [False, False])]
    whole[1] = replace(
        whole[1], samples=tuple(replace(s, advantage=0.5 if s.grade.correct else -0.5) for s in whole[1].samples)
    )
    episode = EpisodeRecord(
        3, "s", 2, 2, firsts=whole, all_groups=whole, groups=whole[1:2], trained=[*whole[1].samples]
    )
    metrics = episode_metrics(episode)
    assert metrics["reward/mean"] == 0.5 and metrics["replay/effective_before"] == pytest.approx(1 / 3)
    assert sum(metrics["advantages/before"]["counts"]) == 6 and sum(metrics["advantages/after"]["counts"]) == 2
    assert metrics["replay/batch_fill"] == 0.5 and metrics["replay/unfilled"] == 1
    rows = [(row["qid"], row["reward"], row["advantage"]) for row in rollout_rows(episode)]
    assert rows[:2] == [("a", 1.0, 0.0)] * 2 and rows[4:] == [("c", 0.0, 0.0)] * 2


def test_kept_trajectories_that_no_step_trained_on():
    """Of two kept ones in a unanimous group and one in a mixed group the filter leaves one."""
    episode = rethought_episode("replace")
    firsts = group("b", [False, False])
    second = keep(firsts, mark_kept(firsts, [forced(sample, True) for sample in firsts.samples]))
    episode.all_groups = episode.groups = [episode.groups[0], second]
    assert episode_metrics(episode)["rethink/trained"] == pytest.approx(1 / 3)


def test_ages():
    assert replay_ages(rethought_episode("replace")) == {"replay/age_mean": 1.0, "replay/age_max": 2.0}


def test_histogram():
    found = histogram([0.0, 0.0, 0.5, -0.5, 0.875, 99.0, -99.0])
    counts = {
        round((left + right) / 2, 6): n
        for left, right, n in zip(found["edges"], found["edges"][1:], found["counts"], strict=False)
    }
    assert {centre: n for centre, n in counts.items() if n} == {0.0: 2, 0.5: 1, -0.5: 1, 0.875: 1, 3.0: 1, -3.0: 1}
    assert len(found["edges"]) == len(found["counts"]) + 1 == len(ADVANTAGE_EDGES)
    assert sum(histogram([])["counts"]) == 0


def test_generated_tokens_leave_out_what_stood_already():
    sample = first("a", 0, False, tokens=4)
    assert generated_tokens(sample) == 4
    assert generated_tokens(forced(sample, True)) == 5


@pytest.mark.parametrize("placement", ["replace", "append"])
def test_rollout_rows(placement):
    rows = rollout_rows(rethought_episode(placement))
    assert all(list(row) == list(ROLLOUT_COLUMNS) for row in rows)
    assert [row["pass"] for row in rows] == ["first"] * 8 + ["forced"] * 3
    by_key = {(row["sample_id"], row["pass"]): row for row in rows}
    kept, lost = by_key["3/a/1", "forced"], by_key["3/a/2", "forced"]
    assert kept["kept"] and (kept["reward"], kept["advantage"]) == (1.0, 0.5)
    assert (kept["first_tokens"], kept["trigger_tokens"], kept["first_correct"]) == (3, 2, False)
    assert not lost["kept"] and lost["reward"] is None and lost["advantage"] is None and lost["first_correct"]
    own = by_key["3/a/1", "first"]
    assert (own["reward"], own["advantage"]) == ((None, None) if placement == "replace" else (0.0, -0.5))
    assert not kept["reflects"]  # the trigger's own words do not count
    # The second effective sample (y1 number 1 or what replaced it) was drawn once in this episode.
    drawn = by_key["3/a/1", "forced" if placement == "replace" else "first"]
    assert drawn["replays"] == 1 and sum(row["replays"] for row in rows) == 1
    assert by_key["3/b/0", "first"]["kept"] is None
