"""One spelling for many: LaTeX and plain-text variants of an answer are brought to a common form.

Pure string work in linear time on strings of at most `extract.MAX_ANSWER_CHARS` characters; nothing is evaluated.
"""

from __future__ import annotations

import re
import unicodedata

_UNICODE = {
    "−": "-", "–": "-", "—": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ",
    "°": r"^\circ ", "º": r"^\circ ", "掳": r"^\circ ",
    "℃": r"^\circ C", "℉": r"^\circ F", "π": r"\pi ", "∞": r"\infty ",
    "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ",
    "∥": r"\parallel ", "⊥": r"\perp ", "≅": r"\cong ", "≌": r"\cong ", "∽": r"\sim ", "∼": r"\sim ",
    "±": r"\pm ",
    "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∠": r"\angle ", "△": r"\triangle ", "′": "'", "’": "'", "‘": "'",
    "²": "^2", "³": "^3", "¹": "^1", "½": " 1/2", "¼": " 1/4", "¾": " 3/4", "⅓": " 1/3", "⅔": " 2/3",
    "“": '"', "”": '"', "、": ",", "。": ".", "√": r"\sqrt ",
}  # fmt: skip
_UNICODE_TABLE = str.maketrans(_UNICODE)

_BOLD = re.compile(r"\*\*([^*]*+)\*\*$")
_TEXT_COMMAND = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|texttt|textnormal|mathrm|mathbf|mathit|mathsf|operatorname\*?|mbox|hbox"
    r"|boldsymbol|bm|emph|underline)\s*+\{([^{}]*+)\}"
)
_SPACING = re.compile(r"\\(?:,|;|:|!|>| |quad(?![a-zA-Z])|qquad(?![a-zA-Z])|thinspace(?![a-zA-Z]))|~")
_DROPPED = re.compile(
    r"\\(?:left|right|bigl|bigr|Bigl|Bigr|big|Big|displaystyle|textstyle|limits|rm|bf|it)(?![a-zA-Z])"
)
_FRAC = re.compile(r"\\[dtc]frac(?![a-zA-Z])")
_FRAC_SHORT = re.compile(
    r"\\frac(?![a-zA-Z])\s*+(?:\{([^{}]*+)\}|(\d|[a-z]|\\[a-z]++(?![{\[])))\s*+(?:\{([^{}]*+)\}|(\d|\\[a-z]++(?![{\[])))"
)
_DEGREE = re.compile(r"\^\s*+\{\s*+\\circ\s*+\}|\^\s*+\\circ(?![a-zA-Z])|\\degree(?![a-zA-Z])|\\textdegree(?![a-zA-Z])")
_LEAD_INS = (
    re.compile(
        r"(?:答案(?:是|为)?|(?:(?:so|thus|therefore|hence)\b[, ]*+)?(?:the )?(?:final |correct )?"
        r"(?:answer|option|choice)\b) ?(?:is\b|:|=)? ?:? ?",
        re.IGNORECASE,
    ),
    re.compile(  # "x is 5", "the perimeter of the kite is 24 cm", "area: 24"
        r"(?!.*\b(?:not|no|never|neither|if|or)\b)(?:[A-Za-z]|\\(?:angle|triangle)\b)[A-Za-z\d' _]{0,80}?"
        r"(?::(?!.*:)| (?:is|are|was|equals|will be)(?: equal to| approximately| about| exactly)?)"
        r" (?=[-+$(\[.]{0,2}\d|[(\[]?-?\\)"
    ),
    re.compile(
        r"(?:\\approx(?![a-zA-Z])|\\sim(?![a-zA-Z])|=|(?:approximately|approx\.|approx|about|roughly)(?![a-zA-Z])) ?",
        re.IGNORECASE,
    ),
)
_DIGIT_GAP = re.compile(r"(?<=\d)\s++(?=\d)")
_TRIG_DEGREES = re.compile(r"\\?\b(sin|cos|tan|cot|sec|csc)\s*+(?:\(\s*+)?+(-?\d++(?:\.\d++)?+)\s*+degrees(?:\s*\))?")
_STARRED_DEGREES = re.compile(r"(?:\*|\\cdot(?![a-zA-Z])) *+degrees")
_GROUPED_WORD = re.compile(r"(?<=[\d)])\{ ?([A-Za-z]++(?: [A-Za-z]++)?+) ?\}")
_WRAPPERS = (  # ['ants'], [10], "ants"
    re.compile(r"\[ ?(?:'([^'\[\]]*+)'|\"([^\"\[\]]*+)\"|(\d|[\w.%-][\w .%-]++)) ?\]"),
    re.compile(r"\"([^\"]++)\"|'([^']++)'"),
)
_FACTOR = re.compile(r"(?<=\d) ?(?=\([^(),\[\]A-Za-z]*+\))|(?<=\d\)) ?(?=\d|\\frac|\([^(),\[\]]*+\))")
_SPACES = re.compile(r"\s++")
_EXCLAIMED = re.compile(r"[A-Za-z]{2} ?!$")  # behind a number, a variable or a bracket ! is a factorial
_MATH_DELIMITER = re.compile(r"\\[()\[\]]")
_DOLLAR = re.compile(r"(?<!\\)\$")


_MAX_LINES, _MAX_LINE_CHARS = 10, 40
_MAX_GROUPS = 8  # around one answer


def clean(text: str) -> str:
    """``text`` without math delimiters, text and size commands, spacing commands and closing punctuation.

    Degrees become the word ``degrees``, ``\\%`` becomes ``%``, ``\\$`` becomes ``$``; every run of white space is one
    space. LaTeX that carries meaning (fractions, roots, sets) stays.
    """
    text = unicodedata.normalize("NFKC", text.translate(_UNICODE_TABLE))
    text = _BOLD.sub(r"\1", text) if text.startswith("**") else text
    text = _DROPPED.sub(" ", text)
    text = text.replace(r"\!", "").replace("{,}", ",").replace(r"\%", "%").replace(r"\#", "#").replace(r"\_", "_")
    text = _SPACING.sub(" ", text)
    for _ in range(4):  # text commands nest a few levels at most
        text, changed = _TEXT_COMMAND.subn(r" \1 ", text)
        if not changed:
            break
    text = _FRAC.sub(r"\\frac", text)
    text = _FRAC_SHORT.sub(_brace_fraction, text)
    text = _DEGREE.sub(" degrees ", text)
    text = _STARRED_DEGREES.sub(" degrees", text)
    text = _TRIG_DEGREES.sub(r"\\\1(\\frac{\2\\pi}{180})", text)
    text = _strip_delimiters(text.strip())
    text = text.replace(r"\$", "$")
    text = _SPACES.sub(" ", _join_lines(text)).strip()
    text = _strip_group(_strip_closing(_GROUPED_WORD.sub(r" \1", text)))
    for pattern in _WRAPPERS:
        if match := pattern.fullmatch(text):
            text = next(group for group in match.groups() if group is not None).strip() or text
    return text


def strip_lead_in(text: str) -> str:
    """``text`` (cleaned) without "the answer is", "angle AOB is" (before a number), "approximately" and the like;
    unchanged if nothing would be left."""
    for pattern in _LEAD_INS:
        match = pattern.match(text)
        rest = text[match.end() :].strip() if match else text
        text = rest or text
    return text


def squeeze(text: str) -> str:
    """``text`` without white space, except between digits (``1 1/2`` is not ``11/2``): the key for exact equality."""
    return _SPACES.sub("", _DIGIT_GAP.sub("¦", text))


_WORD_COMMANDS = re.compile(
    r"(?<![\\a-zA-Z])(sqrt|pi|theta|alpha|beta|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|log|ln|infinity|infty)(?![a-zA-Z])"
)
_ROOT_OF_GROUP = re.compile(r"\\sqrt ?\(([^()]*+)\)")
_ROOT_OF_NUMBER = re.compile(r"\\sqrt ?([0-9]++(?:\.[0-9]++)?+)")
_LONG_EXPONENT = re.compile(r"\^ ?(-?\d{2,}+|-\d)")
_DEGREES = re.compile(r"\bdegrees?\b")


def to_latex(text: str) -> str:
    """A cleaned answer as LaTeX for math-verify, which must never see plain text (its plain parser evaluates code).

    ``2*sqrt(3)`` becomes ``2\\cdot \\sqrt{3}``, ``x^10`` becomes ``x^{10}``, ``degrees`` and ``%`` become commands.
    """
    text = text.replace("**", "^").replace("*", r"\cdot ")
    text = text.replace(">=", r"\ge ").replace("<=", r"\le ").replace("!=", r"\ne ")
    text = _WORD_COMMANDS.sub(lambda match: "\\" + match.group(1) + " ", text).replace(r"\infinity", r"\infty")
    text = _SPACES.sub(" ", text)
    if "_" not in text:  # of an index: f_2(3)
        text = _FACTOR.sub(r"\\cdot ", text)  # math-verify reads 2(3) as a mixed number
    text = _ROOT_OF_GROUP.sub(r"\\sqrt{\1}", text)
    text = _ROOT_OF_NUMBER.sub(r"\\sqrt{\1}", text)
    text = _LONG_EXPONENT.sub(r"^{\1}", text)
    text = _DEGREES.sub(r"^{\\circ}", text)
    return text.replace("%", r"\%").replace("$", "")


def _join_lines(text: str) -> str:
    """A list that is written one item a line as a list with commas, equal lines once."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not 2 <= len(lines) <= _MAX_LINES or max(map(len, lines)) > _MAX_LINE_CHARS:
        return text
    if any(line[-1] in ",;:=+-*/&([{\\." for line in lines[:-1]) or any(line[0] in ",;:=*/&)]}" for line in lines[1:]):
        return text
    if len({any(character.isdigit() for character in line) for line in lines}) == 2:  # a number, and its unit below
        return text
    return ", ".join(dict.fromkeys(lines))


def _brace_fraction(match: re.Match[str]) -> str:
    numerator = match.group(1) if match.group(1) is not None else match.group(2)
    denominator = match.group(3) if match.group(3) is not None else match.group(4)
    return rf"\frac{{{numerator.strip()}}}{{{denominator.strip()}}}"


def _strip_delimiters(text: str) -> str:
    """Without the ``$...$``, ``\\(...\\)`` or ``\\[...\\]`` around (or inside); a lone ``$`` is currency and stays."""
    text = _MATH_DELIMITER.sub(" ", text)
    unescaped = len(_DOLLAR.findall(text))
    if unescaped and unescaped % 2 == 0:
        text = _DOLLAR.sub(" ", text)
    return text


def _strip_closing(text: str) -> str:
    """Without the punctuation that closes a sentence."""
    while True:
        rest = text.rstrip(".,;:。 ")
        if rest.endswith("\\\\"):  # the end of a line
            rest = rest[:-2]
        if _EXCLAIMED.search(rest[-4:]):
            rest = rest[:-1].rstrip()
        if rest == text or rest.endswith("\\"):
            return text
        text = rest


def _strip_group(text: str) -> str:
    """Without LaTeX group braces around the whole: ``{3}`` is ``3``."""
    for _ in range(_MAX_GROUPS):
        if not (len(text) > 1 and text[0] == "{" and text[-1] == "}" and text[-2] != "\\"):
            break
        depth = 0
        for index, character in enumerate(text):
            if character in "{}" and (index == 0 or text[index - 1] != "\\"):
                depth += 1 if character == "{" else -1
            if depth == 0 and index < len(text) - 1:
                return text
        text = text[1:-1].strip()
    return text
