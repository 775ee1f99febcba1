"""docs/plan.md: plans of the shipped configs on GPUs, and of other models with their numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rethinker.config import load_config
from rethinker.lab.plan.advice import failing
from rethinker.lab.plan.case import Case, make_case
from rethinker.lab.plan.hardware import GPUS
from rethinker.lab.plan.memory import GIB, moments
from rethinker.lab.plan.show import (
    ASSUMPTIONS,
    COMPUTED,
    describe,
    in_seconds,
    markdown_table,
    sentences,
    to_markdown,
)
from rethinker.lab.plan.timing import episode, overlapped, total
from rethinker.lab.sizes.shapes import KNOWN

BASE = "vl_rethinker_7b.yaml"
FULL = (
    "model.lora_rank=0",
    "model.dtype=float32",
    "model.autocast=true",
    "rollout.dtype=bfloat16",
    "rollout.gpu_memory_utilization=0.6",
    "optim.lr=1e-6",
)


@dataclass(frozen=True)
class Entry:
    """A plan of the page: a shipped config, settings on top, and the options of ``make_case``."""

    config: str
    settings: tuple[str, ...]
    gpu: str
    gpus: int | None
    options: dict[str, Any]

    def case(self, experiments: Path) -> Case:
        """The case, of the config in this folder."""
        return make_case(load_config(experiments / self.config, self.settings), self.gpu, self.gpus, **self.options)[0]

    @property
    def command(self) -> str:
        """What is typed for it."""
        gpus = "" if self.gpus is None else f" --gpus {self.gpus}"
        options = "".join(f" --{name} {value}" for name, value in self.options.items())
        return (
            " ".join(["rethinker plan", f"experiments/{self.config}", *self.settings])
            + f"{gpus} --gpu {self.gpu}"
            + options
        )


def _base(gpus: int, *settings: str, gpu: str = "h100-80", **options: Any) -> Entry:
    return Entry(BASE, settings, gpu, gpus, options)


def _model(name: str, *settings: str) -> tuple[str, ...]:
    return (f"model.path=Qwen/{name}-Instruct", *settings)


_LARGE = (*FULL, "rollout.tensor_parallel_size=4")
ENTRIES = (
    _base(8),
    _base(64, *FULL, sharding="full"),
    _base(64, *FULL, sharding="hybrid"),
    _base(8, *FULL, gpu="a100-80", sharding="full"),
    _base(8, *FULL, gpu="h200-141", sharding="full"),
    _base(8, *FULL, gpu="b200", sharding="full"),
    _base(8, *_model("Qwen2.5-VL-32B", *_LARGE), sharding="full"),
    _base(64, *_model("Qwen2.5-VL-32B", *_LARGE), "rollout.engine=server", sharding="full", servers=24),
    _base(64, *_model("Qwen2.5-VL-72B", *_LARGE), "rollout.engine=server", sharding="full", servers=24),
)


def shipped(file: Path) -> Entry:
    """The plan that a config of experiments/gpus names in its header ("# Plan: --gpus 8 --gpu h100-80")."""
    found = re.search(r"^# Plan: (.+)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert found, f"{file} has no line '# Plan: --gpus N --gpu NAME'"
    words = found[1].split()
    options: dict[str, Any] = dict(zip((word.removeprefix("--") for word in words[::2]), words[1::2], strict=True))
    gpus, gpu = int(options.pop("gpus")), options.pop("gpu")
    options = {name: int(value) if value.isdigit() else value for name, value in options.items()}
    return Entry(f"{file.parent.name}/{file.name}", (), gpu, gpus, options)


def entries(experiments: Path) -> Iterator[Entry]:
    """The configs of experiments/gpus, ``ENTRIES``, and every other shipped config of a known model, on its own number
    of processes."""
    yield from map(shipped, sorted((experiments / "gpus").glob("*.yaml")))
    yield from ENTRIES
    for file in sorted(experiments.glob("*.yaml")):
        known = load_config(file).model.path.rpartition("/")[2] in KNOWN
        if known and file.name not in {entry.config for entry in ENTRIES}:
            yield Entry(file.name, (), "h100-80", None, {})


def make_page(root: Path) -> str:
    """The page, for the repository at ``root``. It does not depend on what a machine has in its cache."""
    experiments = root / "experiments"
    rows, sections = [], []
    for entry in entries(experiments):
        case = entry.case(experiments)
        text = to_markdown(describe(case, "its config.json"))
        rows.append(_row(case))
        sections += [text.replace("\n\n", f"\n\n    {entry.command}\n\n", 1), ""]
    gpus = [
        [gpu.name, f"{gpu.memory / 1e9:.0f} GB", f"{gpu.bfloat16 / 1e12:,.0f}", f"{gpu.bandwidth / 1e12:g}", gpu.source]
        for gpu in GPUS.values()
    ]
    return "\n".join(
        [
            "# What a run needs on GPUs",
            "",
            f"**{COMPUTED}** Made by `python scripts/plan_page.py`. For any config",
            "`rethinker plan CONFIG --gpus N --gpu NAME --explain` prints the same, with every formula.",
            "",
            "GiB: of the heaviest GPU at its heaviest moment. Seconds: of an episode of the last stage; plain is",
            "without the shared prefix, overlapped where servers generate the next episode during training.",
            "",
            *markdown_table(HEADINGS, rows),
            "",
            "How far the formulas are from what others measured, and the memory of a training pass from torch's",
            "FSDPMemTracker: `tests/test_plan.py`, `tests/test_plan_tracker.py`.",
            "",
            *sentences(ASSUMPTIONS),
            "",
            *markdown_table(["GPU", "memory", "bfloat16, TFLOP/s", "bandwidth, TB/s", "source"], gpus),
            "",
            *sections,
        ]
    )


HEADINGS = (
    "model",
    "trained",
    "GPUs",
    "sharding",
    "GiB",
    "of",
    "",
    "generate, s",
    "log-probs, s",
    "train, s",
    "episode, s",
    "plain, s",
    "overlapped, s",
)


def _row(case: Case) -> list[str]:
    stage, forward = case.stages[-1], case.config.model.forward
    parts = episode(case, stage, forward)
    writing = sum(part.seconds for part in parts[:2])
    heaviest = max(moment.bytes for moment in moments(case))
    servers = f", {case.servers} of them servers" if case.servers else ""
    return [
        case.config.model.path.rpartition("/")[2].removesuffix("-Instruct"),
        f"LoRA, rank {case.config.model.lora_rank}" if case.lora else "all weights",
        f"{case.gpus} x {case.gpu.name}{servers}",
        case.sharding,
        f"{heaviest / GIB:.0f}",
        f"{case.gpu.memory / GIB:.0f}",
        "does not fit" if failing(case) else "fits",
        *(in_seconds(seconds) for seconds in (writing, parts[2].seconds, parts[3].seconds, total(parts))),
        in_seconds(total(episode(case, stage, "plain"))),
        in_seconds(overlapped(parts)) if case.servers else "",
    ]
