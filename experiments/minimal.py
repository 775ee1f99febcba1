"""VL-Rethinker in one file: GRPO + Selective Sample Replay + Forced Rethinking on the tiny VLM, one process.

    .venv/bin/python experiments/minimal.py                    # stages 1 and 2 of experiments/tiny.yaml, 5 minutes
    .venv/bin/python experiments/minimal.py --episodes 5 5

It stands on the pure modules (grpo, replay, rethink), the transformers engine and ``token_logprobs``; it leaves out
ranks, checkpoints, metrics and evaluation. Losses, draws and weights are those of ``Trainer`` (tests/test_minimal.py).

Shapes: B samples, T response positions (right-padded).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rethinker.config import ModelConfig, RethinkConfig
from rethinker.datasets.io import load_queries
from rethinker.datasets.order import QueryOrder
from rethinker.grading import grade_many
from rethinker.grpo import NllScale, group_advantages, nll_loss, policy_loss, truncated_importance_weights
from rethinker.looks import joiner
from rethinker.policy.batching import arrange, micro_batches
from rethinker.policy.forward import PolicyForward, token_logprobs
from rethinker.policy.loading import load_policy
from rethinker.policy.policy import Policy
from rethinker.replay import SelectiveSampleReplay
from rethinker.rethink import TRIGGERS, choose, keep, mark_kept, splice
from rethinker.rollout import TransformersEngine
from rethinker.seeding import stable_seed
from rethinker.types import Group, Query, Request, Sample, Sampling


@dataclass(frozen=True)
class Settings:
    """Those of experiments/tiny.yaml."""

    model: str = "data/tiny-vlm"
    data: str = "data/generated/visual_math/train.parquet"  # made by `rethinker make-data`
    seed: int = 0
    queries: int = 32  # an episode
    group: int = 8  # G responses a query
    max_new_tokens: int = 140
    batch: int = 64  # samples a step
    micro_batch_tokens: int = 4096
    lr: float = 1e-4
    warmup_steps: int = 10
    lifetime: int = 4  # episodes that a sample stays in the replay buffer
    capacity: int = 512
    min_second_look_tokens: int = 32
    nll_coef: float = 0.05
    nll_scale: NllScale = RethinkConfig.nll_scale


def generate_and_grade(engine: TransformersEngine, policy: Policy, queries: Sequence[Query], episode: int, s: Settings):
    """First looks: G graded responses y1 to every query."""
    requests = [Request(q.qid, q, stable_seed(s.seed, "first", episode, q.qid), s.group) for q in queries]
    responses = engine.generate(requests, Sampling(1.0, 1.0, s.max_new_tokens))
    for query in queries:
        grades = grade_many([(r.text, query.answer, query.question) for r in responses[query.qid]])
        samples = tuple(
            Sample(
                sample_id=f"{episode}/{query.qid}/{index}",
                query=query,
                response=response,
                grade=grade,
                reward=float(grade.correct),  # the paper's reward is binary
                episode=episode,
                sampled_mask=(True,) * len(response.token_ids),
                prompt_tokens=len(policy.prompt(query).ids),
            )
            for index, (response, grade) in enumerate(zip(responses[query.qid], grades, strict=True))
        )
        yield Group(query, samples, tuple(sample.grade.correct for sample in samples))


def force_rethinking(engine: TransformersEngine, policy: Policy, groups: list[Group], fraction: float, s: Settings):
    """Second looks: y1 + trigger + y2 for a fraction of the responses; those that end right take the place of y1."""
    firsts = {sample.sample_id: sample for group in groups for sample in group.samples}
    plans = choose(
        list(firsts.values()),
        fraction,
        trigger_ids={kind: policy.tokenizer(text)["input_ids"] for kind, text in TRIGGERS.items()},
        eos_token_id=policy.eos_ids,
        min_second_look_tokens=s.min_second_look_tokens,
        max_new_tokens=s.max_new_tokens,
        seed=s.seed,
        skip_reflective=True,
        join=joiner(policy),
    )
    requests = [
        Request(p.sample_id, firsts[p.sample_id].query, stable_seed(s.seed, "second", p.sample_id), 1, p.prefix_ids)
        for p in plans
    ]
    continuations = engine.generate(requests, Sampling(0.9, 1.0, s.max_new_tokens)) if plans else {}
    for group in groups:
        candidates = []
        for plan in (plan for plan in plans if firsts[plan.sample_id].query.qid == group.query.qid):
            (y2,) = continuations[plan.sample_id]
            text = policy.decode(plan.prefix_ids + y2.token_ids)
            (grade,) = grade_many([(text, group.query.answer, group.query.question)])
            candidates.append(splice(firsts[plan.sample_id], plan, y2, grade, decode=policy.decode))
        yield keep(group, mark_kept(group, candidates, max_per_query=2))


def with_advantages(groups: Sequence[Group]) -> list[Sample]:
    """A = r - mean(r) within each group; exactly 0 where all rewards are equal."""
    rewards_PG = torch.tensor([[sample.reward for sample in group.samples] for group in groups], dtype=torch.float64)
    advantages = group_advantages(rewards_PG, "none").flatten().tolist()
    samples = [sample for group in groups for sample in group.samples]
    return [replace(sample, advantage=advantage) for sample, advantage in zip(samples, advantages, strict=True)]


@torch.no_grad()
def with_behavior_logprobs(policy: Policy, forward: PolicyForward, samples: list[Sample], s: Settings) -> list[Sample]:
    """Log-probs by the policy that wrote the samples; what has no advantage is never trained on and needs none."""
    found = {}
    for part in micro_batches(arrange([x for x in samples if x.effective]), s.micro_batch_tokens, "shared"):
        logprobs_BT, _, _ = token_logprobs(policy, forward, [(x.query, x.response.token_ids) for x in part])
        for sample, row in zip(part, logprobs_BT.tolist(), strict=True):
            found[sample.sample_id] = tuple(row[: len(sample.response.token_ids)])
    return [replace(sample, behavior_logprobs=found.get(sample.sample_id, ())) for sample in samples]


def loss_of(policy: Policy, forward: PolicyForward, part: list[Sample], batch: list[Sample], s: Settings) -> Tensor:
    """The share of the micro-batch ``part`` of the loss of ``batch``: GRPO's, plus the NLL of kept second looks."""
    logprobs_BT, mask_BT, _ = token_logprobs(policy, forward, [(x.query, x.response.token_ids) for x in part])

    def rows(values: list[Sequence[float]]) -> Tensor:
        out = torch.zeros(logprobs_BT.shape)
        for row, value in zip(out, values, strict=True):
            row[: len(value)] = torch.tensor(value, dtype=torch.float32)
        return out

    sampled_BT = rows([x.sampled_mask for x in part]).bool()
    behavior_BT, rollout_BT = rows([x.behavior_logprobs for x in part]), rows([x.response.logprobs for x in part])
    loss, _ = policy_loss(
        logprobs_BT,
        torch.where(sampled_BT, behavior_BT, logprobs_BT.detach()),  # the trigger was not sampled: its ratio is 1
        torch.tensor([x.advantage for x in part]),
        mask_BT,
        clip_low=0.2,
        clip_high=0.3,
        importance_weights_BT=truncated_importance_weights(behavior_BT, rollout_BT, sampled_BT, cap=2.0),
        global_sequences=len(batch),
    )
    if nll_tokens := sum(sum(x.nll_mask) for x in batch):
        nll_BT = rows([x.nll_mask for x in part]).bool()
        nll = nll_loss(logprobs_BT, nll_BT, scale=s.nll_scale, kept_tokens=nll_tokens, global_sequences=len(batch))
        loss = loss + s.nll_coef * nll
    return loss


def train(s: Settings, stages: Sequence[tuple[int, float]] = ((30, 0.0), (70, 0.5)), log=print) -> Policy:
    """Each stage is (episodes, fraction of responses that are forced to rethink). Returns the trained policy."""
    policy = load_policy(ModelConfig(path=s.model))
    forward, engine = PolicyForward(policy.model, policy.encoder), TransformersEngine(policy)
    order, done = QueryOrder(load_queries(s.data)[0], s.seed), 0
    for stage, (episodes, fraction) in enumerate(stages):
        optimizer = torch.optim.AdamW(forward.parameters(), s.lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
        warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / s.warmup_steps))
        seed = stable_seed(s.seed, "replay", stage)
        replay = SelectiveSampleReplay(alpha=1.0, seed=seed, lifetime=s.lifetime, capacity=s.capacity)
        for episode in range(done + 1, done + episodes + 1):
            policy.encoder.forget()  # image features of older weights
            groups = list(generate_and_grade(engine, policy, order.take(s.queries), episode, s))
            accuracy = sum(sum(group.first_correct) for group in groups) / (s.queries * s.group)
            groups = list(force_rethinking(engine, policy, groups, fraction, s)) if fraction else groups
            samples = with_behavior_logprobs(policy, forward.eval(), with_advantages(groups), s)
            replay.start_episode()
            losses, batches = [], []
            for start in range(0, len(samples), s.batch):
                batch = replay.select(samples[start : start + s.batch])  # Algorithm 1
                if not batch:
                    continue  # nothing effective, fresh or stored
                loss = 0.0
                for part in micro_batches(arrange(batch), s.micro_batch_tokens, "shared"):
                    share = loss_of(policy, forward.train(), part, batch, s)
                    share.backward()
                    loss += float(share.detach())
                torch.nn.utils.clip_grad_norm_(forward.parameters(), 1.0)
                optimizer.step()
                warmup.step()
                optimizer.zero_grad()
                losses.append(loss)
                batches.append([sample.sample_id for sample in batch])
            log(f"episode {episode}: accuracy {accuracy:.3f}", losses, batches)
        done += episodes
    return policy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, nargs=2, default=(30, 70), metavar=("SSR", "RETHINKING"))
    first, second = parser.parse_args().episodes
    train(Settings(), ((first, 0.0), (second, 0.5)), lambda text, *_: print(text, flush=True))
