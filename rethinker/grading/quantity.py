"""Numbers with units, read without evaluation and compared exactly.

Rules (ours):
- A missing unit is fine on either side; two different units are wrong, also where one could be converted (1 m is not
  accepted for 100 cm). Spellings of one unit are equal: ``cm``, ``centimetres``; ``m^2``, ``square meters``.
- Percent: a gold of 50% takes 50%, 50 and 0.5; a bare gold of 50 takes 50%, and of 0.5 takes 50%.
- Words of scale multiply: 5 million is 5,000,000 and not 5.
- Decimals: equal within 1e-9 relative. A *more precise* response counts if it rounds to a decimal gold with at
  least two decimals (3.14159 for 3.14); a decimal with at least four decimals counts for a fraction it rounds (0.3333
  for 1/3). Integers take no tolerance.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from rethinker.grading.units import UNIT_OF, split_unit

_INT = r"(?:\d{1,3}+(?:,\d{3})++(?!\d)|\d{1,3}+(?: \d{3})++(?!\d)|\d++)"
_DEC = rf"(?:{_INT}(?:\.\d*+)?|\.\d++)"
_SIGN = r"(?P<sign>[+-]?) ?"
_DECIMAL = re.compile(rf"{_SIGN}(?P<number>{_DEC})(?:[eE](?P<exponent>[+-]?\d{{1,4}}))?")
_SCIENTIFIC = re.compile(
    rf"{_SIGN}(?:(?P<number>{_DEC}) ?(?:\\times|\\cdot|\*|x|X) ?)?10 ?\^ ?"
    r"(?:\{ ?)?(?P<exponent>[+-]?\d{1,4})(?: ?\})?"
)
_FRACTION = re.compile(
    rf"{_SIGN}(?:(?P<whole>\d++) ?(?:and ?)?)?\\frac\{{ ?(?P<top>[+-]? ?{_DEC}) ?\}}\{{ ?(?P<bottom>[+-]? ?{_DEC}) ?\}}"
)
_SLASH = re.compile(rf"{_SIGN}(?:(?P<whole>\d++) (?:and )?)?(?P<top>{_DEC}) ?/ ?(?P<bottom>{_DEC})")
_REPEATING = re.compile(rf"{_SIGN}(?P<whole>\d*+)\.(?P<fixed>\d*+)\\overline\{{(?P<cycle>\d++)\}}")
_CURRENCY = re.compile(r"^(?P<sign>[+-]?) ?(?P<mark>[$€£¥₹]|rs\.?(?= ?\d)|usd\b) ?", re.IGNORECASE)
_SCALE = re.compile(
    rf"(?P<number>[+-]? ?{_DEC}) ?(?P<scale>dozen|hundred|thousand|million|billion|trillion)s?\b ?(?P<rest>.*+)",
    re.IGNORECASE,
)
_SCALES = {"dozen": 12, "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_MAX_EXPONENT = 300
_MAX_DIGITS = 400


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number as read: exact value, digits after the point (None: not written as a decimal), canonical unit."""

    value: Fraction
    decimals: int | None
    unit: str | None


def parse_quantity(text: str) -> Quantity | None:
    """Read a cleaned answer as one number with an optional unit; None if it is anything else."""
    text = _bare(text)
    unit: str | None = None
    currency = _CURRENCY.match(text)
    if currency:
        unit = UNIT_OF[currency["mark"].lower()]
        text = currency["sign"] + text[currency.end() :]
    scale = 1
    if words := _SCALE.fullmatch(text):
        scale = _SCALES[words["scale"].lower()]
        text = f"{words['number']} {words['rest']}".strip()
    body, tail = split_unit(text)
    if tail is not None:
        if unit is not None and tail not in (unit, ""):
            return None
        unit = unit or tail or None
    number = parse_number(_bare(body))
    if number is None:
        return None
    decimals = number[1] if scale == 1 or number[1] is None else max(0, number[1] - len(str(scale)) + 1)
    return Quantity(number[0] * scale, decimals, unit)


def parse_number(text: str) -> tuple[Fraction, int | None] | None:
    """A cleaned number without unit as (exact value, digits after the point or None); None if it is not a number."""
    if len(text) > _MAX_DIGITS or not any(character.isdigit() for character in text):
        return None
    if match := _DECIMAL.fullmatch(text):
        return _scaled(match["sign"], match["number"], match["exponent"])
    if match := _SCIENTIFIC.fullmatch(text):
        return _scaled(match["sign"], match["number"] or "1", match["exponent"])
    if match := _FRACTION.fullmatch(text) or _SLASH.fullmatch(text):
        bottom = _plain(match["bottom"])
        if bottom == 0:
            return None
        value = _plain(match["top"]) / bottom + int(match["whole"] or 0)
        return (-value if match["sign"] == "-" else value), None
    if match := _REPEATING.fullmatch(text):
        fixed, cycle = match["fixed"], match["cycle"]
        value = Fraction(int(match["whole"] + fixed or 0)) + Fraction(int(cycle), 10 ** len(cycle) - 1)
        value /= 10 ** len(fixed)
        return (-value if match["sign"] == "-" else value), None
    return None


def compare_quantities(gold: Quantity, pred: Quantity) -> tuple[bool, str]:
    """(equal, reason) under the rules at the top of this module."""
    if not _same_unit(gold.unit, pred.unit):
        return False, f"unit: {pred.unit} instead of {gold.unit}"
    readings = [pred.value]
    if gold.unit == "%" and pred.unit is None:
        readings.append(pred.value * 100)
    elif pred.unit == "%" and gold.unit is None:
        readings.append(pred.value / 100)
    if any(_same_value(gold, value, pred.decimals) for value in readings):
        return True, "number"
    return False, "different number"


def _same_value(gold: Quantity, value: Fraction, decimals: int | None) -> bool:
    if gold.value == value:
        return True
    if gold.value.denominator == value.denominator == 1:
        return False
    if abs(gold.value - value) <= Fraction(1, 10**9) * abs(gold.value):
        return True
    if gold.decimals is not None and gold.decimals >= 2 and (decimals is None or decimals > gold.decimals):
        return _round(value, gold.decimals) == gold.value
    if gold.decimals is None and gold.value.denominator != 1 and decimals is not None and decimals >= 4:
        return _round(gold.value, decimals) == value
    return False


def _round(value: Fraction, decimals: int) -> Fraction:
    """Half away from zero, as people round."""
    scale = 10 ** min(decimals, _MAX_DIGITS)
    scaled = abs(value) * scale + Fraction(1, 2)
    rounded = Fraction(scaled.numerator // scaled.denominator, scale)
    return -rounded if value < 0 else rounded


def _scaled(sign: str, number: str, exponent: str | None) -> tuple[Fraction, int | None] | None:
    power = int(exponent or 0)
    if abs(power) > _MAX_EXPONENT:
        return None
    value = _plain(number) * Fraction(10) ** power
    decimals = max(0, len(number.partition(".")[2]) - power)
    return (-value if sign == "-" else value), decimals


def _plain(number: str) -> Fraction:
    digits = number.replace(",", "").replace(" ", "").rstrip(".")
    return Fraction(digits if digits not in ("", "+", "-") else "0")


def _bare(text: str) -> str:
    """Without parentheses around the whole: ``(5)`` is ``5``."""
    text = text.strip()
    while len(text) > 2 and text[0] == "(" and text[-1] == ")" and "(" not in text[1:] and ")" not in text[:-1]:
        text = text[1:-1].strip()
    return text


def _same_unit(gold: str | None, pred: str | None) -> bool:
    return not gold or not pred or gold == pred
