"""What an episode trains on: first responses, their grades, forced rethinking, group advantages.

``Experience.collect`` is the first half of ``Trainer.episode``. Ranks roll out different queries; what is recorded of
an episode is that of all ranks, in the order of the queries, so files are the same for any number of ranks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import gather_object

from rethinker.config import RunConfig
from rethinker.datasets.order import QueryOrder
from rethinker.grading import grade_many
from rethinker.grpo import group_advantages
from rethinker.policy.loading import Policy
from rethinker.rethink import TRIGGERS, choose, keep, mark_kept, splice
from rethinker.rollout.base import RolloutEngine
from rethinker.rundir.metrics import Episode
from rethinker.seeding import stable_seed
from rethinker.types import Grade, Group, Query, Request, Response, Sample, Sampling


class Experience:
    """Rolls out by the behaviour policy, which ``engine`` runs. ``timed(name)`` adds up the seconds of a block."""

    def __init__(
        self,
        config: RunConfig,
        *,
        policy: Policy,
        engine: RolloutEngine,
        order: QueryOrder,
        accelerator: Any,
        timed: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        self.config = config
        self.policy = policy
        self.engine = engine
        self.order = order
        self.accelerator = accelerator
        self.timed = timed
        self.trigger_ids = encode_triggers(policy)
        self.sampling = Sampling(config.rollout.temperature, config.rollout.top_p, config.rollout.max_new_tokens)

    def collect(self, record: Episode) -> list[Group]:
        """This rank's groups of an episode, with advantages.

        DAPO's dynamic sampling rolls out new queries until the episode is full of groups that have an advantage, at
        most ``replay.max_rollouts`` times; everything else rolls out once.
        """
        wanted, dynamic = self.config.queries_per_episode, self.config.replay.mode == "dynamic_sampling"
        mine: set[str] = set()
        seen: set[str] = set()
        for record.rounds in range(1, (self.config.replay.max_rollouts if dynamic else 1) + 1):
            queries = self.order.take(wanted, exclude=frozenset(seen))
            groups = self.round(queries, record)
            mine.update(group.query.qid for group in groups)
            everyone = {group.query.qid: group for group in gather_object(groups)}
            fresh = [everyone[query.qid] for query in queries]
            record.all_groups += fresh
            record.groups += [group for group in fresh if not dynamic or any(s.effective for s in group.samples)]
            del record.groups[wanted:]
            if len(record.groups) >= wanted or len(queries) < wanted:
                break
            seen.update(query.qid for query in queries)
        return [group for group in record.groups if group.query.qid in mine]

    def round(self, queries: Sequence[Query], record: Episode) -> list[Group]:
        """This rank's share of ``queries`` as groups: rolled out, graded, rethought, with advantages."""
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        firsts = self.roll_out(queries[rank::ranks], record.number)
        groups, candidates, eligible = self.force_rethinking(firsts)
        place = {query.qid: index for index, query in enumerate(queries)}  # the same files for any number of ranks
        record.firsts += sorted(gather_object(firsts), key=lambda group: place[group.query.qid])
        record.candidates += sorted(gather_object(candidates), key=lambda sample: place[sample.query.qid])
        record.eligible += sum(gather_object([eligible]))
        return [self.with_advantages(group) for group in groups]

    def roll_out(self, queries: Sequence[Query], episode: int) -> list[Group]:
        """G first responses y1 to every query, graded."""
        size = self.config.rollout.group_size
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
