"""``rethinker serve``: vLLM servers for a run with ``rollout.engine=server``, or for an evaluation on benchmarks, until
they are told to stop."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rethinker.benchmarks.base import Protocol
from rethinker.benchmarks.checkpoint import look_at, outline
from rethinker.benchmarks.tasks import Task
from rethinker.config import RunConfig
from rethinker.config.schema import ConfigError
from rethinker.config.settings import Split
from rethinker.evaluation.held_out import most_images, read_split
from rethinker.lab.jobs.gpus import visible_gpus
from rethinker.policy.lengths import PromptRoom
from rethinker.policy.loading import load_outline
from rethinker.policy.policy import Policy
from rethinker.rollout import vllm_available
from rethinker.rollout.server.engine import check_images
from rethinker.rollout.server.folder import Served, ServersDir
from rethinker.rollout.server.start import STARTUP_S, Place, ServerProcess, check_host, check_plugin, command
from rethinker.rollout.vllm_setup import check_attention, engine_arguments

RESTART_S = (1.0, 5.0, 30.0, 120.0)  # before a server that ended is started again, the next times in a row
SETTLED_S = 600.0  # a server that ran so long has no row of failures behind it

Say = Callable[[str], None]
Prompts = tuple[Policy, int, int]  # without weights; the most images of a prompt, tokens of the longest one


def serve(
    config: RunConfig,
    look: Callable[[], Prompts],
    *,
    servers: int,
    host: str,
    port: int,
    say: Say,
    startup_s: float = STARTUP_S,
) -> None:
    """Start ``servers`` servers, tell runs of them in ``rollout.servers`` when all are up, and start again what ends,
    until SIGINT or SIGTERM. ``look``: ``of_run`` or ``of_benchmarks``.

    Raises ConfigError for an address that is not private, more servers than GPUs, or without vLLM; RuntimeError, with
    the end of its log, for a server that does not come up.
    """
    if not vllm_available():
        raise ConfigError("rethinker serve needs vLLM: install the extra (pip install 'rethinker[gpu]')")
    check_host(host)
    check_plugin()
    folder = ServersDir(config.rollout.servers)
    shares = gpu_shares(servers, config, visible_gpus()[: torch.cuda.device_count()])
    places = [Place(host, port + index, gpus) for index, gpus in enumerate(shares)]
    arguments = arguments_of(config, look())
    processes = [
        ServerProcess(
            command(config.model.path, place, arguments, config.rollout.weight_transfer),
            place,
            folder.token(),
            folder.log(place.port),
            threads=config.launch.threads,
        )
        for place in places
    ]
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    entry: Path | None = None
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.wait_until_up(startup_s, stop)
        if not stop.is_set():
            entry = folder.write(
                host,
                port,
                Served(
                    tuple((process.place.url, str(process.log)) for process in processes),
                    config.model.path,
                    arguments["dtype"],
                    config.rollout.weight_transfer,
                    arguments["max_model_len"],
                    arguments["limit_mm_per_prompt"]["image"],
                ),
            )
            say(f"{servers} servers are up: {', '.join(place.url for place in places)}; written: {entry}")
        keep_up(processes, stop, say)
    finally:
        if entry:
            entry.unlink(missing_ok=True)
        for process in processes:
            process.terminate()  # all, before any is waited for
        for process in processes:
            process.stop()
        for number, handler in before.items():
            signal.signal(number, handler)


def keep_up(processes: Sequence[ServerProcess], stop: threading.Event, say: Say) -> None:
    """Start again what ends, until ``stop``. The run that uses it sends the weights before it asks it anything."""
    failures = dict.fromkeys(processes, 0)
    started = dict.fromkeys(processes, time.monotonic())
    while not stop.wait(0.5):
        for process in processes:
            if process.ended is None:
                continue
            code = process.ended
            if time.monotonic() - started[process] > SETTLED_S:
                failures[process] = 0
            wait = RESTART_S[min(failures[process], len(RESTART_S) - 1)]
            again = f"started again in {wait:.0f} s; its log: {process.log}"
            say(f"{process.place.url} ended with exit code {code}; {again}")
            process.stop()  # what outlived it
            if stop.wait(wait):
                return
            process.start()
            failures[process], started[process] = failures[process] + 1, time.monotonic()


def of_run(config: RunConfig) -> Prompts:
    """The prompts of a run: of all rows of its data. Raises ConfigError for a family that servers cannot run."""
    policy = load_outline(config.model, prompt_suffix=config.data.prompt_suffix, prompt_hint=config.data.prompt_hint)
    _check_family(policy)
    room = PromptRoom(policy, config.rollout.max_new_tokens)
    whole = replace(config, data=replace(config.data, train_limit=None, test_limit=None))
    uses: tuple[Split, ...] = ("train", "validation", "test")
    images = max(most_images(read_split(whole, use, room)[0]) for use in uses)
    return policy, images, room.longest


def of_benchmarks(config: RunConfig, protocol: Protocol, tasks: Sequence[Task]) -> Prompts:
    """The prompts of an evaluation on benchmarks. Raises as ``of_run`` does."""
    policy = outline(config, protocol)
    _check_family(policy)
    _, images, longest = look_at(policy, config, protocol, tasks)
    return policy, images, longest


def _check_family(policy: Policy) -> None:
    check_images(policy)
    check_attention(policy, gpu=torch.cuda.is_available(), engine="server")


def arguments_of(config: RunConfig, prompts: Prompts) -> dict[str, Any]:
    """vLLM's arguments for the servers of ``config``."""
    policy, images, longest = prompts
    return engine_arguments(
        policy,
        gpu=torch.cuda.is_available(),
        dtype=config.model.dtype if config.rollout.dtype == "auto" else config.rollout.dtype,
        max_images=images,
        max_prompt=longest,
        max_new_tokens=config.rollout.max_new_tokens,
        gpu_memory_utilization=config.rollout.gpu_memory_utilization,
        tensor_parallel_size=config.rollout.tensor_parallel_size,
    )


def gpu_shares(servers: int, config: RunConfig, gpus: Sequence[str]) -> list[tuple[str, ...]]:
    """Those of ``gpus`` (``visible_gpus``) that each server gets: ``rollout.tensor_parallel_size`` in a row; none
    without GPUs. Raises ConfigError where there are too few. Not run on GPUs."""
    if servers < 1:
        raise ConfigError(f"--servers {servers}: at least one")
    if not gpus:
        return [()] * servers
    size = config.rollout.tensor_parallel_size
    if servers * size > len(gpus):
        each = f"{size} GPUs each (rollout.tensor_parallel_size)"
        raise ConfigError(f"--servers {servers} with {each}: this machine shows {len(gpus)}")
    return [tuple(gpus[index * size : (index + 1) * size]) for index in range(servers)]
