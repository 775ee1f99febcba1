"""A worker: our run, put together by ``rethinker.run`` as `rethinker train` does, in laps."""

from __future__ import annotations

import beside  # noqa: F401
from channel import Driver
from entrants import race_config
from laps import Laps, evaluator

from rethinker.run import TrainingRun


def train(run: TrainingRun, laps: Laps) -> None:
    """Episodes, until the driver has had enough."""
    trainer, wanted = run.make_trainer(0, run.config.for_stage(0)), True
    while wanted:
        trainer.episode()
        at = run.progress
        wanted = laps.after(episode=at.episode, step=at.step, tokens=at.tokens)


def main() -> None:
    """Answer the driver."""
    driver = Driver()
    job = driver.receive()
    assert job is not None
    run = TrainingRun(race_config(**job["config"]))
    splits = {"validation": run.validation_queries, "test": run.test_queries}
    laps = Laps(driver, job["slice"], evaluator(run.config, run.policy, splits))
    if laps.wait():
        train(run, laps)
    run.engine.close()


if __name__ == "__main__":
    main()
