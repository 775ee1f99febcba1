"""vLLM servers of this machine: their command lines, whether they came up, and their ends."""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import httpx

from rethinker.config.schema import ConfigError
from rethinker.rollout.server.engine import MODEL_NAME
from rethinker.rollout.server.fleet import log_end
from rethinker.rollout.server.plugin import BACKEND, ENTRY_POINT, TOKEN_VARIABLE

STARTUP_S = 1200.0  # a 72B model from a network disk
MODULE = "vllm.entrypoints.openai.api_server"
PR_SET_PDEATHSIG = 1  # Linux's prctl


@dataclass(frozen=True)
class Place:
    """Where one server listens, and its GPUs as CUDA_VISIBLE_DEVICES names them (none: it runs on the CPU)."""

    host: str
    port: int
    gpus: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        """What clients call it."""
        return f"http://{self.host}:{self.port}"


class ServerProcess:
    """A server of this machine, its log beside it."""

    def __init__(self, words: list[str], place: Place, token: str, log: Path, threads: int = 1) -> None:
        self.words, self.place, self.log = words, place, log
        self.environment = environment(place, token, threads)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, or start it again; what was printed before stays in the log."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.words,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for `rethinker serve`
                preexec_fn=_end_with_parent,
            )

    @property
    def ended(self) -> int | None:
        """Its exit code; None while it runs."""
        assert self.process is not None
        return self.process.poll()

    @property
    def healthy(self) -> bool:
        """Whether it answers."""
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.place.url}/health", timeout=2.0, trust_env=False).status_code == 200
        return False

    def wait_until_up(self, startup_s: float = STARTUP_S, stop: threading.Event | None = None) -> None:
        """Until it answers or ``stop`` is set. RuntimeError if it ends before, or not within ``startup_s``."""
        deadline, stop = time.monotonic() + startup_s, stop or threading.Event()
        while not stop.wait(0.5) and (self.ended is not None or not self.healthy):
            late = time.monotonic() > deadline
            if late or self.ended is not None:
                what = f"is not up after {startup_s:.0f} s" if late else f"ended with exit code {self.ended}"
                raise RuntimeError(f"the vLLM server at {self.place.url} {what}{log_end(self.log, 12)}")

    def terminate(self) -> None:
        """Ask it to end."""
        self._signal(signal.SIGTERM)

    def stop(self, patience_s: float = 20.0) -> None:
        """End it and its workers, also those that outlived it."""
        if self.process is None:
            return
        self.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(patience_s)
        self._signal(signal.SIGKILL)
        self.process.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)  # its workers too


def command(model: str, place: Place, arguments: Mapping[str, Any], transfer: str = "file") -> list[str]:
    """The command line of a server. ``arguments``: vLLM's (``engine_arguments``); ``transfer``:
    ``rollout.weight_transfer``."""
    options: dict[str, Any] = {
        "model": model,
        "served_model_name": MODEL_NAME,
        "host": place.host,
        "port": place.port,
        "uvicorn_log_level": "warning",  # no line for each request
        "enable_scale_out": True,  # token ids in, token ids out
        "weight_transfer_config": {"backend": BACKEND if transfer == "file" else transfer},
        "middleware": "rethinker.rollout.server.plugin.TokenMiddleware",
        **arguments,
    }
    words = [sys.executable, "-m", MODULE]
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return words


def environment(place: Place, token: str, threads: int) -> dict[str, str]:
    """What a server needs beside its command line. ``threads``: on a CPU."""
    variables = {
        **os.environ,
        TOKEN_VARIABLE: token,
        "VLLM_SERVER_DEV_MODE": "1",  # the routes for weights; the middleware guards them
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
    }
    if place.gpus:
        return variables | {"CUDA_VISIBLE_DEVICES": ",".join(place.gpus)}
    return variables | {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)}


def check_host(host: str) -> None:
    """Raises ConfigError for an address that the world may reach: weights and prompts pass there unencrypted."""
    try:
        address = ipaddress.ip_address(socket.gethostbyname(host))
    except OSError as error:
        raise ConfigError(f"--host {host}: no such name ({error})") from error
    if address.is_unspecified or not (address.is_private or address.is_loopback):
        raise ConfigError(
            f"--host {host}: not a private address; name this machine's address in the cluster's own network, or "
            "127.0.0.1: weights and prompts pass there unencrypted"
        )


def check_plugin() -> None:
    """Raises ConfigError where vLLM would not find our plugin: the package was installed before it had one."""
    if not any(point.name == ENTRY_POINT for point in entry_points(group="vllm.general_plugins")):
        raise ConfigError(
            "the installed package does not name its vLLM plugin: install it again (make setup, or pip install -e .)"
        )


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nothing listens on now."""
    with socket.socket() as listener:
        listener.bind((host, 0))
        return int(listener.getsockname()[1])


def _end_with_parent() -> None:
    """In the child: SIGTERM when the parent ends, however it does, or its servers would stay in memory."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
