"""Sets, lists, dicts, boxes and points from the strings that hold them, as MEGA-Bench's metrics read them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any

from rethinker.benchmarks.rules.mega.reading import UNREADABLE, last_json, literal

_CLOSING = {"(": ")", "{": "}", "[": "]"}


def to_set(value: Any) -> Any:
    """A set of hashable items; a string is read as a Python literal or split at its commas."""
    value = _frozen(value)
    return set(value) if isinstance(value, (frozenset, tuple)) else read_items(set, value)


def to_list(value: Any) -> Any:
    """A list from a string; empty for anything that is no string (official)."""
    return read_items(list, value)


def to_dict(value: Any) -> Any:
    """A dict with its values read in turn; a string that holds no structure stays a string."""
    if isinstance(value, dict):
        return {key: to_dict(item) for key, item in value.items()}
    if isinstance(value, str):
        read = last_json(value)
        return value if read is UNREADABLE or not read else read
    return value


def read_items(kind: Callable[..., Any], text: Any) -> Any:
    """``kind`` (set or list) of the items in ``text``: a Python literal, else the parts between the commas.

    Quirks kept: a number is one item; ``None`` gives an empty string; a quoted string gives its characters; an opening
    bracket without its closing one gives no items.
    """
    text = text.strip(" ") if isinstance(text, str) else ""
    if not text:
        return kind()
    closing = _CLOSING.get(text[0])
    if closing and not text.endswith(closing):
        return kind()
    value = literal(text)
    if value is None:
        return ""
    if value is UNREADABLE:
        return kind(item.strip() for item in (text[1:-1] if closing else text).split(","))
    try:
        return kind([value] if isinstance(value, (int, float)) else value)
    except TypeError:  # items that no set can hold
        return kind()


def to_boxes(value: Any) -> list[Any]:
    """Boxes (four numbers each) from a string; a lone box is a list of one; what is no box is left out."""
    if isinstance(value, (tuple, list)):
        return list(value)
    read = _structure(value)
    if not isinstance(read, (tuple, list)):
        return []
    if len(read) == 4 and _numbers(read[:1]):
        read = [read]
    return [box for box in read if isinstance(box, (tuple, list)) and len(box) == 4 and _numbers(box)]


def to_points(value: Any) -> list[Any]:
    """Points (two numbers each) from a string; what is no point is left out."""
    if isinstance(value, (tuple, list)):
        return list(value)
    read = _structure(value)
    if not isinstance(read, (tuple, list)):
        return []
    return [point for point in read if isinstance(point, (tuple, list)) and len(point) == 2 and _numbers(point)]


def tagged(text: Any, tag: str) -> list[tuple[float, ...]]:
    """The numbers in each ``<tag>1, 2, ...</tag>`` on one line; a tag with anything else in it is left out."""
    if not isinstance(text, str):
        return []
    found: list[tuple[float, ...]] = []
    for part in text.split(f"<{tag}>")[1:]:
        inside, end, _ = part.partition(f"</{tag}>")
        if not end or "\n" in inside:
            continue
        try:
            found.append(tuple(float(number) for number in inside.split(",")))
        except ValueError:
            continue
    return found


def _structure(text: Any) -> Any:
    value = literal(text)
    if value is not UNREADABLE or not isinstance(text, str) or len(text) > 20_000:
        return value
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return UNREADABLE


def _numbers(values: Iterable[Any]) -> bool:
    return all(isinstance(value, Real) for value in values)


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return frozenset((key, _frozen(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(item) for item in value)
    return frozenset(value) if isinstance(value, set) else value
