"""What is wrong with a run: counted by hand, and in a real run in which nothing is learned."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tiny_training import Run, same, small_config, tiny_policy, weights

from rethinker.config import load_config, to_dict
from rethinker.rundir.diagnosis import CAUSES, diagnose, news


def settings_with(*overrides: str) -> dict[str, Any]:
    return to_dict(load_config(None, ["queries_per_episode=8", "optim.train_batch_size=16", *overrides]))


SETTINGS = settings_with("rollout.max_new_tokens=140")


def episode(number: int = 1, **changes: Any) -> dict[str, Any]:
    """A healthy episode of 8 groups of 8; ``changes`` with __ for /."""
    healthy = {
        "queries/effective": 0.5,
        "queries/all_correct": 0.25,
        "queries/all_incorrect": 0.25,
        "rethink/eligible": 1.0,
        "rethink/forced": 0.0,
        "replay/effective_before": 0.5,
        "replay/batch_fill": 1.0,
        "replay/unfilled": 0,
        "replay/skipped_steps": 0,
        "reflection/share": 0.0,
        "rollout/rounds": 1,
        "rollout/responses": 64,
        "rollout/truncated": 1,
        "rollout/empty": 0,
        "grader/no_answer": 2,
        "grader/failures": 0,
    }
    changed = {name.replace("__", "/"): value for name, value in changes.items()}
    return {"record": "episode", "stage": "train", "episode": number} | healthy | changed


UNANIMOUS = {
    "queries__effective": 0.0,
    "queries__all_correct": 0.0,
    "queries__all_incorrect": 1.0,
    "replay__effective_before": 0.0,
    "replay__batch_fill": 0.0,
    "replay__skipped_steps": 4,
}


def names(*episodes: dict[str, Any], settings: dict[str, Any] = SETTINGS) -> list[str]:
    return [finding.name for finding in diagnose(episodes, settings)]


def test_a_healthy_run_has_no_findings():
    assert diagnose([episode(number) for number in range(1, 9)], SETTINGS) == [] == diagnose([], SETTINGS)


def test_nothing_learned_is_counted_with_its_causes():
    bad = {**UNANIMOUS, "grader__no_answer": 52, "rollout__truncated": 10}
    (found,) = diagnose([episode(number, **bad) for number in (1, 2, 3)], SETTINGS)
    assert found.episodes == (1, 2, 3)
    assert found.text == (
        "nothing learned in episodes 1 to 3: 24 of 24 groups are unanimous (24 all wrong, 0 all right), "
        "no update made, steps skipped: 12"
    )
    unboxed, cut, hard = found.causes
    assert unboxed.startswith("156 of 192 responses have no \\boxed{} answer") and "data.prompt_suffix=''" in unboxed
    assert cut == "30 of 192 responses are cut at rollout.max_new_tokens=140: raise it"
    assert hard.startswith("24 of 24 groups are all wrong, while 36 responses have a boxed answer: too hard")


def test_without_any_answer_the_questions_are_not_called_too_hard():
    (found,) = diagnose([episode(**UNANIMOUS, grader__no_answer=64)], SETTINGS)
    assert len(found.causes) == 1 and found.causes[0].startswith("64 of 64 responses have no")


def test_groups_that_are_all_right_are_too_easy():
    (found,) = diagnose([episode(**UNANIMOUS | {"queries__all_correct": 1.0, "queries__all_incorrect": 0.0})], SETTINGS)
    assert "(0 all wrong, 8 all right)" in found.text
    assert [cause.partition(":")[0] for cause in found.causes] == ["8 of 8 groups are all right"]


def test_with_a_price_of_tokens_groups_that_are_all_right_are_no_finding():
    right = {"queries__all_correct": 0.875}
    assert names(episode(**right)) == ["too easy"]
    assert names(episode(**right), settings=settings_with("reward.token_price=0.008")) == []


def test_a_cold_policy_answers_alike():
    cold = settings_with("rollout.temperature=0.1")
    assert (
        "8 of 8 groups agree at rollout.temperature=0.1: raise it" in diagnose([episode(**UNANIMOUS)], cold)[0].causes
    )


def test_a_hot_policy_answers_noise():
    hot = settings_with("rollout.temperature=4")
    (found,) = diagnose([episode(**UNANIMOUS, grader__no_answer=63)], hot)
    assert "63 of 64 responses have no boxed answer at rollout.temperature=4.0: lower it" in found.causes


def test_rethinking_that_evens_all_groups_out():
    settings = settings_with("rethink.fraction=0.5")
    changes = {**UNANIMOUS, "queries__effective": 1.0, "queries__all_incorrect": 0.0, "rollout__responses": 96}
    (found,) = diagnose([episode(**changes, rethink__forced=0.5)], settings)
    assert "0 of 8 groups are unanimous" in found.text and len(found.causes) == 1
    assert found.causes[0].startswith("8 of 8 groups had both right and wrong first responses")


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({"replay__effective_before": 0.04}, "little signal", "steps skipped: 0"),
        ({"grader__no_answer": 32}, "no boxed answer", "32 of 64 responses have no"),
        ({"rollout__truncated": 16}, "truncated", "16 of 64 responses are cut"),
        ({"rollout__empty": 7}, "empty", "7 of 64 first responses are empty"),
        ({"grader__failures": 4}, "not gradable", "failed on 4 of 64 responses"),
        ({"queries__all_incorrect": 0.875}, "too hard", "7 of 8 groups are all wrong, while 62 responses"),
        ({"queries__all_correct": 0.875}, "too easy", "7 of 8 groups are all right"),
        ({"replay__unfilled": 2}, "dynamic sampling fell short", "lacked 2 of 8 groups with an advantage after 1"),
    ],
)
def test_a_run_that_is_bad_in_part(changes, name, words):
    (found,) = diagnose([episode(1), episode(2, **changes), episode(3)], SETTINGS)
    assert found.name == name and found.episodes == (2,) and words in found.text and "in episode 2:" in found.text


def test_below_the_thresholds_nothing_is_said():
    below = {"grader__no_answer": 31, "rollout__truncated": 15, "rollout__empty": 6, "grader__failures": 3}
    assert names(episode(**below, queries__all_incorrect=0.75, replay__effective_before=0.06)) == []


def test_nothing_to_force():
    forcing = settings_with("rethink.fraction=0.5", "rethink.skip_reflective=true")
    assert names(episode(rethink__eligible=0.05), settings=forcing) == ["nothing to force"]
    assert names(episode(rethink__eligible=0.05)) == []  # nothing is to be forced
    # All but two reflect unforced: what the method is for. Of the two none can be forced.
    assert names(episode(rethink__eligible=1 / 64, reflection__share=62 / 64), settings=forcing) == []


def test_every_cause_has_its_words():
    """The format strings name settings and counts that exist."""
    everything = {
        "queries__all_incorrect": 1.0, "queries__all_correct": 1.0, "queries__effective": 1.0, "rollout__empty": 64,
        "rollout__truncated": 64, "grader__failures": 64, "grader__no_answer": 50, "rethink__eligible": 0.0,
        "replay__unfilled": 8, "replay__effective_before": 0.05,
    }  # fmt: skip
    settings = settings_with("rethink.fraction=0.5", "rollout.temperature=0.2")
    hot = settings | {"rollout": settings["rollout"] | {"temperature": 2.0}}
    assert names(episode(**everything), settings=settings) == [cause.name for cause in CAUSES if cause.name != "noise"]
    assert names(episode(**everything), settings=hot) == [cause.name for cause in CAUSES if cause.name != "all alike"]


def test_a_stage_has_its_own_settings():
    settings = SETTINGS | {"stages": [{"name": "b", "overrides": {"rollout": {"group_size": 4}}}]}
    (found,) = diagnose([episode(1, **UNANIMOUS), episode(2, **UNANIMOUS) | {"stage": "b"}], settings)
    assert "24 of 24 groups" in found.text  # 8 of 8 responses, 16 of 4


def test_another_version_without_metrics_or_settings():
    bare = {"record": "episode", "stage": "a", "episode": 1, "accuracy/first": 0.0, "grader/no_answer": None}
    assert diagnose([bare, bare | {"rollout/responses": float("nan")}], {"unknown": 1, "stages": None}) == []
    (found,) = diagnose([bare | {"replay/batch_fill": 0.0}], {})
    assert found.causes == ("no cause stands out: look at the responses in rollouts/",)


def test_news_come_at_longer_and_longer_intervals():
    """Bad are the episodes 1 to 9 but 3: it is said after the first, second, fourth and eighth of them."""
    episodes, said = [], []
    for number in range(1, 12):
        episodes.append(episode(number, **(UNANIMOUS if number < 10 and number != 3 else {})))
        said += [(number, finding.text) for finding in news(episodes, SETTINGS)]
    assert [number for number, _ in said] == [1, 2, 5, 9]
    assert "in episodes 1 to 2:" in said[1][1] and "in 8 of the episodes 1 to 9 (last in 9):" in said[3][1]


def test_a_run_in_which_nothing_is_learned_says_so(tiny_folder, queries, tmp_path, capsys):
    """Three episodes of 16 responses: of the 4 of a query three have no box, and one is wrong."""
    policy = tiny_policy(tiny_folder)
    before = weights(policy)
    config = small_config(tmp_path)
    run = Run(config, policy, queries, lambda request, index: "I do not know" if index else "\\boxed{999}")
    for _ in range(3):
        run.episode()
    run.records.close()
    assert same(before, weights(policy)) and run.batches == []
    out = capsys.readouterr().out
    assert "warning: nothing learned in episode 1: 4 of 4 groups are unanimous (4 all wrong, 0 all right)" in out
    assert "warning: nothing learned in episodes 1 to 2: 8 of 8 groups" in out and out.count("warning:") == 2
    last = out.partition("diagnosis of the run: ")[2]
    assert last.startswith("nothing learned in episodes 1 to 3: 12 of 12 groups are unanimous (12 all wrong")
    assert "steps skipped: 6" in last and "36 of 48 responses have no \\boxed{} answer" in last
    assert "12 of 12 groups are all wrong, while 12 responses have a boxed answer" in last

    # A resume after episode 2 knows what was before it.
    lines = (config.folder / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 3
    again = type(run.records)(config)
    again.truncate_after(2, 0)
    again.close()
    assert "nothing learned in episodes 1 to 2: 8 of 8" in capsys.readouterr().out
    assert [json.loads(line)["episode"] for line in (config.folder / "metrics.jsonl").read_text().splitlines()] == [
        1,
        2,
    ]


def test_an_engine_that_drifts_is_a_warning():
    gaps = [2e-6, 3e-6, 3.1e-6, 2e-3]
    episodes = [episode(number, canary__gap=gap, canary__usual=1e-6) for number, gap in enumerate(gaps, start=1)]
    (found,) = diagnose(episodes, SETTINGS)
    assert found.episodes == (3, 4)
    assert found.text.startswith(
        "engine drifts in episodes 3 to 4: after a weight sync engine and trainer differ by 0.002 nats per token, 2000 "
        "times as much as at the start of the run (1e-06)"
    )
    assert names(episode(canary__gap=None, canary__usual=None), episode(canary__gap=1.0, canary__usual=None)) == []
