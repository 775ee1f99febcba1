"""The algorithm: GRPO with Selective Sample Replay and Forced Rethinking (arXiv:2504.08837).

``Trainer.episode`` follows the paper's order: queries -> first looks -> second looks -> group advantages -> behaviour
log-probs -> for each raw batch Algorithm 1 and an update -> weights back to the engine. Ranks generate for different
queries; from the behaviour log-probs on, every rank holds the samples of all ranks, so that the sampling distribution
of replay and every denominator refer to the whole batch.

Differs from arXiv:2504.08837 in: see grpo.py, replay.py and rethink.py; the ratio's denominator is the behaviour
policy as the trainer computes it, and the gap to the engine is corrected by truncated importance weights (ours).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from accelerate.utils import gather_object

from rethinker.actor import Actor, Rollouts
from rethinker.ahead import Ahead, overlap_metrics
from rethinker.arrays import Floats
from rethinker.config import BudgetConfig, RunConfig
from rethinker.datasets.order import QueryOrder
from rethinker.grading import grade_many
from rethinker.looks import GradeMany
from rethinker.policy.policy import Policy
from rethinker.policy.scoring import score
from rethinker.replay import Selector
from rethinker.rollout.base import RolloutEngine
from rethinker.rollout.canary import checked_gap
from rethinker.rundir.metrics import (
    EpisodeRecord,
    engine_gaps,
    episode_metrics,
    replay_ages,
    rollout_rows,
)
from rethinker.rundir.phases import Phases, measured
from rethinker.rundir.tracking import Tracker
from rethinker.seeding import stable_seed
from rethinker.types import Query, Sample
from rethinker.update import PolicyUpdate


@dataclass
class Progress:
    """The progress of a run; part of a checkpoint."""

    stage: int = 0  # index of the stage
    stage_episode: int = 0  # episodes done in this stage
    episode: int = 0  # episodes done in all stages
    step: int = 0  # optimiser updates made in all stages
    tokens: int = 0  # tokens generated in all stages
    seconds: float = 0.0  # of all episodes, on this process

    def spent(self, budget: BudgetConfig) -> bool:
        """Whether the run has used up one of its budgets."""
        limits = ((self.tokens, budget.tokens), (self.step, budget.steps), (self.seconds, budget.seconds))
        return any(limit is not None and used >= limit for used, limit in limits)


class Trainer:
    """Runs the episodes of one stage. ``config`` holds the stage's settings. ``usual_gap``: the canary's at the start
    of the run, in nats. ``stage_episodes``: of the whole stage, for ``rollout.overlap``."""

    def __init__(
        self,
        config: RunConfig,
        stage: str,
        *,
        policy: Policy,
        forward: torch.nn.Module,
        engine: RolloutEngine,
        order: QueryOrder,
        selector: Selector,
        update: PolicyUpdate,
        tracker: Tracker,
        accelerator: Any,
        progress: Progress,
        usual_gap: float | None = None,
        grade: GradeMany = grade_many,
        phases: Phases | None = None,
        stage_episodes: int = 0,
    ) -> None:
        self.config = config
        self.stage = stage
        self.policy = policy
        self.forward = forward
        self.engine = engine
        self.order = order
        self.selector = selector
        self.update = update
        self.tracker = tracker
        self.accelerator = accelerator
        self.progress = progress
        self.usual_gap = usual_gap
        self.actor = Actor(config, policy, engine, grade, accelerator.process_index, accelerator.num_processes)
        self.phases = phases
        self.seconds: dict[str, float] = defaultdict(float)
        self.stage_episodes = stage_episodes
        self.ahead = Ahead()

    def episode(self) -> dict[str, Any]:
        """One episode by one frozen behaviour policy, in the paper's order; returns its metrics."""
        record = self.start_episode()
        with self.timed("episode"):
            for queries in self.rounds(record):
                self.collect(record, queries, self.rolled_out(queries, record))
            self.start_next(record)
            self.engine.sleep()
            samples = self.with_behavior_logprobs(record)
            self.selector.start_episode()
            with self.timed("train"):
                for raw_batch in parts(samples, self.config.batches(len(samples))):
                    batch = self.selector.select(raw_batch)  # Algorithm 1
                    self.step(batch, record)
            waited = self.ahead.wait()
            with self.timed("sync"):
                self.engine.sync_weights(self.policy.model)
                record.canary = self.check_engine(record)
        if self.config.rollout.overlap:
            self.report_overlap(record, samples, waited)
        return self.report(record, samples)

    def rolled_out(self, queries: Sequence[Query], record: EpisodeRecord) -> Rollouts:
        """This rank's, made now or ahead of the episode."""
        if self.ahead.queries is None:
            return self.actor.roll_out(queries, record.number, self.timed)
        record.weight_lag = 1
        result, seconds = self.ahead.take()
        for name, value in seconds.items():
            self.seconds[name] += value
        return result

    def start_next(self, record: EpisodeRecord) -> None:
        """With ``rollout.overlap``: begin to roll out the next episode of this stage, if there will be one."""
        if not self.config.rollout.overlap:
            return
        if self.progress.stage_episode + 1 >= self.stage_episodes or self.spends_the_budget(record):
            return
        order, queries = self.order.state_dict(), self.order.take(self.config.queries_per_episode)
        seconds: dict[str, float] = defaultdict(float)  # a stopwatch of its own, and no phase: the main thread has one
        roll_out = partial(self.actor.roll_out, queries, record.number + 1, partial(measured, seconds))
        self.ahead.start(queries, order, lambda: (roll_out(), seconds))

    def spends_the_budget(self, record: EpisodeRecord) -> bool:
        """Whether this episode can use up ``budget.tokens`` or ``budget.steps``; its seconds nobody knows yet."""
        steps = self.config.batches(sum(len(group.samples) for group in record.groups))
        now = self.progress
        after = replace(now, tokens=now.tokens + record.tokens, step=now.step + steps, seconds=0.0)
        return after.spent(self.config.budget)

    def order_state(self) -> dict[str, int]:
        """Where the order of queries stands for a checkpoint: what was rolled out ahead is rolled out again."""
        return self.ahead.order or self.order.state_dict()

    def report_overlap(self, record: EpisodeRecord, samples: Sequence[Sample], waited: float) -> None:
        """Log how far off-policy the episode was."""
        assert self.config.grpo.importance_cap is not None
        metrics = overlap_metrics(samples, self.config.grpo.importance_cap, record.weight_lag, waited)
        self.tracker.log("overlap", self.stage, record.number, self.progress.step, metrics)

    def start_episode(self) -> EpisodeRecord:
        """An empty record; caches and stopwatches are reset."""
        self.seconds.clear()
        self.policy.encoder.forget()
        self.images_before = self.image_counts()
        config = self.config
        return EpisodeRecord(
            self.progress.episode + 1,
            self.stage,
            config.queries_per_episode,
            config.rollout.group_size,
            usual_gap=self.usual_gap,
        )

    def rounds(self, record: EpisodeRecord) -> Iterator[list[Query]]:
        """The queries of every round of rollouts, over all ranks.

        There is one, but DAPO's dynamic sampling asks for new queries until the episode is full of groups that have an
        advantage, at most ``replay.max_rollouts`` times.
        """
        wanted = self.config.queries_per_episode
        rounds = self.config.replay.max_rollouts if self.dynamic_sampling else 1
        seen: set[str] = set()
        while record.rounds < rounds and len(record.groups) < wanted:
            queries = self.ahead.queries or self.order.take(wanted, exclude=frozenset(seen))
            record.rounds += 1
            yield queries
            if len(queries) < wanted:
                break
            seen.update(query.qid for query in queries)

    @property
    def dynamic_sampling(self) -> bool:
        """Whether groups without an advantage are dropped and replaced by new rollouts (DAPO)."""
        return self.config.replay.mode == "dynamic_sampling"

    def collect(self, record: EpisodeRecord, queries: Sequence[Query], own: Rollouts) -> None:
        """Add a round to the record: that of all ranks, in the order of the queries."""
        # In one piece: what groups share with the first looks is sent, and kept, once.
        ranks: list[Rollouts] = gather_object([own])
        record.homes |= {group.query.qid: rank for rank, part in enumerate(ranks) for group in part.groups}
        record.add_round(
            queries,
            firsts=[group for part in ranks for group in part.firsts],
            groups=[group for part in ranks for group in part.groups],
            candidates=[sample for part in ranks for sample in part.candidates],
            effective_only=self.dynamic_sampling,
        )
        record.eligible += sum(part.eligible for part in ranks)

    def with_behavior_logprobs(self, record: EpisodeRecord) -> list[Sample]:
        """The episode's samples, in the order of the groups, with the behaviour policy's log-probs.

        A rank scores its own rollouts (their images are loaded), except samples that will not be trained on. If the
        episode makes one update, on its own samples only and not rolled out ahead, nothing is scored: the log-probs of
        the update's forward pass are already the behaviour policy's.
        """
        samples = [sample for group in record.groups for sample in group.samples]
        record.on_policy = self.single_update(len(samples))
        if record.on_policy:
            return samples
        rank = self.accelerator.process_index
        own = [sample for sample in samples if record.homes[sample.query.qid] == rank]
        with self.timed("logprobs"):
            scored = score(
                self.policy,
                self.accelerator.unwrap_model(self.forward),
                own if self.config.replay.mode == "grpo" else [sample for sample in own if sample.moves_policy],
                temperature=self.config.rollout.temperature,
                packing=self.config.model.forward,
                micro_batch_tokens=self.config.optim.micro_batch_tokens,
                filler=next((sample for sample in samples if sample.response.token_ids), None),
            )
        ranks = gather_object([(scored, engine_gaps(with_logprobs(own, scored)))])
        record.gaps = [gaps for _, gaps in ranks]
        return with_logprobs(samples, merged(logprobs for logprobs, _ in ranks))

    def single_update(self, samples: int) -> bool:
        """Whether an episode with this number of samples makes one update, on its own samples only."""
        if self.config.rollout.overlap:
            return False
        return self.config.batches(samples) <= 1 and not self.config.replay.outlives

    def step(self, batch: Sequence[Sample], record: EpisodeRecord) -> None:
        """One update, or none if no sample, fresh or stored, has an advantage (or is imitated, by the NLL).

        Without one the whole step is skipped, even if ``grpo.kl_coef`` or ``grpo.entropy_coef`` would contribute a
        gradient (paper: no effective sample, no update).
        """
        imitates, reinforces = self.config.rethink.nll_coef > 0, self.config.grpo.policy_coef > 0
        if not any((imitates and sample.nll_mask) or (reinforces and sample.moves_policy) for sample in batch):
            record.skipped_steps += 1
            return
        metrics = self.update(batch, on_policy=record.on_policy, homes=record.homes)
        record.trained += batch
        self.progress.step += 1
        self.tracker.log("step", self.stage, record.number, self.progress.step, metrics)

    def check_engine(self, record: EpisodeRecord) -> float | None:
        """The largest gap between engine and trainer on any rank, in nats, on a probe after the sync.

        Raises RuntimeError if they are far apart.
        """
        own = checked_gap(
            self.engine,
            self.policy,
            self.accelerator.unwrap_model(self.forward),
            [group.query for group in record.firsts[:2]],
            self.actor.sampling,
            self.config,
            seed=stable_seed(self.config.seed, "canary", record.number),
            when=f"of episode {record.number}",
        )
        return max((gap for gap in gather_object([own]) if gap is not None), default=None)

    def image_counts(self) -> tuple[int, int]:
        """Images that this rank has decoded, and encoded by the policy's vision tower, so far."""
        return self.policy.images.decoded, self.policy.encoder.encoded

    def report(self, record: EpisodeRecord, samples: Sequence[Sample]) -> dict[str, Any]:
        """Write the episode's files and return its metrics. ``samples``: those that were to be trained on."""
        if record.on_policy:
            record.gaps = [engine_gaps(with_logprobs(samples, merged(gather_object([self.update.scored]))))]
        used = [after - before for after, before in zip(self.image_counts(), self.images_before, strict=True)]
        record.images_decoded, record.images_encoded = map(sum, zip(*gather_object([used]), strict=True))
        tokens = record.tokens
        self.progress.tokens += tokens
        self.progress.seconds += self.seconds["episode"]
        self.progress.episode += 1
        self.progress.stage_episode += 1
        metrics = episode_metrics(record) | replay_ages(record)
        metrics |= {f"time/{name}": self.seconds[name] for name in TIMES}
        metrics |= {
            "replay/buffer_size": int(self.selector.stats()["buffer_size"]),
            "rollout/tokens_per_second": tokens / max(self.seconds["rollout"] + self.seconds["rethink"], 1e-9),
            "tokens/generated": self.progress.tokens,
        }
        self.tracker.log("episode", self.stage, record.number, self.progress.step, metrics)
        if self.tracker.enabled:  # the others' rows would be made for nothing
            self.tracker.rollouts(record.number, rollout_rows(record))
        self.tracker.progress(record.number, self.progress.step, metrics)
        self.tracker.warn()
        return metrics

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to ``time/<name>``."""
        if self.phases and name != "episode":
            self.phases.enter(f"{name} of episode {self.progress.episode + 1}")
        with measured(self.seconds, name):
            yield


TIMES = ("rollout", "grade", "rethink", "logprobs", "train", "sync", "episode")


def merged(parts: Iterable[Mapping[str, Floats]]) -> dict[str, Floats]:
    """The log-probs of all ranks, by sample id."""
    return {sample_id: logprobs for part in parts for sample_id, logprobs in part.items()}


def with_logprobs(samples: Sequence[Sample], found: Mapping[str, Floats]) -> list[Sample]:
    """The samples with the behaviour policy's log-probs, where there are any."""
    return [replace(sample, behavior_logprobs=found.get(sample.sample_id, ())) for sample in samples]


def parts(items: Sequence[Any], count: int) -> Iterator[Sequence[Any]]:
    """``count`` consecutive parts of all items, none longer than another by more than one."""
    for index in range(count):
        yield items[index * len(items) // count : (index + 1) * len(items) // count]
