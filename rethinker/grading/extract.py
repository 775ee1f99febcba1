"""Find the final answer in a response and in a gold answer.

The final answer is the last *balanced* ``\\boxed{...}``. An unbalanced one (a response cut at the token limit) is
passed over: the previous balanced one counts, or none. ``\\{`` and ``\\}`` are text, not braces.
"""

from __future__ import annotations

import re

MAX_ANSWER_CHARS = 1000  # ours: the longest short answer of ViRL39K's kind is far below; longer ones count as wrong
MAX_BRACE_DEPTH = 40  # ours: deeper nesting is never an answer and only costs parser time

# One linear pass, whatever the text. A doubled backslash before "boxed{" (an escaped response) still opens a box.
_BRACES = re.compile(r"\\boxed\s{0,8}\{|\\(?!\\boxed\s{0,8}\{)[\s\S]|[{}]")
# \frac, \beta, \vec, \alpha, \times, \text, \theta, \right, \rho of a string whose backslashes were read as escapes.
_ESCAPED = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f]|\t(?:imes|ext|heta|an|riangle|frac)(?![a-z])|\r(?:ight|ho|angle)(?![a-z])"
)
_BARE_GROUPS = re.compile(r"(?<![\\a-zA-Z}\]^_])\{-?\d++\}\{-?\d++\}")
_MISSING = {"", "none", "nan", "null", "n/a", "na", "unknown", "undefined answer"}


def extract_boxed(text: str) -> str | None:
    """The content of the balanced ``\\boxed{...}`` that closes last, stripped; None if there is none.

    Boxes in boxes give the innermost of the last one: ``\\boxed{\\boxed{3}}`` is ``3``. Never raises; linear time.
    """
    last: tuple[int, int] | None = None
    stack: list[int] = []  # content start of an open box, -1 of any other brace
    for match in _BRACES.finditer(text):
        token = match.group()
        if token == "}":
            if stack:
                start = stack.pop()
                # Inside a box that is kept already only an enclosing box can close later: keep the inner one.
                if start >= 0 and (last is None or start > last[1]):
                    last = (start, match.start())
        elif token == "{":
            stack.append(-1)
        elif token.endswith("{") and len(token) > 2:
            stack.append(match.end())
    return None if last is None else text[last[0] : last[1]].strip()


def extract_gold(answer: str) -> str:
    """The gold answer without its ``\\boxed{}`` (ViRL39K stores the box; plain answers pass through), stripped.

    An answer whose box is unbalanced comes back as it is, so that `gold_fault` still reports it.
    """
    boxed = extract_boxed(answer)
    return answer.strip() if boxed is None else boxed


def brace_depth(text: str) -> int | None:
    """The deepest nesting of braces in ``text``; None if they do not match."""
    depth = deepest = 0
    for match in _BRACES.finditer(text):
        token = match.group()
        if token == "}":
            depth -= 1
            if depth < 0:
                return None
        elif token == "{" or (token.endswith("{") and len(token) > 2):
            depth += 1
            deepest = max(deepest, depth)
    return deepest if depth == 0 else None


def gold_fault(answer: str | None) -> str | None:
    """Why the text of a gold answer (with or without its box) is none; None if it may be one (see `gold`)."""
    if not isinstance(answer, str):
        return f"the gold answer is {type(answer).__name__}, not text"
    if brace_depth(answer) is None:
        return f"unbalanced brace in the gold answer {_shorten(answer)}"
    gold = extract_gold(answer)
    if gold.lower() in _MISSING:
        return f"empty gold answer {_shorten(answer)}"
    if not any(character.isprintable() and not character.isspace() for character in gold):
        return f"the gold answer {_shorten(answer)} has no visible character"
    if len(gold) > MAX_ANSWER_CHARS:
        return f"the gold answer has {len(gold)} characters, more than {MAX_ANSWER_CHARS}"
    if (brace_depth(gold) or 0) > MAX_BRACE_DEPTH:
        return f"the gold answer nests braces more than {MAX_BRACE_DEPTH} deep"
    if match := _ESCAPED.search(answer):
        return f"control character {match.group()[0]!r} in the gold answer {_shorten(answer)}: LaTeX that was unescaped"
    if _BARE_GROUPS.search(gold.replace(" ", "")):
        return f"two groups without a command in the gold answer {_shorten(answer)}: a lost \\frac"
    if (len(gold) - len(gold.rstrip("\\"))) % 2:
        return f"the gold answer {_shorten(answer)} ends in a lone backslash"
    return None


def _shorten(text: str, limit: int = 80) -> str:
    return repr(text if len(text) <= limit else text[:limit] + "...")
