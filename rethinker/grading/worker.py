"""The killable worker: math-verify's verdict on two LaTeX answers. Run as a script by `pool`; stands on its own.

Protocol: one JSON object per line. In: {"gold", "pred", "cpu_s"}. Out: {"status": "ready"} once, then for each line
{"status": "equal" | "different" | "failed" | "refused", "detail": str} ("failed": math-verify cannot read the gold
answer, or crashes in the comparison). The parent kills the process at its time limit, so there
are no signals and no timeouts in here. Text is never evaluated: only math-verify's LaTeX grammar is used, not its
plain-expression parser, and sympy's string parser (which ends in `eval`, even for the digits that `sympy.Number` is
given) is replaced by one that reads number literals and refuses everything else.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import sys
from typing import Any

MEMORY_LIMIT_BYTES = 3 << 30  # address space; an answer such as 9^{9^{9}} asks for more than any machine has


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
        if re.fullmatch(r"\d+", text):
            return sympy.Integer(int(text))
        if re.fullmatch(r"(\d+\.\d*|\.\d+)", text):
            return sympy.Float(text)
        if match := re.fullmatch(r"(\d+)/([1-9]\d*)", text):
            return sympy.Rational(int(match[1]), int(match[2]))
        raise ValueError(f"not a number literal: {text[:40]!r}; text is not evaluated")

    def refuse(*_: Any, **__: Any) -> Any:
        raise ValueError("text is not evaluated")

    sympy_parser.parse_expr = read_number
    sympy.parsing.parse_expr = read_number
    sympy_parser.eval_expr = refuse


def judge(gold: str, pred: str) -> tuple[str, str]:
    from math_verify import LatexExtractionConfig, parse, verify
    from math_verify.errors import TimeoutException

    config = (LatexExtractionConfig(boxed_match_priority=-1),)
    options: dict[str, Any] = {"fallback_mode": "no_fallback", "parsing_timeout": None, "raise_on_error": True}
    crash = ("failed", "the gold answer cannot be read")
    try:
        gold_side = parse(f"${gold}$", config, **options)
        if not gold_side:
            return "failed", "the gold answer is not an expression"
        crash = ("different", "not an expression")
        pred_side = parse(f"${pred}$", config, **options)
        if not pred_side:
            return "different", "not an expression"
        crash = ("failed", "math-verify cannot compare")
        equal = verify(gold_side, pred_side, timeout_seconds=None, raise_on_error=True)
    except MemoryError:
        return "refused", "out of memory"
    except RecursionError:
        return "refused", "too deep"
    except (Exception, TimeoutException) as error:  # sympy raises all kinds on strange input
        return crash[0], f"{crash[1]} ({type(error).__name__})"
    return ("equal", "math-verify") if equal else ("different", "math-verify: not equal")


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
        status, detail = judge(gold, pred)
        if status != "equal":
            raise RuntimeError(f"math-verify does not work here: {gold} is not {pred} ({detail})")
    replies.write('{"status": "ready"}\n')
    for line in sys.stdin:
        request = json.loads(line)
        _limit_cpu(request["cpu_s"])
        status, detail = judge(request["gold"], request["pred"])
        replies.write(json.dumps({"status": status, "detail": detail}) + "\n")


if __name__ == "__main__":
    main()
