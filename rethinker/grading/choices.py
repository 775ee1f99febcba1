"""Multiple choice: options in the question text, letters in answers.

Rules (ours), for a gold answer that is a letter:
- A letter counts as ``A``, ``a``, ``(A)``, ``A.``, ``\\text{A}``, ``Option A`` and ``A: text``; ``ABC`` never counts
  for A (the official code's ``startswith`` does that). Where options are listed, a lower-case gold letter is one too.
- An answer that names a second letter (``(A), (B)``, ``A. 12 or B. 13``) is wrong.
- A letter with text is right only if the text means its option, begins it, or adds a remark in words; ``(A) 13`` is
  wrong where A is 12. Where the option's text is unknown, the letter decides.
- An option's text counts as its letter, unless another option means the same. Options with one text are one option.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

from rethinker.grading.normalize import clean, squeeze, strip_lead_in
from rethinker.grading.plain import word_form
from rethinker.grading.quantity import parse_quantity

_MARKERS = (
    re.compile(r"[(（]\s*+([A-Z])\s*+[)）]"),
    re.compile(r"(?<![\w\\(])([A-Z])\s*+[.．、:：)](?=\s|\S)"),
)
_BARE = re.compile(r"[(\[]? ?([A-Za-z]) ?[)\]]? ?[.:)]?")
_WITH_TEXT = re.compile(r"(?:[(\[] ?([A-Za-z]) ?[)\]]|([A-Za-z]) ?[.:)]|([A-Z])(?:,| -| (?=\())) ?(\S.*)", re.DOTALL)
_BEFORE_LETTER = re.compile(r"(.*\S) \(([A-Z])\)", re.DOTALL)
_NEGATION = re.compile(r"\b(?:not|no|never|nor|neither)\b")
_SPACED_TEXT = re.compile(r"([A-Z]) (\S.*)", re.DOTALL)
_LETTERS = re.compile(r"[(\[]?[A-Z][)\]]?+(?:[\s,;&]*+[(\[]?[A-Z][)\]]?+)*+")
_MORE_LETTERS = re.compile(r"[(\[]?[A-Z][)\]]?(?: ?(?:,|;|and|or|&) ?[(\[]?[A-Z][)\]]?)*[.)]?")
_LONE_LETTER = re.compile(r"(?<![A-Za-z\\])(?:A(?! [a-z]{2})|[B-Z])(?![A-Za-z'])")  # "A" may be an article
_REMARK = re.compile(r"(?:is|because|since|as|so|which|correct|right|option|choice|(?:best|correct|right) answer)\b")
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
    if match := _BARE.fullmatch(gold):
        letter = match.group(1)
        if not choices:
            return letter if letter in USUAL else None  # else a point or a variable, whose case counts
        if letter.upper() not in choices or (letter.islower() and letter in choices.values()):
            return None
        return letter.upper()
    named = None if _LETTERS.fullmatch(gold) else _letter_and_text(gold, choices)  # "A, C": two right choices
    return named[0] if named and named[0] in choices and named[1] else None


def judge_letter(pred: str, letter: str, choices: dict[str, str], same: Same) -> tuple[bool, str]:
    """(correct, reason) of a cleaned answer where the gold answer is a choice ``letter``."""
    option = choices.get(letter, "")
    right = {letter} | {key for key, text in choices.items() if text and squeeze(text) == squeeze(option)}
    folded = [squeeze(text).lower() for key, text in choices.items() if key not in right]
    for text in dict.fromkeys((pred, strip_lead_in(pred))):
        spelled = squeeze(text).lower() == squeeze(option).lower()
        ambiguous = squeeze(option).lower() in folded
        if option and spelled and not ambiguous and not (_BARE.fullmatch(text) and text.upper() in choices):
            return True, "choice text"
        named = _letter_and_text(text, choices)
        if named is not None:
            if named[0] not in right:
                return False, "other choice letter"
            fault = _fault(*named, choices, same)
            return fault is None, fault or "choice letter"
    spaced = _SPACED_TEXT.fullmatch(pred)
    told = squeeze(spaced.group(2)) if spaced else ""
    if spaced and told and told == squeeze(choices.get(spaced.group(1), "")):
        return spaced.group(1) in right, "choice letter" if spaced.group(1) in right else "other choice letter"
    if _MORE_LETTERS.fullmatch(pred) and not _BARE.fullmatch(pred):
        return False, "several choice letters"
    if option and same(pred, option):
        others = [text for key, text in choices.items() if key not in right and text]
        if not _spells(pred, option) and any(same(pred, text) for text in others):
            return False, "the text of several choices"
        return True, "choice text"
    return False, "other choice letter" if _BARE.fullmatch(pred) else f"not choice {letter}"


def letter_names_text(pred: str, gold: str, choices: dict[str, str], same: Same) -> bool | None:
    """Whether a cleaned answer is the letter of the option whose text is ``gold`` (the gold answer is not a letter);
    None if it names no letter of which the text is known."""
    for text in dict.fromkeys((pred, strip_lead_in(pred))):
        named = _letter_and_text(text, choices)
        if named is not None and choices.get(named[0]):
            return _fault(*named, choices, same) is None and same(choices[named[0]], gold)
    return None


def same_letters(pred: str, gold: str, choices: dict[str, str]) -> bool | None:
    """Several right choices: whether both name the same set of listed letters; None if ``gold`` is not of that kind."""
    letters = _CAPITAL.findall(gold) if _LETTERS.fullmatch(gold) else []
    if len(letters) < 2 or len(set(letters)) < len(letters) or not set(letters) <= set(choices):
        return None
    named = _AND.sub(",", pred).upper()
    found = _CAPITAL.findall(named) if _LETTERS.fullmatch(named) else []
    return sorted(found) == sorted(letters)


def _letter_and_text(text: str, choices: dict[str, str]) -> tuple[str, str] | None:
    """The letter that ``text`` names and what it says behind it; None if it names none of the (usual) letters."""
    if bare := _BARE.fullmatch(text):
        letter, rest = bare.group(1), ""
    elif match := _WITH_TEXT.fullmatch(text):
        letter, rest = match.group(1) or match.group(2) or match.group(3), match.group(4).strip()
    elif match := _BEFORE_LETTER.fullmatch(text):
        letter, rest = match.group(2), match.group(1)
    else:
        return None
    return (letter.upper(), rest) if letter.upper() in (choices or USUAL) else None


def _fault(letter: str, rest: str, choices: dict[str, str], same: Same) -> str | None:
    """What is wrong with an answer that says ``rest`` behind ``letter``; None if it means that option alone."""
    if not rest:
        return None
    option = choices.get(letter, "")
    if option == letter:  # "(A) A (B) B": the options are pictures
        option = ""
    if option and same(clean(rest), option):
        return None
    if any(other.group() in (choices or USUAL) and other.group() != letter for other in _LONE_LETTER.finditer(rest)):
        return "several choice letters"
    others = [text for key, text in choices.items() if key != letter and text]
    if option:
        return None if _is_remark(rest, option, others) else "choice letter and text disagree"
    return "choice letter and text disagree" if any(squeeze(rest) == squeeze(text) for text in others) else None


def _is_remark(rest: str, option: str, others: list[str]) -> bool:
    """Whether words behind a letter are the beginning of its option's text, that text and more, or a remark."""
    said, own = word_form(rest), word_form(option)
    if said is None:
        return False
    if _NEGATION.findall(said) != _NEGATION.findall(own or ""):
        return False
    rivals = [form for text in others if (form := word_form(text)) is not None and form != own]
    if own is not None and _within(said, own):
        return said not in rivals
    if any(_within(rival, said) and not (own and _within(rival, own)) for rival in rivals):
        return False
    if own is not None and _within(own, said):
        return True
    return _REMARK.match(said) is not None and not any(character.isdigit() for character in said)


def _spells(pred: str, option: str) -> bool:
    """Whether an answer is the option's text or its number, unit included, so that no other option is nearer."""
    p, o = parse_quantity(pred), parse_quantity(option)
    return squeeze(pred) == squeeze(option) or (
        p is not None and o is not None and (p.value, p.unit) == (o.value, o.unit)
    )


def _within(part: str, whole: str) -> bool:
    return f" {part} " in f" {whole} "
