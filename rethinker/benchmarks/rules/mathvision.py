"""MathVision's published rule (mathllm/MATH-V, evaluation/evaluate.py and utils.py), re-stated.

Extraction by phrases and the last box, a clean-up of LaTeX, then equality with the gold answer or, for a choice, with
the option's text: as lower-case strings, or as numbers rounded to TWO decimals. No judge, no guess. Differs in: nothing
is evaluated (see `numeric`); prose without any marker counts as unparsed, not as an answer (both score 0).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rethinker.benchmarks.rules.numeric import equal_to_two_decimals, latex_value
from rethinker.benchmarks.rules.outcome import Outcome, is_bare, letters, to_float

_PHRASES = ("the final answer is", "the answer is", "the correct answer is", "the answer should be")
_DELETED = (
    *("\\text", "\\mbox", "\\left", "\\right", "^{\\circ}", "^\\circ"),
    *("{m}^3", "m^3", "{units}", "units", "{km}", "km"),
)
_INTEGER_RATIO = re.compile(r"(0|-?[1-9]\d*)/(0|-?[1-9]\d*)")


def score(response: str, gold: str, options: Sequence[str]) -> Outcome:
    """``gold``: the letter of a choice (``options`` given) or the answer itself (``options`` empty)."""
    answer, marked = extract(response)
    option = options[ord(gold) - ord("A")] if gold and gold in letters(options) else ""
    if equal(gold, answer) or equal(option, answer):
        return Outcome(1.0, answer, "equal")
    if not answer or not (marked or is_bare(response)):
        return Outcome(0.0, None, "no answer found")
    return Outcome(0.0, answer, "not equal")


def extract(response: str) -> tuple[str, bool]:
    """The cleaned lower-case answer, and whether a marker led to it (else it is the whole response)."""
    whole = text = response.strip()
    for letter in "ABCDE":
        if text.endswith((f" {letter}.", f" ({letter}).")) or text.startswith(
            (f"{letter}\n", f"({letter})\n", f"({letter}) {letter}\n")
        ):
            text = letter
    tail = text.split("is ")[-1].rstrip(".")
    if to_float(tail) is not None:
        text = tail
    if "oxed{" not in text:
        for phrase in _PHRASES:
            for form in (phrase, phrase.replace("the", "The")):
                found = form in text
                text = text.split(form)[-1].strip()
                if found:
                    text = text.split("\n")[0].split(". ")[0]
    elif text.count("oxed{") > 1:
        text = "\\boxed{" + text.split("oxed{")[-1]
    marked = text != whole or "oxed{" in text
    text = _clean(text)
    for letter in "abcde":
        text = text.replace(f"({letter})", letter)
    for letter in "abcde":
        text = text.replace(f"{{{letter}}}", letter)
    return text.rstrip(".").lstrip(":").strip(), marked


def equal(gold: str, answer: str) -> bool:
    """Whether two answers are equal; the gold answer is not cleaned, and an empty one equals nothing."""
    gold, answer = gold.lower(), answer.lower()
    if not gold.replace(" ", "") or not answer.replace(" ", ""):
        return False
    if answer.strip() == gold.strip():
        return True
    gold, answer = _round_items(gold), _round_items(answer)
    return gold == answer or equal_to_two_decimals(gold, answer)


def _clean(text: str) -> str:
    text = text.lower().replace("{}", "")
    if boxes := re.findall(r"oxed\{(.*)\}", text, re.DOTALL):
        text = boxes[-1]
    close, opening = text.find("}"), text.find("{")
    if close >= 0 and (opening < 0 or close < opening):
        text = text[:close]
    text = text.split("=")[-1].split("\\approx")[-1]
    text = text.replace(" ", "").replace("\\,", "").replace("∞", "\\infty").replace("+\\infty", "\\infty")
    text = text.replace("\\\\", "\\").replace("\n", "").replace("bmatrix", "pmatrix")
    for piece in _DELETED:
        text = text.replace(piece, "")
    text = text.replace("\\!", "").replace("\\\\", "\\").replace("tfrac", "frac").replace("dfrac", "frac")
    for piece in ("\\left", "\\right", "^{\\circ}", "^\\circ", "\\$", "$", "\\%"):  # again: deletions make new ones
        text = text.replace(piece, "")
    text = text.replace("{.", "{0.")
    if text.startswith("."):
        text = "0" + text
    if "sqrt" in text:
        text = re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", text)
        text = _brace_fractions(text)
    if text == "0.5":
        return "\\frac{1}{2}"
    if match := _INTEGER_RATIO.fullmatch(text):
        return f"\\frac{{{match[1]}}}{{{match[2]}}}"
    return text


def _brace_fractions(text: str) -> str:
    """``\\frac12`` and ``\\frac1{2}`` with braces; nothing is changed where a fraction has one character only."""
    head, *tails = text.split("\\frac")
    out = head
    for tail in tails:
        if tail.startswith("{"):
            out += "\\frac" + tail
        elif len(tail) < 2:
            return text
        elif tail[1] == "{":
            out += f"\\frac{{{tail[0]}}}{tail[1:]}"
        else:
            out += f"\\frac{{{tail[0]}}}{{{tail[1]}}}{tail[2:]}"
    return out


def _round_items(text: str) -> str:
    """A tuple or list of numbers with each item rounded to two decimals; any other text as it is."""
    items = text[1:-1].split(",")
    if len(items) < 2 or (text[0], text[-1]) not in (("(", ")"), ("[", "]")):
        return text
    rounded = []
    for item in items:
        if "infty" in item or item in ("a", "-a"):
            rounded.append(item)
        elif (number := latex_value(item)) is not None:
            rounded.append(str(round(number, 2)))
        else:
            return text
    return text[0] + ",".join(rounded) + text[-1]
