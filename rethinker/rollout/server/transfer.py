"""The trainer's side of giving weights to servers: what one version is, and the phases in which a server takes it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from rethinker.rollout.server.fleet import Fleet, Server, ServerGone
from rethinker.rollout.server.plugin import Bucket, file_hash

BUCKET_BYTES = 2**30


class FileTransfer:
    """Weights as files in ``folder``, which every server reads at the same path. A new path each version; the last one
    is kept, for servers that come back."""

    def __init__(self, folder: Path, bucket_bytes: int = BUCKET_BYTES) -> None:
        self.folder, self.bucket_bytes = folder, bucket_bytes
        self.version = ""
        self.buckets: list[Bucket] = []

    def store(self, version: str, stream: Iterable[tuple[str, Tensor]]) -> None:
        """Keep the weights of ``stream`` as ``version``, one bucket in memory at a time."""
        folder = self.folder / version
        folder.mkdir(parents=True)
        self.version, self.buckets, held = version, [], dict[str, Tensor]()

        def flush() -> None:
            path = folder / f"bucket-{len(self.buckets):04d}.safetensors"
            save_file(held, path)
            self.buckets.append(Bucket(str(path), file_hash(path)))
            held.clear()

        for name, tensor in stream:
            if held and sum(value.nbytes for value in held.values()) + tensor.nbytes > self.bucket_bytes:
                flush()
            held[name] = tensor.detach().cpu().contiguous().clone()  # tied weights must not share memory in a file
        flush()
        for other in self.folder.iterdir():
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)

    def send(self, fleet: Fleet, server: Server) -> None:
        """All phases of vLLM's weight transfer; a whole one repairs one that broke off. Raises ServerGone or ValueError
        where it fails.

        The pause waits for what runs, and clears the caches: vLLM's prefix and encoder caches hold what the old weights
        made.
        """
        fleet.post(server, "/init_weight_transfer_engine", {"init_info": {}})
        fleet.post(server, "/pause", mode="wait", clear_cache="true")
        try:
            fleet.post(server, "/start_weight_update", {})
        except ServerGone:  # a trainer was killed in mid-transfer: a bucket that fails ends its session
            with suppress(ServerGone):
                self._update(fleet, server, Bucket("", ""))
            fleet.post(server, "/start_weight_update", {})
        for bucket in self.buckets:
            self._update(fleet, server, bucket)
        fleet.post(server, "/finish_weight_update", {"weight_version": self.version})
        fleet.post(server, "/resume")

    def _update(self, fleet: Fleet, server: Server, bucket: Bucket) -> None:
        fleet.post(server, "/update_weights", {"update_info": {"path": bucket.path, "sha256": bucket.sha256}})
