"""A run of any config made small by a few parameters, as notebook 06 has them; its data drawn where that is wanted."""

from __future__ import annotations

import shlex
from pathlib import Path

from rethinker.config import RunConfig, load_config
from rethinker.config.repository import repository_root
from rethinker.datasets.world.visual_math import make_data

VALIDATION_QUERIES = 36  # of drawn data


def cut_down(
    config: str | Path,
    *,
    name: str = "",
    runs_dir: str = "",
    processes: int = 0,
    engine: str = "",
    episodes: int = 0,
    queries_per_episode: int = 0,
    group_size: int = 0,
    train_batch_size: int = 0,
    validate_every: int = 0,
    draw_queries: int = 0,
    seed: int = 0,
    overrides: str = "",
) -> RunConfig:
    """The run of a YAML file, where 0 and "" mean: as the file says. Paths start at the repository's root.

    ``episodes``: of each stage; ``validate_every``: episodes between validations; ``overrides``: more settings, as on
    the command line, which have the last word. ``draw_queries``: so many training queries of the visual-math world are
    drawn for this run, and 36 for validation, into ``<runs_dir>/.data``; 0: the data that the file names.
    Raises ConfigError for an unknown setting or a bad value, before anything is drawn.
    """
    root = repository_root()
    given = {
        "name": name,
        "runs_dir": runs_dir,
        "seed": seed,
        "launch.processes": processes,
        "rollout.engine": engine,
        "queries_per_episode": queries_per_episode,
        "rollout.group_size": group_size,
        "optim.train_batch_size": train_batch_size,
        "evaluation.every": validate_every,
    }
    settings = [f"{key}={value}" for key, value in given.items() if value]
    if episodes:
        settings += [f"stages.{index}.episodes={episodes}" for index in range(len(load_config(root / config).stages))]
    more = shlex.split(overrides)
    run = load_config(root / config, [*settings, *more])
    if draw_queries:
        data = Path(run.runs_dir) / ".data" / f"{run.name}-{draw_queries}-{run.seed}"
        drawn = [f"data.train={data}/train.parquet", f"data.validation={data}/validation.parquet", "data.test=null"]
        run = load_config(root / config, [*settings, *drawn, *more])
        make_data(root / data, draw_queries, VALIDATION_QUERIES, 0, run.seed)
    return run
