"""A grid of runs: which ones, started side by side and resumable, and what came out of them in one tidy table.

A grid file names a base config, axes whose points are labelled lists of overrides, seeds, and overrides that all share:

    base: experiments/tiny.yaml
    axes:
      replay: {ssr: [replay.mode=ssr], filter: [replay.mode=filter]}
    seeds: [0, 1, 2]
    slots: 2                      # runs at once
    common: [launch.processes=1]
    baseline: filter              # paired differences are taken against it

Its runs are named ``<grid>-<labels>-s<seed>`` and lie beside all others in ``runs_dir``; the table, the resolved
configs and the logs are in ``<runs_dir>/<grid>/``. Every number is read from the files of the runs.
"""

from __future__ import annotations

import io
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pandas as pd

from rethinker import locks
from rethinker.ablation_table import COLUMNS, run_rows, typed
from rethinker.config import RunConfig, check_name, check_trainable, load_config, to_yaml
from rethinker.files import atomic_write_bytes, atomic_write_text
from rethinker.launch import LOCK
from rethinker.run_folder import check_folder, run_state
from rethinker.schema import ConfigError, build, option
from rethinker.slots import Ending, Job, log_end, run_in_slots

FINISHED, BUSY = "nothing: finished", "nothing: another job writes it"
STATES = {FINISHED: "finished", BUSY: "running"}  # outcomes of runs that are left alone
GENERATED = "data/generated/"  # what `rethinker train` draws where it is missing


@dataclass(frozen=True)
class GridFile:
    """A grid as its file says it."""

    name: str = ""  # of the grid; default: the file's
    base: str = ""  # YAML config of a run; relative to the working directory, as all paths of configs
    axes: dict[str, Any] = field(default_factory=dict)  # axis -> label -> list of key=value
    seeds: tuple[int, ...] = option((0,), min=0)
    slots: int = option(1, min=1)  # runs at once
    common: tuple[str, ...] = ()  # key=value, for every run
    baseline: str | None = None  # label (of several axes: joined by "-") that differences are taken against


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

    @property
    def labels(self) -> list[str]:
        """The labels that are compared, in the order of the file."""
        return list(dict.fromkeys(run.label for run in self.runs))


def load_grid(path: str | Path, overrides: Sequence[str] = ()) -> Grid:
    """The grid of a YAML file. ``overrides``: name, base, seeds, slots and baseline are its own, others every run's.

    Raises ConfigError for an unreadable file, an unknown key (naming the nearest), a bad value, a setting that is given
    in two places, two runs of one name, or any run whose config is not valid.
    """
    try:
        file = _read(path, overrides)
        return _resolve(file)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _read(path: str | Path, overrides: Sequence[str]) -> GridFile:
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    own = {item.name for item in fields(GridFile)}
    mine = [item for item in overrides if item.partition("=")[0] in own]
    try:
        loaded = OmegaConf.load(path)
        if not isinstance(loaded, DictConfig):
            raise ConfigError(f"holds no mapping of settings; a grid has: {', '.join(sorted(own))}")
        merged = OmegaConf.to_container(OmegaConf.merge(loaded, OmegaConf.from_dotlist(mine)), resolve=True)
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(" ".join(str(error).split())) from error
    values = {str(key): value for key, value in dict(merged).items()}  # type: ignore[arg-type]
    common = values.get("common") or []
    if isinstance(common, list):
        values["common"] = [*common, *(item for item in overrides if item not in mine)]
    file = build(GridFile, values)
    if not file.base:
        raise ConfigError("base is missing: the config that every run starts from, e.g. base: experiments/tiny.yaml")
    if not file.axes:
        raise ConfigError(
            "axes is missing, e.g. axes: {replay: {ssr: [replay.mode=ssr], filter: [replay.mode=filter]}}"
        )
    if not file.seeds or len(set(file.seeds)) != len(file.seeds):
        raise ConfigError(f"seeds={list(file.seeds)}: needs at least one, and each once")
    return file if file.name else GridFile(**(vars(file) | {"name": Path(path).stem}))


def _resolve(file: GridFile) -> Grid:
    check_name("name", file.name)
    axes = {str(axis): _points(str(axis), points) for axis, points in file.axes.items()}
    _check_sources({"common": {"common": file.common}, **axes})
    runs = []
    for combination in itertools.product(*(points.items() for points in axes.values())):
        labels = dict(zip(axes, (label for label, _ in combination), strict=True))
        settings = tuple(item for _, items in combination for item in items)
        for seed in file.seeds:
            name = f"{file.name}-{'-'.join(labels.values())}-s{seed}"
            own = (*settings, f"seed={seed}")
            group = (f"name={name}", f"tracking.wandb_group={file.name}")
            try:
                config = load_config(file.base, (*group, *file.common, *own))
                check_trainable(config)
            except ConfigError as error:
                raise ConfigError(f"run {name}: {error}") from None
            runs.append(GridRun(labels, own, config))
    names = [run.config.name for run in runs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"two runs would be called {twice[0]}: choose labels that differ when joined by '-'")
    folder = Path(runs[0].config.runs_dir) / file.name
    if (folder / "config.yaml").exists():
        raise ConfigError(f"{folder} is the folder of a run: choose another name=... for the grid")
    grid = Grid(file.name, folder, tuple(axes), tuple(runs), file.slots, file.baseline)
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


# -- running ----------------------------------------------------------------------------------------------------------


def plan(grid: Grid) -> pd.DataFrame:
    """A row a run: name, labels, seed, episodes, what would happen (start, go on, or nothing and why), its settings.

    Raises RunExists where a folder of that name holds a run with other settings.
    """
    rows = []
    for run in grid.runs:
        checkpoint = check_folder(run.config, resume=True)
        todo = "go on" if checkpoint else "start"
        if run_state(run.config.folder) == "finished":
            todo = FINISHED
        elif locks.is_held(run.config.folder / LOCK):
            todo = BUSY
        rows.append(
            {"run": run.config.name, **run.labels, "seed": run.config.seed, "episodes": run.config.episodes}
            | {"to do": todo, "overrides": " ".join(run.overrides)}
        )
    return pd.DataFrame(rows)


def train_command(config_file: Path) -> tuple[str, ...]:
    """The command of one run; it starts a new run, or goes on with one that was stopped."""
    return (sys.executable, "-m", "rethinker.cli", "train", os.fspath(config_file), "--resume")


def run_grid(grid: Grid, slots: int | None = None, *, say: Callable[[str], None] = print) -> dict[str, str]:
    """Run what is left of a grid, then write its table; returns run -> finished, stopped, failed or running.

    A finished run is loaded, a stopped one goes on, one that another job is writing is left to it. A run that fails
    does not stop the others; the end of its log is said when all are done. Ctrl-C or SIGTERM stops all after their
    episode, with checkpoints, and raises KeyboardInterrupt; the same call goes on.

    Raises RunExists, before anything is started, where a run's folder holds a run with other settings.
    """
    todo = plan(grid).set_index("run")["to do"]
    outcomes = {name: STATES[what] for name, what in todo.items() if what in STATES}
    for what, state in STATES.items():
        if (count := list(outcomes.values()).count(state)) > 0:
            say(f"{count} of {len(grid.runs)} runs: {what}")
    left = {run.config.name: run.config for run in grid.runs if run.config.name not in outcomes}
    jobs = []
    for name, config in left.items():
        file = atomic_write_text(grid.folder / "configs" / f"{name}.yaml", to_yaml(config))
        jobs.append(Job(name, train_command(file), grid.folder / "logs" / f"{name}.log"))
    titles = {job.name: f"[{number}/{len(jobs)}] {job.name}" for number, job in enumerate(jobs, start=1)}

    def started(job: Job) -> None:
        say(f"{titles[job.name]}: started, log {job.log}")

    def ended(job: Job, ending: Ending) -> None:
        failed = ending.code and not ending.asked  # told to stop before it could save, it says so by its exit code
        finished = run_state(left[job.name].folder) == "finished"
        outcomes[job.name] = state = "failed" if failed else "finished" if finished else "stopped"
        why = f" (exit code {ending.code})" if failed else ""
        say(f"{titles[job.name]}: {state}{why} after {ending.seconds / 60:.1f} minutes")

    _draw_data(left.values(), say)
    completed = run_in_slots(jobs, grid.slots if slots is None else slots, on_start=started, on_end=ended)
    save_table(grid)
    for job in jobs:
        if outcomes.get(job.name) == "failed":
            say(f"\n{job.name} failed; the end of {job.log}:\n{log_end(job.log)}\n")
    if not completed:
        raise KeyboardInterrupt
    return outcomes


def _draw_data(configs: Iterable[RunConfig], say: Callable[[str], None]) -> None:
    """Draw the visual-math world where runs need it and it is missing: each would do so itself, at the same time."""
    paths = {path for config in configs for path in (config.data.train, config.data.validation, config.data.test)}
    missing = [path for path in paths if path and path.startswith(GENERATED) and not Path(path).exists()]
    for folder in sorted({Path(path).parent for path in missing}):
        say(f"drawing the visual-math world into {folder}")
        command = [sys.executable, "-m", "rethinker.cli", "make-data", "--out", os.fspath(folder)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


# -- the table --------------------------------------------------------------------------------------------------------


def collect(grid: Grid) -> pd.DataFrame:
    """What the runs' files say, a row a run and measure: the columns of ``ablation_table.COLUMNS``, one of each axis.

    ``state`` tells how each run stands; one that has not begun has its progress, 0 episodes, only.
    Raises RunExists where a run's folder holds a run with other settings, ValueError for a broken file.
    """
    rows = []
    for run in grid.runs:
        check_folder(run.config, resume=True)
        about = {"run": run.config.name, **run.labels, "label": run.label, "seed": run.config.seed}
        rows += [about | row for row in run_rows(run.config)]
    first, *rest = COLUMNS
    return typed(pd.DataFrame(rows, columns=[first, *grid.axes, *rest]))


def save_table(grid: Grid) -> pd.DataFrame:
    """``collect``, written to ``table.parquet`` and ``table.csv`` in the grid's folder."""
    table, buffer = collect(grid), io.BytesIO()
    table.to_parquet(buffer, index=False)
    atomic_write_bytes(grid.folder / "table.parquet", buffer.getvalue())
    atomic_write_text(grid.folder / "table.csv", table.to_csv(index=False))
    return table
