"""Names of points, angles, segments and figures: ``\\angle BAC`` is not a product, so mathematics cannot compare it.

Rules (ours): an angle of three letters may be read backwards (its vertex stays in the middle), a segment, a line or an
arc from either end, a triangle from any corner; a ray or vector has one direction. A name without its word ("BAC")
takes the word of the other side. Two bare capitals may be swapped where the question is about what has two ends, or
asks for a formula (then they are a product). The case of a single letter counts: ``P`` is not ``p``. A relation
between two names (``AB \\parallel CD``) may be read from either side; congruent and similar figures keep the order of
their letters.
"""

from __future__ import annotations

import re

_LETTER = r"[A-Z](?:_\s*+\{?+\d++\}?+|')?+"
_KINDS = tuple(
    (kind, re.compile(rf"{before}\\(?:{commands})(?![a-zA-Z])"), re.compile(rf"(?:the )?(?:{words})\b", re.IGNORECASE))
    for kind, before, commands, words in (
        ("angle", "(?:m ?)?", "(?:measured|spherical)?angle", "angle"),
        ("triangle", "", "triangle|bigtriangleup|Delta", "triangle"),
        ("ray", "", "overrightarrow|vec|mathbf", "ray|vector"),
        ("arc", "", "widehat|overarc|wideparen", "(?:minor |major )?arc"),
        ("segment", "", "overline|overleftrightarrow|bar", "line segment|segment|line|side|chord|edge"),
    )
)
_NAME = re.compile(rf"\{{?+ ?+((?:{_LETTER} ?+)++|\d++) ?+\}}?+", re.ASCII)
_LETTERS = re.compile(rf"{_LETTER}|\d++")
# Possessive: "A 1A 1A 1..." has two readings at each gap, and 2^n in all, where a space may be given back.
_FORMULA = re.compile(r"(?:[A-Z][a-z]?+ ?+(?:(?:_ ?)?+\{?+\d++\}?+ ?+)?+)++")
_NO_LETTER = re.compile(r"[\s{}]")
_NO_SYMBOL = re.compile(r"[\s_{}]")
_ONE_LETTER = re.compile(r"[A-Za-z]")
_DIGIT = re.compile(r"\d")
_RELATION = re.compile(r"\\(?:parallel|perp|cong|sim)(?![a-zA-Z])|=")
_TWO_ENDS = re.compile(
    r"segment|\blines?\b|\bsides?\b|chord|\bedges?\b|diameter|radi(?:us|i)\b|length|distance|altitude|median|bisect|"
    r"tangent|secant|perpendicular|parallel|hypotenuse|\blegs?\b|diagonal|midline|express|in terms of|formula",
    re.IGNORECASE,
)
_DIRECTED = re.compile(r"\bvectors?\b|\brays?\b|direct", re.IGNORECASE)


def same_name(pred: str, gold: str, question: str) -> bool | None:
    """Whether two cleaned answers name the same thing; None where one of them is no name."""
    formulas = _FORMULA.fullmatch(pred) and _FORMULA.fullmatch(gold)
    if formulas and _plain(pred) == _plain(gold):
        return True  # CO_2 is CO2
    p, g = _read(pred), _read(gold)
    if p is None or g is None:
        if formulas and _DIGIT.search(pred + gold):
            return False
        single = _ONE_LETTER.fullmatch(pred) and _ONE_LETTER.fullmatch(gold)
        return pred == gold if single else None
    (p_kind, p_letters), (g_kind, g_letters) = p, g
    if p_kind and g_kind and p_kind != g_kind:
        return False
    if p_letters == g_letters:
        return True
    kind = g_kind or p_kind
    if kind is None and len(g_letters) == 2 and _TWO_ENDS.search(question) and not _DIRECTED.search(question):
        kind = "segment"
    if kind == "triangle":
        return sorted(p_letters) == sorted(g_letters)
    return kind in ("angle", "arc", "segment") and p_letters == g_letters[::-1]


def same_relation(pred: str, gold: str) -> bool | None:
    """Whether two cleaned answers state the same relation between two names; None where one of them does not."""
    p, g = _RELATION.split(pred), _RELATION.split(gold)
    signs = _RELATION.findall(pred) + _RELATION.findall(gold)
    if len(p) != 2 or len(g) != 2 or not all(side.strip() for side in (*p, *g)):
        return None
    if signs == ["=", "="] and not all(_read(side.strip()) and "\\" in pred + gold for side in (*p, *g)):
        return None  # mathematics
    ordered = signs[0] in (r"\cong", r"\sim")

    def same(a: str, b: str) -> bool:
        a, b = a.strip(), b.strip()
        return _plain(a) == _plain(b) or (not ordered and same_name(a, b, "line") is True)

    straight, crossed = (same(p[0], g[i]) and same(p[1], g[1 - i]) for i in (0, 1))
    return signs[0] == signs[1] and (straight or crossed)


def is_name(text: str) -> bool:
    """Whether ``text`` is a name or a formula of letters, which are compared without mathematics."""
    return _read(text) is not None or _FORMULA.fullmatch(text) is not None or _ONE_LETTER.fullmatch(text) is not None


def _read(text: str) -> tuple[str | None, tuple[str, ...]] | None:
    """(kind, letters) of a name: one with its word, or capitals alone."""
    for kind, command, words in _KINDS:
        if word := command.match(text) or words.match(text):
            named = _NAME.fullmatch(text[word.end() :].strip())
            return (kind, _letters(named[1])) if named else None
    named = _NAME.fullmatch(text)
    return (None, _letters(named[1])) if named and named[1][0].isupper() else None


def _plain(formula: str) -> str:
    return _NO_SYMBOL.sub("", formula)


def _letters(text: str) -> tuple[str, ...]:
    return tuple(_NO_LETTER.sub("", letter) for letter in _LETTERS.findall(text))
