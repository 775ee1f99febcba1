"""The queries of a config as rows for other trainers: prompt with ``<image>``, pictures as bytes, gold answer."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from rethinker.config import RunConfig
from rethinker.config.settings import Split
from rethinker.datasets.filters import training_filter
from rethinker.datasets.io import describe_dropped
from rethinker.evaluation.held_out import read_split
from rethinker.policy.archive import present
from rethinker.policy.pictures import animated, open_image
from rethinker.policy.prompt import IMAGE_PLACEHOLDER, chat_messages
from rethinker.types import Query

ROWS = 64  # that are held in memory with their pictures
_ORIENTATION = 0x0112  # of EXIF; 1: as stored
Say = Callable[[str], None]
Splits = dict[str, list[Query]]


def read_splits(config: RunConfig, say: Say) -> Splits:
    """The queries of train, validation and test, as far as the config has them, as a run would read them, but with
    prompts of any length. Raises ValueError where no row of a split can be used."""
    data = config.data
    splits: Splits = {}
    sources: dict[Split, str | None] = {"train": data.train, "validation": data.validation, "test": data.test}
    for use, source in sources.items():
        if source is None:
            continue
        keep = training_filter(data) if use == "train" else None
        splits[use], dropped = read_split(replace(config, data=replace(data, checks="at_start")), use, keep=keep)
        for report in (str(keep or ""), describe_dropped(dropped)):
            if report:
                say(f"{source}: {report}")
        if not splits[use]:
            raise ValueError(f"data.{use}={source}: none of its rows can be used")
    return splits


def write_rows(
    path: Path, queries: Sequence[Query], schema: pa.Schema, to_row: Callable[[int, Query], dict[str, Any]]
) -> None:
    """A parquet file with ``to_row(index, query)`` of every query, written a few rows at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, len(queries), ROWS):
            rows = [to_row(index, queries[index]) for index in range(start, min(start + ROWS, len(queries)))]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def prompt(config: RunConfig, query: Query) -> str:
    """The text of the user turn, with ``<image>`` where each image stands: those without a place come first."""
    content = chat_messages(query, config.data.prompt_suffix, config.data.prompt_hint)[0]["content"]
    if isinstance(content, str):
        return content
    return "".join(IMAGE_PLACEHOLDER if part["type"] == "image" else part["text"] for part in content)


def pictures(query: Query) -> Iterator[bytes]:
    """The images of ``query``: their files where every loader sees in them what ``open_image`` sees, else PNGs of
    that."""
    for path in query.images:
        if _plain(present(path)):
            yield present(path).read_bytes()
        else:
            buffer = io.BytesIO()
            open_image(path, query.qid).save(buffer, format="PNG")
            yield buffer.getvalue()


def _plain(path: Path) -> bool:
    with Image.open(path) as image:
        usual = image.format in ("PNG", "JPEG") and image.mode == "RGB" and not image.has_transparency_data
        return usual and not animated(image) and image.getexif().get(_ORIENTATION, 1) == 1
