"""Rolling the behaviour policy out: first looks, second looks and group advantages of one rank's queries."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch

from rethinker.config import RunConfig
from rethinker.grpo import Scale, group_advantages
from rethinker.looks import (
    GradeMany,
    Timed,
    count_eligible,
    first_looks,
    mark_second_looks,
    plan_second_looks,
    second_looks,
)
from rethinker.policy.policy import Policy
from rethinker.rethink import keep
from rethinker.rollout.base import RolloutEngine
from rethinker.seeding import stable_seed
from rethinker.types import Group, Query, Sample, Sampling


@dataclass(frozen=True, slots=True)
class Rollouts:
    """What was rolled out for some queries."""

    firsts: list[Group]  # first looks
    groups: list[Group]  # with kept second looks and advantages
    candidates: list[Sample]  # all forced trajectories
    eligible: int  # first looks that may be forced


@dataclass(frozen=True)
class Actor:
    """Rolls the policy out for the queries of rank ``rank`` of ``ranks``, as the stage's ``config`` says. What a query
    gets depends on the episode and its qid only."""

    config: RunConfig
    policy: Policy
    engine: RolloutEngine
    grade: GradeMany
    rank: int = 0
    ranks: int = 1

    @property
    def sampling(self) -> Sampling:
        """Of first looks."""
        return Sampling(self.config.rollout.temperature, self.config.rollout.top_p, self.config.rollout.max_new_tokens)

    def roll_out(self, queries: Sequence[Query], episode: int, timed: Timed = nullcontext) -> Rollouts:
        """First looks, second looks and advantages for this rank's share of ``queries``."""
        firsts = self.first_looks(queries, episode, timed)
        with timed("rethink"):
            groups, candidates, eligible = self.second_looks(firsts)
        price, scale = self.config.reward.token_price, self.config.grpo.advantage_scale
        groups = [with_advantages(priced(group, price) if price else group, scale) for group in groups]
        return Rollouts(firsts, groups, candidates, eligible)

    def first_looks(self, queries: Sequence[Query], episode: int, timed: Timed = nullcontext) -> list[Group]:
        """G graded first responses to every query of this rank."""
        return first_looks(
            self.engine,
            self.policy,
            queries[self.rank :: self.ranks],
            self.config.rollout.group_size,
            self.sampling,
            seed=lambda query: stable_seed(self.config.seed, "first", episode, query.qid),
            episode=episode,
            grade=self.grade,
            timed=timed,
        )

    def second_looks(self, groups: Sequence[Group]) -> tuple[list[Group], list[Sample], int]:
        """Groups with kept trajectories in place of their y1, all forced trajectories, and the number eligible."""
        options, seed, limit = self.config.rethink, self.config.seed, self.config.rollout.max_new_tokens
        firsts = [sample for group in groups for sample in group.samples]
        eligible = count_eligible(self.policy, firsts, options, limit)
        plans = plan_second_looks(self.policy, firsts, options, limit, seed=seed) if options.fraction else []
        trajectories = second_looks(
            self.engine,
            self.policy,
            firsts,
            plans,
            replace(self.sampling, temperature=options.temperature),
            seed=lambda sample_id: stable_seed(seed, "second", sample_id),
            grade=self.grade,
        )
        rethought, candidates = [], []
        for group in groups:
            forced = [trajectories[s.sample_id] for s in group.samples if s.sample_id in trajectories]
            marked = mark_second_looks(group, forced, options)
            rethought.append(keep(group, marked, options.placement))
            candidates += marked
        return rethought, candidates, eligible


def priced(group: Group, token_price: float) -> Group:
    """The group with the reward correctness - ``token_price`` * tokens of the response, the trigger included (ours)."""
    return replace(
        group,
        samples=tuple(
            replace(sample, reward=float(sample.grade.correct) - token_price * len(sample.response.token_ids))
            for sample in group.samples
        ),
    )


def with_advantages(group: Group, scale: Scale) -> Group:
    """The group with the advantages of its rewards.

    A response without any token cannot be trained on, whatever its group: its advantage becomes 0. The others of its
    group keep theirs, and it counts in ``rollout/empty``. A kept second look with a negative advantage (right, but a
    price of tokens puts it behind others that are right too) is not imitated: NLL and policy loss would pull apart.
    """
    unanimous = len({sample.grade.correct for sample in group.samples}) == 1
    rewards_PG = torch.tensor([[sample.reward for sample in group.samples]], dtype=torch.float64)
    advantages = group_advantages(rewards_PG, scale)[0].tolist()
    samples = tuple(
        replace(
            sample,
            advantage=advantage if sample.response.token_ids else 0.0,
            unanimous=unanimous,
            nll_mask=sample.nll_mask if advantage >= 0 else (),
        )
        for sample, advantage in zip(group.samples, advantages, strict=True)
    )
    return replace(group, samples=samples)
