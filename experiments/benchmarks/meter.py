"""Stopwatches and counters around a training step, the same ones on both sides."""

from __future__ import annotations

import resource
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

PARTS = ("generation", "logprobs", "forward", "backward", "optimiser")
ALWAYS = ("generation", "forward", "backward", "optimiser")  # parts that no step goes without


class Meter:
    """Measures steps: ``start()``, the step, ``stop()``.

    A part that runs inside another counts to the outer one, so the parts never add up to more than the step. A step
    that was begun by ``start(count=True)`` says how many floating-point operations its parts make, too, and is slow.
    """

    def __init__(self) -> None:
        self._open: list[str] = []
        self._part_start = (0.0, 0.0)
        self.loaded_mb = 0.0
        self._preprocessed = 0
        self._counter: FlopCounterMode | None = None

    def loaded(self) -> None:
        """The model is in memory: peaks are counted from here."""
        self.loaded_mb = rss_mb()
        reset_peak()

    def start(self, count: bool = False) -> None:
        """A step begins."""
        self._flops: Counter[str] = Counter()
        self._counter = flop_counter().__enter__() if count else None
        self._wall: dict[str, float] = defaultdict(float)
        self._cpu: dict[str, float] = defaultdict(float)
        self._images: Counter[str] = Counter()
        self._calls: Counter[str] = Counter()
        self._preprocessed = 0
        self._step_start = now()

    def stop(self) -> dict[str, Any]:
        """The step has ended: what was measured. Seconds, counts, MB.

        Raises RuntimeError where a part never ran: the stopwatches no longer fit the code.
        """
        wall, cpu = since(self._step_start)
        if self._counter:
            self._counter.__exit__(None, None, None)
        counted = {"flops": {part: self._flops[part] for part in PARTS}} if self._counter else {}
        missing = [part for part in ALWAYS if part not in self._wall]
        if missing:
            raise RuntimeError(f"{', '.join(missing)}: never ran in this step, or its stopwatch was by-passed")
        return {
            "wall": wall,
            "cpu": cpu,
            "parts": {part: self._wall[part] for part in PARTS},
            "parts_cpu": {part: self._cpu[part] for part in PARTS},
            "images": dict(self._images),
            "vision_calls": dict(self._calls),
            "preprocessed": self._preprocessed,
            "peak_mb": peak_mb() - self.loaded_mb,
            **counted,
        }

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """The block is part ``name`` of the step."""
        self._begin(name)
        try:
            yield
        finally:
            self._end()

    def wrap(self, function: Callable[..., Any], name: str | Callable[[], str]) -> Callable[..., Any]:
        """``function``, timed as part ``name`` (or as what ``name()`` says when it is called)."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name if isinstance(name, str) else name()):
                return function(*args, **kwargs)

        return timed

    def watch(self, model: Any, accelerator: Any) -> None:
        """Time backward passes and gradient clipping, count the images that go through the vision tower."""
        accelerator.backward = self.wrap(accelerator.backward, "backward")
        accelerator.clip_grad_norm_ = self.wrap(accelerator.clip_grad_norm_, "optimiser")
        model.model.visual.register_forward_hook(self._encoded, with_kwargs=True)

    def watch_preprocessing(self, kind: type) -> None:
        """Count the images that image processors of class ``kind`` prepare; once a class and process."""
        preprocess = kind.preprocess  # type: ignore[attr-defined]

        def counted(processor: Any, images: Any, *args: Any, **kwargs: Any) -> Any:
            self._preprocessed += count_images(images)
            return preprocess(processor, images, *args, **kwargs)

        kind.preprocess = counted  # type: ignore[attr-defined]

    def watch_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Time the optimiser's steps."""
        optimizer.register_step_pre_hook(lambda *_: self._begin("optimiser"))
        optimizer.register_step_post_hook(lambda *_: self._end())

    def _begin(self, name: str) -> None:
        self._open.append(name)
        if len(self._open) == 1:
            self._flops_before = self._counter.get_total_flops() if self._counter else 0
            self._part_start = now()

    def _end(self) -> None:
        name = self._open.pop()
        if not self._open:
            wall, cpu = since(self._part_start)
            self._wall[name] += wall
            self._cpu[name] += cpu
            if self._counter:
                self._flops[name] += self._counter.get_total_flops() - self._flops_before

    def _encoded(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        grid_thw = kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]
        part = self._open[0] if self._open else "rest"
        self._images[part] += len(grid_thw)
        self._calls[part] += 1


def flop_counter() -> FlopCounterMode:
    """torch's counter of matrix products, taught the CPU's attention: a whole rectangle, masked or not."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    gradient = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    known = {attention: attention_flops, gradient: lambda _, *shapes, **__: 5 * attention_flops(*shapes) // 2}
    return FlopCounterMode(display=False, custom_mapping=known)


def attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """Operations of attention's two products, of shapes [batch, heads, rows, size]; its backward pass has five."""
    batch, heads, rows, size = query
    return 2 * batch * heads * rows * key[-2] * (size + value[-1])


def scoring_part() -> str:
    """Which part a forward pass over whole responses is: with gradients it is training's."""
    return "forward" if torch.is_grad_enabled() else "logprobs"


def count_images(images: Any) -> int:
    """Images in arbitrarily nested lists."""
    return sum(map(count_images, images)) if isinstance(images, Sequence) else 1


def now() -> tuple[float, float]:
    """Wall clock and CPU clock of this process, all of its threads, in seconds."""
    return time.perf_counter(), time.process_time()


def since(start: tuple[float, float]) -> tuple[float, float]:
    """Wall and CPU seconds since ``start``."""
    wall, cpu = now()
    return wall - start[0], cpu - start[1]


PROC = Path("/proc/self/status")


def rss_mb() -> float:
    """Memory of this process now; without /proc (macOS) the largest until now. MB of 2**20 bytes."""
    return _status_mb("VmRSS") if PROC.exists() else _maxrss_mb()


def peak_mb() -> float:
    """The largest memory of this process, since ``reset_peak`` where there is /proc."""
    return _status_mb("VmHWM") if PROC.exists() else _maxrss_mb()


def reset_peak() -> None:
    """Forget the peak until now: loading a model may take more than holding it."""
    if PROC.exists():
        Path("/proc/self/clear_refs").write_text("5")


def _status_mb(key: str) -> float:
    line = next(line for line in PROC.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) / 1024


def _maxrss_mb() -> float:
    unit = 2**20 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
