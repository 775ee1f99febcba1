"""MEGA-Bench's metrics on numbers and on LaTeX.

Differs from the official rules in: arithmetic such as ``3*4/5`` is computed by a reader of numbers and operators, never
by `eval`; LaTeX is compared by the grader's killable workers and not by sympy's parser under an alarm signal, so a
LaTeX answer that sympy's parser rejects may still be equal.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from rethinker.benchmarks.rules.mega.convert import to_list
from rethinker.benchmarks.rules.mega.reading import MAX_DEPTH, literal
from rethinker.benchmarks.rules.mega.texts import simple
from rethinker.benchmarks.rules.numeric import latex_value
from rethinker.grading.extract import brace_depth, extract_boxed
from rethinker.grading.pool import POOL

LEFT_OUT = -1.0  # a field that its metric takes out of the mean
TOLERANCE = 0.01  # relative, official
LATEX_TIMEOUT_S = 3.0  # worker seconds, as the grader's; official 15
MAX_LATEX_CHARS = 1000  # ours, as the grader's longest answer
_MAX_ARITHMETIC_CHARS = 200
_MAX_POWER = 100
_ASSIGNED = re.compile(r"(?:=|≈|\\approx)\s*(.+)")
_MATH_MARKS = re.compile(r"\\[()\[\]]")
_FRACTION = re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")
_ROOT = re.compile(r"\\sqrt\{([^{}]*)\}")
_PLAIN = re.compile(r"[+-]?\d+(?:\.\d*)?")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")  # official: the LaTeX grammar reads 1,000 as one number
_MATH_PART = re.compile(r"(\$[^$]*\$)")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\{[^{}]*\}(?:\[[^\[\]]*\])?")
_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


def relative_difference(answer: Any, gold: Any) -> float:
    """1 - |answer - gold| / |gold|, not below 0."""
    found = answer if isinstance(answer, (int, float)) else literal(answer)
    if not isinstance(found, (int, float)):
        return 0.0
    wanted = literal(gold)
    return max(0.0, 1 - abs((found - wanted) / wanted))


def positive_integer(answer: Any, gold: Any) -> float:
    """Equal integers; `LEFT_OUT` where neither is positive, so that empty counts do not fill the mean."""
    found, wanted = literal(answer), literal(gold)
    if not isinstance(found, int) or not isinstance(wanted, int):
        return 0.0
    return LEFT_OUT if found <= 0 and wanted <= 0 else float(found == wanted)


def clipped_error(answer: Any, gold: Any) -> float:
    """1 at no difference, 0 from a difference of 0.1 on."""
    return 1 - min(abs(literal(answer) - literal(gold)), 0.1) / 0.1


def angle_error(answer: Any, gold: Any) -> float:
    """1 at no difference, 0 from a mean absolute difference of 10 on; 0 where the lengths differ."""
    found, wanted = to_list(answer), to_list(gold)
    if not wanted or len(found) != len(wanted):
        return 0.0
    difference = np.abs(np.array(found, dtype=float) - np.array(wanted, dtype=float)).sum() / len(wanted)
    return 0.0 if math.isnan(difference) else 1 - min(float(difference), 10.0) / 10.0


def one_number(answer: Any, gold: Any) -> float:
    """Numbers (or lists of numbers in any order) within 1 % of the gold answer; else `texts.simple`."""
    texts = [_assigned(_MATH_MARKS.sub("", str(side))) for side in (answer, gold)]
    found, wanted = (_value(text) for text in texts)
    if found is None or wanted is None:
        return simple(*texts)
    if isinstance(found, tuple) and isinstance(wanted, tuple):
        return float(len(found) == len(wanted) and all(map(_close, sorted(found), sorted(wanted))))
    if isinstance(found, tuple) or isinstance(wanted, tuple):
        return 0.0
    return float(_close(found, wanted))


def boxed_number(answer: Any, gold: Any) -> float:
    """`one_number` on what the box holds, where there is one."""
    texts = [str(side) for side in (answer, gold)]
    return one_number(*[extract_boxed(text) or text for text in texts])


def latex(answer: Any, gold: Any) -> float:
    """Equal LaTeX expressions; `texts.simple` where they cannot be compared."""
    if not isinstance(answer, str) or not isinstance(gold, str):
        return 0.0
    answer, gold = (_MATH_MARKS.sub("", _ENVIRONMENT.sub("", side)).strip() for side in (answer, gold))
    if simple(answer, gold):
        return 1.0
    if not answer or len(answer) > MAX_LATEX_CHARS or (brace_depth(answer) or 0) > MAX_DEPTH:
        return 0.0
    return float(POOL.ask(answer, gold, "", LATEX_TIMEOUT_S).correct)


def text_with_latex(answer: Any, gold: Any) -> float:
    """The text outside ``$...$`` by `texts.simple` without commas, and what stands inside by `latex`, joined."""
    if not isinstance(answer, str) or not isinstance(gold, str):
        return 0.0
    (answer_text, answer_latex), (gold_text, gold_latex) = _separated(answer), _separated(gold)
    if not simple(answer_text, gold_text):
        return 0.0
    return latex(answer_latex, gold_latex) if answer_latex or gold_latex else 1.0


def _value(text: str) -> float | tuple[float, ...] | None:
    """`number`, or what the grader's workers read in other LaTeX."""
    found = number(text)
    return latex_value(text) if found is None and "\\" in text else found


def number(text: str) -> float | tuple[float, ...] | None:
    """The number, or numbers of a list, that ``text`` writes with digits, operators, fractions, roots, pi (3.14) and
    percent; None for anything else."""
    if len(text) > _MAX_ARITHMETIC_CHARS:
        return None
    for old, new in (("\\pi", "π"), ("$", ""), ("¥", ""), ("°C", ""), (" C", ""), ("°", "")):
        text = text.replace(old, new)
    text = re.sub(r"(?<=[\d)}])\s*π", "*3.14", text).replace("π", "3.14").replace("%", "/100")
    text = text.replace("\\times", "*").replace("\\cdot", "*").replace("\\%", "/100").replace("\\,", "")
    text = _ROOT.sub(r"((\1)**0.5)", _FRACTION.sub(r"((\1)/(\2))", text)).replace("^", "**")
    text = _THOUSANDS.sub("", text).translate(str.maketrans("{}", "()")).strip()
    try:
        value = float(text) if _PLAIN.fullmatch(text) else _arithmetic(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, TypeError, ArithmeticError, MemoryError, RecursionError):
        return None
    finite = all(math.isfinite(part) for part in (value if isinstance(value, tuple) else (value,)))
    return value if finite else None


def _arithmetic(node: ast.AST) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return float(node.value)
    if isinstance(node, (ast.Tuple, ast.List)):
        return tuple(float(_arithmetic(item)) for item in node.elts)
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_arithmetic(node.operand))
    if isinstance(node, ast.BinOp):
        left, right = float(_arithmetic(node.left)), float(_arithmetic(node.right))
        if isinstance(node.op, ast.Pow):
            if (left < 0 and right != int(right)) or abs(right) > _MAX_POWER:
                raise ValueError("no such power")
            return left**right
        if type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](left, right)
    raise ValueError("neither a number nor an operator")


def _close(found: float, wanted: float) -> bool:
    return abs(found - wanted) <= TOLERANCE * abs(wanted)


def _assigned(text: str) -> str:
    match = _ASSIGNED.search(text)
    return match[1].strip() if match else text


def _separated(text: str) -> tuple[str, str]:
    """(text outside ``$...$``, text inside), commas dropped."""
    parts = _MATH_PART.split(text)
    inside = " ".join(part[1:-1].strip() for part in parts[1::2])
    return "".join(part.strip() for part in parts[::2]).replace(",", ""), inside.replace(",", "")
