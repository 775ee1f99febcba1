"""Whether two answers mean the same: cheap readings first, math-verify (through ``ask``) only when none decides.

Rules (ours), beside those of `quantity`, `plain`, `names`, `equations` and `choices`:
- ``x = 3`` equals ``3``; two equations of different unknowns are compared as they stand. ``3+4=7`` equals ``7``.
- ``(1, 2)`` and ``[1, 2)`` are ordered and their brackets count; ``\\{1, 2\\}`` is unordered; a bare list ``1, 2``
  takes the brackets and the order of the other side; between bare lists order does not count, unless the question
  asks for one ("order", "ascending", "respectively", ...). Values with labels ("domain: [0, 1), range: [2, 3]") are
  paired by label if both sides have them, else by position.
- ``3:4`` is a ratio (equal to ``6:8`` and ``3/4``) unless both sides are times of day and no ratio is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from rethinker.grading import choices as mc
from rethinker.grading.equations import asks_more, has_letters, is_reversed, unnamed
from rethinker.grading.lists import is_listed, split_list
from rethinker.grading.names import same_name, same_relation
from rethinker.grading.normalize import clean, squeeze, strip_lead_in, to_latex
from rethinker.grading.plain import (
    is_phrase,
    leading_verdict,
    number_word,
    parse_time,
    prose_words,
    same_time,
    word_form,
)
from rethinker.grading.quantity import Quantity, compare_quantities, parse_number, parse_quantity
from rethinker.grading.units import split_unit

Ask = Callable[[str, str], tuple[bool, str]]  # (gold LaTeX, answer LaTeX) -> (equal, reason)

_ORDERED = re.compile(
    r"\border(?:ed)?\b|ascending|descending|respectively|sequence|rank|from (?:small|larg|left|right|top)", re.I
)
_INTEGER = re.compile(r"-?[0-9]{1,18}")
_RATIO = re.compile(r"([\d.]++) ?: ?([\d.]++)")
_MEGA = re.compile(r"\d ?M(?=(?:m|g|s|W|V|A|J|N|Hz|Pa|eV|\\?Omega|ohm)\b)")  # 5 MW is not 5 mW
_DASHED = re.compile(r"\d++(?: ?- ?\d++)++")  # a date, a range
_PROSE_WORDS = 6  # a sentence: math-verify would look for mathematics in it for seconds
_RELATIONS = re.compile(r"[<>,;]|\\(?:approx|le|ge|ne|lt|gt|neq|leq|geq)(?![a-zA-Z])")
_UNIT_PART = re.compile(r"[\d.,]++ ?[A-Za-z]*+")
_BETWEEN_PARTS = re.compile(r"\band\b|,")


def equivalent(pred: str, gold: str, question: str, ask: Ask) -> tuple[bool, str]:
    """(correct, reason) of the extracted answer ``pred``; exceptions of ``ask`` pass through."""
    if pred == gold:
        return True, "exact"
    if _INTEGER.fullmatch(pred) and _INTEGER.fullmatch(gold):  # most answers of a world of small numbers
        return (True, "number") if int(pred) == int(gold) else (False, "different number")
    p, g = clean(pred), clean(gold)
    if p and squeeze(p) == squeeze(g):
        return True, "exact"
    if not p:
        return False, "empty answer"
    options = mc.parse_choices(question) if question else {}
    letter = mc.gold_letter(g, options)
    comparison = _Comparison(question, ask, as_option=letter is not None)
    if letter is not None:
        return mc.judge_letter(p, letter, options, lambda a, b: comparison.same(a, b)[0])
    if options:
        several = mc.same_letters(p, g, options)
        if several is not None:
            return several, "choice letters"
        named = mc.letter_names_text(p, g, options, lambda a, b: comparison.same(a, b)[0])
        if named is not None:
            return named, "choice letter" if named else "not the choice of that text"
    return comparison.same(p, g)


class _Comparison:
    def __init__(self, question: str, ask: Ask, *, as_option: bool = False) -> None:
        self._question = question
        self._ordered = bool(_ORDERED.search(question))
        self._ratio = "ratio" in question.lower()
        self._ask = ask
        self._as_option = as_option

    def same(self, pred: str, gold: str, depth: int = 0) -> tuple[bool, str]:
        """(equal, reason) of two cleaned answers."""
        if squeeze(pred) == squeeze(gold):
            return True, "exact"
        p, g = strip_lead_in(pred), strip_lead_in(gold)
        named = same_name(p, g, self._question)
        if named is None:
            named = same_relation(p, g)
        if named is not None:
            return named, "name" if named else "another name"
        verdict = self._times_and_words(pred, gold)
        if verdict is not None:
            return verdict
        if depth == 0 and not self._holds(p):
            return False, "an equation that does not hold"
        if asks_more(p, g):
            return False, "a value against an equation"
        p, g = unnamed(p, g)
        if p and squeeze(p) == squeeze(g):
            return True, "exact"
        if _DASHED.fullmatch(p) and _DASHED.fullmatch(g):
            equal = [int(part) for part in p.split("-")] == [int(part) for part in g.split("-")]
            return equal, "date or range" if equal else "another date or range"
        verdict = _numbers(number_word(p) or p, number_word(g) or g)
        if verdict is not None:
            return verdict
        if depth == 0:
            verdict = self._lists(p, g)
            if verdict is not None:
                return verdict
        if is_phrase(g) != is_phrase(p) and (is_phrase(g) or parse_number(g) is not None):
            return False, "different kind of answer"
        return self._expressions(p, g)

    def _holds(self, text: str) -> bool:
        """Whether the sides of ``3 + 4 = 7`` that are free of letters equal the last one; True for what is no equation.

        Otherwise every number would be right behind an equals sign.
        """
        parts = [part.strip() for part in text.split("=")]
        *sides, last = parts
        if not last or _RELATIONS.search(text) or is_reversed(parts):
            return True
        return all(self.same(side, last, depth=1)[0] for side in sides if side and not has_letters(side))

    def _times_and_words(self, pred: str, gold: str) -> tuple[bool, str] | None:
        gold_time, pred_time = parse_time(gold), parse_time(pred)
        if gold_time and pred_time and not self._ratio:
            equal = same_time(gold_time, pred_time, as_option=self._as_option)
            return equal, "time" if equal else "different time"
        wanted = leading_verdict(gold)
        if wanted and wanted == gold.lower():
            found = leading_verdict(pred)
            if found:
                return found == wanted, "words" if found == wanted else "different words"
        gold_words, pred_words = word_form(gold), word_form(strip_lead_in(pred))
        if gold_words is None or pred_words is None:
            return None
        letters_only = len(gold_words) == 1  # a variable: its case counts
        if not letters_only and (
            gold_words == pred_words or word_form(gold, articles=True) == word_form(pred, articles=True)
        ):
            same = bool(_MEGA.search(gold)) == bool(_MEGA.search(pred))
            return same, "words" if same else "unit: mega is not milli"
        if is_phrase(gold) and is_phrase(pred) and not is_listed(gold) and not is_listed(pred):
            return False, "different words"
        return None

    def _lists(self, pred: str, gold: str) -> tuple[bool, str] | None:
        p, g = split_list(pred), split_list(gold)
        if p is None or g is None:
            one = g or p
            other = pred if p is None else gold
            if one is not None and parse_quantity(other) and all(parse_quantity(item) for item in one.items):
                return False, "one value against several"
            return None
        if len(p.items) != len(g.items):
            return False, f"{len(p.items)} values instead of {len(g.items)}"
        if p.brackets and g.brackets and p.brackets != g.brackets:
            return False, "different brackets"
        brackets = g.brackets or p.brackets
        ordered = self._ordered if brackets == "" else brackets != "{}"
        left = list(p.items)
        if p.labels or g.labels:
            if p.labels and g.labels:
                if sorted(p.labels) != sorted(g.labels):
                    return False, "different labels"
                left = [p.items[p.labels.index(label)] for label in g.labels]
            ordered = True
        for position, wanted in enumerate(g.items):
            candidates = [left[position]] if ordered else left
            # Equality is an equivalence, so that taking the first match is enough.
            verdicts = []
            for item in candidates:
                verdicts.append(self.same(item, wanted, depth=1))
                if verdicts[-1][0]:
                    break
            else:
                failures = [reason for _, reason in verdicts if reason.startswith("error:")]
                return False, failures[0] if failures else "different values"
            if not ordered:
                left.remove(item)
        return True, "list"

    def _expressions(self, pred: str, gold: str) -> tuple[bool, str]:
        if prose_words(pred) >= _PROSE_WORDS > prose_words(gold):
            return False, "not an expression"
        (gold_body, gold_unit), (pred_body, pred_unit) = split_unit(gold), split_unit(pred)
        if gold_unit and pred_unit and gold_unit != pred_unit:
            return False, f"unit: {pred_unit} instead of {gold_unit}"
        return self._ask(to_latex(gold_body), to_latex(pred_body))


def _numbers(pred: str, gold: str) -> tuple[bool, str] | None:
    """The verdict if both are numbers (with units), sums of units ("2 h 30 min") or ratios; else None."""
    g, p = parse_quantity(gold), parse_quantity(pred)
    if g and p:
        return compare_quantities(g, p)
    ratios = [_ratio(gold), _ratio(pred)]
    if ratios[0] and (ratios[1] or (p and p.unit is None)):
        other = ratios[1] or p
        assert other is not None
        return compare_quantities(ratios[0], other)
    parts = [_mixed_units(gold), _mixed_units(pred)]
    if parts[0] and parts[1]:
        equal = len(parts[0]) == len(parts[1]) and all(
            compare_quantities(a, b)[0] for a, b in zip(parts[0], parts[1], strict=True)
        )
        return equal, "number" if equal else "different number"
    return None


def _ratio(text: str) -> Quantity | None:
    match = _RATIO.fullmatch(text)
    if match is None:
        return None
    numbers = [parse_number(side) for side in match.groups()]
    if numbers[0] is None or numbers[1] is None or numbers[1][0] == 0:
        return None
    return Quantity(numbers[0][0] / numbers[1][0], None, None)


def _mixed_units(text: str) -> tuple[Quantity, ...] | None:
    """``2 hours 30 minutes`` as its parts; None unless there are at least two, each with a unit."""
    parts = [part.lstrip(".,") for part in _UNIT_PART.findall(text)]
    if not 2 <= len(parts) <= 4 or squeeze(_BETWEEN_PARTS.sub("", text)) != squeeze("".join(parts)):
        return None
    quantities = tuple(quantity for part in parts if (quantity := parse_quantity(part)) and quantity.unit)
    return quantities if len(quantities) == len(parts) else None
