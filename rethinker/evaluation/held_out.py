"""A policy on held-out queries as a run's config says: reading the queries, the evaluation."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rethinker.config import RunConfig, data_source
from rethinker.config.settings import Split
from rethinker.datasets.drawn import LEFT_TO_THE_DRAW
from rethinker.datasets.filters import RowFilter
from rethinker.datasets.io import Dropped, describe_dropped, load_queries
from rethinker.evaluation.evaluate import evaluate
from rethinker.evaluation.result import Evaluation
from rethinker.policy.lengths import PromptRoom
from rethinker.policy.loading import Weights, load_outline, load_policy
from rethinker.policy.policy import Policy
from rethinker.processes import use_deterministic_algorithms
from rethinker.rollout import engine_name, make_engine
from rethinker.rollout.base import RolloutEngine
from rethinker.seeding import stable_seed
from rethinker.types import Query, Sampling


def read_split(
    config: RunConfig, use: Split, room: PromptRoom | None = None, keep: RowFilter | None = None
) -> tuple[list[Query], list[Dropped]]:
    """The queries that ``data`` names for ``use``, which may be a split (``path:split``), and the dropped rows; none of
    either where it names none. ``keep``: which training rows are wanted."""
    data = config.data
    source = {"train": data.train, "validation": data.validation, "test": data.test}[use]
    if source is None:
        return [], []
    path, split = data_source(source)
    if split and Path(path).is_file():
        raise ValueError(f"{source}: {path} is a file, which has no splits")
    options: dict[str, Any] = {"check_query": room}
    if checked_when_drawn(config, use):
        options = LEFT_TO_THE_DRAW | {"check_query": room.at_most if room else None}
    return load_queries(
        path,
        split,
        {"train": data.train_limit, "validation": None, "test": data.test_limit}[use],
        columns=data.columns_for(use),
        keep=keep,
        **options,
    )


def checked_when_drawn(config: RunConfig, use: Split) -> bool:
    """Whether the rows for ``use`` are not all checked when they are read."""
    return use == "train" and config.data.checks == "when_drawn"


def most_images(queries: list[Query]) -> int:
    """Images of the query that has most of them; at least 1."""
    return max((1, *(len(query.images) for query in queries)))


def policy_to_ask(config: RunConfig, *, prompt_suffix: str, prompt_hint: str) -> Policy:
    """``model.path`` for an evaluation in this process, which needs its prompts and, for some engines, its weights.

    vLLM in process has its own. Those for servers are sent from the machine's memory: the servers may have its GPUs to
    themselves. The transformers engine runs them. Not run on GPUs.
    """
    # With its number, which NCCL's way to servers asks for.
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    model = replace(config.model, lora_rank=0)  # fresh adapters would change nothing
    name = engine_name(config)
    if name == "vllm":
        policy = load_outline(model, prompt_suffix=prompt_suffix, prompt_hint=prompt_hint)
        policy.device = device
        return policy
    place: Weights = "waiting" if name == "server" else "here"
    return load_policy(model, device, prompt_suffix=prompt_suffix, prompt_hint=prompt_hint, weights=place)


def evaluate_checkpoint(config: RunConfig) -> Evaluation:
    """The evaluation of ``model.path`` on ``data.test``, in this process."""
    if config.data.test is None:
        raise ValueError("data.test is not set: give data.test=FILE.parquet")
    torch.set_num_threads(config.launch.threads)
    if config.launch.deterministic:
        use_deterministic_algorithms()
    policy = policy_to_ask(config, prompt_suffix=config.data.prompt_suffix, prompt_hint=config.data.prompt_hint)
    room = PromptRoom(policy, config.rollout.max_new_tokens)
    queries, dropped = read_split(config, "test", room)
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
