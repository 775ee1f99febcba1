"""The deterministic extractor that stands in for the language model which MathVista and MathVerse ask (ours).

A response states its answer, in this order: in its last balanced box; between ``<answer>`` tags; behind the last "the
answer is" and the like, up to the end of that sentence; in its last sentence (of the last three, the last one that
holds an answer of the wanted kind). What is found there is returned as the response has it: nothing is computed,
nothing evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rethinker.benchmarks.rules.outcome import letters
from rethinker.grading import extract_boxed

SENTENCES = 3  # from the end of a response without any marker
_TAGS = re.compile(r"<answer>((?:(?!<answer>).)*)</answer>", re.DOTALL | re.IGNORECASE)
_LEAD = re.compile(
    r"\b(?:answer|(?:correct|right|best) (?:option|choice|one)|final value|result)(?: letter| option| choice)?\b"
    r"[*_\s]*(?::|=|\bis\b|\bwould be\b|\bshould be\b|\bmust be\b)[*_:\s]*",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=[^\s.])\.(?=\s|$)|[!?](?=\s|$)|\n+")
_VERB = re.compile(r"=|≈|\\approx|\b(?:is|are|equals|was|were|be|approximately|about)\b", re.IGNORECASE)
_BRACKETED = re.compile(r"\(\s*([A-Za-z])\s*\)")
# A capital that stands alone; not the article "A", not "I", not an initial or a point of a figure ("A = 5", "A'").
_LONE = re.compile(r"(?<![\w\\'’°/-])([A-Z])(?![\w'’°/]|\s*=|-\w)")
_ARTICLE = re.compile(r"\s+[a-z]{2,}")
_NUMBER = re.compile(r"[-−]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?")
_FRACTION = re.compile(r"\d\s*/\s*\d|\\[dt]?frac")
_LIST = re.compile(r"\[([^\[\]]*)\]")


def stated(response: str) -> tuple[list[str], bool]:
    """Where a response states its answer: one text that a marker led to (True), or its last sentences, last one first
    (False). Empty for an empty response."""
    box = extract_boxed(response)
    if box:
        return [box], True
    tags = _TAGS.findall(response)
    if tags:
        return [tags[-1].strip()], True
    for lead in reversed(list(_LEAD.finditer(response))):
        tail = _sentences(response[lead.end() :])
        if tail:
            return [tail[0]], True
    return _sentences(response)[: -SENTENCES - 1 : -1], False


def choice_letter(text: str, options: Sequence[str]) -> str | None:
    """The letter of the option that ``text`` states: the first "(B)", else the first capital that stands alone, else
    the one option whose text it is, holds, or has the number of; None if no option or several."""
    valid = letters(options)
    for match in _BRACKETED.finditer(text):
        if match[1].upper() in valid:
            return match[1].upper()
    for match in _LONE.finditer(text):
        article = match[1] == "A" and _ARTICLE.match(text, match.end())
        if match[1] in valid and not article and match[1] != "I":
            return match[1]
    said, forms = _plain(text), {letter: _plain(option) for letter, option in zip(valid, options, strict=True)}
    if equal := [letter for letter, form in forms.items() if form and _squeezed(form) == _squeezed(said)]:
        return equal[0]  # options of the same text are one answer
    held = {letter: form for letter, form in forms.items() if len(form) > 1 and _holds(said, form)}
    longest = {
        form for form in held.values() if not any(form != other and _holds(other, form) for other in held.values())
    }
    if len(longest) == 1:
        return next(letter for letter, form in held.items() if form in longest)
    value = _sole_number(text)
    of_value = {
        forms[letter]: letter for letter, option in zip(valid, options, strict=True) if _sole_number(option) == value
    }
    return next(iter(of_value.values())) if value is not None and len(of_value) == 1 else None


def number(text: str) -> str | None:
    """The number that ``text`` states, without separators, currency, percent sign and unit: the first one behind the
    last "=", "is" or the like, else the last one. A fraction comes back as it is, since it is no number to `float`."""
    for tail, first in ((_behind_verb(text), True), (text, False)):
        if _FRACTION.search(tail):
            return tail.strip()
        if found := _NUMBER.findall(tail):
            return _digits(found[0 if first and tail != text else -1])
    return None


def list_of(text: str) -> str | None:
    """The last bracketed list in ``text``, or its numbers where it has two or more, written as Python writes a list."""
    if lists := _LIST.findall(text):
        return "[" + ", ".join(item.strip() for item in lists[-1].split(",")) + "]"
    numbers = _NUMBER.findall(text)
    return "[" + ", ".join(numbers) + "]" if len(numbers) > 1 else None


def _sentences(text: str) -> list[str]:
    text = text.replace("</s>", " ").replace("**", " ").replace("__", " ")
    return [sentence.strip() for sentence in _SENTENCE_END.split(text) if sentence.strip(" .:*`$\\()[]")]


def _behind_verb(text: str) -> str:
    *_, last = ("", *(text[verb.end() :] for verb in _VERB.finditer(text)))
    return last or text


def _sole_number(text: str) -> str | None:
    """The number behind the last verb, if it is the only one there."""
    tail = _behind_verb(text)
    found = _NUMBER.findall(tail)
    return _digits(found[0]) if len(found) == 1 and not _FRACTION.search(tail) else None


def _digits(number: str) -> str:
    return number.replace(",", "").replace("−", "-")


def _plain(text: str) -> str:
    """Lower case without dollar signs, braces, ``\\text`` and a full stop at the end; one space between words."""
    return " ".join(re.sub(r"\\text|\\mathrm|[${}]", "", text.replace("&", "and")).lower().split()).rstrip(".")


def _squeezed(text: str) -> str:
    return text.replace(" ", "")


def _holds(text: str, form: str) -> bool:
    """Whether ``form`` stands in ``text``, not within a longer word or number."""
    return re.search(rf"(?<![a-z\d])(?<!\d\.){re.escape(form)}(?![a-z\d]|\.\d)", text) is not None
