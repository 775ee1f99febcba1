"""Forced Rethinking step by step: the same records as in training, from a tiny model with random weights."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
from bounds import rounding

from rethinker.config import RethinkConfig, RolloutConfig, RunConfig, load_config
from rethinker.lab.notebook.second_look import SecondLooks, first_table, kept_table, parts_table, placement_table
from rethinker.rethink import TRIGGERS, keep
from rethinker.types import Query


@pytest.fixture(scope="module")
def looks(guesser) -> SecondLooks:
    """The policy answers 1 or 2 at random, and after a trigger again."""
    return SecondLooks.load(RunConfig(rollout=RolloutConfig(max_new_tokens=64)), str(guesser), seed=1)


@pytest.fixture(scope="module")
def query(world) -> Query:
    from rethinker.datasets.io import load_queries

    return load_queries(world / "train.parquet")[0][1]


def test_a_typed_response_is_forced(looks, query):
    group = looks.written(query, r"I say \boxed{7}.")
    (first,) = group.samples
    assert not first.grade.correct and first.response.finished and not any(first.sampled_mask)
    (trajectory,) = looks.force(group, "self-correction")
    rethinking = trajectory.rethinking
    assert rethinking.trigger == "self-correction" and rethinking.first_text == r"I say \boxed{7}."
    assert trajectory.response.text.startswith(r"I say \boxed{7}." + TRIGGERS["self-correction"])
    assert rethinking.kept == (trajectory.grade.correct and trajectory.response.finished)
    tokens = looks.tokens(trajectory)
    assert [token.token_id for token in tokens] == list(trajectory.response.token_ids)
    parts = [token.part for token in tokens]
    assert parts == sorted(parts, key=["y1", "trigger", "y2", "end"].index)
    assert parts.count("y1") == rethinking.first_tokens and parts.count("trigger") == rethinking.trigger_tokens
    assert all((token.logprob is None) == (token.part in ("y1", "trigger")) for token in tokens)
    assert "".join(token.text for token in tokens if token.part != "end") == trajectory.response.text


def test_the_same_seed_the_same_second_look(looks, query):
    group = looks.written(query, r"\boxed{7}")
    assert looks.force(group) == looks.force(group)


def test_a_group_as_in_training(looks, query):
    (group,) = looks.first([query], 6)
    assert len(group.samples) == 6 and group.first_correct == tuple(s.grade.correct for s in group.samples)
    trajectories = looks.force(group)
    table = kept_table(trajectories)
    assert len(table) == sum(not looks.obstacle(sample) for sample in group.samples)
    assert table["kept"].sum() <= 2
    for sample, row in zip(trajectories, table.to_dict("records"), strict=True):
        assert (row["why"] == "ends right") == sample.rethinking.kept == bool(sample.nll_mask)
        parts = parts_table(looks, sample)
        assert parts["tokens"].sum() == len(sample.response.token_ids) and parts.loc["trigger", "sampled"] == 0
    placed = placement_table(group, keep(group, trajectories, looks.options.placement), looks.scale)
    assert (placed["trained on"] != "y1").sum() == table["kept"].sum()
    assert placed["A before"].sum() == pytest.approx(0, abs=rounding(2.5, steps=4, terms=8)) == placed["A after"].sum()
    assert first_table(looks, group)["sample"].tolist() == [sample.sample_id for sample in group.samples]


def test_why_a_response_cannot_be_forced(looks, query):
    looks = SecondLooks(
        looks.policy, looks.engine, looks.sampling, RethinkConfig(min_second_look_tokens=8, skip_reflective=True)
    )
    short, long = (looks.written(query, text).samples[0] for text in ("7", "7 " * 28))
    assert looks.obstacle(short) == "" and looks.obstacle(long) == "leaves fewer than 8 tokens for a second look"
    assert looks.obstacle(looks.written(query, "Wait, 7").samples[0]) == "reflects by itself"
    with pytest.raises(ValueError, match="nothing to force: leaves fewer than 8 tokens"):
        looks.force(looks.written(query, "7 " * 28))


def test_mistakes_are_named(looks, query):
    for text in ("", "7 " * 70):
        with pytest.raises(ValueError, match="tokens; it may have 1 to 63"):
            looks.written(query, text)
    with pytest.raises(ValueError, match="no trigger 'wait'; there are self-questioning"):
        looks.force(looks.written(query, "7"), "wait")
    with pytest.raises(ValueError, match="was not forced"):
        kept_table(looks.written(query, "7").samples)


def test_settings_are_those_of_the_last_stage_that_forces(guesser, query):
    sets = ["rethink.skip_reflective=true", "rollout.temperature=0.7", "rollout.max_new_tokens=64", "seed=5"]
    sets += ["data.prompt_suffix=' In a box.'", "grpo.advantage_scale=none", "rethink.temperature=0.5"]
    last = "{name: two, overrides: {rethink: {fraction: 0.5, min_second_look_tokens: 8}, rollout: {top_p: 0.9}}}"
    looks = SecondLooks.load(
        load_config(None, [*sets, f"stages=[{{name: one}}, {last}, {{name: three}}]"]), str(guesser)
    )
    assert (looks.sampling.temperature, looks.sampling.top_p, looks.sampling.max_new_tokens) == (0.7, 0.9, 64)
    assert looks.options == RethinkConfig(0.5, temperature=0.5, min_second_look_tokens=8, skip_reflective=True)
    assert (
        looks.scale == "none" and looks.policy.tokenizer.decode(looks.policy.prompt(query).ids).count("In a box.") == 1
    )


def test_the_choice_of_the_trigger_and_the_placement_are_the_runs(looks, query):
    looks = replace(looks, options=RethinkConfig(trigger_choice="by_correctness", placement="append"))
    (group,) = looks.first([query], 6)
    trajectories = looks.force(group)
    for trajectory in trajectories:
        kind = "self-verification" if trajectory.rethinking.first_correct else "self-correction"
        assert trajectory.rethinking.trigger == kind
    assert {t.rethinking.trigger for t in looks.force(group, "self-questioning")} == {"self-questioning"}
    kept = sum(t.rethinking.kept for t in trajectories)
    placed = placement_table(group, keep(group, trajectories, looks.options.placement), looks.scale)
    assert kept and len(placed) == 6 + kept and placed["reward before"].isna().tolist() == [False] * 6 + [True] * kept


def test_a_long_menu_is_cut(query):
    widgets = pytest.importorskip("rethinker.lab.notebook.widgets")
    assert len(widgets.grading_form([query] * 1000).children[0].options) == widgets.MENU


def test_the_forms_do_what_the_calls_do(looks, query, monkeypatch):
    widgets = pytest.importorskip("rethinker.lab.notebook.widgets")
    form = widgets.grading_form([query])
    *_, button, output = form.children
    button.click()
    assert not output.outputs or output.outputs[0]["output_type"] == "display_data"
    shown = []
    monkeypatch.setattr(widgets, "display", shown.append)
    form = widgets.rethinking_form(looks, [query], 3)
    chosen, index, response, trigger, seed, button, output = form.children
    assert [value for _, value in trigger.options] == ["", *TRIGGERS] and chosen.value == 0 and seed.value == 1
    index.value = 2
    button.click()
    (group,) = looks.first([query], 3)
    (table,) = (item for item in shown if isinstance(item, pd.DataFrame))
    (third,) = looks.force(replace(group, samples=group.samples[2:], first_correct=group.first_correct[2:]))
    assert table.equals(kept_table([third])) and table["sample"].item() == group.samples[2].sample_id
    seed.value = 9
    button.click()
    again = shown[-1]
    assert again["y1"].equals(table["y1"])  # the same first response, another second look
    assert shown[-2].data != shown[-5].data
    response.value = "7 " * 70
    button.click()  # a mistake is shown and not raised
    with pytest.raises(ValueError, match="no query"):
        widgets.grading_form([])
