"""The next episode rolled out while this one is trained on: order, weights, correction, resume (a scripted engine)."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from builders import make_sample
from tiny_training import Run, logprobs_now, small_config, tiny_policy

from rethinker.ahead import overlap_metrics
from rethinker.config import ConfigError, load_config
from rethinker.datasets.order import QueryOrder
from rethinker.rollout.scripted import ScriptedEngine
from rethinker.types import Request

OVERLAP = ("rollout.engine=server", "rollout.overlap=true")


def guess(request: Request, index: int) -> str:
    """Half of a group is right."""
    return f"\\boxed{{{request.query.answer if index % 2 else '999'}}}"


class Log(ScriptedEngine):
    """An engine that writes down what happens; ``before(number)`` is called in its nth ``generate``."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.events: list[str] = []
        self.before = lambda number: None

    def generate(self, requests, sampling):
        self.before(len(self.calls) + 1)
        found = super().generate(requests, sampling)
        self.events.append("generate")
        return found

    def sync_weights(self, model):
        super().sync_weights(model)
        self.events.append("sync")


@pytest.fixture
def policy(tiny_folder):
    return tiny_policy(tiny_folder)


def make(policy, queries, folder, *overrides: str, episodes: int = 3) -> Run:
    run = Run(small_config(folder, "queries_per_episode=2", *overrides), policy, queries, guess, Log)
    run.trainer.stage_episodes = episodes
    return run


def test_an_episode_is_written_while_the_one_before_is_trained_on(policy, queries, tmp_path):
    run = make(policy, queries, tmp_path, *OVERLAP)
    trained, waited = threading.Event(), []
    update = run.trainer.update

    def train(*args, **options):
        trained.set()
        return update(*args, **options)

    run.trainer.update = train
    run.engine.before = lambda number: waited.append(trained.wait(60)) if number == 2 else None
    for _ in range(3):
        run.episode()
    assert waited == [True]  # the second episode was being written when training began, and went on
    assert run.engine.events == ["generate", "generate", "sync", "generate", "sync", "sync"]
    assert [line["overlap/weight_lag"] for line in run.records.of("overlap")] == [0, 1, 1]
    assert run.trainer.ahead.queries is None  # nothing ahead of a stage's last episode


@pytest.mark.parametrize("budget", ["budget.tokens=1", "budget.steps=1"])
def test_nothing_is_written_behind_the_episode_that_spends_the_budget(policy, queries, tmp_path, budget):
    run = make(policy, queries, tmp_path, *OVERLAP, budget)
    run.episode()
    assert run.engine.events == ["generate", "sync"] and run.trainer.ahead.queries is None
    assert run.trainer.progress.spent(run.trainer.config.budget)


def test_queries_and_seeds_are_those_of_a_run_without(policy, queries, tmp_path):
    """Nothing but the weights that write an episode is another."""
    asked = []
    for name, overrides in (("with", OVERLAP), ("without", ())):
        run = make(policy, queries, tmp_path / name, *overrides)
        for _ in range(3):
            run.episode()
        asked.append([[(request.request_id, request.seed) for request in requests] for requests, _ in run.engine.calls])
        assert bool(run.records.of("overlap")) == (name == "with")
    assert asked[0] == asked[1]


def test_the_denominator_is_the_weights_that_updates_start_from(policy, queries, tmp_path):
    """Also where an episode makes one update only, which without overlap would score nothing."""
    run = make(policy, queries, tmp_path, *OVERLAP, "optim.lr=1e-2")
    update, seen = run.trainer.update, []

    def check(batch, *, on_policy, **options):
        assert not on_policy
        for sample in batch:
            if not sample.replayed:
                assert list(sample.behavior_logprobs) == pytest.approx(logprobs_now(policy, sample), abs=1e-4)
        seen.append(len(batch))
        return update(batch, on_policy=on_policy, **options)

    run.trainer.update = check
    for _ in range(3):
        run.episode()
    assert seen == [8, 8, 8]


def test_a_checkpoint_forgets_what_was_rolled_out_ahead(policy, queries, tmp_path):
    """A resumed run draws the same queries again."""
    run = make(policy, queries, tmp_path, *OVERLAP)
    run.episode()
    state, ahead = run.trainer.order_state(), run.trainer.ahead.queries
    assert ahead and state != run.trainer.order.state_dict()
    order = QueryOrder(queries, run.config.seed)
    order.load_state_dict(state)
    assert order.take(2) == ahead
    run.episode()
    run.episode()
    assert run.trainer.order_state() == run.trainer.order.state_dict()


def test_what_fails_on_the_thread_ends_the_run(policy, queries, tmp_path):
    run = make(policy, queries, tmp_path, *OVERLAP)

    def fail(number: int) -> None:
        if number == 2:
            raise RuntimeError("no vLLM server is left")

    run.engine.before = fail
    with pytest.raises(RuntimeError, match="no vLLM server is left"):
        run.episode()


def test_how_far_off_policy():
    """Weights e^0.5 and 1, and 2 of the cap: sum 4.6487, squares 7.7183; the forced token does not count."""
    sample = make_sample("1/q/0", tokens=(5, 6, 7, 8))
    sample = replace(
        sample,
        behavior_logprobs=(-0.5, -1.0, 3.0, -9.0),
        response=replace(sample.response, logprobs=(-1.0, -1.0, -1.0, -1.0)),
        sampled_mask=(True, True, True, False),
    )
    found = overlap_metrics([sample, replace(sample, behavior_logprobs=())], cap=2.0, lag=1, waited=0.5)
    assert found == {
        "overlap/weight_lag": 1,
        "overlap/effective_sample_size": pytest.approx(4.648721**2 / (3 * 7.718282), rel=1e-6),
        "overlap/truncated": pytest.approx(1 / 3),
        "overlap/waited": 0.5,
    }
    assert overlap_metrics([], 2.0, 0, 0.0)["overlap/effective_sample_size"] is None


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (["rollout.engine=vllm"], "set rollout.engine=server"),
        (["rollout.engine=server", "grpo.importance_cap=null"], "set grpo.importance_cap"),
        (["rollout.engine=server", "replay.mode=dynamic_sampling"], "dynamic_sampling"),
        (["rollout.engine=server", "stages=[{overrides: {grpo: {importance_cap: null}}}]"], "set grpo.importance_cap"),
    ],
)
def test_what_overlap_needs(overrides, wanted):
    with pytest.raises(ConfigError, match=wanted):
        load_config(None, ["rollout.overlap=true", *overrides])
