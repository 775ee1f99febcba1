"""A policy on held-out queries as a run's config says: reading the queries, the evaluation."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from rethinker.config import RunConfig, data_source
from rethinker.datasets.io import CheckQuery, Dropped, describe_dropped, load_queries
from rethinker.datasets.pass_rate import PassRateFilter
from rethinker.evaluation.evaluate import evaluate
from rethinker.evaluation.result import Evaluation
from rethinker.policy.lengths import PromptRoom
from rethinker.policy.loading import load_policy
from rethinker.policy.policy import Policy
from rethinker.processes import use_deterministic_algorithms
from rethinker.rollout import make_engine
from rethinker.rollout.base import RolloutEngine
from rethinker.seeding import stable_seed
from rethinker.types import Query, Sampling


def read_source(
    source: str,
    limit: int | None = None,
    check_query: CheckQuery | None = None,
    keep: PassRateFilter | None = None,
) -> tuple[list[Query], list[Dropped]]:
    """The queries of an entry of ``data``, which may name a split (``path:split``), and the dropped rows."""
    path, split = data_source(source)
    if split and Path(path).is_file():
        raise ValueError(f"{source}: {path} is a file, which has no splits")
    return load_queries(path, split, limit, check_query=check_query, keep=keep)


def most_images(queries: list[Query]) -> int:
    """Images of the query that has most of them; at least 1."""
    return max((1, *(len(query.images) for query in queries)))


def evaluate_checkpoint(config: RunConfig) -> Evaluation:
    """The evaluation of ``model.path`` on ``data.test``, in this process."""
    if config.data.test is None:
        raise ValueError("data.test is not set: give data.test=FILE.parquet")
    torch.set_num_threads(config.launch.threads)
    if config.launch.deterministic:
        use_deterministic_algorithms()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    policy = load_policy(
        config.model, device, prompt_suffix=config.data.prompt_suffix, prompt_hint=config.data.prompt_hint
    )
    room = PromptRoom(policy, config.rollout.max_new_tokens)
    queries, dropped = read_source(config.data.test, config.data.test_limit, room)
    if dropped:
        print(describe_dropped(dropped), file=sys.stderr)
    if not queries:
        raise ValueError(f"data.test={config.data.test}: none of its {len(dropped)} rows can be used")
    engine = make_engine(config, policy, max_images=most_images(queries), max_prompt=room.longest)
    try:
        if config.rollout.engine == "server":
            engine.sync_weights(policy.model)
        return test_policy(config, policy, engine, queries)
    finally:
        engine.close()


def sampling(config: RunConfig) -> Sampling:
    """How the policy is sampled; greedy passes of the evaluation change the temperature only."""
    return Sampling(config.rollout.temperature, config.rollout.top_p, config.rollout.max_new_tokens)


def test_policy(config: RunConfig, policy: Policy, engine: RolloutEngine, queries: list[Query]) -> Evaluation:
    """The evaluation of section ``evaluation`` on ``queries``, in this process."""
    return evaluate(
        engine,
        policy,
        queries,
        modes=config.evaluation.modes,
        samples=config.evaluation.samples,
        sampling=sampling(config),
        rethink=config.rethink,
        seed=stable_seed(config.seed, "test"),
    )
