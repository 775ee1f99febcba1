"""The configuration of a run: frozen dataclasses, filled from YAML and ``key=value`` overrides.

Every field says its unit and where its default comes from: "paper" (arXiv 2504.08837), "official code" or "ours".
Unknown keys and bad values are errors that name the key, the value, what is allowed and the nearest valid key.
Two-stage runs (the paper's VL-Reasoner, then VL-Rethinker) are one file: ``stages`` holds overrides per stage.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rethinker.config.paths import placed, portable
from rethinker.config.run_config import RunConfig
from rethinker.config.schema import ConfigError, build, plain


def load_config(path: str | Path | None = None, overrides: Sequence[str] = (), typed: Sequence[str] = ()) -> RunConfig:
    """The config of a YAML file with ``section.key=value`` overrides; every stage's settings are checked too.

    ``overrides`` count as lines of the file, ``typed`` ones come after them and were typed by a person: relative paths
    in them start in the working directory, whatever ``relative_to`` is.

    Raises ConfigError for an unreadable file, an unknown key or a bad value.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        loaded = OmegaConf.load(path) if path else OmegaConf.create({})
        for item in (*overrides, *typed):
            _override(loaded, item)
        values = OmegaConf.to_container(loaded, resolve=True)
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path or 'overrides'}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds no mapping of settings")
    config = build(RunConfig, {str(key): value for key, value in values.items()})
    if config.relative_to == "repository":
        config = build(RunConfig, placed(plain(config), [item.partition("=")[0] for item in typed]))
    for index in range(len(config.stages)):
        config.for_stage(index)
    return config


def _override(loaded: Any, item: str) -> None:
    """Apply ``key=value``; keys may point into lists (stages.0.episodes=2), which a dotlist of OmegaConf's may not."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    key, equals, text = item.partition("=")
    if not (key and equals):
        raise ConfigError(f"{item!r}: an override is written key=value, e.g. optim.lr=5e-5")
    try:
        parsed: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))  # ${...} refers to the config
        OmegaConf.update(loaded, key, parsed["value"], merge=True)
    except (OmegaConfBaseException, YAMLError, ValueError, TypeError) as error:
        raise ConfigError(f"{item!r}: {' '.join(str(error).split())}") from error


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Plain dicts and lists, ready for YAML and JSON, and for other machines: ``load_config`` undoes it."""
    values = plain(config)
    return portable(values) if config.relative_to == "repository" else values


def to_yaml(config: RunConfig) -> str:
    """The resolved config as YAML; ``load_config`` reads it back to an equal config."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(_escaped(to_dict(config))))


def _escaped(value: Any) -> Any:
    """The texts so that ``${`` in them, which OmegaConf takes for the start of a reference, is read back as it is."""
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    return value
