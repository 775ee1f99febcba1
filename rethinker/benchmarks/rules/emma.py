"""EMMA's published rule mode (hychaochao/EMMA, evaluation/evaluate.py and utils.py), re-stated.

A bare letter or number; else the last balanced box, of which the last ``\\text{}`` alone counts; else the text behind
"answer is" up to the first full stop; compared with the gold answer and with the option's text, as lower-case strings
or as numbers rounded to two decimals. No judge, no guess. Differs in: nothing is evaluated (see `numeric`); prose
without any marker counts as unparsed, not as an answer (both score 0). The published code also compares symbolically,
but only what it could turn into numbers before: that decides nothing.
"""

from __future__ import annotations

import re

from rethinker.benchmarks.rules.numeric import equal_to_two_decimals
from rethinker.benchmarks.rules.outcome import Outcome, is_bare, to_float

_PHRASES = ("final answer is", "correct answer is", "answer should be", "answer is")
_TEXT = re.compile(r"\\text\{(.*?)\}")
_BRACE_OR_BOX = re.compile(r"\\boxed\{|[{}]")


def score(response: str, gold: str, option: str) -> Outcome:
    """``gold``: a choice's letter, in either case, or the answer; ``option``: the choice's text (else ``gold``)."""
    if not response:
        return Outcome(0.0, None, "empty response")
    answer, marked = extract(response)
    if equal(answer, gold) or equal(answer, option):
        return Outcome(1.0, answer, "equal")
    if not (marked or is_bare(response)):
        return Outcome(0.0, None, "no answer found")
    return Outcome(0.0, answer, "not equal")


def extract(response: str) -> tuple[str, bool]:
    """The answer, and whether a marker led to it (else it is the whole response)."""
    response = response.strip()
    for letter in "ABCDEFGH":
        if response.upper() == letter or response.startswith(f"{letter}:"):
            return letter, True
    if to_float(response) is not None:
        return response, True
    box = last_box(response)
    if box is not None:
        texts = _TEXT.findall(box)
        return (texts[-1] if texts else box).strip(), True
    folded = response.lower()
    for phrase in _PHRASES:
        if phrase in folded:
            return folded.split(phrase)[-1].strip().split("\n")[0].split(".")[0], True
    return response, False


def last_box(text: str) -> str | None:
    """The content of the last balanced outer ``\\boxed{}``; after an unbalanced one nothing counts. Braces are counted
    as they stand, escaped ones too."""
    last, start, depth = None, -1, 0
    for match in _BRACE_OR_BOX.finditer(text):
        token = match.group()
        if start < 0:
            if token.endswith("{") and len(token) > 1:
                start, depth = match.end(), 0
        elif token == "}":
            if depth == 0:
                last, start = text[start : match.start()], -1
            depth -= 1
        else:
            depth += 1
    return last


def equal(answer: str, gold: str) -> bool:
    """Whether two answers are equal as published."""
    answer, gold = answer.lower(), gold.lower()
    return answer.strip() == gold.strip() or equal_to_two_decimals(gold, answer)
