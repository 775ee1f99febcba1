"""Forced Rethinking step by step, for looking at: any response, sampled or typed, and a second look forced on it.

The steps are those of training (``rethinker.looks``, ``rethink.mark_kept``, ``rethink.keep``) with the settings of a
run; here they run one at a time, on the CPU, with the policy's own engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import pandas as pd
import torch
from transformers.utils.logging import disable_progress_bar

from rethinker.config import ModelConfig, RethinkConfig, RunConfig
from rethinker.grading import grade_many
from rethinker.grpo import Scale, group_advantages
from rethinker.looks import first_looks, mark_second_looks, plan_second_looks, second_looks
from rethinker.policy.loading import load_policy
from rethinker.policy.policy import Policy
from rethinker.rethink import TRIGGERS, RethinkPlan, contains_reflection
from rethinker.rollout.base import RolloutEngine
from rethinker.rollout.transformers import TransformersEngine
from rethinker.seeding import stable_seed
from rethinker.types import Group, Query, Response, Sample, Sampling

PartName = Literal["y1", "trigger", "y2", "end"]


class Token(NamedTuple):
    """A token of a trajectory: its text, its id, the part that it belongs to and the engine's log-prob (nats).

    ``logprob`` is None for tokens that were not sampled: the trigger, and a typed y1.
    """

    text: str
    token_id: int
    part: PartName
    logprob: float | None


@dataclass
class SecondLooks:
    """A policy to ask and to force. ``options``, ``sampling`` and ``scale`` mean what they mean in training."""

    policy: Policy
    engine: RolloutEngine
    sampling: Sampling
    options: RethinkConfig = field(default_factory=RethinkConfig)
    scale: Scale = "std"  # of group advantages
    seed: int = 0

    @classmethod
    def load(cls, config: RunConfig, model: str = "", *, seed: int = 0) -> SecondLooks:
        """The policy of ``config`` on the CPU with the transformers engine, asked and forced as in its last stage that
        forces (without one: its last stage).

        ``model``: another checkpoint folder (or hub id) in the place of ``config.model``, with its own image sizes.
        """
        disable_progress_bar()  # one for 68 small tensors
        stages = [config.for_stage(index) for index in range(len(config.stages))]
        last = next((stage for stage in reversed(stages) if stage.rethink.fraction), stages[-1])
        weights = ModelConfig(path=model) if model else last.model
        policy = load_policy(weights, "cpu", prompt_suffix=last.data.prompt_suffix, prompt_hint=last.data.prompt_hint)
        rollout = last.rollout
        sampling = Sampling(rollout.temperature, rollout.top_p, rollout.max_new_tokens)
        return cls(policy, TransformersEngine(policy), sampling, last.rethink, last.grpo.advantage_scale, seed)

    def first(self, queries: Sequence[Query], n: int) -> list[Group]:
        """``n`` graded first responses y1 to every query."""
        return first_looks(
            self.engine,
            self.policy,
            queries,
            n,
            self.sampling,
            seed=lambda query: stable_seed(self.seed, "first", query.qid),
        )

    def written(self, query: Query, text: str) -> Group:
        """A typed y1 as a group of one; its log-probs are 0.0, because it was not sampled.

        ValueError if it has no token or leaves no room within ``max_new_tokens``.
        """
        ids = tuple(self.policy.tokenizer(text, add_special_tokens=False)["input_ids"])
        if not ids or len(ids) >= self.sampling.max_new_tokens:
            raise ValueError(f"a response of {len(ids)} tokens; it may have 1 to {self.sampling.max_new_tokens - 1}")
        token_ids = (*ids, self.policy.eos_id)
        response = Response(token_ids, (0.0,) * len(token_ids), True, self.policy.decode(token_ids))
        (grade,) = grade_many([(response.text, query.answer, query.question)])
        sample = Sample(
            sample_id=f"0/{query.qid}/typed",
            query=query,
            response=response,
            grade=grade,
            reward=float(grade.correct),
            episode=0,
            sampled_mask=(False,) * len(token_ids),
            prompt_tokens=len(self.policy.prompt(query).ids),
        )
        return Group(query, (sample,), (grade.correct,))

    def plans(self, samples: Sequence[Sample], trigger: str = "", fraction: float = 1.0) -> list[RethinkPlan]:
        """``rethink.choose`` among ``samples``; ``trigger``: a key of TRIGGERS; "": chosen as in training."""
        if trigger and trigger not in TRIGGERS:
            raise ValueError(f"no trigger {trigger!r}; there are {', '.join(TRIGGERS)}")
        options = replace(self.options, trigger_choice="blind") if trigger else self.options
        return plan_second_looks(
            self.policy,
            samples,
            options,
            self.sampling.max_new_tokens,
            seed=self.seed,
            fraction=fraction,
            triggers=[trigger] if trigger else list(TRIGGERS),
        )

    def force(self, group: Group, trigger: str = "") -> list[Sample]:
        """The trajectories y1 + trigger + y2 of every response of ``group`` that can be forced; the kept ones marked.

        ValueError if none can be (``obstacle`` says why).
        """
        plans = self.plans(group.samples, trigger)
        if not plans:
            raise ValueError(f"nothing to force: {'; '.join(self.obstacle(sample) for sample in group.samples)}")
        trajectories = second_looks(
            self.engine,
            self.policy,
            group.samples,
            plans,
            replace(self.sampling, temperature=self.options.temperature),
            seed=lambda sample_id: stable_seed(self.seed, "second", sample_id),
        )
        return mark_second_looks(group, list(trajectories.values()), self.options)

    def obstacle(self, sample: Sample) -> str:
        """Why ``choose`` would not force this first response; "" if it can."""
        if self.plans([sample]):
            return ""
        response = sample.response
        if not response.finished:
            return "cut at the token limit"
        if len(response.token_ids) < 2:
            return "empty"
        if self.options.skip_reflective and contains_reflection(response.text):
            return "reflects by itself"
        return f"leaves fewer than {self.options.min_second_look_tokens} tokens for a second look"

    def tokens(self, sample: Sample) -> list[Token]:
        """The response of ``sample`` token by token."""
        rethinking = sample.rethinking
        ids = sample.response.token_ids
        first = rethinking.first_tokens if rethinking else len(ids)
        forced = rethinking.trigger_tokens if rethinking else 0
        lengths: dict[PartName, int] = {"y1": first, "trigger": forced, "y2": len(ids) - first - forced}
        parts = [part for part, length in lengths.items() for _ in range(length)]
        if sample.response.finished:
            parts[-1] = "end"
        decode = self.policy.tokenizer.decode
        return [
            Token(str(decode([token])), token, part, logprob if sampled else None)
            for token, part, logprob, sampled in zip(
                ids, parts, sample.response.logprobs, sample.sampled_mask, strict=True
            )
        ]


def kept_table(candidates: Sequence[Sample]) -> pd.DataFrame:
    """One row per forced trajectory: trigger, answers and verdicts before and after, whether it is kept, and why."""
    rows = []
    for sample in candidates:
        rethinking = sample.rethinking
        if rethinking is None:
            raise ValueError(f"sample {sample.sample_id} was not forced; make trajectories with SecondLooks.force")
        rows.append(
            {
                "sample": sample.sample_id,
                "trigger": rethinking.trigger,
                "y1": rethinking.first_text.strip(),
                "final answer": sample.grade.extracted,
                "gold": sample.query.answer,
                "verdicts": sample.outcome.replace("_to_", " → "),
                "kept": rethinking.kept,
                "why": _why(sample),
            }
        )
    return pd.DataFrame(rows)


def _why(sample: Sample) -> str:
    rethinking = sample.rethinking
    assert rethinking is not None
    if rethinking.kept:
        return "ends right"
    if not sample.response.finished:
        return "cut at the token limit"
    if not sample.grade.correct:
        return "the final answer is wrong"
    return "enough kept of this query" if rethinking.own_answer else "the second look gives no answer of its own"


def first_table(looks: SecondLooks, group: Group) -> pd.DataFrame:
    """One row per first response: its text and verdict, and what keeps it from being forced ("": nothing)."""
    rows = [
        {
            "sample": sample.sample_id,
            "y1": sample.response.text,
            "tokens": len(sample.response.token_ids),
            "correct": sample.grade.correct,
            "reason": sample.grade.reason,
            "cannot be forced": looks.obstacle(sample),
        }
        for sample in group.samples
    ]
    return pd.DataFrame(rows)


def parts_table(looks: SecondLooks, sample: Sample) -> pd.DataFrame:
    """One row per part of a trajectory: its tokens, how many were sampled, and how many the NLL term covers."""
    nll = sample.nll_mask or (False,) * len(sample.response.token_ids)
    rows = [
        {"part": token.part, "tokens": 1, "sampled": sampled, "under the NLL": covered}
        for token, sampled, covered in zip(looks.tokens(sample), sample.sampled_mask, nll, strict=True)
    ]
    return pd.DataFrame(rows).groupby("part", sort=False).sum()


def placement_table(before: Group, after: Group, scale: Scale) -> pd.DataFrame:
    """One row per place in the group: reward and advantage of the first responses, and with the kept trajectories.

    With ``placement`` replace they take the places of their y1; with append they come behind, where before was nothing
    (NaN).
    """
    columns = {}
    for name, samples in (("before", before.samples), ("after", after.samples)):
        rewards = [sample.reward for sample in samples]
        columns[f"reward {name}"] = pd.Series(rewards)
        columns[f"A {name}"] = pd.Series(group_advantages(torch.tensor([rewards]), scale)[0].tolist())
    taken = ["y1 + trigger + y2" if sample.rethinking else "y1" for sample in after.samples]
    return pd.DataFrame({"sample": [sample.sample_id for sample in after.samples], "trained on": taken, **columns})
