"""Checks made before any process of a run starts: model, data, disk. Every error is one line that says what was
not found, where it was looked for and what to do. Imports no torch, but to count the weights of a family for which
``sizes.shapes`` has no formulas. Nothing here is from the paper.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rethinker.config import RunConfig, data_source
from rethinker.config.paths import is_hub_id
from rethinker.config.repository import find_repository
from rethinker.config.schema import ConfigError
from rethinker.config.settings import Split
from rethinker.lab.jobs.accelerate import read_accelerate_file
from rethinker.lab.sizes.shapes import find_shape

GENERATED = Path("data", "generated")  # in the repository: where what is missing is drawn
DRAWN = ("train.parquet", "validation.parquet", "test.parquet")  # if it has these names, which make_data writes
LEAST_FREE = 200 * 2**20  # bytes; a run of the tiny VLM takes some 50 MB
NUMBER = {"float32": 4, "bfloat16": 2}  # bytes
MOMENTS = 8  # bytes of a trained parameter's two moments in AdamW, in float32
ADAPTERS = 16  # bytes of an adapter's parameter: in adapter/ and in state/, with its moments


def preflight(config: RunConfig) -> list[str]:
    """Warnings for a run of ``config``. Raises ConfigError if it could not start: an engine over several GPUs in each
    of several processes, no model, servers or data where they should be (data that ``missing_generated`` names aside),
    or no room on the disk of ``runs_dir``."""
    check_engine(config)
    weights = check_model(config)
    servers = Path(config.rollout.servers)
    if config.rollout.engine == "server" and not list(servers.glob("*.json")):
        raise ConfigError(
            f"rollout.servers={servers}: no server is up there; start them (rethinker serve CONFIG --servers N), "
            "and wait until it says that they are up"
        )
    to_draw = missing_generated([config])
    for use, source in _sources(config):
        place = Path(source).absolute()
        if place.parent not in to_draw or place.name not in DRAWN:
            check_data(f"data.{use}", source, config.data.columns_for(use))
    check_filter(config)
    return list(check_disk(config, checkpoint_bytes(config, weights)))


def check_engine(config: RunConfig) -> None:
    """Raises ConfigError for what ``rollout.vllm_setup.placement`` refuses, which comes when the weights are loaded."""
    rollout, launch = config.rollout, config.launch
    vllm = rollout.engine == "vllm" or (rollout.engine == "auto" and find_spec("vllm") is not None)
    if not vllm or rollout.tensor_parallel_size == 1:
        return
    count = launch.machines * launch.processes
    if launch.accelerate:
        count = int(read_accelerate_file(launch.accelerate).get("num_processes", 1))
    if count > 1:
        raise ConfigError(
            f"rollout.tensor_parallel_size={rollout.tensor_parallel_size} in {count} processes: every process has an "
            "engine of its own on its own GPU; set rollout.tensor_parallel_size=1, launch.processes=1, or "
            "rollout.engine=server, whose servers may have several GPUs each"
        )


def check_model(config: RunConfig) -> int | None:
    """The bytes of the weights at ``model.path``; None for one on the hub. Raises ConfigError if there is none."""
    path = config.model.path
    folder = Path(path)
    if folder.is_dir():
        return _check_checkpoint(folder)
    if folder.exists():
        raise ConfigError(f"model.path={path}: is a file; give the folder of a checkpoint, or a hub id (owner/name)")
    if not is_hub_id(path) or _in_repository(path):
        raise ConfigError(f"model.path={path}: {_no('folder', path)}; give the folder of a checkpoint, or a hub id")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        hf_hub_download(path, "config.json")
    except (OSError, ValueError) as error:  # which all errors of the hub are
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if isinstance(error, LocalEntryNotFoundError):
            why = "it is not in this machine's cache, and the hub cannot be reached"
        elif isinstance(error, HfHubHTTPError):
            why = f"the hub refused it ({type(error).__name__}): is the name right, and are you logged in?"
        raise ConfigError(
            f"model.path={path}: {_no('folder', path)}, so it was taken for a model on the Hugging Face hub: {why}"
        ) from error
    return None


def _check_checkpoint(folder: Path) -> int:
    where = f"model.path={folder}"
    if not (folder / "config.json").is_file():
        inside = next(
            (name for name in ("model", "last/model", "checkpoints/last/model") if (folder / name).is_dir()), ""
        )
        hint = f"did you mean {folder / inside}?" if inside else "give a checkpoint in Hugging Face's layout"
        raise ConfigError(f"{where}: {folder.absolute()} has no config.json; {hint}")
    weights = [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        lost = sorted(name for name in names if not (folder / name).is_file())
        if lost:
            raise ConfigError(f"{where}: {index.name} names {lost[0]}, which is missing: was the download cut short?")
    if not weights:
        raise ConfigError(f"{where}: {folder.absolute()} has no weights (*.safetensors)")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "tokenizer.model")):
        raise ConfigError(
            f"{where}: {folder.absolute()} has no tokenizer (tokenizer.json): copy it from the base model"
        )
    if not any((folder / name).is_file() for name in ("processor_config.json", "preprocessor_config.json")):
        raise ConfigError(f"{where}: {folder.absolute()} has no processor_config.json: is it a vision-language model?")
    return sum(file.stat().st_size for file in weights)


def check_filter(config: RunConfig) -> None:
    """Raises ConfigError if ``data.filter`` is no filter that there is."""
    from rethinker.datasets.filters import training_filter

    try:
        training_filter(config.data)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def check_data(key: str, source: str, columns: Mapping[str, Any] | None = None) -> None:
    """Raises ConfigError if an entry of ``data`` names no data that can be opened, with ``columns`` (``data.columns``)
    where it has others; its rows are not read."""
    from rethinker.datasets.rows import open_rows

    path, split = data_source(source)
    there = Path(path)
    if not there.exists() and (not is_hub_id(path) or _in_repository(path)):
        what = "give a parquet or JSON lines file, a folder of them, or the name of a data set on the hub"
        raise ConfigError(f"{key}={source}: {_no('file or folder', path)}; {what}")
    try:
        if there.is_file() and split:
            raise ValueError(f"{path} is a file, which has no splits")
        if there.exists():
            open_rows(path, split, columns)
        else:
            import datasets

            datasets.load_dataset_builder(path)
    except (OSError, ValueError) as error:
        taken = f"{_no('file or folder', path)}, so it was taken for a data set on the Hugging Face hub: "
        why = " ".join(str(error).split())[:300]
        raise ConfigError(f"{key}={source}: {'' if there.exists() else taken}{why}") from error


def checkpoint_bytes(config: RunConfig, weights: int | None) -> int:
    """Bytes of a checkpoint of this run, without its rollouts: the model in model.dtype and AdamW's state. Where the
    model's sizes are not known, from the bytes of its ``weights``, taken as in that type; 0 without them too."""
    model = config.model
    try:
        shape, _ = find_shape(model.path)
    except ValueError:
        return (1 if model.lora_rank else 3) * (weights or 0)
    saved = NUMBER[model.dtype] * shape.total
    if model.lora_rank:
        return saved + ADAPTERS * shape.adapters(model.lora_rank, model.lora_targets)
    return saved + MOMENTS * (shape.language if model.freeze_vision else shape.total)


def check_disk(config: RunConfig, checkpoint: int) -> Iterator[str]:
    """A warning where checkpoints of ``checkpoint`` bytes may not find room beside those that are there. Raises
    ConfigError below LEAST_FREE."""
    folder = config.folder.absolute()
    there = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    if not os.access(there, os.W_OK):
        raise ConfigError(f"runs_dir={config.runs_dir}: {there} cannot be written; give another runs_dir=...")
    free = shutil.disk_usage(there).free
    if free < LEAST_FREE:
        raise ConfigError(
            f"runs_dir={config.runs_dir}: {_size(free)} free on the disk of {there}, a run needs at least "
            f"{_size(LEAST_FREE)}; make room, or give another runs_dir=..."
        )
    others = len(config.stages) + 1  # beside the newest: best, the ends of stages but the last, the one being written
    there_already = sum(file.stat().st_size for file in folder.glob("checkpoints/step-*/**/*") if file.is_file())
    need = LEAST_FREE + max(0, (others + config.tracking.keep_last) * checkpoint - there_already)
    if free < need:
        yield (
            f"{_size(free)} free on the disk of {there}; the checkpoints of this run may take {_size(need)} more: "
            "make room, or give another runs_dir=..."
        )


def missing_generated(configs: Iterable[RunConfig]) -> list[Path]:
    """The folders of the repository's generated data that these runs name and that are still to be drawn."""
    root = find_repository()
    if root is None:
        return []
    paths = {Path(source).absolute() for config in configs for _, source in _sources(config)}
    drawn = {path for path in paths if path.is_relative_to(root / GENERATED) and path.name in DRAWN}
    return sorted({path.parent for path in drawn if not path.exists()})


def make_missing(configs: Iterable[RunConfig], say: Callable[[str], None]) -> None:
    """Make the generated data of the repository that these runs name and that are missing. Raises ConfigError if
    its folder cannot be written."""
    for folder in missing_generated(configs):
        from rethinker.datasets.world.visual_math import KINDS, WORLDS, make_data

        say(f"generating the visual-math data in {folder}")
        try:
            make_data(folder, kinds=WORLDS.get(folder.name, KINDS))
        except OSError as error:
            raise ConfigError(
                f"cannot generate the visual-math data in {folder} ({error}); generate it elsewhere (rethinker "
                "make-data --out FOLDER) and set data.train=FOLDER/train.parquet, data.validation and data.test as well"
            ) from error


def _sources(config: RunConfig) -> Iterator[tuple[Split, str]]:
    splits: dict[Split, str | None] = {
        "train": config.data.train,
        "validation": config.data.validation,
        "test": config.data.test,
    }
    return ((use, source) for use, source in splits.items() if source)


def _in_repository(path: str) -> Path | None:
    """Where the repository has what the working directory has not."""
    root = find_repository()
    return root / path if root and not os.path.isabs(path) and (root / path).exists() else None


def _no(kind: str, path: str) -> str:
    """That there is no such thing at ``path``, where it was looked for, and where the repository has it."""
    text = f"no {kind} {Path(path).absolute()}"
    if ours := _in_repository(path):
        text += f" (relative to the working directory; the repository has {ours}: set relative_to=repository)"
    return text


def _size(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
