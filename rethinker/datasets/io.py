"""Reading and writing queries in ViRL39K's schema: a parquet file and, next to it, a folder or zip archive of images.

Columns: ``question`` (with a leading ``<image>`` for each image), ``answer`` (in ``\\boxed{}``),
``PassRate_32BTrained``, ``PassRate_7BBase``, ``category``, ``source``, ``qid``, ``image`` (list of paths, relative to
the parquet's folder; empty for text-only queries). Ours adds ``level``. JSON lines and Hugging Face data sets with
these columns are read as well.

A row that cannot be used is reported with its qid and dropped; it is never graded as wrong instead.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rethinker.datasets.checks import special_token
from rethinker.datasets.columns import REQUIRED_COLUMNS, Row
from rethinker.datasets.columns import SCHEMA_COLUMNS as SCHEMA_COLUMNS
from rethinker.datasets.images import ImageFinder, RowError
from rethinker.datasets.pass_rate import pass_rate
from rethinker.datasets.rows import open_rows
from rethinker.grading import check_golds, extract_gold
from rethinker.rundir.atomic import atomic_write_bytes
from rethinker.types import Query

_ARROW_SCHEMA = pa.schema(
    [
        ("question", pa.string()),
        ("answer", pa.string()),
        ("PassRate_32BTrained", pa.float64()),
        ("PassRate_7BBase", pa.float64()),
        ("category", pa.string()),
        ("source", pa.string()),
        ("qid", pa.string()),
        ("image", pa.list_(pa.string())),
        ("level", pa.int64()),
    ]
)
CheckGolds = Callable[[Sequence[str]], "list[str | None]"]
CheckQuery = Callable[[Query], "tuple[str, str] | None"]


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that was left out: its qid (or "row 17" if it has none), the kind of fault, and what exactly."""

    qid: str
    reason: str
    detail: str


def load_queries(
    path: str | Path,
    split: str | None = None,
    limit: int | None = None,
    *,
    columns: Mapping[str, Any] | None = None,
    image_root: str | Path | None = None,
    read_images: bool = True,
    check_golds: CheckGolds = check_golds,
    check_query: CheckQuery | None = None,
    keep: Callable[[Row], bool] | None = None,
) -> tuple[list[Query], list[Dropped]]:
    """Read queries, in the order of the rows, and the rows that had to be dropped.

    Args:
        path: a ``.parquet`` or ``.jsonl`` file, a folder with ``<split>.parquet`` or ``<split>.jsonl``, a folder
            written by ``datasets.save_to_disk``, or the name of a data set on the Hugging Face hub ("owner/name").
        split: which file (or split) of a folder or data set; may be left out if there is only one.
        limit: stop after so many good queries.
        columns: of ``data.columns``, for data with others than the schema's (``datasets.columns``).
        image_root: where relative image paths start; by default the folder of the file (or data set). What is no file
            there is looked for in its zip archives.
        read_images: whether images are checked, or only have to be there.
        check_golds: why each of some gold answers cannot be graded, or None if it can; by default the grader's own
            check.
        check_query: (reason, detail) of a query that cannot be used for another cause, or None.
        keep: whether a row is wanted; the others are neither checked nor reported.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        ValueError: the split is not named, not there, or columns are missing.
    """
    if limit is not None and limit < 0:
        raise ValueError(f"limit must not be negative, got {limit}")
    rows, folder = open_rows(path, split, columns)
    if keep:
        rows = filter(keep, rows)
    images = ImageFinder(Path(image_root).resolve() if image_root is not None else folder, read_images)
    queries: list[Query] = []
    dropped: list[Dropped] = []
    seen: set[str] = set()
    for index, (row, gold_fault) in enumerate(_with_gold_faults(map(images.stored, rows), check_golds)):
        if limit is not None and len(queries) >= limit:
            break
        name = str(row.get("qid") or f"row {index}")
        try:
            query = _query(row, images, gold_fault)
            if query.qid in seen:
                raise RowError("duplicate qid", "an earlier row has this qid")
            if check_query and (fault := check_query(query)):
                raise RowError(*fault)
        except RowError as error:
            dropped.append(Dropped(name, error.reason, str(error)))
            continue
        seen.add(query.qid)
        queries.append(query)
    return queries, dropped


def describe_dropped(dropped: Sequence[Dropped], examples: int = 3) -> str:
    """A counted report, one line per reason, with the first few qids; empty if nothing was dropped."""
    by_reason: dict[str, list[Dropped]] = defaultdict(list)
    for item in dropped:
        by_reason[item.reason].append(item)
    lines = []
    for reason, items in sorted(by_reason.items(), key=lambda pair: (-len(pair[1]), pair[0])):
        shown = "; ".join(f"{item.qid} ({item.detail})" for item in items[:examples])
        more = f"; and {len(items) - examples} more" if len(items) > examples else ""
        lines.append(f"{len(items)} dropped, {reason}: {shown}{more}")
    return "\n".join(lines)


def write_parquet(path: str | Path, rows: Iterable[Row]) -> None:
    """Write ``rows`` with ViRL39K's columns and ``level``; the file appears under its name only when it is whole."""
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=_ARROW_SCHEMA)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    atomic_write_bytes(path, sink.getvalue().to_pybytes())


def _with_gold_faults(rows: Iterable[Row], check_golds: CheckGolds) -> Iterator[tuple[Row, str | None]]:
    """Each row and what is wrong with its gold answer, asked for many rows together."""
    left = iter(rows)
    while chunk := list(itertools.islice(left, 1024)):
        yield from zip(chunk, check_golds([str(row.get("answer")) for row in chunk]), strict=True)


def _query(row: Row, finder: ImageFinder, gold_fault: str | None) -> Query:
    question, answer, qid = (row.get(name) for name in REQUIRED_COLUMNS)
    if not isinstance(qid, str | int) or isinstance(qid, bool) or not str(qid).strip():
        raise RowError("no qid", f"qid is {qid!r}")
    if not isinstance(question, str) or not question.strip():
        raise RowError("no question", f"question is {question!r}")
    if token := special_token(question):
        raise RowError("special token in the question", f"{token} is a token of the chat format")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise RowError("no answer", f"answer is {answer!r}")
    if gold_fault:
        raise RowError("unparsable gold answer", gold_fault)
    images = finder.paths(row.get("image"))
    wanted = question.count("<image>")
    if wanted > len(images):
        raise RowError("placeholder without image", f"{wanted} <image> in the question, {len(images)} images")
    rates = (pass_rate(_number(row, name)) for name in ("PassRate_32BTrained", "PassRate_7BBase"))
    return Query(
        qid=str(qid),
        question=question,
        answer=extract_gold(str(answer)),
        images=images,
        category=str(row.get("category") or ""),
        source=str(row.get("source") or ""),
        level=int(_number(row, "level") or 0),
        pass_rate=next((rate for rate in rates if rate is not None), None),
    )


def _number(row: Row, name: str) -> float | None:
    value = row.get(name)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowError("malformed number", f"{name} is {value!r}")
    return float(value)
