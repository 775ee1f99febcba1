"""Responses kept as they arrive, until the shard of their chunk is written: a resumed evaluation generates only what is
missing.

One line of JSON for each response: [key, fields]. The key is of everything in the request that it depends on; what else
it depends on (model, data, prompt) is the folder's. A kill leaves whole lines and at most a torn last one, which is
dropped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rethinker.rollout.base import RolloutEngine
from rethinker.types import Request, Response, Sampling


class Journal:
    """The responses in the file at ``path``, by key; a damaged end is cut off the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kept: dict[str, Response] = {}
        whole = 0
        data = path.read_bytes() if path.exists() else b""
        for line in data.splitlines(keepends=True):
            try:
                key, values = json.loads(line if line.endswith(b"\n") else b"")
                self.kept[key] = Response(**values)
            except (ValueError, TypeError):
                os.truncate(path, whole)
                return
            whole += len(line)

    def keep(self, responses: Mapping[str, Response]) -> None:
        """Add responses by their keys, and write them to the disk."""
        lines = [json.dumps([key, _values(response)]) for key, response in responses.items()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write("".join(line + "\n" for line in lines).encode())
            file.flush()
            os.fsync(file.fileno())

    def discard(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)


def _values(response: Response) -> dict[str, Any]:
    return {
        "token_ids": list(response.token_ids),
        "logprobs": list(response.logprobs),
        "finished": response.finished,
        "text": response.text,
    }


class KeepingEngine:
    """``engine``, asked for one sample a request and only for those that ``journal`` has not."""

    def __init__(self, engine: RolloutEngine, journal: Journal) -> None:
        self.engine = engine
        self.journal = journal

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Mapping[str, tuple[Response, ...]]:
        """See Responder."""
        singles = {request.request_id: _singles(request) for request in requests}
        keys = {one.request_id: request_key(one, sampling) for found in singles.values() for one in found}
        missing = [one for found in singles.values() for one in found if keys[one.request_id] not in self.journal.kept]

        def keep(batch: Mapping[str, tuple[Response, ...]]) -> None:
            self.journal.keep({keys[name]: response for name, (response,) in batch.items()})

        fresh = self.engine.generate(missing, sampling, keep) if missing else {}
        there = {name: self.journal.kept.get(key) or fresh[name][0] for name, key in keys.items()}
        return {name: tuple(there[one.request_id] for one in found) for name, found in singles.items()}


def _singles(request: Request) -> list[Request]:
    """One request for each sample of ``request``."""
    if request.n == 1:
        return [request]
    numbers = range(request.first, request.first + request.n)
    return [replace(request, request_id=f"{request.request_id}#{number}", n=1, first=number) for number in numbers]


def request_key(request: Request, sampling: Sampling) -> str:
    """Equal for requests that get the same response of the same model, whatever is asked beside them."""
    parts = (request.query.qid, request.seed, request.first, tuple(request.prefix_ids), sampling)
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()
