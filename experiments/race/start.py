"""A worker that makes the start ``reflecting``: GRPO with Forced Rethinking from the base, until responses begin to
reflect by themselves. From there on every method has something to learn without being forced.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import beside  # noqa: F401
from channel import Driver
from entrants import REFLECTING, race_config

from rethinker.policy.loading import save_model
from rethinker.run import TrainingRun

SEED, RATE = 101, 1e-4  # a seed that is none of the sweep's or the race's


def main() -> None:
    """Answer the driver once: how much it reflects, and after how many episodes."""
    driver = Driver()
    job = driver.receive()
    assert job is not None
    target = Path(job["model"])
    run = TrainingRun(race_config("grpo-rethink", SEED, RATE, job["folder"]))
    trainer = run.make_trainer(0, run.config.for_stage(0))
    reflection = 0.0
    while reflection < REFLECTING:
        reflection = float(trainer.episode()["reflection/share"])
    found = {"reflection": reflection, "episode": run.progress.episode, "tokens": run.progress.tokens}
    fresh = target.with_name(target.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    save_model(run.policy, fresh)
    (fresh / "start.json").write_text(json.dumps(found | {"seed": SEED, "lr": RATE}))
    fresh.rename(target)  # a start is there whole or not at all
    run.engine.close()
    driver.send(found)


if __name__ == "__main__":
    main()
