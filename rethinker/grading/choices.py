"""Multiple choice: options in the question text, letters in answers.

A letter counts as ``A``, ``a``, ``(A)``, ``A.``, ``\\text{A}``, ``Option A`` and ``A: text``; ``ABC`` never counts for
A (the official code's ``startswith`` does that). An option's text counts as its letter where the question lists the
options.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

from rethinker.grading.normalize import clean, squeeze, strip_lead_in

_MARKERS = (
    re.compile(r"[(（]\s*+([A-Z])\s*+[)）]"),
    re.compile(r"(?<![\w\\(])([A-Z])\s*+[.．、:：)](?=\s|\S)"),
)
_BARE = re.compile(r"[(\[]? ?([A-Za-z]) ?[)\]]? ?[.:)]?")
_WITH_TEXT = re.compile(r"(?:[(\[] ?([A-Za-z]) ?[)\]]|([A-Z]) ?[.:)]) ?(\S.*)", re.DOTALL)
_SPACED_TEXT = re.compile(r"([A-Z]) (\S.*)", re.DOTALL)
_LETTERS = re.compile(r"[(\[]?[A-Z][)\]]?+(?:[\s,;&]*+[(\[]?[A-Z][)\]]?+)*+")
_MORE_LETTERS = re.compile(r"[(\[]?[A-Z][)\]]?(?: ?(?:,|;|and|or|&) ?[(\[]?[A-Z][)\]]?)*[.)]?")
_AND = re.compile(r"\band\b", re.IGNORECASE)
_CAPITAL = re.compile(r"[A-Z]")

USUAL = "ABCDEFGH"  # letters that are taken for choices where the question lists none (an image may)

Same = Callable[[str, str], bool]


@lru_cache(maxsize=4096)  # the responses to a question come together
def parse_choices(question: str) -> dict[str, str]:
    """The options listed in ``question`` as letter -> text (cleaned; "" where only an image shows it); {} if none.

    Reads ``(A) 12 (B) 13``, ``A. 12`` and ``A: 12`` on lines or in line: the longest run of markers A, B, C, ... (the
    last of equals). The last option ends at its line.
    """
    best: list[re.Match[str]] = []
    for pattern in _MARKERS:
        run: list[re.Match[str]] = []
        for match in pattern.finditer(question):
            letter = match.group(1)
            if run and ord(letter) == ord("A") + len(run):
                run.append(match)
            elif letter == "A":
                best = run if len(run) >= max(2, len(best)) else best
                run = [match]
        best = run if len(run) > max(1, len(best)) else best
    texts: dict[str, str] = {}
    for index, match in enumerate(best):
        end = best[index + 1].start() if index + 1 < len(best) else len(question)
        text = question[match.end() : end].strip()
        if index + 1 == len(best):
            text = text.partition("\n")[0]
        texts[match.group(1)] = clean(text.strip().rstrip(";,"))
    return texts


def gold_letter(gold: str, choices: dict[str, str]) -> str | None:
    """The upper-case letter that a cleaned gold answer names, alone or (if listed) before its option's text."""
    match = _BARE.fullmatch(gold)
    if match and match.group(1).isupper():
        return match.group(1)
    named = _letter_and_text(gold)
    if named and named[0] in choices and named[1]:
        return named[0]
    return None


def judge_letter(pred: str, letter: str, choices: dict[str, str], same: Same) -> tuple[bool, str]:
    """(correct, reason) of a cleaned answer where the gold answer is a choice ``letter``."""
    for text in dict.fromkeys((pred, strip_lead_in(pred))):
        named = _letter_and_text(text)
        if named is not None:
            if named[0] != letter:
                return False, "other choice letter"
            if _contradicts(named[1], letter, choices):
                return False, "choice letter and text disagree"
            return True, "choice letter"
    spaced = _SPACED_TEXT.fullmatch(pred)
    if spaced and squeeze(choices.get(spaced.group(1), "")) == squeeze(spaced.group(2)) != "":
        return spaced.group(1) == letter, "choice letter" if spaced.group(1) == letter else "other choice letter"
    option = choices.get(letter, "")
    if squeeze(pred) != squeeze(option) and _MORE_LETTERS.fullmatch(pred):
        return False, "several choice letters"
    if option and same(pred, option):
        others = [text for key, text in choices.items() if key != letter and text]
        if not any(squeeze(pred) == squeeze(text) for text in others):
            return True, "choice text"
    return False, f"not choice {letter}"


def letter_names_text(pred: str, gold: str, choices: dict[str, str], same: Same) -> bool:
    """Whether a cleaned answer is the letter of the option whose text is ``gold`` (the gold answer is not a letter)."""
    named = _letter_and_text(strip_lead_in(pred))
    if named is None or not choices.get(named[0]) or _contradicts(named[1], named[0], choices):
        return False
    return same(choices[named[0]], gold)


def same_letters(pred: str, gold: str, choices: dict[str, str]) -> bool | None:
    """Several right choices: whether both name the same set of listed letters; None if ``gold`` is not of that kind."""
    letters = _CAPITAL.findall(gold) if _LETTERS.fullmatch(gold) else []
    if len(letters) < 2 or len(set(letters)) < len(letters) or not set(letters) <= set(choices):
        return None
    named = _AND.sub(",", pred).upper()
    found = _CAPITAL.findall(named) if _LETTERS.fullmatch(named) else []
    return sorted(found) == sorted(letters)


def _letter_and_text(text: str) -> tuple[str, str] | None:
    if bare := _BARE.fullmatch(text):
        return bare.group(1).upper(), ""
    match = _WITH_TEXT.fullmatch(text)
    if match is None:
        return None
    return (match.group(1) or match.group(2)).upper(), match.group(3).strip()


def _contradicts(text: str, letter: str, choices: dict[str, str]) -> bool:
    """Whether the text that follows ``letter`` names another choice."""
    if not text:
        return False
    key = squeeze(clean(text)).lower()
    options = {name: squeeze(option).lower() for name, option in choices.items() if option}
    if options.get(letter) == key:
        return False
    return key in options.values() or bool(_MORE_LETTERS.fullmatch(text))
