"""Weights to servers by vLLM's NCCL backend, from GPU to GPU. Written after vLLM 0.32's documentation and source (its
trainer's side is tested with a stand-in for NCCL); not run on GPUs.

One version is kept in this process's memory, gathered before anything is sent: so a server that comes back gets it
without the other ranks, and no collective of theirs can meet one of the transfer's. Each transfer makes its group anew:
one that still counts on a server which was restarted would hang. NCCL has no time-out: the transfer runs in a thread,
and a server that does not come along counts as gone.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor

from rethinker.rollout.server.fleet import Fleet, Server, ServerGone


class NcclTransfer:
    """See FileTransfer, whose place it takes. ``device``: the trainer's GPU that sends."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.version = ""
        self.weights: list[tuple[str, Tensor]] = []

    def store(self, version: str, stream: Iterable[tuple[str, Tensor]]) -> None:
        """Keep the weights of ``stream`` as ``version``, in host memory."""
        self.weights = []  # the old ones make room
        self.version, self.weights = version, [(name, tensor.detach().to("cpu", copy=True)) for name, tensor in stream]

    def send(self, fleet: Fleet, server: Server) -> None:
        """All phases. Raises ServerGone where one fails or ``fleet.timeout_s`` pass."""
        errors: list[Exception] = []

        def transfer() -> None:
            try:
                self._send(fleet, server)
            except Exception as error:  # of HTTP, of NCCL, of vLLM: the caller's thread tells
                errors.append(error)

        thread = threading.Thread(target=transfer, daemon=True, name=f"weights to {server.url}")
        thread.start()
        thread.join(fleet.timeout_s)
        if thread.is_alive():
            raise ServerGone(f"the NCCL transfer did not end within {fleet.timeout_s:.0f} s (rollout.server_timeout)")
        if errors:
            raise ServerGone(f"the NCCL transfer failed: {type(errors[0]).__name__} {errors[0]}") from errors[0]

    def _send(self, fleet: Fleet, server: Server) -> None:
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # a thread begins with device 0
        address, port = own_address(server.url)
        workers = int(fleet.get(server, "/get_world_size")["world_size"])
        fleet.post(server, "/pause", mode="wait", clear_cache="true")
        engine = WeightTransferTrainerFactory.trainer_init(
            NCCLTrainerInitInfo(rank=0, master_address=address, master_port=port, world_size=workers + 1),
            client=Client(fleet, server, self.version),
            source=make_source(self.weights, self.device),
        )
        try:
            engine.send_weights()
        finally:
            engine.shutdown()
            with suppress(ServerGone):
                fleet.post(server, "/shutdown_weight_transfer_engine")
        fleet.post(server, "/resume")


class Client:
    """vLLM's ``VLLMWeightSyncClient``, with our token and time-outs."""

    def __init__(self, fleet: Fleet, server: Server, version: str) -> None:
        self.fleet, self.server, self.version = fleet, server, version

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """The server's workers join the group."""
        self.fleet.post(self.server, "/init_weight_transfer_engine", {"init_info": init_info})

    def start_weight_update(self) -> None:
        """Begin."""
        self.fleet.post(self.server, "/start_weight_update", {})

    def update_weights(self, update_info: Any) -> None:
        """The server receives while the trainer sends."""
        self.fleet.post(self.server, "/update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """End, with our version: vLLM's trainer names none."""
        self.fleet.post(self.server, "/finish_weight_update", {"weight_version": weight_version or self.version})


def make_source(weights: list[tuple[str, Tensor]], device: torch.device) -> Any:
    """vLLM's ``WeightSource`` of weights in host memory."""
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

    class Source(WeightSource):
        def metadata(self) -> list[Any]:
            return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in weights]

        def __iter__(self) -> Iterator[tuple[str, Tensor]]:
            return ((name, tensor.to(device)) for name, tensor in weights)

    return Source()


def own_address(url: str) -> tuple[str, int]:
    """This machine's address as the server sees it, and a port of it that is free."""
    parts = urlsplit(url)
    try:
        with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
            address = connection.getsockname()[0]
    except OSError as error:
        raise ServerGone(f"no connection ({error})") from error
    with socket.socket() as listener:
        listener.bind((address, 0))
        return address, int(listener.getsockname()[1])
