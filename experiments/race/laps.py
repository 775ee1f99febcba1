"""The clocks of a run, which stop while it is evaluated, and its laps: training until the CPU clock has passed a slice,
then an evaluation, then waiting until the driver lets it run again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import beside  # noqa: F401
from channel import Driver
from meter import now, since

from rethinker.config import RunConfig
from rethinker.evaluation.evaluate import validate
from rethinker.evaluation.held_out import sampling
from rethinker.policy.policy import Policy
from rethinker.rollout import TransformersEngine
from rethinker.types import Query

Accuracy = Callable[[str], tuple[float, int]]  # of a split: greedy accuracy, and how many queries it has


class Laps:
    """``wait()`` before the first episode and ``after(...)`` behind each; both say whether to train on.

    Seconds are of this process, all of its threads: what the grader's own process takes is not in the CPU seconds.
    """

    def __init__(self, driver: Driver, slice_seconds: float, accuracy: Accuracy) -> None:
        self.driver, self.slice_seconds, self.accuracy = driver, slice_seconds, accuracy
        self.seconds = (0.0, 0.0)  # wall and CPU, of the laps that are over
        self.done = {"episode": 0, "step": 0, "tokens": 0}

    def wait(self) -> bool:
        """Answer with an evaluation; True where another lap is wanted, whose clock runs from here."""
        split = "validation"
        while True:
            accuracy, queries = self.accuracy(split)
            wall, cpu = self.seconds
            row = {"split": split, "wall_s": wall, "cpu_s": cpu, **self.done, "accuracy": accuracy, "queries": queries}
            self.driver.send(row)
            command = self.driver.receive()
            if command is None:
                return False
            if command["step"] == "train":
                self.started = now()
                return True
            split = command["step"]

    def after(self, **done: int) -> bool:
        """An episode is over; ``done``: episodes, steps and generated tokens so far."""
        wall, cpu = since(self.started)
        if cpu < self.slice_seconds:
            return True
        self.seconds = (self.seconds[0] + wall, self.seconds[1] + cpu)
        self.done = done
        return self.wait()


def evaluator(config: RunConfig, policy: Policy, splits: dict[str, list[Query]], model: Any = None) -> Accuracy:
    """Greedy accuracy by our transformers engine. ``model``: whose weights, if not those of ``policy`` itself."""
    engine = TransformersEngine(policy, config.rollout.batch_size)

    def accuracy(split: str) -> tuple[float, int]:
        engine.sync_weights(policy.model if model is None else model)
        found = validate(engine, policy, splits[split], sampling=sampling(config), seed=config.seed)
        metrics = found.validation_metrics()
        return float(metrics["validation/accuracy"] or 0.0), len(splits[split])

    return accuracy
