"""A worker: our run, put together by ``rethinker.run`` as `rethinker train` does, in laps."""

from __future__ import annotations

import beside  # noqa: F401
from channel import Driver
from entrants import race_config
from laps import Laps, evaluator

from rethinker.run import TrainingRun


def train(run: TrainingRun, laps: Laps) -> None:
    """The stages' episodes, until the driver has had enough."""
    for index, stage in enumerate(run.config.stages):
        trainer = run.make_trainer(index, run.config.for_stage(index))
        for _ in range(stage.episodes):
            trainer.episode()
            at = run.progress
            if not laps.after(episode=at.episode, step=at.step, tokens=at.tokens):
                return
        run.progress.stage, run.progress.stage_episode = index + 1, 0


def main() -> None:
    """Answer the driver."""
    driver = Driver()
    job = driver.receive()
    assert job is not None
    run = TrainingRun(race_config(job["entrant"], job["seed"], job["lr"], job["folder"], job["overrides"]))
    splits = {"validation": run.validation_queries, "test": run.test_queries}
    laps = Laps(driver, job["slice"], evaluator(run.config, run.policy, splits))
    if laps.wait():
        train(run, laps)
    run.engine.close()


if __name__ == "__main__":
    main()
