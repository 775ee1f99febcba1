"""MathVista's published rule (lupantech/MathVista, evaluation/calculate_score.py), re-stated, behind our own extractor.

The published pipeline lets a language model extract the answer (extract_answer.py) and normalises what it gives: a
choice by its letter, else by the smallest edit distance, so that every text is some choice; an integer by truncation; a
float by rounding to the row's precision; then string equality with the gold answer. Here `final_answer` extracts, and
the choice at the smallest edit distance is reported as ``guessed`` only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rethinker.benchmarks.rules import final_answer
from rethinker.benchmarks.rules.outcome import Outcome, letters, to_float

MAX_GUESS_CHARS = 1000  # ours: what is compared of a text that holds no choice; extracted answers are shorter
_BRACKETED = re.compile(r"\(([a-zA-Z])\)")


def score(response: str, gold: str, choices: Sequence[str], answer_type: str, precision: int | None) -> Outcome:
    """``gold``: the text of the right choice (``choices`` given), else a number or a list as the data set writes it."""
    found, raw = extract(response, choices, answer_type)
    if found is not None:
        return score_extraction(found, gold, choices, answer_type, precision)
    if choices:
        return Outcome(0.0, None, "no choice found", float(nearest(raw, choices) == gold))
    return Outcome(0.0, None, f"no {answer_type} found")


def extract(response: str, choices: Sequence[str], answer_type: str) -> tuple[str | None, str]:
    """The answer in the form that the published rule takes (None: there is none), and the text where it was looked for.

    As published, a response that is a choice, an int or a float is its own extraction."""
    bare = response.strip()
    if (choices and response in choices) or (not choices and answer_type != "list" and to_float(bare) is not None):
        return response if choices else bare, bare
    texts, _ = final_answer.stated(response)
    for text in texts:
        if choices:
            found = final_answer.choice_letter(text, choices)
        elif answer_type == "list":
            found = final_answer.list_of(text)
        else:
            found = final_answer.number(text)
        if found is not None:
            return found, text
    return None, texts[0] if texts else ""


def score_extraction(
    extraction: str, gold: str, choices: Sequence[str], answer_type: str, precision: int | None
) -> Outcome:
    """The published rule for an extracted answer."""
    if choices:
        extraction = extraction.strip()
        if bracketed := _BRACKETED.findall(extraction):
            extraction = bracketed[0].upper()
        if len(extraction) == 1 and extraction in letters(choices):
            choice = choices[ord(extraction) - ord("A")]
        elif extraction in choices:
            choice = extraction
        else:
            return Outcome(0.0, None, "no choice", float(nearest(extraction, choices) == gold))
        return Outcome(float(choice == gold), extraction, "choice" if choice == gold else "other choice")
    value: str | None = extraction
    number = to_float(extraction)
    if answer_type == "integer":
        value = None if number is None or abs(number) == float("inf") or number != number else str(int(number))
    elif answer_type == "float":
        value = None if number is None else str(round(number, precision or 0))
    if value is None:
        return Outcome(0.0, None, f"{extraction[:40]!r} is no {answer_type}")
    return Outcome(float(value == gold), value, "equal" if value == gold else "not equal")


def nearest(text: str, choices: Sequence[str]) -> str:
    """The choice at the smallest edit distance from ``text``; the first of equals."""
    return min(choices, key=lambda choice: edit_distance(text[:MAX_GUESS_CHARS], choice))


def edit_distance(left: str, right: str) -> int:
    """Levenshtein's: insertions, deletions and substitutions cost 1."""
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, start=1):
        previous, row[0] = row[0], i
        for j, b in enumerate(right, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]
