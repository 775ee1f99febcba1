"""Independent vLLM servers: which can be used, which has least to do, and why others cannot. HTTP alone, no model.

A request goes to the usable server with the fewest running responses; where that fails it goes to another one, after
1, 2, 4 ... seconds. Seeds belong to requests, so an answer has the same sampling distribution wherever it is made. A
thread looks after the servers: one that does not answer is left alone until it does, and is not used again before
``examine`` has given it the current weights. That is why no general router stands in front of them: ``vllm-router``
0.1.17 passes token ids and pixels through, but sends requests to a restarted server as soon as it is healthy, which is
before it has the weights.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

LOGGER = logging.getLogger(__name__)
BACKOFF_S = (1.0, 2.0, 4.0, 8.0, 16.0)
ATTEMPTS = 8  # of one request: what fails everywhere is not the servers' fault
REMIND_S = 60.0  # between lines that say who is waited for
LOG_LINES = 3  # of each server in the error that none is left


@dataclass(eq=False)
class Server:
    """One server and what is known of it. ``problem``: why it was last found unusable."""

    url: str
    log: Path | None = None
    usable: bool = True
    running: int = 0  # responses asked of it
    problem: str = ""


class ServerGone(RuntimeError):
    """A server did not answer, or answered that it cannot."""


class Fleet:
    """The servers of a run, for the threads of one process.

    ``timeout_s``: of one request. ``patience_s``: how long to wait for a server when none is usable. ``every_s``:
    between looks at all servers. ``examine(server)``: called at each look; may repair the server, and raises ServerGone
    where it cannot be used.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        token: str,
        *,
        timeout_s: float = 600.0,
        patience_s: float = 600.0,
        backoff_s: Sequence[float] = BACKOFF_S,
        every_s: float = 2.0,
    ) -> None:
        self.servers = list(servers)
        self.timeout_s, self.patience_s, self.backoff_s, self.every_s = timeout_s, patience_s, backoff_s, every_s
        self.examine: Callable[[Server], Any] = lambda server: self.get(server, "/health")
        self._changed, self._closed = threading.Condition(), threading.Event()
        self._none_since: float | None = None  # since when no server is usable
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {token}"},
            # A connection a request: uvicorn closes those that are idle or had an error, maybe under the next request.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            trust_env=False,  # servers have private addresses: no proxy may see them
        )
        self._watcher = threading.Thread(target=self._watch, daemon=True, name="vLLM servers")

    def start(self) -> None:
        """Begin to look after the servers."""
        self._watcher.start()

    def ask(
        self,
        path: str,
        body: dict[str, Any],
        weight: int = 1,
        check: Callable[[dict[str, Any]], None] = lambda answer: None,
    ) -> dict[str, Any]:
        """The answer of some server to a request that any may answer.

        ``weight``: how much there is to do (responses). ``check`` raises ServerGone for an answer that does not count.
        RuntimeError when no server is left or the request fails ``ATTEMPTS`` times, ValueError for one that is refused.
        """
        for attempt in range(ATTEMPTS):
            with self._leased(weight) as server:
                try:
                    answer = self.post(server, path, body)
                    check(answer)
                    return answer
                except ServerGone as error:
                    self.retire(server, str(error))
            self.back_off(attempt)
        raise RuntimeError(f"a request to {path} failed {ATTEMPTS} times. {self.why()}")

    def post(self, server: Server, path: str, body: dict[str, Any] | None = None, **params: str) -> dict[str, Any]:
        """The answer of this server. ServerGone if it gives none, ValueError if it refuses the request."""
        timeout = httpx.Timeout(self.timeout_s, connect=min(10.0, self.timeout_s))
        try:
            reply = self._client.post(server.url + path, json=body, params=params, timeout=timeout)
            if reply.status_code >= 500:
                raise ServerGone(f"{path}: {reply.status_code} {reply.text[:300]}")
            if reply.status_code >= 400:
                raise ValueError(f"{server.url}{path}: {reply.status_code} {reply.text[:500]}")
            return reply.json() if reply.content else {}
        except httpx.HTTPError as error:
            raise ServerGone(f"{path}: {type(error).__name__} {error}".strip()) from error

    def get(self, server: Server, path: str) -> dict[str, Any]:
        """The answer of this server. ServerGone if it gives none."""
        try:
            reply = self._client.get(server.url + path, timeout=10.0)
            reply.raise_for_status()
            return reply.json() if reply.content else {}
        except (httpx.HTTPError, RuntimeError) as error:  # RuntimeError: the client was closed meanwhile
            raise ServerGone(f"{path}: {type(error).__name__} {error}".strip()) from error

    def retire(self, server: Server, problem: str) -> None:
        """Ask it nothing until the next look finds it usable."""
        with self._changed:
            if server.usable:
                LOGGER.warning("vLLM server %s is left alone: %s", server.url, problem)
            server.problem, server.usable = problem, False
            if self._none_since is None and not any(other.usable for other in self.servers):
                self._none_since = time.monotonic()

    def usable(self) -> list[Server]:
        """Those that are asked."""
        with self._changed:
            return [server for server in self.servers if server.usable]

    def wait_for_one(self) -> None:
        """Until a server is usable. RuntimeError after ``patience_s`` without any."""
        with self._changed:
            while not any(server.usable for server in self.servers):
                assert self._none_since is not None
                left = self._none_since + self.patience_s - time.monotonic()
                if left <= 0:
                    raise RuntimeError(f"no vLLM server is left since {self.patience_s:.0f} s. {self.why()}")
                if not self._changed.wait(min(left, REMIND_S)):
                    LOGGER.warning("waiting for a vLLM server. %s", self.why())

    def why(self) -> str:
        """Why each server was last found unusable, and the end of its log."""
        return "; ".join(
            f"{server.url}: {server.problem or 'no problem known'}{log_end(server.log)}" for server in self.servers
        )

    def back_off(self, attempt: int) -> None:
        """Wait before the next attempt."""
        self._closed.wait(self.backoff_s[min(attempt, len(self.backoff_s) - 1)])

    def close(self) -> None:
        """Close the connections; the servers stay."""
        self._closed.set()
        self._client.close()

    @contextmanager
    def _leased(self, weight: int) -> Iterator[Server]:
        with self._changed:
            self.wait_for_one()
            server = min((one for one in self.servers if one.usable), key=lambda one: one.running)
            server.running += weight
        try:
            yield server
        finally:
            with self._changed:
                server.running -= weight

    def _watch(self) -> None:
        while not self._closed.wait(self.every_s):
            for server in self.servers:
                try:
                    self.examine(server)
                except Exception as error:  # whatever it is: without this thread no server would come back
                    if self._closed.is_set():
                        return
                    self.retire(server, str(error) or type(error).__name__)
                    continue
                with self._changed:
                    if not server.usable:
                        LOGGER.warning("vLLM server %s is used again", server.url)
                    server.usable, self._none_since = True, None
                    self._changed.notify_all()


def log_end(log: Path | None, lines: int = LOG_LINES) -> str:
    """The last lines of a server's log, where it can be read from here."""
    if log is None or not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        last = file.read().decode(errors="replace").splitlines()[-lines:]
    return f"\n  the end of {log}:\n" + "\n".join(f"    {line}" for line in last)
