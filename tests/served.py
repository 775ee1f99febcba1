"""Real vLLM servers on this machine for tests, and the runs that use them."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from rethinker.config import load_config
from rethinker.rollout.server.folder import ServersDir
from rethinker.rollout.server.start import free_port
from rethinker.rundir.paths import RunDir

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "data" / "tiny-vlm"
DATA = ROOT / "data" / "visual_math" / "test.parquet"
CONFIG: dict[str, Any] = {
    "queries_per_episode": 4,
    "model": {"path": str(MODEL), "sharding": "full"},
    "data": {"train": str(DATA), "train_limit": 40},
    "rollout": {"engine": "server", "group_size": 4, "max_new_tokens": 60},
    "optim": {"train_batch_size": 8, "lr": 1e-4},
    "rethink": {"fraction": 0.5},
    "tracking": {"save_every": 1},
    "launch": {"processes": 2},
    "stages": [{"name": "s", "episodes": 3}],
}


def write_config(folder: Path, **settings: Any) -> Path:
    """The file of ``CONFIG`` with other ``settings``; its runs and servers are in ``folder``."""
    config = CONFIG | {"runs_dir": str(folder)} | settings
    config["rollout"] = CONFIG["rollout"] | {"servers": str(folder / "servers")}
    file = folder / "config.yaml"
    file.write_text(json.dumps(config))  # JSON is YAML
    return file


@contextmanager
def serve(config: Path, *words: str, servers: int = 2, folder: Path | None = None) -> Iterator[psutil.Popen]:
    """`rethinker serve`; at the end it takes its servers with it. ``folder``: where they are found, if the config does
    not say it."""
    port = free_port()
    command = ["serve", str(config), "--servers", str(servers), "--port", str(port), *words]
    process = psutil.Popen([sys.executable, "-m", "rethinker.cli", *command])
    folder = folder or ServersDir(load_config(config).rollout.servers).folder
    entry = folder / f"127.0.0.1-{port}.json"
    deadline = time.monotonic() + 900
    try:
        while not entry.exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.5)
        children = process.children(recursive=True)
        yield process
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0 and not entry.exists()
        _, left = psutil.wait_procs(children, timeout=60)
        assert not left
    finally:
        for child in [*process.children(recursive=True), process] if process.is_running() else []:
            child.kill()


def train(config: Path, *words: str) -> psutil.Popen:
    return psutil.Popen([sys.executable, "-m", "rethinker.cli", "train", str(config), *words])


def lines(folder: RunDir, record: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    return [line for line in found if line["record"] == record]
