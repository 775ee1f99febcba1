"""A run of any config made small: what is given is set, 0 and "" leave what the file says."""

from __future__ import annotations

from pathlib import Path

import pytest

from rethinker.config import ConfigError, load_config
from rethinker.datasets.io import load_queries
from rethinker.lab.notebook.cut_down import cut_down

ROOT = Path(__file__).parents[1]
CONFIGS = ("experiments/tiny.yaml", "experiments/vl_rethinker_7b.yaml")


@pytest.mark.parametrize("config", CONFIGS)
def test_nothing_given_is_the_file(config):
    assert cut_down(config) == load_config(ROOT / config)


def test_what_is_given_is_set(tmp_path):
    run = cut_down(
        CONFIGS[0],
        name="small",
        runs_dir=str(tmp_path),
        processes=1,
        engine="transformers",
        episodes=3,
        queries_per_episode=4,
        group_size=2,
        train_batch_size=8,
        validate_every=7,
        seed=5,
        overrides="rethink.nll_coef=0.5 seed=6",
    )
    assert run.folder == tmp_path / "small" and [stage.episodes for stage in run.stages] == [3, 3, 3]
    assert (run.launch.processes, run.rollout.engine, run.rollout.group_size) == (1, "transformers", 2)
    assert (run.queries_per_episode, run.optim.train_batch_size, run.evaluation.every) == (4, 8, 7)
    assert (run.rethink.nll_coef, run.seed) == (0.5, 6)  # the overrides have the last word
    assert run.data == load_config(ROOT / CONFIGS[0]).data


def test_a_config_of_one_stage(tmp_path):
    file = tmp_path / "one.yaml"
    file.write_text("stages:\n- {name: only, episodes: 9}\n")
    assert [stage.episodes for stage in cut_down(file, episodes=2).stages] == [2]


def test_data_are_drawn(tmp_path):
    run = cut_down(CONFIGS[0], name="drawn", runs_dir=str(tmp_path), draw_queries=40)
    assert len(load_queries(run.data.train)[0]) == 40 and len(load_queries(run.data.validation)[0]) == 36
    assert run.data.test is None and Path(run.data.train).is_relative_to(tmp_path / ".data")
    assert cut_down(CONFIGS[0], name="drawn", runs_dir=str(tmp_path), draw_queries=40) == run


def test_a_mistake_draws_nothing(tmp_path):
    with pytest.raises(ConfigError, match=r"rollout\.engine='vlm'"):
        cut_down(CONFIGS[0], runs_dir=str(tmp_path), draw_queries=40, engine="vlm")
    with pytest.raises(ConfigError, match="does not divide the 24 samples"):
        cut_down(CONFIGS[0], runs_dir=str(tmp_path), draw_queries=40, queries_per_episode=3, train_batch_size=5)
    assert not list(tmp_path.iterdir())
