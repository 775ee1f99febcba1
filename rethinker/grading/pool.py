"""A small pool of killable worker processes that compare answers (see `worker`).

Plain subprocesses and pipes: no signals (graders with SIGALRM fail in threads), no fork, no re-import of the main
module (works in notebooks, in threads and inside accelerate's and data loaders' children). Workers start when first
needed, are killed at the time limit, are replaced after a crash and end with the process that started them.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

WORKERS = max(1, min(4, os.cpu_count() or 1))
PATIENCE = 4.0  # a worker that the machine lets starve may take this many times its limit in wall time
START_TIMEOUT_S = 60.0  # importing sympy takes half a second, much longer on a cold network disk
WORKER = Path(__file__).with_name("worker.py")


@dataclass(frozen=True, slots=True)
class Reply:
    """A verdict and how it was reached; ``reason`` begins with ``error:`` where no worker could reach one."""

    correct: bool
    reason: str


class WorkerDied(RuntimeError):
    """The worker process ended by itself."""


class _Worker:
    """One process and its pipes; used by one thread at a time."""

    def __init__(self) -> None:
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 -- lives as long as the process
        # A fixed hash seed: sympy's orderings, and with them the verdicts, do not depend on the process.
        environment = {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment,
            bufsize=0,
        )
        self._pending = b""
        try:
            ready = self._read(START_TIMEOUT_S)
        except WorkerDied:
            self.kill()
            raise
        if ready is None:
            self.kill()
            raise WorkerDied(f"did not start within {START_TIMEOUT_S:.0f} s")

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: dict[str, str], timeout_s: float) -> dict[str, Any] | None:
        """The worker's reply; None if it did not come in time (the worker must then be killed).

        The limit is on the worker's CPU time where the system tells it (Linux), so that a busy machine does not turn
        right answers into timeouts; elsewhere, and beyond `PATIENCE` times the limit, on wall time.
        """
        line = json.dumps({**request, "cpu_s": timeout_s}) + "\n"
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(line.encode())
        except BrokenPipeError as error:
            raise WorkerDied(self._obituary()) from error
        started, cpu_before = time.monotonic(), self.cpu_seconds()
        wait_s = timeout_s
        while True:
            reply = self._read(wait_s)
            cpu_now = self.cpu_seconds()
            if reply is not None or cpu_before is None or cpu_now is None:
                return reply
            wait_s = min(timeout_s - (cpu_now - cpu_before), started + PATIENCE * timeout_s - time.monotonic())
            if wait_s < 0.02:  # the kernel counts CPU time in hundredths of a second
                return None

    def cpu_seconds(self) -> float | None:
        """CPU seconds the process has used; None if the system has no ``/proc``."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _read(self, timeout_s: float) -> dict[str, Any] | None:
        stdout = self._process.stdout
        assert stdout is not None
        deadline = time.monotonic() + timeout_s
        poll = select.poll()
        poll.register(stdout, select.POLLIN)
        while b"\n" not in self._pending:
            left_ms = int((deadline - time.monotonic()) * 1000)
            if left_ms <= 0 or not poll.poll(left_ms):
                return None
            chunk = os.read(stdout.fileno(), 65536)
            if not chunk:
                raise WorkerDied(self._obituary())
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _obituary(self) -> str:
        code = self._process.wait()
        self._stderr.seek(0)
        last = self._stderr.read().decode(errors="replace").strip().splitlines()[-1:]
        return f"exit code {code}" + (f": {last[0][:200]}" if last else "")


class WorkerPool:
    """At most ``size`` workers, started when needed; safe to use from many threads."""

    def __init__(self, size: int = WORKERS) -> None:
        self.size = size
        self._slots = threading.BoundedSemaphore(size)
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._registered = False

    def read(self, gold: str, timeout_s: float) -> Reply:
        """Whether math-verify can read the LaTeX ``gold`` (``correct``), and why not."""
        return self._request({"read": gold}, timeout_s)

    def value(self, latex: str, timeout_s: float) -> Reply:
        """Whether ``latex`` stands for one real number (``correct``), and that number (``reason``, a ``repr``)."""
        return self._request({"value": latex}, timeout_s)

    def ask(self, pred: str, gold: str, question: str, timeout_s: float) -> Reply:
        """A worker's verdict on the answer ``pred``, or ``timeout``.

        Waiting for a free worker and starting one do not count against ``timeout_s``. A worker that dies is replaced
        and asked once more; the second death is an ``error: ...``.
        """
        return self._request({"pred": pred, "gold": gold, "question": question}, timeout_s)

    def _request(self, request: dict[str, str], timeout_s: float) -> Reply:
        death = ""
        for _ in range(2):
            with self._slots:
                try:
                    worker = self._take()
                except (WorkerDied, OSError) as error:
                    death = f"grader worker did not start: {error}"
                    continue
                try:
                    answer = worker.ask(request, timeout_s)
                except WorkerDied as error:
                    self._discard(worker)
                    death = f"grader worker died: {error}"
                    continue
                except BaseException:  # Ctrl-C in the middle of a reply: this worker's pipe is out of step
                    self._discard(worker)
                    raise
                if answer is None:
                    self._discard(worker)
                    return Reply(False, "timeout")
                with self._lock:
                    self._idle.append(worker)
                return Reply(answer["correct"], answer["reason"])
        return Reply(False, f"error: {death}")

    def pids(self) -> list[int]:
        """Process ids of the running workers."""
        with self._lock:
            return [worker.pid for worker in self._all if worker.alive]

    def close(self) -> None:
        """Kill all workers; a later `ask` starts new ones."""
        with self._lock:
            workers, self._all, self._idle = list(self._all), set(), []
        for worker in workers:
            worker.kill()

    def forget(self) -> None:
        """In a forked child: the workers belong to the parent; drop them and the locks without touching them."""
        self.__init__(self.size)  # type: ignore[misc]

    def _take(self) -> _Worker:
        with self._lock:
            if not self._registered:
                atexit.register(self.close)
                self._registered = True
            while self._idle:
                worker = self._idle.pop()
                if worker.alive:
                    return worker
                self._all.discard(worker)
                worker.kill()
        worker = _Worker()
        with self._lock:
            self._all.add(worker)
        return worker

    def _discard(self, worker: _Worker) -> None:
        with self._lock:
            self._all.discard(worker)
        worker.kill()


POOL = WorkerPool()
os.register_at_fork(after_in_child=POOL.forget)
