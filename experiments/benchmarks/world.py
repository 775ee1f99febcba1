"""What both sides are given: one model folder, one set of queries with their images, one rule for rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from rethinker.datasets.io import load_queries, write_parquet
from rethinker.datasets.order import QueryOrder
from rethinker.grading import grade_many
from rethinker.tiny.model import save_policy, train_tokenizer
from rethinker.types import Grade, Query

SEED = 0
QUESTION = "<image>How many red squares are in picture {index:05d}?"  # 79 tokens of prompt with an image of 112 pixels
VOCABULARY = 512  # of the model; the tokenizer has a token for each byte, and the special ones
LEARNING_RATE = 1e-5


@dataclass(frozen=True)
class Point:
    """The size of a step: ``queries`` with one square image of ``pixels`` a side, ``group`` responses a query, each
    of exactly ``tokens`` tokens.
    """

    pixels: int = 112
    queries: int = 8
    group: int = 8
    tokens: int = 64

    @property
    def name(self) -> str:
        return f"{self.pixels}px-{self.queries}x{self.group}x{self.tokens}"

    @property
    def samples(self) -> int:
        return self.queries * self.group


def build_model(folder: Path) -> None:
    """Write a Qwen2.5-VL of 4.6 million random weights, with patches of 14 pixels as the real ones have."""
    tokenizer = train_tokenizer([])
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=tokenizer.chat_template,
    )
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("endoftext", "im_end")}
    vision_ids = {f"{name}_token_id": f"<|{name}|>" for name in ("vision_start", "vision_end")}
    vision_ids |= {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": 256,
            "intermediate_size": 704,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
            "bos_token_id": ids["endoftext"],
            "eos_token_id": ids["im_end"],
            "pad_token_id": ids["endoftext"],
        },
        vision_config={
            "depth": 4,
            "hidden_size": 128,
            "intermediate_size": 352,
            "num_heads": 4,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [1, 3],
            "out_hidden_size": 256,
        },
        tie_word_embeddings=False,
        **{key: tokenizer.convert_tokens_to_ids(token) for key, token in vision_ids.items()},
    )
    torch.manual_seed(SEED)
    model = Qwen2_5_VLForConditionalGeneration(config).float()
    model.generation_config.eos_token_id = ids["im_end"]
    model.generation_config.pad_token_id = ids["endoftext"]
    save_policy(folder, model, processor)


def write_queries(folder: Path, point: Point, count: int) -> Path:
    """A data set of ``count`` queries about as many different images of noise; returns its parquet file."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(SEED)
    rows = []
    for index in range(count):
        image = folder / f"{index:04d}.png"
        noise = generator.integers(0, 256, (point.pixels, point.pixels, 3), dtype=np.uint8)
        Image.fromarray(noise).save(image, compress_level=1)
        rows.append(
            {
                "question": QUESTION.format(index=index),
                "answer": "\\boxed{1}",
                "category": "noise",
                "source": "benchmark",
                "qid": f"q{index:04d}",
                "image": [str(image)],
                "level": 1,
            }
        )
    write_parquet(folder / "queries.parquet", rows)
    return folder / "queries.parquet"


def queries_in_order(file: Path) -> list[Query]:
    """The queries in the order in which our trainer visits them, each once."""
    queries, dropped = load_queries(file)
    if dropped:
        raise ValueError(f"{file}: {len(dropped)} rows were dropped, the first: {dropped[0]}")
    return QueryOrder(queries, SEED).take(len(queries))


def parity(text: str) -> bool:
    """Whether the sum of the text's code points is even: right half of the time, and free of any model."""
    return sum(map(ord, text)) % 2 == 0


def grade_by_parity(items: Sequence[tuple[str, str, str]]) -> list[Grade]:
    """``grade_many`` with its cost, but with verdicts by parity: a random model answers nothing right, and a group
    without a right answer has no advantage.
    """
    grades = grade_many(items)
    return [replace(grade, correct=parity(text)) for grade, (text, _, _) in zip(grades, items, strict=True)]


def check_lengths(side: str, responses: Sequence[Sequence[int]], point: Point) -> None:
    """Raises RuntimeError unless there is every response of the step, each of the full length."""
    lengths = sorted({len(ids) for ids in responses})
    if len(responses) != point.samples or lengths != [point.tokens]:
        raise RuntimeError(
            f"{side}, {point.name}: {len(responses)} responses of lengths {lengths}; wanted {point.samples} of "
            f"{point.tokens} tokens (is EOS suppressed?)"
        )


def never_sampled(tokenizer: Any) -> list[int]:
    """Ids that neither side samples: every special token, EOS among them, so that all responses are equally long, and
    the model's ids that stand for no token.
    """
    special = [index for index, token in tokenizer.added_tokens_decoder.items() if token.special]
    return sorted({*special, *range(len(tokenizer), VOCABULARY)})
