"""Answers of several values: lists, tuples, sets, intervals, and labelled values ("domain: [0, 1), range: [2, 3]")."""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_ITEMS = 30  # ours; a longer list is compared as it stands

_BRACKETS = (("\\{", "\\}"), ("(", ")"), ("[", "]"), ("(", "]"), ("[", ")"))
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_CONJUNCTION = re.compile(r" ?,? ?(?:\b(?:and|or)\b|\\?&) ?")
_LISTED = re.compile(r"[,;&]|\band\b|\bor\b")
# Words, what joins them with a value, and a value that begins as numbers and intervals do.
_LABELLED = re.compile(r"([A-Za-z][A-Za-z ]*+)[:=]? ?((?:[(\[\d.-]|\\[a-z{]).*+)", re.DOTALL)
_JOINTS = frozenset(("is", "are", "on", "at", "in", "for", "over", "the", "to", "from"))


@dataclass(frozen=True, slots=True)
class Listed:
    """``brackets``: ``()``, ``[)``, ``{}``, ..., empty for a bare list. ``labels``: of all items, or None."""

    brackets: str
    items: tuple[str, ...]
    labels: tuple[str, ...] | None


def split_list(text: str) -> Listed | None:
    """A list of at least two items in a cleaned answer; None if ``text`` is none, or has more than `MAX_ITEMS`."""
    brackets, body = "", text.strip()
    for opening, closing in _BRACKETS:
        if body.startswith(opening) and body.endswith(closing) and encloses(body, len(opening), len(closing)):
            brackets = (opening + closing).replace("\\", "")
            body = body[len(opening) : -len(closing)]
            break
    if ", " in body:  # then a comma between digits groups thousands
        body = _THOUSANDS.sub("", body)
    if brackets == "" and "\\begin" not in body:
        body = _CONJUNCTION.sub(",", body)
    items, depth, start = [], 0, 0
    for index, character in enumerate(body):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character in ",;" and depth == 0:
            items.append(body[start:index].strip())
            start = index + 1
            if len(items) >= MAX_ITEMS:
                return None
    items.append(body[start:].strip())
    if len(items) < 2 or not all(items):
        return None
    labelled = [_label(item) for item in items]
    if any(pair is None for pair in labelled):
        return Listed(brackets, tuple(items), None)
    pairs = [pair for pair in labelled if pair is not None]
    if len({label for label, _ in pairs}) < len(pairs):  # "group 3, group 5"
        return Listed(brackets, tuple(items), None)
    return Listed(brackets, tuple(value for _, value in pairs), tuple(label for label, _ in pairs))


def encloses(text: str, opening: int = 1, closing: int = 1) -> bool:
    """Whether the first bracket (of ``opening`` characters) is closed by the last one and not before."""
    depth = 1
    for character in text[opening : len(text) - closing]:
        depth += 1 if character in "([{" else -1 if character in ")]}" else 0
        if depth == 0:
            return False
    return True


def is_listed(text: str) -> bool:
    """Whether ``text`` has a comma, a semicolon, "and" or "or"."""
    return bool(_LISTED.search(text))


def _label(item: str) -> tuple[str, str] | None:
    match = _LABELLED.fullmatch(item)
    if match is None:
        return None
    words = match.group(1).lower().split()
    while words and words[-1] in _JOINTS:
        words.pop()
    # A variable is no label: "x = 1" names its value, which the comparison of the items sees to.
    return (" ".join(words), match.group(2)) if words and len(words[0]) >= 4 else None
