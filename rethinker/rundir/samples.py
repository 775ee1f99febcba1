"""Samples of a replay buffer as parquet and back, exactly: replayed samples keep their log-probs bit for bit.

One row a sample; columns are the fields of ``Sample``, of its records as "query.qid", "response.token_ids" and so on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rethinker.arrays import Flags, Floats, Ints
from rethinker.types import Grade, Query, Response, Rethinking, Sample

ADDED = "added"  # the column of the episode in which a sample was added
RECORDS: dict[str, type] = {"query": Query, "response": Response, "grade": Grade, "rethinking": Rethinking}
NUMBERS: dict[Any, Any] = {"Ints": Ints, "Floats": Floats, "Flags": Flags}  # by a field's annotation
TYPES: dict[Any, pa.DataType] = {  # the same
    "str": pa.string(),
    "str | None": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "float | None": pa.float64(),
    "bool": pa.bool_(),
    "tuple[str, ...]": pa.list_(pa.string()),
}


def write_samples(path: Path, entries: Sequence[tuple[int, Sample]]) -> None:
    """Write (episode added, sample) of a buffer, in their order."""
    columns = {ADDED: pa.array([added for added, _ in entries], pa.int64())}
    columns |= _columns(Sample, [sample for _, sample in entries])
    pq.write_table(pa.table(columns), path)


def read_samples(path: Path) -> list[tuple[int, Sample]]:
    """What ``write_samples`` wrote; samples of one query share it. Raises ValueError for a file with other columns."""
    table = pq.read_table(path)
    if "unanimous" not in table.column_names:  # of a version without a price of tokens, whose buffers held none
        table = table.append_column("unanimous", pa.array([False] * len(table), pa.bool_()))
    expected = [ADDED, *_names(Sample)]
    if table.column_names != expected:
        missing, unknown = set(expected) - set(table.column_names), set(table.column_names) - set(expected)
        raise ValueError(f"{path} holds no samples: missing columns {sorted(missing)}, unknown {sorted(unknown)}")
    queries: dict[Query, Query] = {}
    samples = _records(Sample, table, lambda record: queries.setdefault(record, record))
    return list(zip(table[ADDED].to_pylist(), samples, strict=True))


def _names(kind: type, prefix: str = "") -> Iterator[str]:
    for field in fields(kind):
        if field.name in RECORDS:
            yield from _names(RECORDS[field.name], f"{field.name}.")
        else:
            yield prefix + field.name


def _columns(kind: type, records: Sequence[Any], prefix: str = "") -> dict[str, pa.Array]:
    """The columns of records, which may be None."""
    columns: dict[str, pa.Array] = {}
    for field in fields(kind):
        values: list[Any] = [None if record is None else getattr(record, field.name) for record in records]
        if field.name in RECORDS:
            columns |= _columns(RECORDS[field.name], values, f"{field.name}.")
        elif field.type in NUMBERS:
            flat = np.asarray(NUMBERS[field.type](np.concatenate([NUMBERS[field.type](), *values])))
            offsets = np.cumsum([0, *map(len, values)])
            columns[prefix + field.name] = pa.LargeListArray.from_arrays(offsets, pa.array(flat))
        else:
            columns[prefix + field.name] = pa.array(values, TYPES[field.type])
    return columns


def _records(kind: type, table: pa.Table, share: Callable[[Query], Query], prefix: str = "") -> list[Any]:
    """The records of ``_columns``; None where all columns of one are null."""
    values = []
    for field in fields(kind):
        if field.name in RECORDS:
            values.append(_records(RECORDS[field.name], table, share, f"{field.name}."))
            continue
        column = table[prefix + field.name]
        if field.type in NUMBERS:
            values.append(_sequences(column, NUMBERS[field.type]))
        else:
            values.append([tuple(value) if isinstance(value, list) else value for value in column.to_pylist()])
    made: list[Any] = []
    for row in zip(*values, strict=True):
        record = None if all(value is None for value in row) else kind(*row)
        made.append(share(record) if isinstance(record, Query) else record)
    return made


def _sequences(column: pa.ChunkedArray, kind: Any) -> list[Any]:
    found: list[Any] = []
    for chunk in column.chunks:
        offsets, flat = chunk.offsets.to_numpy(), chunk.flatten().to_numpy(zero_copy_only=False)
        found += [kind(flat[start - offsets[0] : end - offsets[0]]) for start, end in itertools.pairwise(offsets)]
    return found
