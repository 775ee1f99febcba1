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

import itertools
import re
import string
from dataclasses import dataclass
from fractions import Fraction

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

_ALIASES = {
    "mm": "mm millimeter millimetre", "cm": "cm centimeter centimetre", "dm": "dm decimeter decimetre",
    "m": "m meter metre", "km": "km kilometer kilometre", "in": "in inch inche", "ft": "ft foot feet", "yd": "yd yard",
    "mi": "mi mile", "mg": "mg milligram", "g": "g gram gramme", "kg": "kg kilogram kilo", "t": "ton tonne",
    "lb": "lb pound", "oz": "oz ounce", "ml": "ml milliliter millilitre", "l": "l liter litre", "gal": "gal gallon",
    "s": "s sec second", "ms": "ms millisecond", "min": "min minute", "h": "h hr hour", "day": "day", "week": "week",
    "month": "month", "year": "year yr", "degree": "degree deg", "celsius": "celsius", "fahrenheit": "fahrenheit",
    "rad": "rad radian", "n": "n newton", "j": "j joule", "kj": "kj kilojoule", "w": "w watt", "kw": "kw kilowatt",
    "v": "v volt", "a": "a amp ampere", "ohm": "ohm", "hz": "hz hertz", "pa": "pa pascal", "k": "k kelvin",
    "mol": "mol mole", "dollar": "dollar usd buck $", "euro": "euro eur €", "gbp": "£ gbp", "yen": "yen ¥ jpy",
    "rupee": "rupee ₹ rs rs.", "cent": "cent", "yuan": "yuan rmb cny", "%": "% percent percentage",
    "mph": "mph", "kmh": "kph kmh",
    "acre": "acre", "hectare": "hectare ha",
}  # fmt: skip
_UNIT_OF = {spelling: unit for unit, spellings in _ALIASES.items() for spelling in spellings.split()}
_COMPOUND = {"kmh": "km/h", "mph": "mi/h"}
_NO_UNIT = re.compile(r"(?:(?:square|sq\.?|cubic) )?units?(?: ?\^ ?[23]| squared| cubed)?")
# Words that make the text after a number something other than a thing that is counted.
_NOT_A_UNIT = frozenset(
    ("and", "or", "not", "to", "than", "less", "more", "minus", "plus", "times", "divided", "by", "if", "else", "of",
     "the", "a", "an", "is", "are", "was", "were", "be", "with", "without", "at", "in", "on", "sin", "cos", "tan",
     "log", "ln", "sqrt", "pi", "infinity", "mod", "squared", "cubed", "over", "between", "from", "until", "but",
     "except", "only")
)  # fmt: skip
_UNIT_START = re.compile(r"(?:(?<=[\d)\]}.])|(?<=\\pi)|(?<=\\infty)) ?(?=[A-Za-z$€£¥₹%]|\\Omega)")
_UNIT_CHARACTERS = string.ascii_letters + string.digits + " /^{}.*-"
_MAX_UNIT_CHARS = 60
_CELSIUS = re.compile(r"\bdegrees? ?(?:c|celsius|centigrade)$")
_FAHRENHEIT = re.compile(r"\bdegrees? ?(?:f|fahrenheit)$")
_POWERS = (
    (re.compile(r"\b(?:square|sq\.?) ([a-z]++)"), r"\1^2"),
    (re.compile(r"\bcubic ([a-z]++)"), r"\1^3"),
    (re.compile(r"\b([a-z]++) squared\b"), r"\1^2"),
    (re.compile(r"\b([a-z]++) cubed\b"), r"\1^3"),
)
_PER = re.compile(r" (?:per|an) ")
_KNOWN_UNIT = re.compile(r"([a-z$€£¥₹%.]++) ?(?:\^? ?(-?\d))?")


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
        unit = _UNIT_OF[currency["mark"].lower()]
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


def split_unit(text: str) -> tuple[str, str | None]:
    """``text`` as (what stands before the unit, canonical unit); the unit is None if there is none that is known or a
    plain word, and "" for the empty units of geometry ("square units")."""
    if text.endswith(("%", r"\Omega")):
        start = len(text) - (1 if text.endswith("%") else 6)
    else:
        start = len(text.rstrip(_UNIT_CHARACTERS))
        start -= text[:start].endswith(tuple("$€£¥₹"))
    start = max(start, len(text) - _MAX_UNIT_CHARS)
    # "3x + 5 cm" has its unit behind the 5: the second place where a number or group ends.
    places = (match for match in _UNIT_START.finditer(text) if match.end() >= start)
    for match in itertools.islice(places, 2):
        unit = _canonical_unit(text[match.end() :], glued=not match.group())
        if unit is not None:
            return text[: match.start()].strip(), unit
    return text, None


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


def _canonical_unit(text: str, *, glued: bool) -> str | None:
    """The canonical name, "" for the empty unit, None if ``text`` is no unit. ``glued``: no space before it."""
    text = " ".join(text.lower().replace("{", "").replace("}", "").replace("\\omega", "ohm").split()).rstrip(".")
    if _NO_UNIT.fullmatch(text):
        return ""
    text = _FAHRENHEIT.sub("fahrenheit", _CELSIUS.sub("celsius", text))
    for pattern, power in _POWERS:
        text = pattern.sub(power, text)
    text = _PER.sub("/", text)
    parts = [_known_unit(part.strip()) for part in text.split("/")]
    if all(parts):
        unit = "/".join(part for part in parts if part)
        return _COMPOUND.get(unit, unit)
    words = text.split()
    if glued or len(words) > 3 or not all(word.isalpha() for word in words) or len(words[-1]) < 3:
        return None
    if any(word in _NOT_A_UNIT for word in words):
        return None
    return _singular(words[-1])  # "red balls" and "balls" count the same thing


def _known_unit(text: str) -> str | None:
    match = _KNOWN_UNIT.fullmatch(text)
    if match is None:
        return None
    word = match[1]
    unit = _UNIT_OF.get(word) or _UNIT_OF.get(_singular(word))
    if unit is None or match[2] is None:
        return unit
    return unit if match[2] == "1" else f"{unit}^{match[2]}"


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 2 and word.endswith("s") and not word.endswith("ss") else word
