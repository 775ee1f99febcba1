"""Data sets with other columns as rows of ViRL39K's schema: what ``data.columns`` says, no code.

    data.columns:
      question: problem              # the column's name; "extra_info.question" and "answers.0" look inside one
      answer: "{answer:letter}"      # a template; letter: 0 is A, 1 is B
      image: [image_1, image_2]      # several columns, where they have something
      source: =Geometry3K            # a constant
      qid: geo3k-{row}               # row: its number in the file, from 0; without a qid of any kind it is row-0, row-1

A template's ``{choices:options}`` are the lines "(A) ...", "(B) ..." of a list; ``{{`` and ``}}`` are braces. A row in
which a template's column is empty has no value there. Columns that are not named keep what they have.
"""

from __future__ import annotations

import difflib
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
REQUIRED_COLUMNS = ("question", "answer", "qid")
SCHEMA_COLUMNS = (
    "question",
    "answer",
    "PassRate_32BTrained",
    "PassRate_7BBase",
    "category",
    "source",
    "qid",
    "image",
)
_TARGETS = (*SCHEMA_COLUMNS, "level")
_CONSTANT, _TEMPLATE, ROW_NUMBER = "=", "{", "row"


@dataclass(frozen=True)
class ColumnMap:
    """``columns`` of ``data.columns``: what each of the schema's columns is made of. Raises ValueError for an unknown
    column of the schema, a value that is none and a template that cannot be read."""

    columns: Mapping[str, Any]

    def __post_init__(self) -> None:
        for target, source in self.columns.items():
            if target not in _TARGETS:
                near = difflib.get_close_matches(target, _TARGETS, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ValueError(f"data.columns: no column {target!r} in the schema ({', '.join(_TARGETS)}){hint}")
            many = target == "image" and isinstance(source, list | tuple) and source
            if not (isinstance(source, str) and source) and not (many and all(isinstance(one, str) for one in source)):
                raise ValueError(
                    f"data.columns.{target}={source!r}: give a column's name, a template with {{column}}, or =constant"
                    + ("; for images also a list of columns" if target == "image" else "")
                )
            list(self._needs(target))  # reads the templates

    def missing(self, names: Iterable[str]) -> list[str]:
        """What a file with these columns lacks, in words; empty if its rows can be read."""
        there = set(names)
        lacks = [
            f"{name} (of data.columns.{target})"
            for target in self.columns
            for name in self._needs(target)
            if name not in there and name != ROW_NUMBER
        ]
        required = (name for name in REQUIRED_COLUMNS if name != "qid" and name not in self.columns)
        return lacks + [f"{name} (map it: data.columns.{name}=...)" for name in required if name not in there]

    def rows(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows in the schema."""
        for index, row in enumerate(rows):
            found = {ROW_NUMBER: index} | dict(row)
            made = {target: _value(found, source) for target, source in self.columns.items()}
            yield {"qid": f"row-{index}"} | {name: row[name] for name in _TARGETS if name in row} | made

    def _needs(self, target: str) -> Iterator[str]:
        """The file's columns that a column of the schema is made of."""
        source = self.columns[target]
        for one in [source] if isinstance(source, str) else source:
            if one.startswith(_CONSTANT):
                continue
            for path in _fields(target, one) if _TEMPLATE in one else [one]:
                yield path.partition(".")[0]


def _fields(target: str, template: str) -> list[str]:
    try:
        fields = [(name, form) for _, name, form, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(f"data.columns.{target}={template!r}: {error}; a brace is written {{{{ or }}}}") from error
    for name, form in fields:
        if not name or form not in ("", *_FORMS):
            raise ValueError(
                f"data.columns.{target}={template!r}: {{{name}{':' * bool(form)}{form}}} is none of {{column}}, "
                + ", ".join(f"{{column:{known}}}" for known in _FORMS)
            )
    return [name for name, _ in fields]


def _value(row: Row, source: str | Sequence[str]) -> Any:
    if not isinstance(source, str):
        values = [_value(row, one) for one in source]
        return [item for value in values for item in (value if isinstance(value, list) else [value]) if item]
    if source.startswith(_CONSTANT):
        return source.removeprefix(_CONSTANT)
    return _filled(row, source) if _TEMPLATE in source else _look_up(row, source)


def _filled(row: Row, template: str) -> str | None:
    text = ""
    for literal, name, form, _ in string.Formatter().parse(template):
        text += literal
        if name is None:
            continue
        value = _look_up(row, name)
        value = _FORMS[form](value) if form and value is not None else value
        if value is None:
            return None
        text += str(value)
    return text


def _look_up(row: Row, path: str) -> Any:
    """The value at ``path``; None where there is none."""
    value: Any = row
    for step in [path] if path in row else path.split("."):
        if isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(value, Sequence) and not isinstance(value, str) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value


def _letter(value: Any) -> str | None:
    try:
        index = int(value)
    except (TypeError, ValueError):
        return None
    return string.ascii_uppercase[index] if 0 <= index < 26 else None


def _options(value: Any) -> str | None:
    if isinstance(value, str) or not isinstance(value, Sequence):
        return None
    return "\n".join(f"({letter}) {option}" for letter, option in zip(string.ascii_uppercase, value, strict=False))


_FORMS: Mapping[str, Callable[[Any], str | None]] = {"letter": _letter, "options": _options}
