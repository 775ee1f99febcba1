"""What ``rethinker evaluate`` and ``rethinker serve`` are told of a model and of benchmarks."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rethinker.lab.command_line import option
from rethinker.rundir.paths import RunDir

if TYPE_CHECKING:
    from rethinker.benchmarks.tasks import Task
    from rethinker.config import RunConfig

NAMES = option(
    "--benchmarks", metavar="LIST", help="e.g. mathvision,mathvista or mathvision:testmini (docs/benchmarks.md)"
)
PROTOCOL = option(
    "--protocol",
    choices=("official", "boxed"),
    help="the benchmark's own prompt and rule, or the paper's prompt and our grader (default: boxed)",
)
DATA = (
    option("--data", action="append", metavar="NAME=PLACE", help="a benchmark's files: a folder, or owner/name"),
    option("--data-root", type=Path, metavar="FOLDER", help="where each benchmark has a folder of its name"),
)


def config_of(file: str, typed: list[str]) -> tuple[RunConfig, Path]:
    """The config of a YAML file, of a run's folder, or of a bare checkpoint with the paper's settings; and where its
    results belong."""
    from rethinker.benchmarks.checkpoint import SUFFIX, paper_settings
    from rethinker.config import load_config

    place = Path(file)
    if place.is_dir() and not (place / "config.json").is_file() and (place / "config.yaml").is_file():
        place = place / "config.yaml"
    if place.suffix in (".yaml", ".yml"):
        return best_of_run(load_config(place, typed=typed), place, typed)
    names = [part for part in Path(file).parts if part not in ("model", "checkpoints", "..", ".", "/")]
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", "-".join(names[-2:] if "checkpoints" in place.parts else names[-1:]))
    config = load_config(
        None, [f"name={name.lstrip('.') or 'model'}", *paper_settings(file)], [f"model.path={file}", *typed]
    )
    if not any(item.startswith("data.prompt_suffix=") for item in typed):
        config = replace(config, data=replace(config.data, prompt_suffix=SUFFIX))
    return config, config.folder


def best_of_run(config: RunConfig, file: Path, overrides: Iterable[str]) -> tuple[RunConfig, Path]:
    """The config with the best checkpoint of the run whose config ``file`` is, and the folder for results."""
    from rethinker.rundir.folder import best_model

    run = file.parent
    if file.name != "config.yaml" or not RunDir(run).checkpoints.is_dir():
        return config, config.folder
    if not any(item.startswith("model.path=") for item in overrides):
        config = replace(config, model=replace(config.model, path=str(best_model(run))))
        print(f"evaluating {config.model.path}", file=sys.stderr)
    return config, run


def load_tasks(
    benchmarks: str, protocol: Any, data: Sequence[str] | None, data_root: Path | None, limit: int | None = None
) -> list[Task]:
    """The tasks of --benchmarks; on stderr, where one has not the items that were published, and where images went.

    Raises ValueError for a name or a protocol that there is not, and as ``tasks.load_task`` does.
    """
    from rethinker.benchmarks.registry import BENCHMARKS
    from rethinker.benchmarks.tasks import load_task

    places = dict(_place(item) for item in data or ())
    for name in places:
        if name not in BENCHMARKS:
            raise ValueError(f"--data {name}=...: no benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
    tasks = [load_task(text, places, data_root, limit) for text in dict.fromkeys(benchmarks.split(","))]
    for task in tasks:
        if protocol not in task.benchmark.protocols:
            raise ValueError(
                f"{task.benchmark.name} has no protocol {protocol!r}: run it by itself with --protocol official"
            )
        published = task.benchmark.splits[task.split]
        if limit is None and len(task.items) != published:
            print(f"warning: {task.name}: {len(task.items)} items, {published} are published", file=sys.stderr)
        if stored := _stored(task):
            print(f"{task.name}: {stored}", file=sys.stderr)
    return tasks


def _stored(task: Task) -> str:
    """Where the images are that its rows hold as bytes, if they do."""
    from rethinker.datasets.rows import stored_images

    paths = {Path(path) for item in task.items for path in item.images}
    inside = [path for path in paths if path.is_relative_to(stored_images())]
    size = sum(path.stat().st_size for path in inside) / 1e6
    return f"{len(inside):,} images of its rows are files in {stored_images()} ({size:,.0f} MB)" if inside else ""


def _place(text: str) -> tuple[str, str]:
    name, equals, place = text.partition("=")
    if not (name and equals and place):
        raise ValueError(f"--data {text}: is written NAME=PLACE, e.g. mathvision=data/MATH-V")
    return name, str(Path(place).expanduser())  # the shell leaves a ~ behind "=" alone
