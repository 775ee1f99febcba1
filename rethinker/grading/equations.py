"""Values with a name: ``x = 3``, ``(u, v) = (1, 2)``, ``P(2, 3)``, ``5 = s``.

Rules (ours): one name may be missing. Two names must be one (``y = 3`` is not ``x = 3``), where ``A = 9`` and
``area = 9`` or the functions ``f(x) = x + 1`` and ``g(x) = x + 1`` have one. What looks like a unit behind a number is
a variable where the name cannot have that unit: in ``V = 2 W`` the W is no watt, in ``P = 2 W`` it is.
"""

from __future__ import annotations

import re

from rethinker.grading.lists import encloses
from rethinker.grading.normalize import squeeze
from rethinker.grading.plain import prose_words
from rethinker.grading.quantity import parse_quantity

# The alternatives begin with different characters and give nothing back (++, *+), so that the time is linear.
_NAME = re.compile(
    r"(?:(?:\\(?:angle|triangle|Delta|theta|alpha|beta|gamma|phi|lambda|mu|sin|cos|tan|overline|vec)|[A-Za-z]++'?+|"
    r"_\s*+\{?+\w++\}?+|\{[A-Za-z]++\}|\([A-Za-z0-9,\s]++\)|\|[A-Za-z]++\|)\s*+)++"
)
_NAMES = re.compile(r"\(?[A-Za-z](?:_?\{?\w++\}?)?+'?(?: ?, ?[A-Za-z](?:_?\{?\w++\}?)?+'?)++\)?")
_POINT = re.compile(r"(?:[Pp]oint )?([A-Z](?:_\{?\w\}?)?'?) ?(\(.*+)", re.DOTALL)
_VARIABLE = re.compile(r"(?:[A-Za-z]|\\[a-z]++)(?:_\{?\w++\}?)?'?")
_FUNCTION = re.compile(r"([A-Za-z])\(([a-z])\)")
_SEVERAL = re.compile(r"[<>,;]|\b(?:or|and)\b|\\(?:le|ge|ne|lt|gt|neq|leq|geq)(?![a-zA-Z])")
_COEFFICIENT = re.compile(r"-? ?\d")
_SUM = re.compile(r"[+*/-]")
_NEGATION = re.compile(r"\b(?:not|no|never|neither|if)\b", re.IGNORECASE)
_COMMAND = re.compile(r"\\[A-Za-z]++")
_LETTER = re.compile(r"[A-Za-z]")
_DIGIT = re.compile(r"\d")
_UNITLIKE = re.compile(r"(.*[\d})]) ?([VWAJNKh])", re.DOTALL)

# Commands of arithmetic; every other one stands for something unknown, as letters do.
_ARITHMETIC = frozenset(
    ("\\frac", "\\sqrt", "\\times", "\\cdot", "\\div", "\\pm", "\\mp", "\\pi", "\\circ", "\\log", "\\ln", "\\sin",
     "\\cos", "\\tan", "\\overline", "\\infty", "\\binom", "\\approx")
)  # fmt: skip
_CONVENTIONS = {"slope": "mk", "gradient": "mk", "area": "s"}  # beside the first letter of the word
# The units of one letter that a quantity of one letter may have; any, if it is not here.
_QUANTITIES = {
    "P": "W", "W": "J", "E": "JV", "Q": "J", "U": "VJ", "V": "V", "I": "A", "F": "N", "G": "N", "N": "N", "T": "NKh",
    "R": "", "A": "", "S": "", "d": "", "s": "", "v": "", "y": "",
}  # fmt: skip


def unnamed(pred: str, gold: str) -> tuple[str, str]:
    """Both sides without the name that is given a value: ``x = 3`` and ``3`` become ``3`` and ``3``."""
    p_name, p_value = assignment(pred)
    g_name, g_value = assignment(gold)
    if p_name is not None and g_name is not None:
        pair = (p_value, g_value) if _same_name(p_name, g_name) else (pred, gold)
    else:
        pair = (p_value if "=" not in gold else pred), (g_value if "=" not in pred else gold)
    for name, value in ((p_name, p_value), (g_name, g_value)):
        variable = _variable_behind(name, value)
        if variable is not None:
            return _spell_out(pair[0], variable), _spell_out(pair[1], variable)
    return pair


def assignment(text: str) -> tuple[str | None, str]:
    """(name, value) of ``x = 3``; name None if ``text`` is nothing of that kind (the value is then the text)."""
    parts = [part.strip() for part in text.replace(r"\approx", "=").split("=")]
    if not all(parts):
        return None, text
    if len(parts) == 1:
        point = _POINT.fullmatch(text)
        if point and "," in point[2] and _DIGIT.search(point[2]) and point[2].endswith(")") and encloses(point[2]):
            return point[1], point[2]
        return None, text
    first, last = parts[0], parts[-1]
    if _SEVERAL.search(text):
        named = len(parts) == 2 and bool(_NAME.fullmatch(first) or _NAMES.fullmatch(first))
        bracketed = last[0] in "([" and last[-1] in ")]" and encloses(last)
        return (first, last) if named and bracketed else (None, text)
    if is_reversed(parts):
        return last, first
    named = _NAME.fullmatch(first) is not None or (prose_words(first) >= 3 and not _NEGATION.search(first))
    return (first, last) if named or not has_letters(first) else (None, text)


def asks_more(pred: str, gold: str) -> bool:
    """Whether one side is an equation that the value on the other side does not answer: ``80`` for ``2a + b = 80``,
    ``2x = 80`` for ``80``; but ``m + n = 80`` is an answer, to the question for m + n.

    math-verify compares the right sides alone.
    """
    left = (gold if "=" in gold else pred).partition("=")[0].strip()
    if ("=" in pred) == ("=" in gold) or not has_letters(left) or parse_quantity(left):
        return False
    return _COEFFICIENT.match(left) is not None or ("=" in gold and _SUM.search(left) is not None)


def is_reversed(parts: list[str]) -> bool:
    """Whether the two sides are a number and the variable that is given it: ``5 = s``."""
    return len(parts) == 2 and _VARIABLE.fullmatch(parts[1]) is not None and not has_letters(parts[0])


def has_letters(text: str) -> bool:
    """Whether anything in ``text`` is unknown: a letter, or a command that is not one of arithmetic (Greek letters)."""
    if any(command not in _ARITHMETIC for command in _COMMAND.findall(text)):
        return True
    return _LETTER.search(_COMMAND.sub("", text)) is not None


def _same_name(pred: str, gold: str) -> bool:
    p, g = squeeze(pred), squeeze(gold)
    if p == g:
        return True
    p_function, g_function = _FUNCTION.fullmatch(p), _FUNCTION.fullmatch(g)
    if p_function and g_function:
        return p_function[2] == g_function[2]
    if p_function or g_function:
        return "y" in (p, g)
    word, letter = sorted((p.lower(), g.lower()), key=len, reverse=True)
    if len(letter) != 1 or len(word) < 4 or not word.isalpha():
        return False
    return letter == word[0] or letter in _CONVENTIONS.get(word, "")


def _variable_behind(name: str | None, value: str) -> str | None:
    """The letter behind a number that is no unit, because what ``name`` stands for has not that unit."""
    match = _UNITLIKE.fullmatch(value)
    if name is None or len(name) != 1 or match is None:
        return None
    return match[2] if match[2] not in _QUANTITIES.get(name, "VWAJNKh") else None


def _spell_out(text: str, variable: str) -> str:
    match = _UNITLIKE.fullmatch(text)
    return rf"{match[1]} \cdot {variable}" if match and match[2] == variable else text
