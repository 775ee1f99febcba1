"""From plain values to frozen dataclasses, with errors that a person can act on.

OmegaConf reads and merges; it neither knows ranges nor names the nearest key, so the checks are here.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from typing import Any, TypeVar

T = TypeVar("T")


class ConfigError(ValueError):
    """A setting is unknown or its value is not allowed; the message says which, and what is."""


def option(
    default: Any,
    *,
    min: float | None = None,
    max: float | None = None,
    exclusive: bool = False,
) -> Any:
    """A dataclass field with the range of its numbers; ``exclusive`` leaves out ``min`` itself."""
    rules = {"min": min, "max": max, "exclusive": exclusive}
    return dataclasses.field(default=default, metadata=rules)


def build(cls: type[T], values: dict[str, Any], where: str = "") -> T:
    """``cls`` from ``values``. Raises ConfigError with the dotted key, the value and what is allowed."""
    hints = typing.get_type_hints(cls)
    known = {item.name: item for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    arguments = {}
    for key, value in values.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in known:
            raise ConfigError(f"unknown setting {path!r}{_nearest(key, known, where)}")
        arguments[key] = _convert(hints[key], value, path, known[key].metadata)
    return cls(**arguments)


def _nearest(key: str, known: typing.Iterable[str], where: str) -> str:
    near = difflib.get_close_matches(str(key), list(known), n=1, cutoff=0.5)
    if near:
        return f"; did you mean {f'{where}.{near[0]}' if where else near[0]!r}?"
    return f"; {where or 'the top level'} has: {', '.join(sorted(known))}"


def _convert(hint: Any, value: Any, path: str, rules: typing.Mapping[str, Any]) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        (hint,) = (item for item in arguments if item is not type(None))
        return _convert(hint, value, path, rules)
    if origin is typing.Literal:
        if value in arguments:
            return value
        near = difflib.get_close_matches(str(value), [str(item) for item in arguments], n=1)
        suggestion = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{path}={value!r}: allowed are {', '.join(map(repr, arguments))}{suggestion}")
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ConfigError(f"{path}={value!r}: expected a section of settings")
        return build(typing.cast(type, hint), value, path)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{path}={value!r}: expected a list")
        if Ellipsis not in arguments and len(value) != len(arguments):
            raise ConfigError(f"{path}={value!r}: expected {len(arguments)} values")
        kinds = [arguments[0]] * len(value) if Ellipsis in arguments else arguments
        return tuple(
            _convert(kind, item, f"{path}[{i}]", rules) for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
        )
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{path}={value!r}: expected a mapping")
        return {str(key): item for key, item in value.items()}
    return _in_range(_scalar(hint, value, path), path, rules)


def _scalar(kind: type, value: Any, path: str) -> Any:
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 5e-5 as text
        except ValueError:
            pass
    elif kind is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)  # a run named 7
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{path}={value!r}: expected {kind.__name__}, got {type(value).__name__}")


def _in_range(value: Any, path: str, rules: typing.Mapping[str, Any]) -> Any:
    low, high = rules.get("min"), rules.get("max")
    if isinstance(value, int | float) and not isinstance(value, bool):
        too_low = low is not None and (value < low or (rules.get("exclusive") and value == low))
        if too_low or (high is not None and value > high) or not math.isfinite(value):
            left = "" if low is None else f"{'above' if rules.get('exclusive') else 'at least'} {low}"
            right = "" if high is None else f"at most {high}"
            allowed = " and ".join(part for part in (left, right) if part) or "a finite number"
            raise ConfigError(f"{path}={value!r}: must be {allowed}")
    return value


def plain(value: Any) -> Any:
    """Dataclasses as dicts, tuples as lists: what ``build`` makes a dataclass of."""
    if dataclasses.is_dataclass(value):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
