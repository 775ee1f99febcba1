"""Our side: the real run, put together by ``rethinker.run``, one episode with one update a step.

Changed for the benchmark, and nothing else: EOS is banned, and the grader's verdicts (not its work) are replaced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from channel import Driver, digest
from meter import Meter, scoring_part
from rates import machine_rates
from world import LEARNING_RATE, SEED, Point, check_lengths, grade_by_parity, never_sampled

from rethinker.config import RunConfig, load_config
from rethinker.policy.policy import Policy
from rethinker.run import TrainingRun
from rethinker.types import Request, Response, Sampling

MICRO_BATCH_TOKENS = 2048  # about the fastest on a CPU, whose caches hold that many


def run_config(point: Point, job: Mapping[str, Any]) -> RunConfig:
    """The settings of a step of ``point``: plain GRPO, every sample trained, one update an episode, AdamW."""
    return load_config(
        None,
        [
            f"runs_dir={job['folder']}",
            f"name={point.name}",
            f"seed={SEED}",
            f"model.path={job['model']}",
            f"model.forward={job['forward']}",
            f"model.autocast={str(job['dtype'] == 'bfloat16').lower()}",
            f"data.train={job['queries'][point.name]}",
            f"queries_per_episode={point.queries}",
            "rollout.engine=transformers",
            "rollout.canary=0",
            f"rollout.group_size={point.group}",
            f"rollout.max_new_tokens={point.tokens}",
            "replay.mode=grpo",
            f"optim.lr={LEARNING_RATE}",
            f"optim.micro_batch_tokens={MICRO_BATCH_TOKENS}",
            f"optim.train_batch_size={point.samples}",
            "launch.threads=1",
        ],
    )


class MeasuredRun(TrainingRun):
    """A run whose responses all have the full length, with stopwatches on it."""

    def __init__(self, point: Point, job: Mapping[str, Any], meter: Meter) -> None:
        super().__init__(run_config(point, job))
        self.point, self.dtype = point, getattr(torch, job["dtype"])
        self.meter = meter
        self.prompts: list[str] = []
        self.trainer = self.make_trainer(0, self.config.for_stage(0))
        self.trainer.actor = replace(self.trainer.actor, grade=grade_by_parity)
        self.meter.watch(self.policy.model, self.accelerator)
        self.meter.watch_optimizer(self.trainer.update.optimizer)
        self.forward.forward = self.meter.wrap(self.forward.forward, scoring_part)
        self._generate = self.meter.wrap(self.engine.generate, "generation")
        self.engine.generate = self.generate  # type: ignore[assignment, method-assign]

    def load_policy(self, saved: Path | None) -> Policy:
        policy = super().load_policy(saved)
        return replace(policy, banned_ids=tuple(never_sampled(policy.tokenizer)))

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Mapping[str, tuple[Response, ...]]:
        """The engine's responses, checked."""
        found: Mapping[str, tuple[Response, ...]] = self._generate(requests, sampling)
        check_lengths("ours", [response.token_ids for group in found.values() for response in group], self.point)
        self.prompts = [digest(self.policy.prompt(request.query).ids) for request in requests]
        return found

    def step(self, count: bool) -> dict[str, Any]:
        """One episode; ``count`` its floating-point operations."""
        self.meter.start(count)
        metrics = self.trainer.episode()
        measured = self.meter.stop()
        # By the trainer's own clock: everything after roll-out and grading that grows with the samples.
        training = metrics["time/logprobs"] + metrics["time/train"]
        rates = machine_rates(self.policy.model, self.point.samples, self.dtype, decoding=torch.float32)
        return {**measured, "training": training, "prompts": self.prompts, "rates": rates}


def main() -> None:
    """Answer the driver."""
    driver = Driver()
    job = driver.receive()
    assert job is not None
    torch.set_num_threads(1)
    meter = Meter()
    points = [Point(**settings) for settings in job["points"]]
    runs = {point.name: MeasuredRun(point, job, meter) for point in points}
    policy = runs[points[0].name].policy
    meter.watch_preprocessing(type(policy.images.image_processor))
    meter.loaded()
    driver.send({"parameters": policy.model.num_parameters(), "loaded_mb": meter.loaded_mb})
    while command := driver.receive():
        driver.send(runs[command["step"]].step(command["count"]))


if __name__ == "__main__":
    main()
