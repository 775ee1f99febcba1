"""The killable worker: the whole comparison of two answers, math-verify's part included. Run as a script by `pool`.

Protocol: one JSON object per line. In: {"pred", "gold", "question", "cpu_s"}; or {"read", "cpu_s"} to learn whether
math-verify can read that LaTeX; or {"value", "cpu_s"} to get the number it stands for. Out: {"ready": true} once, then
for each line {"correct", "reason"}. The parent kills the process at its time limit, so there are no signals and no
timeouts in here. Text is never evaluated: only math-verify's LaTeX grammar is used, not its plain-expression parser,
and sympy's string parser (which ends in `eval`, even for the digits that `sympy.Number` is given) is replaced by one
that reads number literals and refuses everything else.
"""

from __future__ import annotations

import importlib
import json
import logging
import math
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # a script knows no package: the comparison must be that of the parent's files
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rethinker.grading.equivalence import equivalent

MEMORY_LIMIT_BYTES = 3 << 30  # address space; an answer such as 9^{9^{9}} asks for more than any machine has
_DIGITS = re.compile(r"\d++")
_FLOAT = re.compile(r"\d++\.\d*+|\.\d++")
_RATIONAL = re.compile(r"(\d++)/([1-9]\d*+)")


class _Refused(Exception):
    """math-verify cannot judge this answer within the limits of a process."""


def _limit_memory() -> None:
    if sys.platform == "win32":
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_LIMIT_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_LIMIT_BYTES, hard)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    except (ValueError, OSError):  # macOS refuses RLIMIT_AS; the parent's time limit still holds
        return


def _limit_cpu(seconds: float) -> None:
    """Kill this process after ``seconds`` more of CPU time, in case the parent is gone and cannot."""
    if sys.platform == "win32":
        return
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(usage.ru_utime + usage.ru_stime + seconds) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _replace_string_parser() -> None:
    """Give sympy a string parser without `eval`. Must run before math-verify is imported."""
    sympy: Any = importlib.import_module("sympy")
    sympy_parser: Any = importlib.import_module("sympy.parsing.sympy_parser")
    importlib.import_module("sympy.physics.units")  # simplify() needs it, and it parses its own names when imported

    def read_number(text: str, *_: Any, **__: Any) -> Any:
        if _DIGITS.fullmatch(text):
            return sympy.Integer(int(text))
        if _FLOAT.fullmatch(text):
            return sympy.Float(text)
        if match := _RATIONAL.fullmatch(text):
            return sympy.Rational(int(match[1]), int(match[2]))
        raise ValueError(f"not a number literal: {text[:40]!r}; text is not evaluated")

    def refuse(*_: Any, **__: Any) -> Any:
        raise ValueError("text is not evaluated")

    sympy_parser.parse_expr = read_number
    sympy.parsing.parse_expr = read_number
    sympy_parser.eval_expr = refuse


def judge(pred: str, gold: str, question: str) -> tuple[bool, str]:
    """(correct, reason) of a whole comparison; what the grader itself cannot do is an ``error: ...``."""
    try:
        return equivalent(pred, gold, question, ask)
    except _Refused as refusal:
        return False, str(refusal)
    except MemoryError:
        return False, "out of memory"
    except RecursionError:
        return False, "too deep"
    except Exception as error:
        return False, f"error: the comparison failed ({type(error).__name__}: {str(error)[:200]})"


def read(gold: str) -> tuple[bool, str]:
    """Whether math-verify can read the LaTeX of a gold answer; the reason is that of `ask`."""
    try:
        return (True, "math-verify") if _parse(gold) else (False, "error: the gold answer is not an expression")
    except MemoryError:
        return False, "out of memory"
    except Exception as error:  # sympy raises all kinds on strange input
        return False, f"error: the gold answer cannot be read ({type(error).__name__})"


def value(latex: str) -> tuple[bool, str]:
    """Whether LaTeX stands for one real number, read without any clean-up; the reason is that number (``repr``), or why
    it is none. An integer before a fraction or a bracket with one is a mixed number (the parser's convention)."""
    from latex2sympy2_extended import latex2sympy

    try:
        number = float(latex2sympy(latex, normalization_config=None))
    except MemoryError:
        return False, "out of memory"
    except RecursionError:
        return False, "too deep"
    except Exception as error:  # a symbol, a set, no LaTeX: sympy raises all kinds
        return False, f"not a number ({type(error).__name__})"
    return (True, repr(number)) if math.isfinite(number) else (False, "not a finite number")


def _parse(latex: str) -> list[Any]:
    from math_verify import LatexExtractionConfig, parse

    # Not its units: it would drop "ab", "t" and "less" behind a number; ours are read before (see `units`).
    normalization = replace(LatexExtractionConfig().normalization_config, units=False)
    config = (LatexExtractionConfig(boxed_match_priority=-1, normalization_config=normalization),)
    options: dict[str, Any] = {"fallback_mode": "no_fallback", "parsing_timeout": None, "raise_on_error": True}
    parsed: list[Any] = parse(f"${latex}$", config, **options)
    return parsed


def ask(gold: str, pred: str) -> tuple[bool, str]:
    """math-verify's verdict on two LaTeX answers; one that it cannot reach does not end the comparison (another option
    or item may decide), but too much memory or depth does."""
    from math_verify import verify
    from math_verify.errors import TimeoutException

    crash = "error: the gold answer cannot be read"
    try:
        gold_side = _parse(gold)
        if not gold_side:
            return False, "error: the gold answer is not an expression"
        crash = "not an expression"
        pred_side = _parse(pred)
        if not pred_side:
            return False, "not an expression"
        crash = "error: math-verify cannot compare"
        equal = verify(gold_side, pred_side, timeout_seconds=None, raise_on_error=True)
    except MemoryError as error:
        raise _Refused("out of memory") from error
    except RecursionError as error:
        raise _Refused("too deep") from error
    except (Exception, TimeoutException) as error:  # sympy raises all kinds on strange input
        return False, f"{crash} ({type(error).__name__})"
    return (True, "math-verify") if equal else (False, "math-verify: not equal")


def main() -> None:
    """Serve requests until standard input ends."""
    # Replies go to the original standard output; whatever a library prints goes to standard error.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    _limit_memory()
    _replace_string_parser()
    logging.disable(logging.WARNING)  # math-verify warns at every call without its own timeouts
    # Loads sympy and the grammar, so that no answer pays for it, and shows that they work with the replaced parser.
    for gold, pred in ((r"\frac{\sqrt{4}}{4}", "0.5"), ("(x+1)^2", "x^2+2x+1")):
        equal, reason = ask(gold, pred)
        if not equal:
            raise RuntimeError(f"math-verify does not work here: {gold} is not {pred} ({reason})")
    replies.write('{"ready": true}\n')
    for line in sys.stdin:
        request = json.loads(line)
        _limit_cpu(request["cpu_s"])
        if "read" in request:
            correct, reason = read(request["read"])
        elif "value" in request:
            correct, reason = value(request["value"])
        else:
            correct, reason = judge(request["pred"], request["gold"], request["question"])
        replies.write(json.dumps({"correct": correct, "reason": reason}) + "\n")


if __name__ == "__main__":
    main()
