"""Driver and worker talk in lines of JSON: the driver's end starts the process, the worker's end answers it.

The first line is the job; the worker loads its model, says what it is, and then answers each ``{"step": name}`` with
what it measured until its stdin ends. Everything else that it prints goes to its log file.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).parent
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_MODE": "disabled",
    "ACCELERATE_USE_CPU": "true",
}


class WorkerFailed(RuntimeError):
    """A worker ended without an answer; the message has the end of its log."""


class Worker:
    """A process that makes the steps of one side; a context manager, so that no worker outlives the driver."""

    def __init__(self, script: str, job: dict[str, Any], log: Path) -> None:
        self.script, self.log = script, log
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log: IO[bytes] = open(log, "wb")  # noqa: SIM115 - open as long as the process
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=os.environ | ENVIRONMENT,
            text=True,
        )
        self._job = job

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def start(self) -> dict[str, Any]:
        """Load the model; returns what the worker says of itself."""
        return self._ask(self._job)

    def step(self, name: str, count: bool = False) -> dict[str, Any]:
        """One step of the point ``name``; returns what was measured. ``count``: floating-point operations, too."""
        return self._ask({"step": name, "count": count})

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-25:])
            raise WorkerFailed(f"{self.script} ended with code {self._process.wait()}; the end of its log:\n{tail}")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Driver:
    """The worker's end. Made first thing: from then on stdout is the log."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def receive(self) -> dict[str, Any] | None:
        """The next message; None when the driver has gone."""
        line = sys.stdin.readline()
        return json.loads(line) if line else None

    def send(self, message: dict[str, Any]) -> None:
        """Answer."""
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()


def digest(prompt_ids: Sequence[int]) -> str:
    """A short name for a prompt's tokens, equal for equal prompts only."""
    text = ",".join(str(int(token)) for token in prompt_ids)
    return f"{len(prompt_ids)}:{hashlib.sha256(text.encode()).hexdigest()[:16]}"
