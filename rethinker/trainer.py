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
from rethinker.experience import Experience
from rethinker.policy.batching import arrange, micro_batches
from rethinker.policy.forward import token_logprobs
from rethinker.policy.loading import Policy
from rethinker.replay import Selector
from rethinker.rollout.base import RolloutEngine
from rethinker.rollout.canary import canary_gap
from rethinker.rundir.metrics import (
    Episode,
    episode_metrics,
    generated_tokens,
    replay_ages,
    rollout_rows,
)
from rethinker.rundir.tracking import Tracker
from rethinker.seeding import stable_seed
from rethinker.types import Request, Sample
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
        self.selector = selector
        self.update = update
        self.tracker = tracker
        self.accelerator = accelerator
        self.progress = progress
        self.seconds: dict[str, float] = defaultdict(float)
        self.experience = Experience(
            config, policy=policy, engine=engine, order=order, accelerator=accelerator, timed=self.timed
        )

    def episode(self) -> dict[str, Any]:
        """Roll out by the frozen behaviour policy, then Algorithm 1 and an update for every batch; returns metrics."""
        self.seconds.clear()
        self.policy.encoder.forget()
        images = self.image_counts()
        with self.timed("episode"):
            record = Episode(
                self.progress.episode + 1, self.stage, self.config.queries_per_episode, self.config.rollout.group_size
            )
            groups = self.experience.collect(record)
            self.engine.sleep()
            mine = [sample for group in groups for sample in group.samples]
            on_policy = self.single_update(record)
            if not on_policy:
                mine = self.with_behavior_logprobs(mine)
            scored = {sample.sample_id: sample for sample in gather_object(mine)}
            # In the order of the groups, not of the ranks: the batches are the same for any number of ranks.
            samples = [scored[sample.sample_id] for group in record.groups for sample in group.samples]
            self.selector.start_episode()
            with self.timed("train"):
                for raw_batch in parts(samples, self.config.batches(len(samples))):
                    batch = self.selector.select(raw_batch)
                    self.step(batch, record, on_policy)
            with self.timed("sync"):
                self.engine.sync_weights(self.policy.model)
            canary = self.check_engine(record)
        if on_policy:
            found = {name: row for part in gather_object([self.update.scored]) for name, row in part.items()}
            gaps = [engine_gaps([replace(s, behavior_logprobs=found.get(s.sample_id, ())) for s in samples])]
        else:
            gaps = gather_object([engine_gaps(mine)])
        used = gather_object([[after - before for after, before in zip(self.image_counts(), images, strict=True)]])
        record.images_decoded, record.images_encoded = (sum(column) for column in zip(*used, strict=True))
        return self.report(record, gaps, canary)

    def image_counts(self) -> tuple[int, int]:
        """Images that this rank has decoded, and sent through the policy's vision tower, so far."""
        return self.policy.images.decoded, self.policy.encoder.encoded

    def single_update(self, record: Episode) -> bool:
        """Whether the episode makes one update, on its own samples only.

        Then the behaviour policy's log-probs are those of the update's own forward pass, and nothing is computed twice.
        """
        size = sum(len(group.samples) for group in record.groups)
        return self.config.batches(size) <= 1 and not self.config.replay.outlives

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
            gap = canary_gap(self.engine, self.policy, forward, probe, self.experience.sampling)
        if gap is not None and not gap <= limit:  # NaN is far apart too
            raise RuntimeError(
                f"after the weight sync of episode {record.number} engine and trainer differ by {gap:.3g} nats a token "
                f"(rollout.canary={limit}): the engine does not run the trainer's weights or prompts. One of lower "
                "precision (rollout.dtype, model.dtype) differs by rounding alone and needs a larger rollout.canary"
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
        self.tracker.warn()
        return metrics

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to ``time/<name>``."""
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start


TIMES = ("rollout", "grade", "rethink", "logprobs", "train", "sync", "episode")


def parts(items: Sequence[Any], count: int) -> Iterator[Sequence[Any]]:
    """``count`` consecutive parts of all items, none longer than another by more than one."""
    for index in range(count):
        yield items[index * len(items) // count : (index + 1) * len(items) // count]


def engine_gaps(samples: Sequence[Sample]) -> tuple[float, int, float]:
    """Sum, number and maximum of abs(engine - trainer) of the log-probs of sampled first-response tokens, in nats."""
    gaps = [
        abs(rollout - behavior)
        for sample in samples
        if sample.behavior_logprobs and sample.rethinking is None
        for rollout, behavior in zip(sample.rollout_logprobs, sample.behavior_logprobs, strict=True)
    ]
    return sum(gaps), len(gaps), max(gaps, default=0.0)
