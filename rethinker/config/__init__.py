"""The configuration of a run: typed, frozen settings, filled from YAML and ``key=value`` overrides."""

from rethinker.config.loading import load_config, to_dict, to_yaml
from rethinker.config.paths import data_source
from rethinker.config.run_config import RunConfig, check_name, check_own_weights, check_trainable
from rethinker.config.schema import ConfigError
from rethinker.config.settings import (
    BudgetConfig,
    DataConfig,
    EvaluationConfig,
    GrpoConfig,
    LaunchConfig,
    ModelConfig,
    OptimConfig,
    ReplayConfig,
    RethinkConfig,
    RewardConfig,
    RolloutConfig,
    StageConfig,
    TrackingConfig,
)

__all__ = [
    "BudgetConfig",
    "ConfigError",
    "DataConfig",
    "EvaluationConfig",
    "GrpoConfig",
    "LaunchConfig",
    "ModelConfig",
    "OptimConfig",
    "ReplayConfig",
    "RethinkConfig",
    "RewardConfig",
    "RolloutConfig",
    "RunConfig",
    "StageConfig",
    "TrackingConfig",
    "check_name",
    "check_own_weights",
    "check_trainable",
    "data_source",
    "load_config",
    "to_dict",
    "to_yaml",
]
