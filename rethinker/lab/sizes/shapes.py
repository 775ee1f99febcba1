"""Sizes of the models that can be planned: of a checkpoint's config.json, or of a table of the published ones.

All counts are of parameters, exact: by formulas for Qwen2.5-VL and Qwen3-VL (dense), tested against transformers' own
modules; for other families those are counted (``counted``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rethinker.config.schema import ConfigError


@dataclass(frozen=True)
class Tower:
    """A vision tower. ``gated``: SwiGLU and RMSNorm (Qwen2.5-VL), else GELU and LayerNorm with biases (Qwen3-VL)."""

    depth: int
    width: int
    mlp: int
    out: int  # the language model's hidden size
    patch: int  # pixels
    merge: int = 2  # patches a side that become one token
    frames: int = 2
    gated: bool = True
    positions: int = 0  # learned position embeddings
    deepstack: int = 0  # mergers beside the last one
    tokens: int | None = None  # of every image; 0: so many as its tiles need; None: by its pixels
    counted: int = 0  # parameters, where no formula gives them

    @property
    def side(self) -> int:
        """Pixels a side of what becomes one token."""
        return self.patch * self.merge

    @property
    def parameters(self) -> int:
        """All weights of the tower with its mergers."""
        if self.counted:
            return self.counted
        width, mlp, bias = self.width, self.mlp, not self.gated
        attention = 4 * width**2 + 4 * width
        norms = 2 * width * (1 + bias)
        feed = 3 * width * mlp + 2 * mlp + width if self.gated else 2 * width * mlp + mlp + width
        embed = 3 * self.frames * self.patch**2 * width + bias * width + self.positions * width
        merged = width * self.merge**2
        linears = merged**2 + merged + merged * self.out + self.out
        mergers = linears + width * (1 + bias) + self.deepstack * (linears + merged * (1 + bias))
        return embed + self.depth * (attention + norms + feed) + mergers


@dataclass(frozen=True)
class Shape:
    """A language model with its vision tower (None: text only)."""

    width: int  # h, hidden size
    mlp: int  # i, intermediate size
    layers: int  # L
    heads: int
    kv_heads: int
    vocab: int
    tied: bool  # lm_head is embed_tokens
    tower: Tower | None
    head: int = 128  # size of a head
    biases: bool = True  # of the projections to queries, keys and values (Qwen2.5)
    qk_norm: bool = False  # (Qwen3, Gemma 3)
    norms: int = 2  # of a layer's inputs and outputs (Gemma 3: 4)

    @property
    def queries(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head

    @property
    def keys(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self.kv_heads * self.head

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of a decoder layer's linear layers, by their names."""
        h, i, q, k = self.width, self.mlp, self.queries, self.keys
        return {
            "q_proj": (h, q),
            "k_proj": (h, k),
            "v_proj": (h, k),
            "o_proj": (q, h),
            "gate_proj": (h, i),
            "up_proj": (h, i),
            "down_proj": (i, h),
        }

    @property
    def layer(self) -> int:
        """Parameters of one decoder layer."""
        matrices = sum(inputs * outputs for inputs, outputs in self.linears.values())
        norms = self.norms * self.width + self.qk_norm * 2 * self.head
        return matrices + self.biases * (self.queries + 2 * self.keys) + norms

    @property
    def lm_head(self) -> int:
        """Parameters of the output layer, and of the input embeddings."""
        return self.vocab * self.width

    @property
    def root(self) -> int:
        """Parameters outside the decoder layers: embeddings, output layer (once where tied) and the last norm."""
        return self.lm_head * (1 if self.tied else 2) + self.width

    @property
    def language(self) -> int:
        """P: parameters of the language model."""
        return self.layers * self.layer + self.root

    @property
    def vision(self) -> int:
        """V: parameters of the vision tower."""
        return self.tower.parameters if self.tower else 0

    @property
    def total(self) -> int:
        """P + V."""
        return self.language + self.vision

    def adapters(self, rank: int, targets: tuple[str, ...]) -> int:
        """Parameters of LoRA adapters of this rank on every decoder layer's ``targets``."""
        return self.layers * rank * sum(sum(self.linears[name]) for name in targets if name in self.linears)

    def kv_token(self, size: int) -> int:
        """Bytes of the KV cache of a token, ``size`` bytes a number."""
        return 2 * self.layers * self.keys * size


def _qwen25(width: int, mlp: int, layers: int, heads: int, kv_heads: int, vocab: int, tied: bool, tower: int) -> Shape:
    vision = Tower(depth=32, width=1280, mlp=tower, out=width, patch=14)
    return Shape(width, mlp, layers, heads, kv_heads, vocab, tied, vision)


def _qwen3(width: int, mlp: int, layers: int, heads: int, tied: bool, tower: tuple[int, int, int]) -> Shape:
    depth, vision_width, vision_mlp = tower
    vision = Tower(depth, vision_width, vision_mlp, width, 16, gated=False, positions=2304, deepstack=3)
    return Shape(width, mlp, layers, heads, 8, 151936, tied, vision, biases=False, qk_norm=True)


# The config.json of Qwen/<name> on the Hugging Face hub. Check: twice the sum of parameters is the total_size that the
# checkpoint's model.safetensors.index.json gives (bfloat16), e.g. 16,584,333,312 bytes for Qwen2.5-VL-7B-Instruct.
KNOWN = {
    "Qwen2.5-VL-3B-Instruct": _qwen25(2048, 11008, 36, 16, 2, 151936, True, 3420),
    "Qwen2.5-VL-7B-Instruct": _qwen25(3584, 18944, 28, 28, 4, 152064, False, 3420),
    "Qwen2.5-VL-32B-Instruct": _qwen25(5120, 27648, 64, 40, 8, 152064, False, 3456),
    "Qwen2.5-VL-72B-Instruct": _qwen25(8192, 29568, 80, 64, 8, 152064, False, 3456),
    "Qwen3-VL-2B-Instruct": _qwen3(2048, 6144, 28, 16, True, (24, 1024, 4096)),
    "Qwen3-VL-4B-Instruct": _qwen3(2560, 9728, 36, 32, True, (24, 1024, 4096)),
    "Qwen3-VL-8B-Instruct": _qwen3(4096, 12288, 36, 32, False, (27, 1152, 4304)),
    "Qwen3-VL-32B-Instruct": _qwen3(5120, 25600, 64, 64, False, (27, 1152, 4304)),
}


def find_shape(path: str) -> tuple[Shape, str]:
    """The sizes of the model at ``model.path`` and where they were read: a folder's config.json, that of a hub id in
    this machine's cache, or ``KNOWN``. Nothing is downloaded.

    Raises ConfigError where there is none of them, or a model of another family.
    """
    file = Path(path) / "config.json"
    if not file.is_file():
        cached = _cached(path) if not Path(path).exists() else None
        if cached is None:
            name = path.rpartition("/")[2].replace("-Thinking", "-Instruct")
            if name in KNOWN:
                return KNOWN[name], f"the table of known sizes ({name})"
            raise ConfigError(
                f"model.path={path}: no {file.absolute()}, not in the hub's cache of this machine, and not one of the "
                f"known sizes ({', '.join(KNOWN)}): give a folder that holds the model's config.json"
            )
        file = Path(cached)
    return read_shape(json.loads(file.read_text(encoding="utf-8")), str(file)), str(file)


def _cached(path: str) -> str | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(path, "config.json")
    except HFValidationError:  # not the form of a hub id
        return None
    return found if isinstance(found, str) else None


def read_shape(config: dict[str, Any], where: str) -> Shape:
    """The sizes that a config.json gives, with the language model's in ``text_config`` or (older files) at the top.

    Raises ConfigError for a family that cannot be trained here, and where a size is missing.
    """
    family = config.get("model_type")
    if family not in ("qwen2_5_vl", "qwen3_vl"):
        from rethinker.lab.sizes.counted import count_shape
        from rethinker.policy.families import FAMILIES

        if family not in FAMILIES:
            raise ConfigError(f"{where}: model_type={family!r} cannot be planned, only {', '.join(FAMILIES)}")
        return count_shape(config, where)
    newer = family == "qwen3_vl"
    try:
        text, vision = config.get("text_config", config), config["vision_config"]
        tower = Tower(
            depth=vision["depth"],
            width=vision["hidden_size"],
            mlp=vision["intermediate_size"],
            out=text["hidden_size"],
            patch=vision["patch_size"],
            merge=vision.get("spatial_merge_size", 2),
            frames=vision.get("temporal_patch_size", 2),
            gated=not newer,
            positions=vision["num_position_embeddings"] if newer else 0,
            deepstack=len(vision["deepstack_visual_indexes"]) if newer else 0,
        )
        return Shape(
            width=text["hidden_size"],
            mlp=text["intermediate_size"],
            layers=text["num_hidden_layers"],
            heads=text["num_attention_heads"],
            kv_heads=text["num_key_value_heads"],
            vocab=text["vocab_size"],
            tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
            tower=tower,
            head=text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"],
            biases=not newer,
            qk_norm=newer,
        )
    except KeyError as error:
        raise ConfigError(f"{where}: has no {error}") from error
