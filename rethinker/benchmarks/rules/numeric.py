"""Equality "as numbers to two decimals" of two LaTeX strings: MathVision's and EMMA's published comparison.

The published code converts both sides with latex2sympy and evaluates the result as Python. Here a plain decimal or
fraction is read in this process; anything else that may be a number goes to the grader's worker pool, which parses it
with the same grammar under limits of time and memory and evaluates nothing.
"""

from __future__ import annotations

import re
import warnings
from functools import lru_cache

from rethinker.grading.pool import POOL

TIMEOUT_S = 3.0  # worker CPU seconds for one side, as the grader's default
MAX_CHARS = 300  # ours: a longer "answer" is a text; the longest gold answer that is a number has 60
_DECIMAL = re.compile(r"-?(?:\d+(?:\.\d+)?|\.\d+)")
_FRACTION = re.compile(r"(-?)\\frac\{(-?\d{1,15})\}\{(-?\d{1,15})\}")
_COMMAND = re.compile(r"\\[a-z]+")
_FUNCTION = re.compile(r"\\(?:log|ln|exp|(?:arc)?(?:sin|cos|tan|cot|sec|csc))")
_FACTORS = re.compile(r"(?<=[\d)])(?=\(|\\frac)")  # the published parser knows no mixed numbers: 2(3) is 6
_NUMERAL = re.compile(r"\d|\\pi")
_NAME = re.compile(r"[^\W\d_]")  # a letter of any script


def equal_to_two_decimals(left: str, right: str) -> bool:
    """Whether both are numbers and equal when rounded to two decimals (Python's `round`)."""
    first = latex_value(right)
    if first is None:
        return False
    second = latex_value(left)
    return second is not None and round(first, 2) == round(second, 2)


@lru_cache(maxsize=8192)
def latex_value(text: str) -> float | None:
    """The number that lower-case LaTeX stands for; None if it is none: with symbols, units, words, several values."""
    text = _head(text.replace("$", "")).strip()
    if len(text) > MAX_CHARS or not _NUMERAL.search(text):
        return None
    if _DECIMAL.fullmatch(text):
        return float(text)
    if (match := _FRACTION.fullmatch(text)) and int(match[3]):
        return int(match[1] + "1") * int(match[2]) / int(match[3])
    if any(sign in text for sign in ("%", "\\circ", "\\boxed")) or set(_NAME.findall(_COMMAND.sub("", text))) - {
        "e"
    }:  # "e" is the number; other letters are symbols
        return None
    if not _FUNCTION.search(text):
        text = _FACTORS.sub("\\\\cdot ", text)
    reply = POOL.value(text, TIMEOUT_S)
    if reply.reason.startswith("error:"):  # no worker: not the answer's fault
        warnings.warn(f"{text[:80]!r} was not read as a number: {reply.reason}", stacklevel=2)
    return float(reply.reason) if reply.correct else None


def _head(text: str) -> str:
    """Up to the first closing brace without an opening one, where the published code's grammar stops reading."""
    depth = 0
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth < 0:
            return text[: match.start()]
    return text
