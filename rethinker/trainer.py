"""The algorithm: GRPO with Selective Sample Replay and Forced Rethinking (arXiv:2504.08837).

``Trainer.episode`` reads in the paper's order: queries -> first responses -> grades -> forced rethinking -> group
advantages -> SSR -> updates -> weights back to the engine. Ranks roll out different queries; from the advantages on,
every rank holds the samples of all, so that the replay's law and every denominator are those of the whole batch.

Differs from arXiv:2504.08837 in: see grpo.py, replay.py and rethink.py; the ratio's denominator is the behaviour
policy as the trainer computes it, and the gap to the engine is corrected by truncated importance weights (ours).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.utils import gather_object

from rethinker.config import RunConfig
from rethinker.datasets.order import QueryOrder
from rethinker.grading import grade_many
from rethinker.grpo import group_advantages
from rethinker.measure import Episode, episode_metrics, generated_tokens, replay_ages, rollout_rows
from rethinker.policy.batching import arrange, micro_batches
from rethinker.policy.forward import token_logprobs
from rethinker.policy.loading import Policy
from rethinker.replay import Selector
from rethinker.rethink import TRIGGERS, choose, keep, mark_kept, splice
from rethinker.rollout.base import RolloutEngine
from rethinker.rollout.canary import canary_gap
from rethinker.seeding import stable_seed
from rethinker.tracking import Tracker
from rethinker.types import Grade, Group, Query, Request, Response, Sample, Sampling
from rethinker.update import PolicyUpdate


@dataclass
class Progress:
    """How far a run is; part of a checkpoint."""

    stage: int = 0  # index of the stage
    stage_episode: int = 0  # episodes done in this stage
    episode: int = 0  # episodes done in all stages
    step: int = 0  # optimiser updates made in all stages
    tokens: int = 0  # tokens generated in all stages


class Trainer:
    """Runs the episodes of one stage. ``config`` holds the stage's settings."""

    def __init__(
        self,
        config: RunConfig,
        stage: str,
        *,
        policy: Policy,
        forward: torch.nn.Module,
        engine: RolloutEngine,
        order: QueryOrder,
        selector: Selector[Sample],
        update: PolicyUpdate,
        tracker: Tracker,
        accelerator: Any,
        progress: Progress,
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
        self.trigger_ids = encode_triggers(policy)
        self.sampling = Sampling(config.rollout.temperature, config.rollout.top_p, config.rollout.max_new_tokens)
        self.seconds: dict[str, float] = defaultdict(float)

    def episode(self) -> dict[str, Any]:
        """Roll out by the frozen behaviour policy, then Algorithm 1 and an update for every batch; returns metrics."""
        self.seconds.clear()
        self.policy.encoder.forget()
        images = self.image_counts()
        with self.timed("episode"):
            record = Episode(self.progress.episode + 1, self.stage)
            groups = self.collect(record)
            self.engine.sleep()
            mine = [sample for group in groups for sample in group.samples]
            on_policy = self.single_update(record)
            if not on_policy:
                mine = self.with_behavior_logprobs(mine)
            scored = {sample.sample_id: sample for sample in self.everywhere(mine)}
            # In the order of the groups, not of the ranks: the batches are the same for any number of ranks.
            samples = [scored[sample.sample_id] for group in record.groups for sample in group.samples]
            self.selector.start_episode()
            with self.timed("train"):
                for raw_batch in batches(samples, self.config.optim.train_batch_size):
                    batch = self.selector.select(raw_batch)
                    self.step(batch, record, on_policy)
            with self.timed("sync"):
                self.engine.sync_weights(self.policy.model)
            canary = self.check_engine(record)
        if on_policy:
            found = {name: row for part in self.everywhere([self.update.scored]) for name, row in part.items()}
            gaps = [engine_gaps([replace(s, behavior_logprobs=found.get(s.sample_id, ())) for s in samples])]
        else:
            gaps = self.everywhere([engine_gaps(mine)])
        used = self.everywhere([[after - before for after, before in zip(self.image_counts(), images, strict=True)]])
        record.images_decoded, record.images_encoded = (sum(column) for column in zip(*used, strict=True))
        return self.report(record, gaps, canary)

    def image_counts(self) -> tuple[int, int]:
        """Images that this rank has decoded, and sent through the policy's vision tower, so far."""
        return self.policy.images.decoded, self.policy.encoder.encoded

    def single_update(self, record: Episode) -> bool:
        """Whether the episode makes one update, on its own samples only.

        Then the behaviour policy's log-probs are those of the update's own forward pass, and nothing is computed twice.
        """
        replay = self.config.replay
        keeps = replay.mode == "ssr" and replay.lifetime > 1  # samples of earlier and for later episodes
        size = sum(len(group.samples) for group in record.groups)
        return size <= self.config.optim.train_batch_size and not keeps

    def collect(self, record: Episode) -> list[Group]:
        """This rank's groups of an episode, with advantages.

        DAPO's dynamic sampling rolls out new queries until the episode is full of groups that have an advantage;
        everything else rolls out once.
        """
        wanted, dynamic = self.config.queries_per_episode, self.config.replay.mode == "dynamic_sampling"
        mine: set[str] = set()
        seen: set[str] = set()
        for record.rounds in range(1, (self.config.replay.max_rollouts if dynamic else 1) + 1):
            queries = self.order.take(wanted, exclude=frozenset(seen))
            groups = self.round(queries, record)
            mine.update(group.query.qid for group in groups)
            everyone = {group.query.qid: group for group in self.everywhere(groups)}
            record.groups += [everyone[query.qid] for query in queries]
            if dynamic:
                record.groups = [group for group in record.groups if any(s.effective for s in group.samples)][:wanted]
            if len(record.groups) >= wanted or len(queries) < wanted:
                break
            seen.update(query.qid for query in queries)
        return [group for group in record.groups if group.query.qid in mine]

    def round(self, queries: Sequence[Query], record: Episode) -> list[Group]:
        """This rank's share of ``queries`` as groups: rolled out, graded, rethought, with advantages."""
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        firsts = self.roll_out(queries[rank::ranks])
        groups, candidates, eligible = self.force_rethinking(firsts)
        place = {query.qid: index for index, query in enumerate(queries)}  # the same files for any number of ranks
        record.firsts += sorted(self.everywhere(firsts), key=lambda group: place[group.query.qid])
        record.candidates += sorted(self.everywhere(candidates), key=lambda sample: place[sample.query.qid])
        record.eligible += sum(self.everywhere([eligible]))
        return [self.with_advantages(group) for group in groups]

    def roll_out(self, queries: Sequence[Query]) -> list[Group]:
        """G first responses y1 to every query, graded."""
        episode, size = self.progress.episode + 1, self.config.rollout.group_size
        requests = [
            Request(query.qid, query, stable_seed(self.config.seed, "first", episode, query.qid), n=size)
            for query in queries
        ]
        with self.timed("rollout"):
            responses = self.engine.generate(requests, self.sampling) if requests else {}
        items = [(query, i, r) for query in queries for i, r in enumerate(responses[query.qid])]
        with self.timed("grade"):
            grades = grade_many([(response.text, query.answer, query.question) for query, _, response in items])
        samples = defaultdict(list)
        for (query, index, response), grade in zip(items, grades, strict=True):
            prompt_tokens = len(self.policy.prompt(query).ids)
            sample = first_sample(f"{episode}/{query.qid}/{index}", query, response, grade, episode, prompt_tokens)
            samples[query.qid].append(sample)
        return [
            Group(query, tuple(samples[query.qid]), tuple(sample.grade.correct for sample in samples[query.qid]))
            for query in queries
        ]

    def force_rethinking(self, groups: Sequence[Group]) -> tuple[list[Group], list[Sample], int]:
        """Groups in which kept trajectories stand for their y1, all forced trajectories, and how many were eligible."""
        options = self.config.rethink
        with self.timed("rethink"):
            firsts = {sample.sample_id: sample for group in groups for sample in group.samples}
            settings: dict[str, Any] = {
                "trigger_ids": self.trigger_ids,
                "eos_token_id": self.policy.eos_id,
                "room_tokens": options.room_tokens,
                "max_new_tokens": self.config.rollout.max_new_tokens,
                "seed": self.config.seed,
                "trigger_choice": options.trigger_choice,
                "skip_reflective": options.skip_reflective,
            }
            eligible = len(choose(list(firsts.values()), 1.0, **settings))
            plans = choose(list(firsts.values()), options.fraction, **settings) if options.fraction else []
            if not plans:
                return list(groups), [], eligible
            requests = [
                Request(
                    plan.sample_id,
                    firsts[plan.sample_id].query,
                    stable_seed(self.config.seed, "second", plan.sample_id),
                    prefix_ids=plan.prefix_ids,
                )
                for plan in plans
            ]
            seconds = self.engine.generate(requests, replace(self.sampling, temperature=options.temperature))
            texts = [self.policy.decode(plan.prefix_ids + seconds[plan.sample_id][0].token_ids) for plan in plans]
            queries = [firsts[plan.sample_id].query for plan in plans]
            grades = grade_many([(t, q.answer, q.question) for t, q in zip(texts, queries, strict=True)])
            trajectories = defaultdict(list)
            for plan, grade in zip(plans, grades, strict=True):
                sample, second = firsts[plan.sample_id], seconds[plan.sample_id][0]
                trajectory = splice(sample, plan, second, grade, decode=self.policy.decode)
                trajectories[sample.query.qid].append(trajectory)
            rethought, candidates = [], []
            for group in groups:
                mine = mark_kept(group, trajectories[group.query.qid], options.max_per_query, options.nll_on)
                rethought.append(keep(group, mine, options.max_per_query, options.placement, options.nll_on))
                candidates += mine
            return rethought, candidates, eligible

    def with_advantages(self, group: Group) -> Group:
        """Advantages of the group's rewards.

        A response without any token cannot be trained on, whatever its group: its advantage becomes 0. The others of
        its group keep theirs, and it counts in ``rollout/empty``.
        """
        rewards_PG = torch.tensor([[sample.reward for sample in group.samples]], dtype=torch.float64)
        advantages = group_advantages(rewards_PG, self.config.grpo.advantage_scale)[0].tolist()
        samples = tuple(
            replace(sample, advantage=advantage if sample.response.token_ids else 0.0)
            for sample, advantage in zip(group.samples, advantages, strict=True)
        )
        return replace(group, samples=samples)

    @torch.no_grad()
    def with_behavior_logprobs(self, samples: Sequence[Sample]) -> list[Sample]:
        """The samples with the behaviour policy's log-probs; those that will not be trained on keep none."""
        everything = self.config.replay.mode == "grpo"
        wanted = arrange([s for s in samples if s.response.token_ids and (everything or s.effective)])
        packing = self.config.model.forward
        found: dict[str, tuple[float, ...]] = {}
        self.forward.eval()
        with self.timed("logprobs"):
            for part in micro_batches(wanted, self.config.optim.micro_batch_tokens, packing):
                logprobs_BT, _, _ = token_logprobs(
                    self.policy,
                    self.accelerator.unwrap_model(self.forward),
                    [(sample.query, sample.response.token_ids) for sample in part],
                    packing=packing,
                    temperature=self.config.rollout.temperature,
                )
                for sample, row in zip(part, logprobs_BT.tolist(), strict=True):
                    found[sample.sample_id] = tuple(row[: len(sample.response.token_ids)])
        return [replace(sample, behavior_logprobs=found.get(sample.sample_id, ())) for sample in samples]

    def step(self, batch: Sequence[Sample], record: Episode, on_policy: bool = False) -> None:
        """One update, or none if no sample, fresh or stored, has an advantage.

        Without one the step is skipped whole, also where ``grpo.kl_coef`` or ``grpo.entropy_coef`` would have a
        gradient of their own (paper: no effective sample, no update).
        """
        if not batch or not any(sample.effective or sample.nll_mask for sample in batch):
            record.skipped_steps += 1
            return
        metrics = self.update(batch, on_policy=on_policy)
        record.trained += batch
        self.progress.step += 1
        self.tracker.log("step", self.stage, record.number, self.progress.step, metrics)

    def check_engine(self, record: Episode) -> float | None:
        """Compare engine and trainer on a probe after the sync. Raises RuntimeError if they are far apart."""
        limit = self.config.rollout.canary
        if not limit:
            return None
        probe = [
            Request(group.query.qid, group.query, stable_seed(self.config.seed, "canary", record.number))
            for group in record.firsts[:2]
        ]
        forward = self.accelerator.unwrap_model(self.forward)
        with self.timed("sync"):
            gap = canary_gap(self.engine, self.policy, forward, probe, self.sampling)
        if gap is not None and not gap <= limit:  # NaN is far apart too
            raise RuntimeError(
                f"after the weight sync of episode {record.number} engine and trainer differ by {gap:.3g} nats a token "
                f"(rollout.canary={limit}): the engine does not run the trainer's weights or prompts"
            )
        return gap

    def report(self, record: Episode, gaps: Sequence[tuple[float, int, float]], canary: float | None) -> dict[str, Any]:
        """Write the episode's files and return its metrics."""
        generated = [*(sample for group in record.firsts for sample in group.samples), *record.candidates]
        tokens = sum(map(generated_tokens, generated))
        self.progress.tokens += tokens
        self.progress.episode += 1
        self.progress.stage_episode += 1
        seconds = self.seconds
        gap_tokens = sum(count for _, count, _ in gaps)
        metrics = episode_metrics(record) | replay_ages(record)
        metrics |= {f"time/{name}": seconds[name] for name in TIMES}
        metrics |= {
            "replay/buffer_size": int(self.selector.stats()["buffer_size"]),
            "rollout/tokens_per_second": tokens / max(seconds["rollout"] + seconds["rethink"], 1e-9),
            "gap/mean": sum(total for total, _, _ in gaps) / gap_tokens if gap_tokens else None,
            "gap/max": max(largest for _, _, largest in gaps) if gap_tokens else None,
            "canary/gap": canary,
            "tokens/generated": self.progress.tokens,
        }
        self.tracker.log("episode", self.stage, record.number, self.progress.step, metrics)
        self.tracker.rollouts(record.number, rollout_rows(record))
        self.tracker.progress(record.number, self.progress.step, metrics)
        return metrics

    def everywhere(self, items: list[Any]) -> list[Any]:
        """The items of all ranks, on every rank in the same order: by rank, as they stand there."""
        return gather_object(items)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to ``time/<name>``."""
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start


TIMES = ("rollout", "grade", "rethink", "logprobs", "train", "sync", "episode")


def batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Consecutive runs of ``size`` items, the last one maybe shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def engine_gaps(samples: Sequence[Sample]) -> tuple[float, int, float]:
    """Sum, number and maximum of abs(engine - trainer) of the log-probs of sampled first-response tokens, in nats."""
    gaps = [
        abs(rollout - behavior)
        for sample in samples
        if sample.behavior_logprobs and sample.rethinking is None
        for rollout, behavior in zip(sample.rollout_logprobs, sample.behavior_logprobs, strict=True)
    ]
    return sum(gaps), len(gaps), max(gaps, default=0.0)


def first_sample(
    sample_id: str, query: Query, response: Response, grade: Grade, episode: int, prompt_tokens: int
) -> Sample:
    """A first response as a sample; its reward is its correctness (paper: binary)."""
    return Sample(
        sample_id=sample_id,
        query=query,
        response=response,
        grade=grade,
        reward=float(grade.correct),
        episode=episode,
        rollout_logprobs=response.logprobs,
        sampled_mask=(True,) * len(response.token_ids),
        prompt_tokens=prompt_tokens,
    )


def encode_triggers(policy: Policy) -> dict[str, tuple[int, ...]]:
    """Token ids of every trigger."""
    return {
        kind: tuple(policy.tokenizer(text, add_special_tokens=False)["input_ids"]) for kind, text in TRIGGERS.items()
    }
