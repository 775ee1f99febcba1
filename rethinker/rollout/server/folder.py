"""The folder by which servers and a run find each other (``rollout.servers``): the token, who serves where, logs, and
weights on their way. On several machines it is on a file system that all of them share.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from rethinker.config.schema import ConfigError
from rethinker.rollout.server.fleet import Server


@dataclass(frozen=True)
class Served:
    """What one ``rethinker serve`` runs: its servers as (url, log), and what they were started for."""

    servers: tuple[tuple[str, str], ...]
    model: str
    dtype: str
    transfer: str  # rollout.weight_transfer
    context: int  # tokens of a prompt with its response
    images: int  # of a prompt


class ServersDir:
    """The files in it. What holds the token or addresses is readable by its owner only."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).absolute()

    @property
    def weights(self) -> Path:
        """Where a run hands over weights as files."""
        return self.folder / "weights"

    def log(self, port: int) -> Path:
        """What the server at ``port`` of this machine prints."""
        return self.folder / "logs" / f"{os.uname().nodename}-{port}.log"

    def token(self) -> str:
        """The token of all servers in this folder, made by whoever comes first."""
        path = self.folder / "token"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            made = self._written(secrets.token_urlsafe(32))
            try:
                os.link(made, path)  # fails if another was faster
            except FileExistsError:
                pass
            finally:
                made.unlink()
        return path.read_text()

    def write(self, host: str, port: int, served: Served) -> Path:
        """Tell runs of these servers; the first of them is at ``host`` and ``port``."""
        path = self.folder / f"{host}-{port}.json"
        os.replace(self._written(json.dumps(asdict(served), indent=1)), path)
        return path

    def read(self) -> list[Served]:
        """All that serve here. Raises ConfigError if there is none."""
        found = [json.loads(path.read_text()) for path in sorted(self.folder.glob("*.json"))]
        if not found:
            raise ConfigError(
                f"rollout.servers={self.folder}: no server there yet; start them (rethinker serve CONFIG) and wait "
                "until they are up"
            )
        return [Served(**{**item, "servers": tuple(map(tuple, item["servers"]))}) for item in found]

    def lock(self) -> int:
        """A descriptor that keeps these servers to one run while it is open. Raises ConfigError if another has them:
        each would overwrite the other's weights."""
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise ConfigError(
                f"rollout.servers={self.folder}: another run uses these servers, and would get this one's weights; "
                "wait for it, or start others (rethinker serve CONFIG rollout.servers=FOLDER)"
            ) from error
        return descriptor

    def _written(self, text: str) -> Path:
        handle, name = tempfile.mkstemp(dir=self.folder, prefix=".", suffix=".tmp")  # mode 600
        with os.fdopen(handle, "w") as file:
            file.write(text)
        return Path(name)


def servers_of(served: list[Served]) -> list[Server]:
    """The servers, each once."""
    return [Server(url, Path(log)) for url, log in dict(pair for item in served for pair in item.servers).items()]
