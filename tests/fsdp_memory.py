"""Peak memory of one training pass under FSDP2, by torch's FSDPMemTracker: nothing is computed and nothing allocated.

    python tests/fsdp_memory.py Qwen2.5-VL-7B-Instruct 8 16384

prints one line of JSON: bytes by kind at the peak. Rank 0 of a process group of ``ranks`` that exists in name only
(``FakeStore``), under fake tensors on a CPU. Sharded as a run is; the vision tower is frozen and sees no image. Weights
are float32, arithmetic is bfloat16, layers are checkpointed, and 0.6 of the tokens are scored. The optimiser is left
out: under fake tensors the tracker counts DTensor's own shape propagation in its step.
"""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from rethinker.lab.sizes.shapes import KNOWN, Shape
from rethinker.policy.forward import PolicyForward
from rethinker.policy.packing import PackedBatch
from rethinker.policy.sharding import shard
from rethinker.policy.vision import Vision

SCORED = 0.6  # of the tokens


def model_config(shape: Shape) -> Qwen2_5_VLConfig:
    """transformers' config of a Qwen2.5-VL of this shape."""
    assert shape.tower
    return Qwen2_5_VLConfig(
        text_config={
            "hidden_size": shape.width,
            "intermediate_size": shape.mlp,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "vocab_size": shape.vocab,
            "tie_word_embeddings": shape.tied,
            "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
        },
        vision_config={
            "depth": shape.tower.depth,
            "hidden_size": shape.tower.width,
            "intermediate_size": shape.tower.mlp,
            "out_hidden_size": shape.width,
            "patch_size": shape.tower.patch,
        },
        tie_word_embeddings=shape.tied,
    )


def text_batch(tokens: int) -> PackedBatch:
    """One causal row without images."""
    row, places = torch.zeros(1, tokens, dtype=torch.long), torch.arange(int(tokens * SCORED))
    return PackedBatch(
        input_ids_RS=row,
        positions_3RS=row.expand(3, 1, tokens),
        trees=None,
        vision=Vision(),
        predict_U=places,
        targets_U=torch.zeros_like(places),
        place_BT=places[None],
        mask_BT=torch.ones_like(places[None], dtype=torch.bool),
        banned=torch.tensor([0]),
    )


def peak(shape: Shape, ranks: int, tokens: int) -> dict[str, int]:
    """Bytes by kind at the peak of one forward and backward pass on rank 0."""
    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    mesh = dist.device_mesh.init_device_mesh("cpu", (ranks,))
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = Qwen2_5_VLForConditionalGeneration._from_config(model_config(shape), attn_implementation="sdpa").train()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.model.visual.requires_grad_(False)
        root = PolicyForward(model, autocast=True)
        shard(root, mesh, bfloat16=True)
        batch = text_batch(tokens)
        tracker = FSDPMemTracker(root, None)
        tracker.track_inputs((batch.input_ids_RS,))
        with tracker:
            logprobs_BT, _ = root(batch, 1.0, "value")
            logprobs_BT.sum().backward()
    found = next(iter(tracker.get_tracker_snapshot("peak").values()))
    return {getattr(kind, "value", str(kind)): size for kind, size in found.items() if size}


if __name__ == "__main__":
    print(json.dumps(peak(KNOWN[sys.argv[1]], int(sys.argv[2]), int(sys.argv[3]))))
