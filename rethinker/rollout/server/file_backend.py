"""vLLM's side of a weight transfer by files: for CPUs, tests, and clusters without NCCL between jobs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from safetensors.torch import load_file
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from rethinker.rollout.server.plugin import Bucket


@dataclass
class FileInit(WeightTransferInitInfo):
    """Nothing to agree on."""


@dataclass
class FileUpdate(WeightTransferUpdateInfo):
    """A bucket of whole weights under their checkpoint's names, as safetensors."""

    path: str
    sha256: str


class FileBackend(WeightTransferEngine[FileInit, FileUpdate]):
    """Loads buckets from files that the trainer wrote."""

    init_info_cls, update_info_cls = FileInit, FileUpdate

    def init_transfer_engine(self, init_info: FileInit) -> None:
        """Nothing to set up."""

    def start_weight_update(self) -> None:
        """Begin: parameters go back to their checkpoint's layout."""
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """As the base class, but for its synchronisation of an accelerator, which a CPU has not."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: FileUpdate) -> None:
        """Load a bucket. Raises ValueError if the file is not what the trainer wrote."""
        Bucket(update_info.path, update_info.sha256).check()
        self.model.load_weights(list(load_file(update_info.path).items()))

    def finish_weight_update(self) -> None:
        """End: parameters take the layout that the kernels want."""
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Nothing to close."""
