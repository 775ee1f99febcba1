"""MathVerse without its judge: our extractor, then our grader in place of the published one.

The published pipeline (ZrrSkywalker/MathVerse, evaluation/) asks a language model twice: to extract the answer, and to
say whether it is consistent with the gold answer. It has no rule to re-state but string equality, which it calls not
accurate enough. Here `final_answer` extracts and the library's grader compares: a choice by letter or text, a free
answer by its value. `clean_gold` mends what the data set's gold answers have and the grader cannot read.
"""

from __future__ import annotations

import re

from rethinker.benchmarks.rules import final_answer
from rethinker.benchmarks.rules.outcome import Outcome
from rethinker.grading import grade
from rethinker.grading.choices import parse_choices

_BEARING = re.compile(r"(?<=\\circ)\s*T\b")
_BARE_GROUPS = re.compile(r"^\{(\d+)\}\{(\d+)\}")
_LABEL = re.compile(r"[A-Z][A-Za-z. ]*\$\s*=\s*(.*)\$", re.DOTALL)
_LETTER = re.compile(r"\(?([A-F])\)?")
_IS = re.compile(
    r"\b(?:is|are|equals|be|approximately|about)\s+(?:equal to\s+)?(?:approximately\s+|about\s+)?(?=\S*[\d\\(\[])"
)


def score(response: str, gold: str, question: str, multiple_choice: bool) -> Outcome:
    """``question``: the full text with its options (``question_for_eval`` where the question is in the image)."""
    options = list(parse_choices(question).values()) if multiple_choice else []
    texts, marked = final_answer.stated(response)
    gold = clean_gold(gold)
    for text in texts:
        answer = _answer(text, options, marked)
        if answer is not None:
            verdict = grade(f"\\boxed{{{answer}}}", gold, question=question)
            return Outcome(float(verdict.correct), answer, verdict.reason)
    return Outcome(0.0, None, "no answer found")


def clean_gold(gold: str) -> str:
    """The gold answer as the grader reads it: "(C)" is a letter, ``^\\circ T`` a true bearing, ``{8}{5}`` a lost
    ``\\frac``, and a label before "=" in dollars no part of the value. (It knows 掳, a misread degree sign, itself.)"""
    gold = gold.strip()
    if letter := _LETTER.fullmatch(gold):
        return letter[1]
    gold = _BARE_GROUPS.sub(r"\\frac{\1}{\2}", _BEARING.sub("", gold))
    if label := _LABEL.fullmatch(gold):
        return label[1].strip()
    return gold


def _answer(text: str, options: list[str], marked: bool) -> str | None:
    """What ``text`` states: a letter where there are options, else its value, behind the last "is" of a sentence."""
    if options:
        letter = final_answer.choice_letter(text, options)
        if letter is not None or not marked:
            return letter
    text = text.strip().strip("$").removesuffix(".").strip()
    tail = _IS.split(text)[-1].strip()
    if marked:
        return tail or None
    return tail if any(character.isdigit() for character in tail) else None
