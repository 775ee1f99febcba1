"""One row a response: parquet with everything that scoring needs, so that it can be done again without the model.

While an evaluation runs its rows are in a folder of shards, one for each chunk of items, which appear whole or not at
all; what SIGKILL leaves is a set of whole shards, and the responses of one chunk in its journal. In the end the shards
are merged into one file, which replaces the folder.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rethinker.benchmarks.base import Item
from rethinker.rundir.atomic import atomic_write_bytes, sync_folder

Row = dict[str, Any]

COLUMNS = {  # name -> (type, meaning)
    "qid": (pa.string(), "id of the item"),
    "question": (pa.string(), "its question, with <image> where images stand"),
    "options": (pa.list_(pa.string()), "texts of its options"),
    "golds": (pa.list_(pa.string()), "its gold answers, any of which is right"),
    "images": (pa.list_(pa.string()), "paths of its images"),
    "groups": (pa.string(), "JSON: name of a group -> its values"),
    "cluster": (pa.string(), "what it shares with items that ask the same; empty: nothing"),
    "extra": (pa.string(), "JSON: what the official rule needs besides"),
    "prompt": (pa.string(), "the user turn without data.prompt_suffix"),
    "look": (pa.string(), "first, or second: the trajectory y1 + trigger + y2"),
    "greedy": (pa.bool_(), "decoded greedily; False: sampled"),
    "index": (pa.int64(), "number of the sample of its item, from 0"),
    "text": (pa.string(), "the whole response"),
    "tokens": (pa.int64(), "its length, EOS and trigger included"),
    "finished": (pa.bool_(), "ended with EOS; False: truncated"),
    "reflects": (pa.bool_(), "the first look contains a reflection of its own"),
    "trigger": (pa.string(), "kind of the trigger that forced a second look"),
    "skipped": (pa.string(), "why the item was not asked; it scores 0, or null where nothing here can score it"),
    "score": (pa.float64(), "in [0, 1]; null: nothing here can score it"),
    "extracted": (pa.string(), "the answer found; null: unparsed"),
    "reason": (pa.string(), "how the verdict was reached"),
    "guessed": (pa.float64(), "score of the published rule where that guesses"),
    "judge": (pa.float64(), "the judge's verdict, 0 or 1; null: not asked, or no verdict"),
    "judge_reply": (pa.string(), "what the judge wrote"),
    "judge_model": (pa.string(), "who judged"),
}
SCHEMA = pa.schema([(name, kind) for name, (kind, _) in COLUMNS.items()])
KEY = ("qid", "look", "greedy", "index")
_MISSING: Row = dict.fromkeys(COLUMNS)


def make_row(item: Item, prompt: str, **values: Any) -> Row:
    """A row for a response to ``item``; columns that are not given are null."""
    assert values.keys() <= COLUMNS.keys(), values.keys() - COLUMNS.keys()
    return _MISSING | {
        "qid": item.qid,
        "question": item.question,
        "options": list(item.options),
        "golds": list(item.golds),
        "images": list(item.images),
        "groups": json.dumps({name: list(found) for name, found in item.groups.items()}, ensure_ascii=False),
        "cluster": item.cluster,
        "extra": json.dumps(dict(item.extra), ensure_ascii=False),
        "prompt": prompt,
        **values,
    }


def item_of(row: Mapping[str, Any]) -> Item:
    """The item of ``make_row``."""
    return Item(
        qid=row["qid"],
        question=row["question"],
        golds=tuple(row["golds"]),
        images=tuple(row["images"]),
        options=tuple(row["options"]),
        groups={name: tuple(values) for name, values in json.loads(row["groups"]).items()},
        cluster=row["cluster"],
        extra=json.loads(row["extra"]),
    )


class Shards:
    """The rows of one benchmark in ``folder``: ``<name>.parquet``, or shards on the way to it."""

    def __init__(self, folder: Path, name: str, work: str = "parts") -> None:
        self.table = folder / f"{name}.parquet"
        self.parts = folder / f"{name}.{work}"

    def part(self, number: int) -> Path:
        """The shard of chunk ``number``."""
        return self.parts / f"{number:05d}.parquet"

    def journal(self, number: int) -> Path:
        """Where the responses of chunk ``number`` are kept until its shard is written (``journal.Journal``)."""
        return self.parts / f"{number:05d}.jsonl"

    def write(self, number: int, rows: Sequence[Row]) -> None:
        """Write a shard, whole or not at all, and to the disk."""
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), buffer)
        atomic_write_bytes(self.part(number), buffer.getvalue())

    def merge(self, count: int) -> None:
        """Make the table of shards 0 to ``count`` - 1, a row group each, and remove them."""
        handle, temporary = tempfile.mkstemp(dir=self.table.parent, prefix=f".{self.table.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                with pq.ParquetWriter(file, SCHEMA) as writer:
                    for number in range(count):
                        writer.write_table(pq.read_table(self.part(number), schema=SCHEMA))
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner can read
            os.replace(temporary, self.table)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        sync_folder(self.table.parent)
        self.discard()

    def discard(self) -> None:
        """Remove the shards, and what a killed ``merge`` left."""
        shutil.rmtree(self.parts, ignore_errors=True)
        for temporary in self.table.parent.glob(f".{self.table.name}.*.tmp"):
            temporary.unlink(missing_ok=True)


def read_groups(path: Path) -> Iterator[list[Row]]:
    """The rows of a table, a row group at a time: a chunk of items."""
    with pq.ParquetFile(path) as file:
        if file.schema_arrow.names != SCHEMA.names:
            raise ValueError(
                f"{path}: is no table of a benchmark; its columns are {', '.join(file.schema_arrow.names)}"
            )
        for number in range(file.num_row_groups):
            yield file.read_row_group(number).to_pylist()
