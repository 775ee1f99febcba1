"""Whole episodes through ``Trainer.episode``: Algorithm 1 and Forced Rethinking by the real training call.

Responses are scripted, everything else is what a run uses: grader, advantages, selector, log-probs, loss, optimiser.
"""

from __future__ import annotations

import itertools
import pickle
from collections import Counter
from collections.abc import Mapping, Sequence

import pyarrow.parquet as pq
import pytest
import torch
from bounds import EXACT, in_float64, rounding
from tiny_training import Run, logprobs_now, restore, same, small_config, tiny_policy, weights

from rethinker.rethink import TRIGGERS
from rethinker.rollout import TransformersEngine
from rethinker.rollout.scripted import ScriptedEngine
from rethinker.rundir.glossary import EPISODE, STEP
from rethinker.rundir.metrics import EpisodeRecord
from rethinker.types import Request, Response, Sampling

pytestmark = pytest.mark.numerics

MIXED, ONE, HARD, EASY = "text", "one", "two", "middle"
RIGHT = {MIXED: {0, 2}, ONE: {1}, HARD: set(), EASY: {0, 1, 2, 3}}  # which of 4 first responses are right
ALL_HARD: dict[str, set[int]] = {name: set() for name in RIGHT}


@pytest.fixture(scope="module", autouse=True)
def float64():
    """Log-probs and weights are compared with those of other passes: the order of sums must not matter."""
    with in_float64():
        yield


@pytest.fixture(scope="module")
def loaded(tiny_folder, float64):
    policy = tiny_policy(tiny_folder)
    policy.model.double()
    return policy, weights(policy)


@pytest.fixture
def policy(loaded):
    policy, saved = loaded
    restore(policy, saved)
    return policy


@pytest.fixture
def four(queries):
    return queries[:4]  # one of them without images


def first_text(request: Request, index: int, right: Mapping[str, set[int]]) -> str:
    answer = request.query.answer if index in right[request.query.qid] else "999"
    return f"{request.query.qid} no. {index}: \\boxed{{{answer}}}"


def script(right=RIGHT, second=lambda sample_id: False):
    """First looks are right as ``right`` says, second ones as ``second`` says of the sample id."""

    def respond(request: Request, index: int) -> str:
        if request.prefix_ids:
            answer = request.query.answer if second(request.request_id) else "998"
            return f" So \\boxed{{{answer}}}"
        return first_text(request, index, right)

    return respond


def ids(samples) -> list[str]:
    return [sample.sample_id for sample in samples]


def qids(samples) -> Counter[str]:
    return Counter(sample.query.qid for sample in samples)


# -- what is trained on -----------------------------------------------------------------------------------------------


def test_ssr_fills_every_batch_with_effective_samples(policy, four, tmp_path):
    before = weights(policy)
    run = Run(small_config(tmp_path), policy, four, script())
    metrics = run.episode()
    first, second = run.batches
    assert len(first) == len(second) == 8
    assert all(sample.effective for sample in first + second)
    fresh = [sample for sample in first + second if not sample.replayed]
    assert qids(fresh) == {MIXED: 4, ONE: 4}
    assert len(set(ids(fresh))) == 8
    stored: set[str] = set()
    for batch in run.batches:  # a step draws from what came before it and from its own effective samples
        stored |= {sample.sample_id for sample in batch if not sample.replayed}
        assert {sample.sample_id for sample in batch} <= stored
    assert metrics["replay/share"] == 0.5 and metrics["replay/effective_before"] == 0.5
    assert metrics["replay/effective_after"] == 1.0 and metrics["replay/buffer_size"] == 8
    assert run.trainer.progress.step == 2 and not same(before, weights(policy))
    assert run.engine.syncs == [policy.model]


def test_log_probs_stay_those_of_the_policy_that_wrote_the_sample(policy, four, tmp_path):
    """Also of samples replayed an episode later, by other weights."""
    run = Run(small_config(tmp_path, "replay.lifetime=2"), policy, four, script())
    before = weights(policy)
    run.episode()
    samples = {s.sample_id: s for batch in run.batches for s in batch}
    after = weights(policy)
    restore(policy, before)
    for sample in samples.values():
        assert sample.behavior_logprobs == pytest.approx(logprobs_now(policy, sample), abs=EXACT)
    restore(policy, after)
    assert any(
        abs(a - b) > 1e-3
        for s in samples.values()
        for a, b in zip(s.behavior_logprobs, logprobs_now(policy, s), strict=True)
    )
    run.episode()
    old = [s for batch in run.batches[2:] for s in batch if s.episode == 1]
    assert old and all(s.replayed and s.behavior_logprobs == samples[s.sample_id].behavior_logprobs for s in old)
    assert run.records.of("episode")[1]["replay/age_max"] == 1.0


def test_only_the_rank_that_writes_makes_rows(policy, four, tmp_path, monkeypatch):
    def no_rows(record):
        raise AssertionError("the rows of the responses are made for nothing")

    run = Run(small_config(tmp_path), policy, four, script())
    run.records.enabled = False
    monkeypatch.setattr("rethinker.trainer.rollout_rows", no_rows)
    run.episode()


def test_an_episode_sends_its_samples_once(policy, four, tmp_path, monkeypatch):
    """What other ranks need after that are log-probs by sample id."""
    sent = []
    monkeypatch.setattr("rethinker.trainer.gather_object", lambda items: sent.append(pickle.dumps(items)) or items)
    run = Run(small_config(tmp_path, "rethink.fraction=0.5"), policy, four, script())
    run.episode()
    assert sum(b"Sample" in data for data in sent) == 1 and sum(b"Floats" in data for data in sent) == 2


def test_the_buffer_is_empty_when_an_episode_starts(policy, four, tmp_path):
    run = Run(small_config(tmp_path), policy, four, script())
    run.episode()
    run.episode()
    assert all(s.episode == 2 for batch in run.batches[2:] for s in batch)


@pytest.mark.parametrize("mode", ["ssr", "filter", "grpo", "dynamic_sampling"])
def test_nothing_effective_skips_the_steps(policy, four, tmp_path, mode):
    before = weights(policy)
    run = Run(small_config(tmp_path, f"replay.mode={mode}"), policy, four, script({**ALL_HARD, EASY: {0, 1, 2, 3}}))
    metrics = run.episode()
    assert run.batches == [] and run.trainer.progress.step == 0
    assert metrics["replay/skipped_steps"] == (0 if mode == "dynamic_sampling" else 2)
    assert metrics["replay/effective_after"] is None and metrics["queries/effective"] == 0.0
    assert metrics["queries/all_correct"] == 0.25 and metrics["queries/all_incorrect"] == 0.75
    assert same(before, weights(policy))


def test_grpo_trains_on_everything(policy, four, tmp_path):
    run = Run(small_config(tmp_path, "replay.mode=grpo"), policy, four, script())
    metrics = run.episode()
    trained = [sample for batch in run.batches for sample in batch]
    # A batch of 8 without any advantage is skipped; the order decides whether there is one.
    assert qids(trained)[MIXED] == qids(trained)[ONE] == 4 and not any(s.replayed for s in trained)
    assert len(trained) + 8 * metrics["replay/skipped_steps"] == 16
    assert all(s.advantage == 0.0 for s in trained if s.query.qid in (HARD, EASY))


def test_a_price_of_tokens_is_trained_on_and_never_replayed(policy, four, tmp_path):
    """Unanimous groups whose responses differ in length get advantages of a few hundredths; correctness decides what is
    effective and stored."""
    lengths = {HARD: [30, 40, 50, 60], EASY: [30, 30, 30, 70]}

    def respond(request: Request, index: int) -> str:
        text = first_text(request, index, RIGHT)
        return "x" * lengths.get(request.query.qid, [0] * 4)[index] + text

    run = Run(small_config(tmp_path, "reward.token_price=0.001", "replay.lifetime=2"), policy, four, respond)
    metrics = run.episode()
    fresh = [sample for batch in run.batches for sample in batch if not sample.replayed]
    assert qids(fresh) == {MIXED: 4, ONE: 4, HARD: 4, EASY: 4}
    for sample in fresh:
        tokens = len(sample.response.token_ids)
        assert sample.reward == pytest.approx(sample.grade.correct - 0.001 * tokens, abs=1e-12)
        assert sample.effective == (sample.query.qid in (MIXED, ONE)) and sample.moves_policy
    hard = sorted((len(s.response.token_ids), s.advantage) for s in fresh if s.query.qid == HARD)
    assert all(longer[1] < shorter[1] for shorter, longer in itertools.pairwise(hard))
    assert sum(advantage for _, advantage in hard) == pytest.approx(0.0, abs=1e-9)
    assert metrics["replay/buffer_size"] == 8 and metrics["replay/effective_before"] == 0.5
    assert metrics["replay/effective_after"] == 0.5 and metrics["replay/share"] == 0.0
    assert metrics["reward/correctness"] == 7 / 16 > metrics["reward/mean"] > metrics["reward/correctness"] - 0.2
    assert metrics["accuracy/first"] == 7 / 16 and metrics["queries/effective"] == 0.5


def test_dynamic_sampling_asks_for_groups_that_differ_in_correctness(policy, four, tmp_path):
    def respond(request: Request, index: int) -> str:
        return "x" * (10 * index) + first_text(request, index, RIGHT)

    config = small_config(tmp_path, "reward.token_price=0.001", "replay.mode=dynamic_sampling", "replay.max_rollouts=1")
    run = Run(config, policy, four, respond)
    run.episode()
    assert set(qids(sample for batch in run.batches for sample in batch)) == {MIXED, ONE}


def test_filter_drops_and_does_not_refill(policy, four, tmp_path):
    run = Run(small_config(tmp_path, "replay.mode=filter"), policy, four, script())
    metrics = run.episode()
    trained = [sample for batch in run.batches for sample in batch]
    assert qids(trained) == {MIXED: 4, ONE: 4} and not any(s.replayed for s in trained)
    assert metrics["replay/effective_after"] == 1.0 and metrics["replay/share"] == 0.0


def test_dynamic_sampling_rolls_out_until_the_batch_is_full(policy, queries, tmp_path):
    right = {**RIGHT, "again": {2}}
    config = small_config(
        tmp_path, "replay.mode=dynamic_sampling", "queries_per_episode=2", "replay.max_rollouts=5", "seed=3"
    )
    run = Run(config, policy, queries, script(right))
    metrics = [run.episode() for _ in range(4)]
    for episode, found in zip(run.episodes, metrics, strict=True):
        assert len(episode.groups) == 2 and all(s.effective for g in episode.groups for s in g.samples)
        rolled_out = [group.query.qid for group in episode.firsts]
        assert len(rolled_out) == len(set(rolled_out))
        assert found["rollout/rounds"] == -(-len(rolled_out) // 2)
        assert found["rollout/responses"] == 4 * len(rolled_out)  # it pays for what it drops
    assert max(found["rollout/rounds"] for found in metrics) > 1
    assert all(len(batch) == 8 for batch in run.batches) and len(run.batches) == 4


def test_dynamic_sampling_gives_up_at_its_bound(policy, queries, tmp_path, capsys):
    config = small_config(tmp_path, "replay.mode=dynamic_sampling", "queries_per_episode=2", "replay.max_rollouts=2")
    run = Run(config, policy, queries, script({**ALL_HARD, "again": set()}))
    metrics = [run.episode() for _ in range(2)]
    assert metrics[0]["rollout/rounds"] == 2 and run.batches == []
    assert metrics[0]["replay/unfilled"] == 2 and metrics[0]["replay/batch_fill"] == 0.0
    assert "dynamic sampling lacked 4 of 4 groups with an advantage after 4 rollouts" in capsys.readouterr().out


def test_dynamic_sampling_says_what_it_rolled_out_and_how_short_it_fell(policy, four, tmp_path, capsys):
    """Two of four queries have an advantage, and there are no others: one full batch of the two."""
    run = Run(small_config(tmp_path, "replay.mode=dynamic_sampling", "replay.max_rollouts=1"), policy, four, script())
    metrics = run.episode()
    assert list(map(len, run.batches)) == [8] and metrics["replay/skipped_steps"] == 0
    assert metrics["replay/unfilled"] == 2 and metrics["replay/batch_fill"] == 0.5
    assert metrics["replay/effective_before"] == 0.5 and metrics["reward/mean"] == 7 / 16
    assert sum(metrics["advantages/before"]["counts"]) == 16
    rows = pq.read_table(tmp_path / "run" / "rollouts" / "episode-00001.parquet").to_pylist()
    assert len(rows) == 16 and sum(row["reward"] for row in rows) == 7
    said = "warning: dynamic sampling fell short in episode 1: dynamic sampling lacked 2 of 4 groups"
    assert said in capsys.readouterr().out


def test_a_short_episode_makes_no_update_on_a_scrap(policy, four, tmp_path):
    """Three groups of 4, where two batches of 8 were planned: 6 and 6, not 8 and 4."""
    right = {**ALL_HARD, MIXED: {0}, ONE: {1}, HARD: {2}}
    config = small_config(tmp_path, "replay.mode=dynamic_sampling", "replay.max_rollouts=1")
    run = Run(config, policy, four, script(right))
    run.episode()
    assert list(map(len, run.batches)) == [6, 6]


# -- Forced Rethinking ------------------------------------------------------------------------------------------------

REPAIRED = {f"1/{HARD}/1", f"1/{HARD}/3", f"1/{MIXED}/1", f"1/{EASY}/0"}
RETHINK = (
    "rethink.fraction=0.999",
    "seed=1",
    "replay.mode=grpo",
    "optim.train_batch_size=16",
    "rollout.max_new_tokens=128",
)


def rethinking_run(policy, four, folder, *overrides, second=REPAIRED.__contains__, engine=ScriptedEngine, right=RIGHT):
    run = Run(small_config(folder, *RETHINK, *overrides), policy, four, script(right, second), engine)
    return run, run.episode()


def test_a_kept_trajectory_takes_the_place_of_its_own_first_response(policy, four, tmp_path):
    run, metrics = rethinking_run(policy, four, tmp_path)
    (batch,) = run.batches
    assert len(batch) == 16
    by_id = {sample.sample_id: sample for sample in batch}
    kept = {sample.sample_id for sample in batch if sample.rethinking is not None}
    assert kept == REPAIRED
    for name in REPAIRED:
        sample, index = by_id[name], int(name[-1])
        qid = sample.query.qid
        own = f"{qid} no. {index}: "
        assert sample.response.text.startswith(own)  # its own y1, not a neighbour's
        assert sample.response.text.endswith(f" So \\boxed{{{sample.query.answer}}}")
        assert (
            sample.rethinking.first_text.startswith(own) and TRIGGERS[sample.rethinking.trigger] in sample.response.text
        )
        assert sample.reward == 1.0 and sample.grade.correct
        assert sample.rethinking.first_correct == (index in RIGHT[qid])
    for sample in batch:
        if sample.sample_id not in REPAIRED:
            qid, index = sample.query.qid, int(sample.sample_id[-1])
            assert sample.reward == float(index in RIGHT[qid]) and not sample.nll_mask
    assert metrics["rethink/forced"] == 1.0 and metrics["rethink/kept"] == 4 / 16
    assert metrics["rethink/wrong_to_right"] == 3 / 16 and metrics["rethink/right_to_right"] == 1 / 16
    assert metrics["rethink/right_to_wrong"] == 6 / 16 and metrics["rethink/wrong_to_wrong"] == 6 / 16


def test_effective_counts_first_responses_only(policy, four, tmp_path):
    """The hard query has two kept trajectories and advantages, and is still not an effective one."""
    run, metrics = rethinking_run(policy, four, tmp_path)
    assert metrics["queries/effective"] == 0.5 and metrics["queries/all_incorrect"] == 0.25
    assert metrics["accuracy/first"] == 7 / 16 and metrics["reward/mean"] == 10 / 16
    advantages = [s.advantage for s in run.batches[0] if s.query.qid == HARD]
    assert len(advantages) == 4 and all(abs(value) > 0 for value in advantages)


@pytest.mark.parametrize("updates", [1, 2])
def test_masks_of_a_kept_trajectory(policy, four, tmp_path, updates):
    run, _ = rethinking_run(policy, four, tmp_path, f"optim.train_batch_size={16 // updates}")
    assert len(run.batches) == updates
    for sample in (sample for batch in run.batches for sample in batch):
        length = len(sample.response.token_ids)
        assert len(sample.rollout_logprobs) == len(sample.sampled_mask) == length
        # A single update takes the behaviour policy's log-probs from its own forward pass.
        assert len(sample.behavior_logprobs) == (0 if updates == 1 else length)
        if sample.rethinking is None:
            assert all(sample.sampled_mask)
            continue
        first, trigger = sample.rethinking.first_tokens, sample.rethinking.trigger_tokens
        rest = length - first - trigger
        assert sample.sampled_mask == (True,) * first + (False,) * trigger + (True,) * rest
        assert sample.nll_mask == (False,) * first + (True,) * (trigger + rest)
        forced = sample.response.token_ids[first : first + trigger]
        changed = sample.rethinking.first_text.removeprefix(policy.decode(sample.response.token_ids[:first]))
        assert policy.decode(forced) == changed + TRIGGERS[sample.rethinking.trigger]
    steps = run.records.of("step")
    assert sum(step["loss/nll"] or 0 for step in steps) > 0 and sum(step["batch/rethought"] for step in steps) == 4.0


def test_nll_on_the_whole_trajectory(policy, four, tmp_path):
    run, _ = rethinking_run(policy, four, tmp_path, "rethink.nll_on=trajectory")
    kept = [s for s in run.batches[0] if s.rethinking is not None]
    assert len(kept) == 4 and all(all(s.nll_mask) and len(s.nll_mask) == len(s.response.token_ids) for s in kept)


def test_at_most_two_are_kept_a_query(policy, four, tmp_path):
    run, metrics = rethinking_run(policy, four, tmp_path, second=lambda name: True)
    kept = [s.sample_id for s in run.batches[0] if s.rethinking is not None]
    assert qids(s for s in run.batches[0] if s.rethinking is not None) == {name: 2 for name in RIGHT}
    assert set(kept) == {f"1/{name}/{index}" for name in RIGHT for index in (0, 1)}
    assert metrics["rethink/kept"] == 8 / 16


def test_imitation_alone_has_the_nll_and_nothing_else(policy, four, tmp_path):
    """Equal weights whatever the advantages are; without a kept second look no update at all."""
    imitating = ("grpo.policy_coef=0", "grpo.entropy_coef=0", "replay.mode=grpo")
    before = weights(policy)
    ends = []
    for name, scale in (("none", "none"), ("std", "std")):
        restore(policy, before)
        run, _ = rethinking_run(policy, four, tmp_path / name, *imitating, f"grpo.advantage_scale={scale}")
        (step,) = run.records.of("step")
        assert step["loss/total"] == pytest.approx(0.05 * step["loss/nll"], rel=1e-9) and step["loss/nll"] > 0
        ends.append(weights(policy))
    assert same(*ends) and not same(before, ends[0])
    restore(policy, before)
    run, metrics = rethinking_run(policy, four, tmp_path / "nothing", *imitating, second=lambda sample_id: False)
    assert metrics["replay/skipped_steps"] == 1 and same(before, weights(policy))


def test_append_makes_the_group_larger(policy, four, tmp_path):
    run, metrics = rethinking_run(policy, four, tmp_path, "rethink.placement=append")
    assert list(map(len, run.batches)) == [20]
    assert metrics["replay/batch_fill"] == 20 / 16 and metrics["time/logprobs"] == 0.0  # still a single update
    groups = {group.query.qid: group for group in run.episodes[0].groups}
    assert {name: len(group.samples) for name, group in groups.items()} == {MIXED: 5, ONE: 4, HARD: 6, EASY: 5}
    hard = groups[HARD].samples
    assert ids(hard) == [f"1/{HARD}/{index}" for index in range(6)]
    assert [s.rethinking is not None for s in hard] == [False] * 4 + [True] * 2
    assert [s.reward for s in hard] == [0.0] * 4 + [1.0] * 2
    assert sum(s.advantage for s in hard) == pytest.approx(0.0, abs=rounding(2.5, steps=4, terms=8))
    assert metrics["rethink/kept"] == 4 / 16


@pytest.mark.parametrize("mode", ["grpo", "ssr"])
def test_append_makes_as_many_steps_as_replace(policy, four, tmp_path, mode):
    """20 samples in two equal batches, in the order of the groups; none on the scrap of 4 that 8 and 8 would leave."""
    settings = ("rethink.placement=append", "optim.train_batch_size=8", f"replay.mode={mode}")
    run, _ = rethinking_run(policy, four, tmp_path, *settings)
    assert list(map(len, run.batches)) == [10, 10] and run.trainer.progress.step == 2
    if mode == "grpo":
        expected = [s.sample_id for group in run.episodes[0].groups for s in group.samples]
        assert ids(sample for batch in run.batches for sample in batch) == expected


def test_kept_trajectories_of_unanimous_groups_are_not_trained_on(policy, four, tmp_path):
    """All are right, so the group has no advantage: under the filter the NLL of its kept trajectory is lost."""
    run, metrics = rethinking_run(policy, four, tmp_path, "replay.mode=filter")
    trained = {s.sample_id for batch in run.batches for s in batch if s.rethinking is not None}
    assert trained == REPAIRED - {f"1/{EASY}/0"} and metrics["rethink/trained"] == 3 / 4
    assert rethinking_run(policy, four, tmp_path / "all")[1]["rethink/trained"] == 1.0


def test_a_kept_trajectory_that_a_price_puts_behind_is_not_imitated(policy, four, tmp_path):
    """In the group that is all right it is the longest, so that its advantage is negative."""
    run, _ = rethinking_run(policy, four, tmp_path, "reward.token_price=0.001")
    kept = {s.sample_id: s for batch in run.batches for s in batch if s.rethinking is not None}
    assert kept.keys() == REPAIRED
    for name, sample in kept.items():
        assert (sample.advantage < 0) == (name == f"1/{EASY}/0") == (not any(sample.nll_mask))


@pytest.mark.parametrize(("coefficient", "steps"), [(0.0, 0), (0.05, 1)])
def test_a_kept_trajectory_without_advantage_makes_a_step_by_its_nll_alone(policy, four, tmp_path, coefficient, steps):
    before = weights(policy)
    all_right = {name: {0, 1, 2, 3} for name in RIGHT}
    options = {"right": all_right, "second": lambda _: True}
    run, metrics = rethinking_run(policy, four, tmp_path, f"rethink.nll_coef={coefficient}", **options)
    assert metrics["rethink/kept"] > 0 and metrics["replay/effective_before"] == 0.0
    assert run.trainer.progress.step == steps == 1 - metrics["replay/skipped_steps"]
    assert same(before, weights(policy)) == (steps == 0)


def test_triggers_by_correctness(policy, four, tmp_path):
    run, _ = rethinking_run(policy, four, tmp_path, "rethink.trigger_choice=by_correctness")
    candidates = run.episodes[0].candidates
    assert len(candidates) == 16
    for sample in candidates:
        assert sample.rethinking.trigger == (
            "self-verification" if sample.rethinking.first_correct else "self-correction"
        )


def test_blind_triggers_do_not_follow_correctness(policy, four, tmp_path):
    """The same ids draw the same triggers whatever the grader says."""
    triggers = []
    for right in (RIGHT, ALL_HARD):
        run, _ = rethinking_run(policy, four, tmp_path / str(len(triggers)), right=right)
        triggers.append({s.sample_id: s.rethinking.trigger for s in run.episodes[0].candidates})
    assert triggers[0] == triggers[1] and len(set(triggers[0].values())) == 3


def test_second_looks_ask_with_their_own_temperature_and_prefix(policy, four, tmp_path):
    run, _ = rethinking_run(policy, four, tmp_path)
    (firsts, sampling), (seconds, second_sampling) = run.engine.calls
    assert (sampling.temperature, second_sampling.temperature) == (1.0, 0.9)
    assert all(not request.prefix_ids for request in firsts) and len({request.seed for request in seconds}) == 16
    for request in seconds:
        index = int(request.request_id[-1])
        text = policy.decode(request.prefix_ids)
        assert text.startswith(first_text(request, index, RIGHT)) and any(text.endswith(t) for t in TRIGGERS.values())
        assert policy.eos_id not in request.prefix_ids


def test_half_of_the_responses(policy, four, tmp_path):
    """16 coins of 1/2: between 2 and 14 heads (outside: chance 0.0005, and the seed is fixed)."""
    run, metrics = rethinking_run(policy, four, tmp_path, "rethink.fraction=0.5")
    assert 2 <= len(run.episodes[0].candidates) <= 14 and metrics["rethink/eligible"] == 1.0


class Backwards(ScriptedEngine):
    """Gives its results in the opposite order: whoever pairs by position pairs wrongly."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Mapping[str, tuple[Response, ...]]:
        return dict(reversed(super().generate(requests, sampling).items()))  # type: ignore[call-overload]


class Shuffled(ScriptedEngine):
    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Mapping[str, tuple[Response, ...]]:
        found = super().generate(requests, sampling)
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0)).tolist()
        return {name: found[name] for name in [list(found)[index] for index in order]}


@pytest.mark.parametrize("engine", [Backwards, Shuffled])
def test_the_order_of_results_does_not_matter(loaded, four, tmp_path, engine):
    policy, saved = loaded
    ends = []
    for kind in (ScriptedEngine, engine):
        restore(policy, saved)
        run, metrics = rethinking_run(policy, four, tmp_path / kind.__name__, engine=kind)
        ends.append(
            (run.batches, {k: v for k, v in metrics.items() if "time" not in k and "second" not in k}, weights(policy))
        )
    assert ends[0][0] == ends[1][0] and ends[0][1] == ends[1][1] and same(ends[0][2], ends[1][2])


# -- what is written --------------------------------------------------------------------------------------------------


def test_every_metric_is_explained_and_every_explained_metric_is_there(policy, four, tmp_path):
    run, _ = rethinking_run(policy, four, tmp_path)
    (episode,) = run.records.of("episode")
    (step,) = run.records.of("step")
    assert set(episode) == set(EPISODE)
    assert set(step) == set(STEP)
    assert (tmp_path / "run" / "rollouts" / "episode-00001.parquet").exists()
    assert episode["tokens/generated"] == episode["rollout/tokens"] == run.trainer.progress.tokens
    assert (run.trainer.progress.episode, run.trainer.progress.stage_episode) == (1, 1)


def test_gap_is_that_of_first_responses(policy, four, tmp_path):
    """The scripted engine says -0.5 for every token."""
    before = weights(policy)
    run, metrics = rethinking_run(policy, four, tmp_path)
    restore(policy, before)
    gaps = [abs(-0.5 - v) for s in run.batches[0] if s.rethinking is None for v in logprobs_now(policy, s)]
    assert metrics["gap/mean"] == pytest.approx(sum(gaps) / len(gaps)) and metrics["gap/max"] == pytest.approx(
        max(gaps)
    )


def test_an_engine_with_other_weights_is_found_out(policy, four, tmp_path):
    run = Run(small_config(tmp_path, "rollout.canary=0.01"), policy, four, script())
    with pytest.raises(RuntimeError, match=r"after the weight sync of episode 1 .* raise rollout\.canary"):
        run.episode()


def test_a_gap_that_is_no_number_is_found_out(policy, four, tmp_path, monkeypatch):
    run = Run(small_config(tmp_path, "rollout.canary=0.01"), policy, four, script())
    monkeypatch.setattr(run.engine, "logprob", float("nan"))
    with pytest.raises(RuntimeError, match="differ by nan"):
        run.trainer.check_engine(EpisodeRecord(1, "stage", 4, 4, firsts=run.trainer.actor.first_looks(four[:1], 1)))


class Mute(ScriptedEngine):
    """Gives no token at all for the right first response of query "one" (and for the canary's probes)."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Mapping[str, tuple[Response, ...]]:
        found = {name: list(each) for name, each in super().generate(requests, sampling).items()}
        for request in requests:
            if request.query.qid == ONE and not request.prefix_ids:
                found[request.request_id][1 % request.n] = Response((), (), False, "")
        return {name: tuple(each) for name, each in found.items()}


@pytest.mark.parametrize("mode", ["ssr", "filter", "grpo", "dynamic_sampling"])
def test_a_response_without_tokens_is_not_trained_on(policy, four, tmp_path, mode):
    right = {**RIGHT, ONE: {2}}  # so that the empty one's group has an advantage
    overrides = (f"replay.mode={mode}", "rollout.canary=100", "optim.train_batch_size=16", "rethink.fraction=0.5")
    run = Run(small_config(tmp_path, *overrides), policy, four, script(right), Mute)
    before = weights(policy)
    metrics = run.episode()
    assert metrics["rollout/empty"] == 1 and not same(before, weights(policy))
    trained = {s.sample_id: s for batch in run.batches for s in batch}
    empty = f"1/{ONE}/1"
    assert {f"1/{ONE}/{index}" for index in (0, 2, 3)} <= set(trained)
    if mode == "grpo":
        assert trained[empty].advantage == 0.0 and not trained[empty].behavior_logprobs
    else:
        assert empty not in trained


def test_the_engine_sleeps_while_the_trainer_works(policy, four, tmp_path):
    run = Run(small_config(tmp_path), policy, four, script())
    asleep: list[bool] = []
    update = run.recorder.update

    def watch(batch, **options):
        asleep.append(run.engine.asleep)
        return update(batch, **options)

    run.recorder.update = watch  # type: ignore[assignment]
    run.episode()
    assert asleep == [True, True]


# -- nothing is computed twice ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        ("replay.mode=ssr",),
        ("replay.mode=ssr", "optim.micro_batch_tokens=100", "model.forward=plain"),
        ("replay.mode=grpo", "rethink.fraction=0.999", "seed=1", "rollout.max_new_tokens=128"),
        ("replay.mode=filter", "grpo.importance_cap=null"),
    ],
    ids=["ssr", "ssr in parts", "rethinking", "filter"],
)
def test_a_single_update_needs_no_pass_for_log_probs(loaded, four, tmp_path, monkeypatch, overrides):
    """Weights and gaps are those of a separate pass. Plain SGD, because Adam makes whole steps of rounding errors."""
    policy, saved = loaded
    ends = []
    for number, separate in enumerate((False, True)):
        restore(policy, saved)
        config = small_config(tmp_path / str(number), "optim.train_batch_size=16", *overrides)
        run = Run(config, policy, four, script(second=REPAIRED.__contains__))
        optimizer = torch.optim.SGD(policy.model.parameters(), lr=0.1)
        run.recorder.update.optimizer = optimizer
        run.recorder.update.scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        if separate:
            monkeypatch.setattr(run.trainer, "single_update", lambda record: False)
        metrics = run.episode()
        assert run.trainer.progress.step == 1
        assert (metrics["time/logprobs"] > 0.0) == separate
        assert any(sample.behavior_logprobs for sample in run.batches[0]) == separate
        (step,) = run.records.of("step")
        assert step["policy/ratio_max"] == pytest.approx(1.0, abs=EXACT) and step["policy/clip_fraction"] == 0.0
        ends.append((weights(policy), metrics, step))
    (own, own_metrics, own_step), (other, other_metrics, other_step) = ends
    moved = max(float((own[name] - saved[name]).abs().max()) for name in own)
    assert moved > 1e-4 and max(float((own[name] - other[name]).abs().max()) for name in own) < EXACT
    for name in ("gap/mean", "gap/max"):
        assert own_metrics[name] is not None and own_metrics[name] == pytest.approx(other_metrics[name], abs=EXACT)
    for name, value in other_step.items():
        assert own_step[name] == (value if value is None else pytest.approx(value, rel=EXACT, abs=EXACT)), name


@pytest.mark.parametrize(
    ("overrides", "single"),
    [
        (("optim.train_batch_size=16",), True),
        (("optim.train_batch_size=8",), False),  # a second update, by other weights
        (("optim.train_batch_size=16", "replay.lifetime=2"), False),  # later episodes need them
        (("optim.train_batch_size=16", "replay.lifetime=2", "replay.mode=grpo"), True),  # which keeps no sample
    ],
)
def test_which_episodes_make_a_single_update(policy, four, tmp_path, overrides, single):
    run = Run(small_config(tmp_path, *overrides), policy, four, script())
    assert (run.episode()["time/logprobs"] == 0.0) == single


ONE_RIGHT = {name: {0} for name in RIGHT}  # every query has an advantage; 4 images in 3 of the 4 queries


@pytest.mark.parametrize(
    ("overrides", "encoded"),
    [
        (("optim.train_batch_size=16",), 4),  # one forward pass in all
        ((), 4 + 4),  # one for the log-probs, then two updates of two queries each
        (("optim.micro_batch_tokens=1",), 4 * 4 + 4 * 4),  # a pass a sample, of which each query has four
        (("model.forward=plain",), 4 + 4),
    ],
)
def test_images_are_counted(tiny_folder, four, tmp_path, overrides, encoded):
    policy = tiny_policy(tiny_folder)
    run = Run(small_config(tmp_path, "replay.mode=grpo", *overrides), policy, four, script(ONE_RIGHT))
    found = [run.episode() for _ in range(2)]
    assert [metrics["images/distinct"] for metrics in found] == [4, 4]
    assert [metrics["images/decoded"] for metrics in found] == [4, 0]
    assert [metrics["images/encoded"] for metrics in found] == [encoded, encoded]


@pytest.mark.parametrize(("frozen", "encoded"), [(True, 4), (False, 4 + 4 + 4)])
def test_a_frozen_tower_encodes_an_image_once_an_episode(tiny_folder, four, tmp_path, frozen, encoded):
    """Rollouts by the policy's own engine, log-probs and updates, which change the language model."""
    policy = tiny_policy(tiny_folder)
    if frozen:
        policy.model.model.visual.requires_grad_(False)
    run = Run(small_config(tmp_path, "replay.mode=grpo"), policy, four, script(ONE_RIGHT))
    real = TransformersEngine(policy)
    generate = run.engine.generate

    def both(requests, sampling):
        real.generate(requests, sampling)
        return generate(requests, sampling)

    run.engine.generate = both
    found = [run.episode() for _ in range(2)]
    assert run.trainer.progress.step == 4
    assert [metrics["images/encoded"] for metrics in found] == [encoded, encoded]
