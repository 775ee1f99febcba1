"""The published rules of MMMU (mmmu/utils/eval_utils.py) and MMMU-Pro (mmmu-pro/evaluate.py), re-stated.

Both find a letter by markers, then an option's text in the response, and else draw a letter at random: here such a
response is unparsed and scores 0; ``guessed`` is the draw's expectation. MMMU's open questions are compared as numbers
to two decimals and as substrings. Re-stated as they are, quirks included: the article "A " counts for choice A;
MMMU-Pro takes "DNA " for A; a gold answer is right wherever it stands in the tail of a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from rethinker.benchmarks.rules.outcome import BARE_ANSWER_WORDS, Outcome, letters, to_float

_MARK = "Answer:"
_KEYS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = frozenset(":,.!?;'")
_GROUPED = re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b")
_SCIENTIFIC = re.compile(r"-?(?<!\d)\d+(?:\.\d+)?[eE][+-]?\d+")
_SIMPLE = re.compile(r"-?(?:(?<!\d)(?:\d+\.\d+|\d+\b)|\.\d+)(?![eE][+-]?\d+)(?![,\d])")

Normalized = float | str


def score_choice(response: str, gold: str, options: Sequence[str]) -> Outcome:
    """MMMU, multiple choice; ``gold`` is a letter."""
    return _letter_outcome(parse_choice(response, options), gold, options)


def score_pro(response: str, gold: str, options: Sequence[str]) -> Outcome:
    """MMMU-Pro; ``gold`` is a letter."""
    return _letter_outcome(parse_pro(response, options), gold, options)


def score_open(response: str, golds: Sequence[str]) -> Outcome:
    """MMMU, open question: right if any reading of the response has any of ``golds``."""
    accepted = [form for gold in golds for form in normalize(gold)]
    readings = parse_open(response)
    texts = [gold for gold in accepted if isinstance(gold, str)]
    for reading in readings:
        if reading in accepted if isinstance(reading, float) else any(text in reading for text in texts):
            return Outcome(1.0, str(reading), "number" if isinstance(reading, float) else "text in the answer")
    if not response.strip():
        return Outcome(0.0, None, "empty response")
    return Outcome(0.0, " | ".join(map(str, readings)), "no reading is the gold answer")


def parse_choice(response: str, options: Sequence[str]) -> str | None:
    """The letter that MMMU's parser finds: "(B)", then " B ", then an option's text; of several the last; or None."""
    return _parse(response, options, (lambda letter: f"({letter})", lambda letter: f" {letter} "))


def parse_pro(response: str, options: Sequence[str]) -> str | None:
    """The letter that MMMU-Pro's parser finds: the only one in the text behind the last "Answer:", wherever it stands
    in it; else as MMMU's, but "B " and "B." need nothing before them."""
    _, mark, tail = response.rpartition(_MARK)
    if mark:
        named = [letter for letter in letters(options) if letter in tail]
        if len(named) == 1:
            return named[0]
    return _parse(response, options, (lambda letter: f"({letter})", lambda letter: f"{letter} ", "{}.".format))


def _parse(response: str, options: Sequence[str], markers: Sequence[Callable[[str], str]]) -> str | None:
    for character in ",.!?;:'":
        response = response.strip(character)
    response = f" {response} "
    for marker in markers:
        found = [letter for letter in letters(options) if marker(letter) in response]
        if found:
            bracket = marker is markers[0]
            # The letter that stands last; without brackets only " B " counts for that, and the first one if none does.
            return max(found, key=lambda letter: response.rfind(f"({letter})" if bracket else f" {letter} "))
    if len(response.split()) > BARE_ANSWER_WORDS:
        folded = response.lower()
        places = {
            letter: folded.rfind(option.lower())
            for letter, option in zip(letters(options), options, strict=True)
            if option.lower() in folded
        }
        if places:
            return max(places, key=lambda letter: places[letter])
    return None


def _letter_outcome(letter: str | None, gold: str, options: Sequence[str]) -> Outcome:
    if letter is None:
        named = gold in letters(options)
        return Outcome(0.0, None, "no letter found", 1 / len(options) if named else 0.0)
    return Outcome(float(letter == gold), letter, "letter" if letter == gold else "other letter")


def parse_open(response: str) -> list[Normalized]:
    """What an open response may mean: the tails of its sentences and the numbers in them, normalised, in order."""
    tails = _tails(response.strip().strip(".").lower())
    numbers = [
        number for tail in tails for pattern in (_GROUPED, _SCIENTIFIC, _SIMPLE) for number in pattern.findall(tail)
    ]
    return list(dict.fromkeys(form for text in (*tails, *numbers) for form in normalize(text)))


def _tails(response: str) -> list[str]:
    """The shortest text behind a key word of each line; the whole response where no line has one. The published split
    at sentences looks for a capital letter after lower-casing: only line breaks separate."""
    lines = response.split("\n")
    tails = []
    for number, line in enumerate(lines, start=1):
        keys = (*_KEYS, "=") if number == len(lines) else _KEYS
        found: str | None = None
        for key in keys:
            if key in line:
                tail = line.split(key)[-1].strip()
                if not found or len(tail) < len(found):  # an empty tail is replaced by whatever comes after it
                    found = tail
        if found and found not in _TRIVIAL:
            tails.append(found)
    return tails or [response]


def normalize(text: str) -> list[Normalized]:
    """A number rounded to two decimals, or lower-case text; one character needs a space beside it."""
    text = text.strip()
    number = to_float(text.replace(",", ""))
    if number is not None:
        return [round(number, 2)]
    text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]
