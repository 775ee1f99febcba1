"""Units: one name for each of their spellings, in English, LaTeX and Chinese, and where in an answer they begin."""

from __future__ import annotations

import itertools
import re
import string

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
    "acre": "acre", "hectare": "hectare ha", "nmi": "nmi nauticalmile",
}  # fmt: skip
_CHINESE = {
    "mm": "毫米", "cm": "厘米 公分", "dm": "分米", "m": "米", "km": "千米 公里", "nmi": "海里", "mg": "毫克", "g": "克",
    "kg": "千克 公斤", "t": "吨", "ml": "毫升", "l": "升", "s": "秒 秒钟", "min": "分钟 分", "h": "小时 时",
    "day": "天 日", "week": "周 星期", "month": "月 个月", "year": "年", "degree": "度", "celsius": "摄氏度",
    "yuan": "元", "dollar": "美元", "n": "牛 牛顿", "j": "焦 焦耳", "w": "瓦 瓦特", "v": "伏 伏特", "a": "安 安培",
    "ohm": "欧 欧姆",
}  # fmt: skip
UNIT_OF = {
    spelling: unit
    for table in (_ALIASES, _CHINESE)
    for unit, spellings in table.items()
    for spelling in spellings.split()
}
_COMPOUND = {"kmh": "km/h", "mph": "mi/h"}
_NO_UNIT = re.compile(r"(?:(?:square|sq\.?|cubic) )?units?(?: ?\^ ?[23]| squared| cubed)?")
# Words that make the text after a number something other than a thing that is counted.
_NOT_A_UNIT = frozenset(
    ("and", "or", "not", "to", "than", "less", "more", "minus", "plus", "times", "divided", "by", "if", "else", "of",
     "the", "a", "an", "is", "are", "was", "were", "be", "with", "without", "at", "in", "on", "sin", "cos", "tan",
     "log", "ln", "sqrt", "pi", "infinity", "mod", "squared", "cubed", "over", "between", "from", "until", "but",
     "except", "only")
)  # fmt: skip
_UNIT_START = re.compile(r"(?:(?<=[\d)\]}.])|(?<=\\pi)|(?<=\\infty)) ?(?=[A-Za-z$€£¥₹%一-鿿]|\\Omega)")
_UNIT_CHARACTERS = string.ascii_letters + string.digits + " /^{}.*-\\"
_MAX_UNIT_CHARS = 60
_CELSIUS = re.compile(r"\bdegrees? ?(?:c|celsius|centigrade)$")
_FAHRENHEIT = re.compile(r"\bdegrees? ?(?:f|fahrenheit)$")
_BEARING = re.compile(r"\bdegrees? ?t(?:rue)?$")  # 212 degrees from true north
_CHINESE_WORD = re.compile(r"[一-鿿]{1,4}")
_POWERS = (
    (re.compile(r"平方([一-鿿a-z]++)"), r"\1^2"),
    (re.compile(r"立方([一-鿿a-z]++)"), r"\1^3"),
    (re.compile(r"\b(?:square|sq\.?) ([a-z]++)"), r"\1^2"),
    (re.compile(r"\bcubic ([a-z]++)"), r"\1^3"),
    (re.compile(r"\b([a-z]++) squared\b"), r"\1^2"),
    (re.compile(r"\b([a-z]++) cubed\b"), r"\1^3"),
)
_PRODUCT = re.compile(r"\b(N|kg|kW|W|J|A|ft) ?(?:\\cdot ?|\* ?|- ?)?(m|h|s|lb)\b")
_PRODUCTS = {
    "N": "newton", "kg": "kilogram", "kW": "kilowatt", "W": "watt", "J": "joule", "A": "ampere", "ft": "foot",
    "m": "meter", "h": "hour", "s": "second", "lb": "pound",
}  # fmt: skip
UNIT_OF.update((_PRODUCTS[a] + _PRODUCTS[b], f"{a}*{b}") for a in list(_PRODUCTS)[:7] for b in list(_PRODUCTS)[7:])
_RECIPROCAL = re.compile(r" (?:\\cdot ?)?([a-z]++) ?\^ ?-(\d)")  # m s^-1
_PER = re.compile(r" (?:per|an) ")
_KNOWN_UNIT = re.compile(r"([a-z$€£¥₹%.一-鿿]++) ?(?:\^ ?(-?\d)|(\d))?")


def split_unit(text: str) -> tuple[str, str | None]:
    """``text`` as (what stands before the unit, canonical unit); the unit is None if there is none that is known or a
    plain word, and "" for the empty units of geometry ("square units")."""
    if text.endswith(("%", r"\Omega")):
        start = len(text) - (1 if text.endswith("%") else 6)
    else:
        start, least = len(text), max(0, len(text) - _MAX_UNIT_CHARS)
        while start > least and (text[start - 1] in _UNIT_CHARACTERS or "一" <= text[start - 1] <= "鿿"):
            start -= 1
        start -= text[:start].endswith(tuple("$€£¥₹"))
    # "3x + 5 cm" has its unit behind the 5: the second place where a number or group ends.
    places = (match for match in _UNIT_START.finditer(text) if match.end() >= start)
    for match in itertools.islice(places, 2):
        if text.count("{", match.end()) != text.count("}", match.end()):  # inside a fraction: \\frac{1}{4n-2}
            continue
        unit = _canonical_unit(text[match.end() :], glued=not match.group())
        if unit is not None:
            return text[: match.start()].strip(), unit
    return text, None


def _canonical_unit(text: str, *, glued: bool) -> str | None:
    """The canonical name, "" for the empty unit, None if ``text`` is no unit. ``glued``: no space before it."""
    text = _PRODUCT.sub(lambda match: _PRODUCTS[match[1]] + _PRODUCTS[match[2]], text)
    text = " ".join(text.lower().replace("{", "").replace("}", "").replace("\\omega", "ohm").split()).rstrip(".")
    if _NO_UNIT.fullmatch(text):
        return ""
    text = _BEARING.sub("degree", _FAHRENHEIT.sub("fahrenheit", _CELSIUS.sub("celsius", text)))
    for pattern, power in _POWERS:
        text = pattern.sub(power, text)
    text = _RECIPROCAL.sub(lambda match: f"/{match[1]}" + ("" if match[2] == "1" else f"^{match[2]}"), text)
    text = _PER.sub("/", text)
    parts = [_known_unit(part.strip()) for part in text.split("/")]
    if all(parts):
        unit = "/".join(part for part in parts if part)
        return _COMPOUND.get(unit, unit)
    if _CHINESE_WORD.fullmatch(text):  # what is counted: 5个, 5人
        return text
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
    unit = UNIT_OF.get(word) or UNIT_OF.get(_singular(word))
    power = match[2] or match[3]
    return unit if unit is None or power in (None, "1") else f"{unit}^{power}"


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 2 and word.endswith("s") and not word.endswith("ss") else word
