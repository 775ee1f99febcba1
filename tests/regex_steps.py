"""A backtracking matcher that counts its steps, to see how the time of a regular expression grows.

It runs the parse tree of Python's own `re` and tries alternatives in the same order, so that its steps grow as the
work of `re` does, but the same on every machine, and `Exhausted` ends what would never end.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from re import _parser  # type: ignore[attr-defined]
from typing import Any

_CATEGORIES: dict[str, Callable[[str], bool]] = {
    "CATEGORY_DIGIT": str.isdecimal,
    "CATEGORY_SPACE": str.isspace,
    "CATEGORY_WORD": lambda character: character.isalnum() or character == "_",
}


class Exhausted(Exception):
    """More steps than allowed."""


class Matcher:
    """``pattern`` on one text. ``steps`` counts the tried elements of all calls."""

    def __init__(self, pattern: re.Pattern[str], text: str, limit: int = 10**6) -> None:
        self._tree = _parser.parse(pattern.pattern, pattern.flags)
        self._fold = bool(pattern.flags & re.IGNORECASE)
        self._ascii = bool(pattern.flags & re.ASCII)
        self._any = bool(pattern.flags & re.DOTALL)
        self.text = text
        self.steps = 0
        self._limit = limit

    def fullmatch(self) -> bool:
        return any(end == len(self.text) for end in self._run(self._tree.data, 0))

    def match(self) -> int | None:
        return next(self._run(self._tree.data, 0), None)

    def spans(self) -> list[tuple[int, int]]:
        """Of all matches, as `finditer`."""
        found: list[tuple[int, int]] = []
        position = 0
        while position <= len(self.text):
            end = next(
                (e for e in self._run(self._tree.data, position) if e > position or (position, e) not in found[-1:]),
                None,
            )
            if end is None:
                position += 1
                continue
            found.append((position, end))
            position = end if end > position else position + 1
        return found

    def _run(self, nodes: list[Any], position: int) -> Iterator[int]:
        if not nodes:
            yield position
            return
        for middle in self._ends(nodes[0], position):
            yield from self._run(nodes[1:], middle)

    def _ends(self, node: tuple[Any, Any], position: int) -> Iterator[int]:
        """Where the element can end that starts at ``position``, in the order in which `re` tries them."""
        self.steps += 1
        if self.steps > self._limit:
            raise Exhausted
        kind, value = str(node[0]), node[1]
        if kind in ("LITERAL", "NOT_LITERAL", "ANY", "IN"):
            if position < len(self.text) and self._accepts(kind, value, self.text[position]):
                yield position + 1
        elif kind == "BRANCH":
            for alternative in value[1]:
                yield from self._run(alternative.data, position)
        elif kind == "SUBPATTERN":
            yield from self._run(value[-1].data, position)
        elif kind == "ATOMIC_GROUP":
            yield from itertools.islice(self._run(value.data, position), 1)
        elif kind == "POSSESSIVE_REPEAT":
            least, most, body = value
            count = 0
            while count < most:
                end = next(self._run(body.data, position), None)
                if end is None or (end == position and count >= least):
                    break
                position, count = end, count + 1
            if count >= least:
                yield position
        elif kind in ("MAX_REPEAT", "MIN_REPEAT"):
            yield from self._repeat(kind == "MAX_REPEAT", *value, position, 0)
        elif kind in ("ASSERT", "ASSERT_NOT"):
            direction, body = value
            start = position if direction > 0 else position - body.getwidth()[0]
            holds = start >= 0 and next(self._run(body.data, start), None) is not None
            if holds == (kind == "ASSERT"):
                yield position
        elif kind == "AT":
            if self._at(str(value), position):
                yield position
        else:
            raise NotImplementedError(kind)

    def _repeat(self, greedy: bool, least: int, most: int, body: Any, position: int, count: int) -> Iterator[int]:
        if not greedy and count >= least:
            yield position
        if count < most:
            for end in self._run(body.data, position):
                if end > position or count < least:
                    yield from self._repeat(greedy, least, most, body, end, count + 1)
        if greedy and count >= least:
            yield position

    def _at(self, place: str, position: int) -> bool:
        if place in ("AT_BEGINNING", "AT_BEGINNING_STRING"):
            return position == 0
        if place == "AT_END":
            return position == len(self.text) or (position == len(self.text) - 1 and self.text[position] == "\n")
        assert place == "AT_BOUNDARY", place
        word = _CATEGORIES["CATEGORY_WORD"]
        before = position > 0 and word(self.text[position - 1])
        return before != (position < len(self.text) and word(self.text[position]))

    def _accepts(self, kind: str, value: Any, character: str) -> bool:
        cases = {character, character.lower(), character.upper()} if self._fold else {character}
        if kind == "ANY":
            return self._any or character != "\n"
        if kind == "IN":
            negated = str(value[0][0]) == "NEGATE"
            return any(self._in(part, case) for part in value[negated:] for case in cases) != negated
        return (value in {ord(case) for case in cases if len(case) == 1}) == (kind == "LITERAL")

    def _in(self, part: tuple[Any, Any], character: str) -> bool:
        kind, value = str(part[0]), part[1]
        if kind == "LITERAL":
            return character == chr(value)
        if kind == "RANGE":
            return len(character) == 1 and value[0] <= ord(character) <= value[1]
        name, negated = str(value).replace("_NOT_", "_"), "_NOT_" in str(value)
        return (_CATEGORIES[name](character) and (character.isascii() or not self._ascii)) != negated


def examples(pattern: re.Pattern[str], count: int = 12) -> list[str]:
    """Texts that ``pattern`` matches or nearly matches (what lookarounds ask for is left out), each repeat taken once
    or twice."""
    return list(dict.fromkeys(itertools.islice(_texts(_parser.parse(pattern.pattern, pattern.flags).data), count)))


def _texts(nodes: list[Any]) -> Iterator[str]:
    if not nodes:
        yield ""
        return
    # Rotated, so that the first few examples differ in every element and not only in the last.
    heads = list(itertools.islice(_element(nodes[0]), 6))
    for index, tail in enumerate(itertools.islice(_texts(nodes[1:]), 12)):
        yield heads[index % len(heads)] + tail
    for head in heads:
        yield head + next(_texts(nodes[1:]))


def _element(node: tuple[Any, Any]) -> Iterator[str]:
    kind, value = str(node[0]), node[1]
    if kind == "LITERAL":
        yield chr(value)
    elif kind in ("ANY", "NOT_LITERAL"):
        yield from "x1 "
    elif kind == "IN":
        if str(value[0][0]) == "NEGATE":
            yield from "x1 "
            return
        for part in value:
            name = str(part[0])
            if name == "LITERAL":
                yield chr(part[1])
            elif name == "RANGE":
                yield chr(part[1][0])
            else:
                yield {"CATEGORY_DIGIT": "1", "CATEGORY_SPACE": " ", "CATEGORY_WORD": "a"}.get(str(part[1]), "!")
    elif kind == "BRANCH":
        for alternative in value[1]:
            yield from itertools.islice(_texts(alternative.data), 2)
    elif kind == "SUBPATTERN":
        yield from _texts(value[-1].data)
    elif kind == "ATOMIC_GROUP":
        yield from _texts(value.data)
    elif kind.endswith("REPEAT"):
        least, most, body = value
        for text in itertools.islice(_texts(body.data), 6):
            yield text * max(1, least)
            yield text * min(most, least + 2)
        if least == 0:
            yield ""
    else:
        yield ""  # a lookaround, a place
