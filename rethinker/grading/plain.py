"""Answers that are words or times of day.

Rules (ours): words are compared without case, articles and punctuation; other wording ("increase" for "it would
increase") is wrong, since only a judge model could accept it. A lone ``a`` is a letter, and no article, where it ends
the text or stands before another single letter ("hepatitis A"; "A, B"). Yes/no and true/false may be followed by a
remark after a punctuation mark ("Yes, because ..."). A time without am/pm is read on a twelve-hour dial, so it equals
either half of the day, except among the options of a multiple choice (9:30 is not the option 21:30); with am/pm on both
sides (or hours above 12) the half of the day must agree.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TIME = re.compile(
    r"(?P<hour>\d{1,2}) ?(?::|(?P<dot>\.)) ?(?P<minute>\d{2})(?::(?P<second>\d{2}))? ?"
    r"(?P<half>[ap]\.? ?m\b\.?|o'? ?clock)?",
    re.IGNORECASE,
)
_FULL_HOUR = re.compile(r"(?P<hour>\d{1,2}) ?(?P<half>[ap]\.? ?m\b\.?|o'? ?clock)", re.IGNORECASE)
_VERDICT = re.compile(r"(yes|no|true|false)(?=$| ?[,.;:!])", re.IGNORECASE)
_MATH = re.compile(r"[\\=^_<>+*/|{}\[\]]")
_PROSE_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}+")
_WORD = re.compile(r"[a-z]++")
_PUNCTUATION = re.compile(r"[^\w\s.,]|[.,](?!\d)|(?<!\d)[.,]")
_ARTICLE = re.compile(r"\b(?:[Aa]n|[Tt]he)\b|(?:\ba|^A)(?= (?!and\b|or\b|is\b|are\b|has\b)[A-Za-z]{2})")
_HYPHEN = re.compile(
    r"(?<=[a-z]{3}) ?- ?(?=[a-z\d])|(?<=[a-z\d])-(?=[a-z]{3})|(?<=[a-z]) - (?=[a-z]{3})", re.IGNORECASE
)
_MATH_WORDS = frozenset(
    ("sqrt", "pi", "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "log", "ln", "infinity",
     "infty", "theta", "alpha", "beta")
)  # fmt: skip
_NUMBER_WORDS = {
    word: str(value)
    for value, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
         "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty")
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ClockTime:
    hour: int
    minute: int
    second: int
    half: str  # "a", "p" or "" where the text does not say


def parse_time(text: str) -> ClockTime | None:
    """Read ``3:05``, ``15:05``, ``3.05 pm``, ``3 o'clock``; None if it is no time of day. ``3.05`` is a number."""
    match = _TIME.fullmatch(text) or _FULL_HOUR.fullmatch(text)
    if match is None:
        return None
    groups = match.groupdict()
    half = (groups["half"] or "").lower()[:1]
    if groups.get("dot") and half not in ("a", "p"):
        return None
    hour, minute, second = int(groups["hour"]), int(groups.get("minute") or 0), int(groups.get("second") or 0)
    if hour > 24 or minute > 59 or second > 59:
        return None
    return ClockTime(hour, minute, second, half if half in ("a", "p") else "")


def same_time(gold: ClockTime, pred: ClockTime, *, as_option: bool = False) -> bool:
    """Equal under the rule at the top of this module."""
    if (gold.minute, gold.second) != (pred.minute, pred.second):
        return False
    if as_option and not gold.half and not pred.half:
        return gold.hour % 24 == pred.hour % 24
    hours_gold, hours_pred = _hours(gold), _hours(pred)
    return hours_gold == hours_pred if min(hours_gold[1], hours_pred[1]) else hours_gold[0] == hours_pred[0]


def _hours(time: ClockTime) -> tuple[int, int]:
    """(hour on the dial, half of the day: 0 unknown, 1 am, 2 pm)."""
    if time.half:
        return time.hour % 12, 1 if time.half == "a" else 2
    return time.hour % 12, 0 if 0 < time.hour <= 12 else (2 if 12 < time.hour < 24 else 1)


def word_form(text: str, *, articles: bool = False) -> str | None:
    """The comparable form of a phrase: lower case, no articles (or with them), no punctuation; None if ``text`` is
    mathematics. A minus is mathematics, a hyphen ("north-east", "x-axis") is not."""
    if _MATH.search(text) or not any(character.isalpha() for character in text):
        return None
    text = _HYPHEN.sub(" ", text)
    if "-" in text:
        return None
    kept = text if articles else _ARTICLE.sub(" ", text)
    words = _PUNCTUATION.sub(" ", kept.lower().replace("'", "")).split()
    if any(word in _MATH_WORDS for word in words):
        return None
    return " ".join(words or text.lower().split())


def is_phrase(text: str) -> bool:
    """Plain words beyond doubt: no digit, no operator, a word of three letters or more (``AB`` may be a segment)."""
    form = word_form(text)
    if form is None or any(character.isdigit() for character in text):
        return False
    return any(len(word) >= 3 or not word.isascii() or word == "no" for word in form.split())


def prose_words(text: str) -> int:
    """How many plain words ``text`` has: three letters or more, no command and no function."""
    return sum(word not in _MATH_WORDS for word in _PROSE_WORD.findall(text))


def number_word(text: str) -> str | None:
    """``three`` as ``3``; None if ``text`` is no number word up to twenty."""
    return _NUMBER_WORDS.get(text.strip().lower())


def leading_verdict(text: str) -> str | None:
    """The ``yes``, ``no``, ``true`` or ``false`` that opens ``text`` before a punctuation mark or alone; None if
    another one follows ("Yes. No.")."""
    match = _VERDICT.match(text)
    if match is None or any(word in ("yes", "no", "true", "false") for word in _WORD.findall(text.lower())[1:3]):
        return None
    return match.group(1).lower()
