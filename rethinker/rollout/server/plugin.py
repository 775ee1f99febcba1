"""What a vLLM server loads of ours: weights that arrive as files, and a token asked for on every route.

vLLM calls ``register`` in all its processes (entry point ``vllm.general_plugins``). Written for vLLM 0.32's
``WeightTransferEngine``; its phases are start, update (once a bucket), finish.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BACKEND = "rethinker_file"  # in place of vLLM's "nccl"
ENTRY_POINT = "rethinker"  # in pyproject.toml
TOKEN_VARIABLE = "RETHINKER_SERVER_TOKEN"
OPEN_PATHS = ("/health",)


def register() -> None:
    """Make the backend known to vLLM, once a process."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, "rethinker.rollout.server.file_backend", "FileBackend")


@dataclass(frozen=True)
class Bucket:
    """A file of weights and what its bytes hash to."""

    path: str
    sha256: str

    def check(self) -> None:
        """Raises ValueError if the file is not what the trainer wrote."""
        if file_hash(Path(self.path)) != self.sha256:
            raise ValueError(f"{self.path} is not what the trainer wrote")


def file_hash(path: Path) -> str:
    """SHA-256 of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class TokenMiddleware:
    """ASGI: refuses requests without the token, at every path but the health check.

    vLLM's own ``--api-key`` leaves the routes open by which weights are changed.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self.wanted = f"Bearer {os.environ[TOKEN_VARIABLE]}".encode()

    def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> Awaitable[None]:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            return self.app(scope, receive, send)
        given = dict(scope["headers"]).get(b"authorization", b"")
        if secrets.compare_digest(given, self.wanted):
            return self.app(scope, receive, send)
        return refuse(send)


async def refuse(send: Any) -> None:
    """401, and why."""
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": b'{"error": "this server asks for a token"}'})
