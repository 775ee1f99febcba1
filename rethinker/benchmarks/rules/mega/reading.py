"""From a response to the values of its answer fields, by MEGA-Bench's published rules.

Model output is data: JSON is read by `json`, Python literals by `ast.literal_eval`, both only up to `MAX_CHARS`
characters and `MAX_DEPTH` brackets deep. Nothing is evaluated.

Quirks of the official rules that cost answers, kept because published numbers contain them:
- ``**Answer:** B`` gives an empty answer: the bold text ends behind the colon;
- JSON behind ``Answer:`` at the beginning of a line is read up to the end of that line only, so that JSON over several
  lines is lost there, and so is a fenced block that starts on the next line.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from typing import Any

# Python warns of odd escapes and digits in what it parses; here they are a model's.
warnings.filterwarnings("ignore", category=SyntaxWarning, module="<unknown>")

MAX_CHARS = 20_000  # ours: longer text is not read as JSON or as a literal
MAX_DEPTH = 60  # ours
UNREADABLE: Any = object()  # what `literal` and `last_json` return for text that is neither

_LANGUAGE = re.compile(r"\w*")
_LINE_ANSWER = re.compile(r"^(?:\*\*Answer:|Answer:)\s*(.+)", re.MULTILINE)
_ANSWER = re.compile(r"\*\*?Answer:\s*(.*?)\*\*?|\bAnswer:\s*(.*)", re.DOTALL)
_ANSWER_ART = re.compile(r"\*\*?Answer:(.*?)\*\*?|\bAnswer:(.*)", re.DOTALL)
_SHORT_ANSWER = re.compile(r"[\w-]+(?:,\s*[\w-]+)*|\([\w-]+\)$", re.ASCII)
_LONE_QUOTE = re.compile(r"(?<!\w)'|'(?!\w)")


def literal(text: str) -> Any:
    """The Python literal that ``text`` is, or `UNREADABLE`."""
    if not isinstance(text, str) or len(text) > MAX_CHARS or _depth(text) > MAX_DEPTH:
        return UNREADABLE
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return UNREADABLE


def unquoted(value: Any) -> Any:
    """``value`` without the quotes of a string literal; anything else as it is."""
    if not isinstance(value, str) or value.strip()[-1:] not in ("'", '"'):
        return value
    read = literal(value)
    return read if isinstance(read, str) else value


def fenced(text: str, language: str = "") -> str | None:
    """Inside of the first code block (of that language), spaces and all, or None."""
    start = text.find("```" + language)
    end = text.find("```", start + 3)
    if start < 0 or end < 0:
        return None
    inside = text[start + 3 : end]
    return _LANGUAGE.sub("", inside, count=1)


def verbatim_block(text: str) -> str:
    """Inside of the first code block with the spaces around its lines; ``text`` where there is no block."""
    block = fenced(text)
    return text if block is None else _without_blank_ends(block)


def last_json(text: str) -> Any:
    """The last JSON object or list (or Python dict or list) in ``text``; strings in it that are JSON objects or lists
    themselves are read too. `UNREADABLE` if there is none."""
    line = _LINE_ANSWER.search(text)
    text = (line[1] if line else text).strip()
    block = fenced(text, "json")
    text = text if block is None else block.strip()
    if len(text) > MAX_CHARS:
        return UNREADABLE
    for span in reversed(_spans(text)):
        value = _structure(span)
        if value is not UNREADABLE:
            return value
    return UNREADABLE


def json_fields(response: str) -> dict[str, Any] | None:
    """The fields of the last JSON object in ``response``; None where there is none or an empty one."""
    value = last_json(response)
    if not isinstance(value, dict) or not value:
        return None
    return {str(key): unquoted(item) for key, item in value.items()}


def answer_text(response: str, *, one_line: bool, art: bool = False, verbatim: bool = False) -> str:
    """The text behind the last ``Answer:``, or the whole response where there is none.

    A code block gives its inside; where the gold answer has ``one_line``, a short first paragraph ends the answer; a
    dict or list is given as Python writes it. ``art`` keeps the spaces in front, ``verbatim`` those behind too.
    """
    art = art or verbatim
    text = _behind_answer(response, art=art, verbatim=verbatim)
    block = fenced(text)
    if block is not None and art:
        text = _without_blank_ends(block) if verbatim else _without_blank_ends(block).rstrip()
    elif block is not None:
        text = block.strip()
    elif one_line and not art:
        text = _first_paragraph(text)
    if not text.startswith(("{", "[")):
        return str(unquoted(text))
    value = last_json(text)
    if value is UNREADABLE or (not value and str(value) not in text):
        return text
    return str(value)


def _behind_answer(response: str, *, art: bool, verbatim: bool) -> str:
    response = response.replace("answer:", "Answer:")
    head, mark, tail = response.rpartition("Answer:")
    response = head.replace("Answer:", "") + mark + tail
    match = (_ANSWER_ART if art else _ANSWER).search(response)
    if match:
        response = match[1] or match[2] or ""
    if not art or not response.strip():
        return response.strip()
    response = re.sub(r"^[ \t]*\n(?:[ \t]*\n)+", "\n", response, flags=re.MULTILINE)
    response = _without_blank_end(response) if verbatim else response.rstrip()
    return re.sub(r"^(?:[ \t]*\n)+", "", response)


def _without_blank_ends(block: str) -> str:
    """Without the line break behind the opening fence and the one before the closing fence, and blank lines there."""
    return _without_blank_end(block[block[: len(block) - len(block.lstrip())].rfind("\n") + 1 :])


def _without_blank_end(text: str) -> str:
    """Without the line break at the end and blank lines before it; spaces behind the last word stay."""
    end = text.find("\n", len(text.rstrip()))
    return text if end < 0 else text[:end]


def _first_paragraph(text: str) -> str:
    """A first paragraph that begins like a short answer, where a blank line follows its first line."""
    paragraph = text.split("\n\n", 1)[0].strip()
    if not _SHORT_ANSWER.match(paragraph):
        return text
    lines = text.lstrip("\n").split("\n")
    return paragraph if len(lines) == 1 or not lines[1].strip() else text


def _structure(span: str) -> Any:
    for reader in (json.loads, ast.literal_eval, lambda text: json.loads(_LONE_QUOTE.sub('"', text))):
        try:
            value = reader(span)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        return _opened(value)
    return UNREADABLE


def _opened(value: Any) -> Any:
    """``value`` with the strings that are JSON objects or lists replaced by what they hold."""
    if isinstance(value, dict):
        return {key: _opened(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_opened(item) for item in value]
    if isinstance(value, str) and value.strip()[:1] in ("{", "[") and _depth(value) <= MAX_DEPTH:
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _spans(text: str) -> list[str]:
    """The parts of ``text`` that may be structures, in order: a brace up to its closing one, a square bracket up to the
    last closing one before a brace without a partner ("[1] or [2]" is one part, and unreadable: official)."""
    closing = _closing_braces(text)
    spans: list[str] = []
    position = dry = 0  # from ``position`` up to ``dry`` no bracket closes
    while position < len(text):
        end = -1
        if text[position] == "{":
            end = closing.get(position, -1)
        elif text[position] == "[" and position >= dry:
            end, dry = _last_bracket(text, position, closing)
        if end >= 0:
            spans.append(text[position : end + 1])
            position = dry = end
        position += 1
    return [span for span in spans if _depth(span) <= MAX_DEPTH]


def _closing_braces(text: str) -> dict[int, int]:
    """Place of a brace -> place of its partner."""
    found, open_braces = {}, list[int]()
    for position, character in enumerate(text):
        if character == "{":
            open_braces.append(position)
        elif character == "}" and open_braces:
            found[open_braces.pop()] = position
    return found


def _last_bracket(text: str, start: int, closing: dict[int, int]) -> tuple[int, int]:
    """(place of the last closing bracket that the one at ``start`` reaches or -1, how far it reaches)."""
    last, position = -1, start + 1
    while position < len(text) and text[position] != "}":
        if text[position] == "{":
            if position not in closing:
                break
            position = closing[position]
        elif text[position] == "]":
            last = position
        position += 1
    return last, position


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth -= 1
    return deepest
