"""A grid of runs, as a file says it: which ones, resolved and checked before anything starts.

A grid file names a base config, axes whose points are labelled lists of overrides, seeds, and overrides that all share:

    base: experiments/tiny.yaml
    axes:
      replay: {ssr: [replay.mode=ssr], filter: [replay.mode=filter]}
    seeds: [0, 1, 2]
    slots: 2                      # runs in parallel
    common: [launch.processes=1]
    baseline: filter              # paired differences are taken against it
    slurm: {gpus_per_node: 8, slurm_partition: gpu}   # for --on slurm: submitit's parameters

A setting can depend on the run's seed: 'model.path=runs/first-s\\${seed}/checkpoints/last/model' (in a grid file, where
the backslash leaves the reference to the run's config).

Its runs are named ``<grid>-<labels>-s<seed>`` and lie beside all others in ``runs_dir``, each with its log; the table
is in ``<runs_dir>/<grid>/``. Every number is read from the files of the runs.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from rethinker.config import RunConfig, check_name, check_trainable, load_config
from rethinker.config.repository import find_repository
from rethinker.config.schema import ConfigError, build, option
from rethinker.lab.ablation.table import COLUMNS
from rethinker.rundir.paths import RunDir


@dataclass(frozen=True)
class GridFile:
    """A grid as its file says it."""

    name: str = ""  # of the grid; default: the file's
    base: str = ""  # YAML config of a run
    # Where base and the paths in common and axes start; what is typed on the command line starts in the working
    # directory.
    relative_to: Literal["working_directory", "repository"] = "working_directory"
    axes: dict[str, Any] = field(default_factory=dict)  # axis -> label -> list of key=value
    seeds: tuple[int, ...] = option((0,), min=0)
    slots: int = option(1, min=1)  # runs in parallel
    common: tuple[str, ...] = ()  # key=value, for every run
    baseline: str | None = None  # label (of several axes: joined by "-") that differences are taken against
    # For --on slurm: parameters of submitit's AutoExecutor, e.g. timeout_min, nodes, gpus_per_node, cpus_per_task,
    # slurm_partition, slurm_account, slurm_additional_parameters.
    slurm: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class GridRun:
    """One run of a grid."""

    labels: Mapping[str, str]  # axis -> label
    overrides: tuple[str, ...]  # what sets it apart from the others
    config: RunConfig

    @property
    def label(self) -> str:
        """The labels of all axes, joined; runs that differ in their seed only share it."""
        return "-".join(self.labels.values())


@dataclass(frozen=True)
class Grid:
    """A grid, resolved and checked: every run's config is valid and every name its own."""

    name: str
    folder: Path
    axes: tuple[str, ...]
    runs: tuple[GridRun, ...]
    slots: int
    baseline: str | None
    slurm: Mapping[str, Any] = field(default_factory=dict)
    only: frozenset[str] = frozenset()  # names of the runs that are wanted; empty: all are

    @property
    def wanted(self) -> list[GridRun]:
        """The runs to be made; the table has the others too."""
        return [run for run in self.runs if not self.only or run.config.name in self.only]

    @property
    def labels(self) -> list[str]:
        """The labels that are compared, in the order of the file."""
        return list(dict.fromkeys(run.label for run in self.runs))


def load_grid(path: str | Path, overrides: Sequence[str] = (), only: Sequence[str] | None = None) -> Grid:
    """The grid of a YAML file. ``overrides``: the keys of ``GridFile`` are its own, others every run's.

    ``only``: labels; the other runs are not wanted. Seeds among ``overrides`` are then those that are wanted, beside
    the file's.

    Raises ConfigError for an unreadable file, an unknown key (naming the nearest) or label, a bad value, a setting that
    is given in two places, two runs of one name, or any run whose config is not valid.
    """
    try:
        grid = _resolve(*_read(path, overrides))
        if only is None:
            return grid
        unknown = [label for label in only if label not in grid.labels]
        if unknown or not only:
            raise ConfigError(f"{' '.join(['--only', *unknown])}: the labels are {', '.join(grid.labels)}")
        wanted = {run.config.name: run for run in grid.runs if run.label in only}
        whole = _resolve(*_read(path, [item for item in overrides if not item.startswith("seeds=")]))
        runs = {run.config.name: run for run in whole.runs} | wanted
        return replace(whole, runs=tuple(runs.values()), only=frozenset(wanted))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _read(path: str | Path, overrides: Sequence[str]) -> tuple[GridFile, tuple[str, ...]]:
    """The grid file with the overrides that are its own, and the others."""
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    own = {item.name for item in fields(GridFile)}
    mine = [item for item in overrides if item.partition("=")[0].partition(".")[0] in own]
    try:
        loaded = OmegaConf.load(path)
        if not isinstance(loaded, DictConfig):
            raise ConfigError(f"holds no mapping of settings; a grid has: {', '.join(sorted(own))}")
        merged = OmegaConf.to_container(OmegaConf.merge(loaded, OmegaConf.from_dotlist(mine)), resolve=True)
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(" ".join(str(error).split())) from error
    values = {str(key): value for key, value in dict(merged).items()}  # type: ignore[arg-type]
    file = build(GridFile, values | {"common": values.get("common") or []})
    if not file.base:
        raise ConfigError("base is missing: the config that every run starts from, e.g. base: experiments/tiny.yaml")
    if not file.axes:
        raise ConfigError(
            "axes is missing, e.g. axes: {replay: {ssr: [replay.mode=ssr], filter: [replay.mode=filter]}}"
        )
    if not file.seeds or len(set(file.seeds)) != len(file.seeds):
        raise ConfigError(f"seeds={list(file.seeds)}: needs at least one, and each once")
    root = find_repository() if file.relative_to == "repository" else None
    if root and not any(item.startswith("base=") for item in mine):
        file = replace(file, base=os.path.join(root, file.base))
    return replace(file, name=file.name or Path(path).stem), tuple(item for item in overrides if item not in mine)


def _resolve(file: GridFile, typed: tuple[str, ...]) -> Grid:
    check_name("name", file.name)
    axes = {str(axis): _points(str(axis), points) for axis, points in file.axes.items()}
    _check_sources({"common": {"common": (*file.common, *typed)}, **axes})
    runs = []
    for combination in itertools.product(*(points.items() for points in axes.values())):
        labels = dict(zip(axes, (label for label, _ in combination), strict=True))
        settings = tuple(item for _, items in combination for item in items)
        for seed in file.seeds:
            name = f"{file.name}-{'-'.join(labels.values())}-s{seed}"
            own = (*settings, f"seed={seed}")
            group = (f"name={name}", f"tracking.wandb_group={file.name}")
            try:
                if file.relative_to == "repository":
                    config = load_config(file.base, (*group, *file.common, *own), typed)
                else:
                    config = load_config(file.base, group, (*file.common, *typed, *own))
                check_trainable(config)
            except ConfigError as error:
                raise ConfigError(f"run {name}: {error}") from None
            runs.append(GridRun(labels, own, config))
    names = [run.config.name for run in runs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"two runs would be called {twice[0]}: choose labels that differ when joined by '-'")
    folder = Path(runs[0].config.runs_dir) / file.name
    if RunDir(folder).config.exists():
        raise ConfigError(f"{folder} is the folder of a run: choose another name=... for the grid")
    grid = Grid(file.name, folder, tuple(axes), tuple(runs), file.slots, file.baseline, file.slurm)
    if file.baseline is not None and file.baseline not in grid.labels:
        raise ConfigError(f"baseline={file.baseline!r}: the labels are {', '.join(grid.labels)}")
    return grid


def _points(axis: str, points: Any) -> dict[str, tuple[str, ...]]:
    """label -> overrides of an axis."""
    check_name("axes", axis)
    if axis in COLUMNS:
        raise ConfigError(f"axes.{axis}: the table has a column of that name; taken are {', '.join(COLUMNS)}")
    if not isinstance(points, dict) or not points:
        raise ConfigError(f"axes.{axis}={points!r}: expected labels with lists of key=value")
    for label, items in points.items():
        if isinstance(label, bool) or label is None:
            raise ConfigError(f"axes.{axis}: YAML reads the label as {label!r}; put it into quotes")
        check_name(f"axes.{axis}", str(label))
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise ConfigError(f"axes.{axis}.{label}={items!r}: expected a list of key=value, e.g. [replay.mode=ssr]")
    return {str(label): tuple(items) for label, items in points.items()}


def _check_sources(sources: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
    """A setting has one source, ``common`` or one axis; the name and the seed belong to the grid itself."""
    owner: dict[str, str] = {}
    for source, points in sources.items():
        keys = {item.partition("=")[0] for items in points.values() for item in items}
        for key in sorted(keys):
            if key in ("name", "seed"):
                raise ConfigError(
                    f"{source} sets {key}: a run's name and seed come from the grid (name=..., seeds=[...])"
                )
            if key == "runs_dir" and source != "common":
                raise ConfigError(f"{source} sets runs_dir: all runs of a grid lie in one folder; set it in common")
            for other, its in owner.items():
                if f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}."):
                    raise ConfigError(f"{key} is set by {source}, {other} by {its}: set it in one place")
        owner |= dict.fromkeys(keys, source)
