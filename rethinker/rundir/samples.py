"""Samples as plain dictionaries for JSON and parquet, and back, exactly.

``json.dumps`` writes the shortest decimal that reads back as the same float, so a round trip through JSON returns an
equal ``Sample``: replayed samples keep their log-probs bit for bit across a resume.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from rethinker.types import Grade, Query, Response, Rethinking, Sample

Record = TypeVar("Record", Query, Response, Grade, Rethinking, Sample)


def sample_to_dict(sample: Sample) -> dict[str, Any]:
    """Strings, numbers, booleans, None, lists and dictionaries only; one key a field, nested as the records are."""
    row = _to_dict(sample)
    row["query"] = _to_dict(sample.query)
    row["response"] = _to_dict(sample.response)
    row["grade"] = _to_dict(sample.grade)
    row["rethinking"] = None if sample.rethinking is None else _to_dict(sample.rethinking)
    return row


def sample_from_dict(row: Mapping[str, Any]) -> Sample:
    """The sample that ``sample_to_dict`` wrote. ValueError names the record and its missing or unknown keys."""
    _check_keys(Sample, row)
    nested = {
        "query": _from_dict(Query, row["query"]),
        "response": _from_dict(Response, row["response"]),
        "grade": _from_dict(Grade, row["grade"]),
        "rethinking": None if row["rethinking"] is None else _from_dict(Rethinking, row["rethinking"]),
    }
    return _from_dict(Sample, {**row, **nested})


def _to_dict(record: Query | Response | Grade | Rethinking | Sample) -> dict[str, Any]:
    # Not dataclasses.asdict: it copies every token of every tuple through a recursive call.
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _from_dict(kind: type[Record], row: Mapping[str, Any]) -> Record:
    _check_keys(kind, row)
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    return kind(**values)


def _check_keys(kind: type, row: Mapping[str, Any]) -> None:
    names = {field.name for field in fields(kind)}
    missing, unknown = sorted(names - row.keys()), sorted(row.keys() - names)
    if missing or unknown:
        raise ValueError(f"not a saved {kind.__name__}: missing keys {missing}, unknown keys {unknown}")
