"""Save and resume: the policy as a Hugging Face folder, everything else as safetensors, JSON and parquet; no pickle.

``checkpoints/step-000016/`` holds ``model/`` (``from_pretrained`` and ``vllm serve`` open it), ``state/`` (the
optimiser's tensors, with LoRA the adapters too), ``trainer.json``, ``replay.parquet`` and ``checksums.json``. With
LoRA ``model/`` has the adapters merged in, and ``adapter/`` has them alone, in PEFT's layout. A checkpoint is written
under a temporary name and renamed when it is whole; ``pointers`` says which one is ``last``, ``best`` or the end of a
stage.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rethinker.policy.loading import save_model
from rethinker.policy.lora import adapted_layers, save_adapters
from rethinker.policy.policy import Policy
from rethinker.policy.weights import FILE_BYTES, trained_parameters
from rethinker.rundir import checksums, optimizer_state, shards
from rethinker.rundir.atomic import atomic_write_text, read_json, sync_folder
from rethinker.rundir.paths import LAST
from rethinker.rundir.pointers import FILE, find, free_name, names_after_save, prune, set_names, start_file
from rethinker.rundir.samples import read_samples, write_samples
from rethinker.rundir.together import OtherRankFailed, describe, on_all, on_main, rank, ranks

STATE = "state"
ADAPTER = "adapter."  # of a tensor's name in STATE


class NotSaved(RuntimeError):
    """A checkpoint could not be written; the one before is untouched."""


def save_checkpoint(
    checkpoints: Path,
    step: int,
    *,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    selector_state: Mapping[str, Any],
    trainer_state: Mapping[str, Any],
    best: bool = False,
    keep_last: int = 2,
    file_bytes: int = FILE_BYTES,
) -> Path:
    """Write ``checkpoints/step-<step>``, make it ``last``, with ``best`` that too, and remove what has no name.
    Collective; the main process writes all but its shards of ``state/`` alone.

    An older folder of the same step (episodes without an update do not count steps) stays until the new one, which is
    then ``step-<step>.1``, is named. A kill at any moment leaves the old names or the new ones, all of them whole.
    ``keep_last``: of ``names_after_save``. ``file_bytes``: of a file of weights. Raises NotSaved on every rank where
    one could not write, e.g. as the disk is full; what was written of this checkpoint is then removed.
    """
    folder = on_main(lambda: free_name(checkpoints, f"step-{step:06d}"))
    temporary = checkpoints / f".{folder.name}.tmp"
    main = rank() == 0

    def start() -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        (temporary / STATE).mkdir(parents=True)

    def write_rest(layout: dict[str, Any]) -> None:
        selector = dict(selector_state)
        write_samples(temporary / "replay.parquet", selector.pop("entries", []))
        names = names_after_save(checkpoints, folder, best=best, keep_last=keep_last)
        state = {"optimizer": layout, "selector": selector, "trainer": dict(trainer_state), "names": names}
        atomic_write_text(temporary / "trainer.json", json.dumps(state, indent=1))

    def measure() -> dict[str, Any]:
        return {name: checksums.measure(temporary, name) for name in checksums.files(temporary)[rank() :: ranks()]}

    def finish(facts: dict[str, Any]) -> None:
        checksums.write(temporary, facts)
        _sync_all(temporary)
        start_file(checkpoints)
        os.replace(temporary, folder)
        sync_folder(checkpoints)
        set_names(checkpoints, names_after_save(checkpoints, folder, best=best, keep_last=keep_last))
        prune(checkpoints)

    try:
        on_main(start)
        on_all(lambda: save_model(policy, temporary / "model", file_bytes=file_bytes, writer=main))
        if adapted_layers(policy.model):
            on_all(lambda: save_adapters(temporary / "adapter", policy.model, writer=main))
        tensors, layout = optimizer_state.split(optimizer)
        if adapters := _adapters(policy):
            tensors |= {f"{ADAPTER}{name}": adapter.detach() for name, adapter in adapters.items()}
        on_all(lambda: shards.save_shards(temporary / STATE, tensors))
        on_main(lambda: write_rest(layout))
        parts = on_all(measure)
        on_main(lambda: finish({name: fact for part in parts for name, fact in part.items()}))
    except Exception as error:
        if main:
            unnamed = folder.name not in read_json(checkpoints / FILE).values()
            for path in (temporary, folder) if unnamed else (temporary,):
                shutil.rmtree(path, ignore_errors=True)
        if _of_the_disk(error):
            raise NotSaved(_not_saved(checkpoints, step, error)) from error
        raise
    return folder


def load_trainer_state(folder: Path) -> dict[str, Any]:
    """The ``trainer_state`` that was saved. Raises FileNotFoundError if ``folder`` holds no checkpoint."""
    return json.loads((folder / "trainer.json").read_text(encoding="utf-8"))["trainer"]


def load_selector_state(folder: Path) -> dict[str, Any]:
    """The ``selector_state`` that was saved, with its samples."""
    state = json.loads((folder / "trainer.json").read_text(encoding="utf-8"))["selector"]
    return state | {"entries": read_samples(folder / "replay.parquet")}


def load_optimizer(folder: Path, optimizer: torch.optim.Optimizer) -> None:
    """Give ``optimizer``, sharded or not, the state that any number of ranks saved. Raises ValueError if it has other
    parameters."""
    saved = json.loads((folder / "trainer.json").read_text(encoding="utf-8"))["optimizer"]
    optimizer_state.load(folder / STATE, saved, optimizer)


def load_adapter(folder: Path, policy: Policy) -> None:
    """Give a LoRA policy, built from the base checkpoint, the adapters that were saved. Raises ValueError if they do
    not fit."""
    adapters = {f"{ADAPTER}{name}": adapter.detach() for name, adapter in _adapters(policy).items()}
    saved = {name: fact for name, fact in shards.saved_tensors(folder / STATE).items() if name.startswith(ADAPTER)}
    if {name: tuple(adapter.shape) for name, adapter in adapters.items()} != {
        n: tuple(s) for n, (s, _) in saved.items()
    }:
        raise ValueError(f"the adapters in {folder} do not fit this policy's: their names or shapes differ")
    shards.load_shards(folder / STATE, adapters)


def _adapters(policy: Policy) -> dict[str, torch.nn.Parameter]:
    """The trained parameters by name where they are adapters."""
    trained = dict(trained_parameters(policy.model))
    return trained if any("lora_" in name for name in trained) else {}


def _of_the_disk(error: BaseException) -> bool:
    """Whether an error is one of writing: libraries have their own words for what is an OSError here."""
    return isinstance(error, OSError | OtherRankFailed) or "os error" in str(error)


def _not_saved(checkpoints: Path, step: int, error: BaseException) -> str:
    words = describe(error)
    if os.strerror(errno.ENOSPC) in words or os.strerror(errno.EDQUOT) in words:
        words = f"the disk is full ({shutil.disk_usage(checkpoints).free:,} bytes free in {checkpoints}): {words}"
    last = find(checkpoints, LAST)
    left = f"{last.name} is untouched: resume from it with --resume" if last else "there is no earlier one"
    return f"the checkpoint of step {step} could not be saved: {words}. Make room; {left}"


def _sync_all(folder: Path) -> None:
    """fsync everything in ``folder``: after a power cut its new name must not be there without its content."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
