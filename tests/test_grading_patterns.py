"""The time of the grader grows linearly with the text: every pattern by counted steps, and the whole by CPU time.

A pattern that can read the same characters in two ways takes exponential time on some text, and a model finds it.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import itertools
import pkgutil
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from regex_steps import Exhausted, Matcher, examples

import rethinker.grading
from rethinker.grading.equivalence import equivalent

MODULES = {
    info.name: importlib.import_module(f"rethinker.grading.{info.name}")
    for info in pkgutil.iter_modules(rethinker.grading.__path__)
}
METHODS = ("fullmatch", "match", "search", "sub", "subn", "split", "findall", "finditer")
PUMPS = (
    " ", "1", "a", "A", "x ", "1 ", "A 1", "1a", "1,111", "1 111", "1.", ",", "A,", "(A)", "(", ")", "()", "{", "}",
    "{}", "[", "$", "\\", "*", "**", "-", "1-", "-1 ", "=", "a=", "\\text{", "\\frac{1}", "^", "_1", "A_1", "'", "|a|",
    "1/", ":", "1:1 ", "and ", ", and ", "a1 ", "1 cm ", "é", "\n",
)  # fmt: skip
END = "\x01"  # what no pattern accepts: then every reading of the text is tried


def named_patterns(value: Any) -> Iterator[re.Pattern[str]]:
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from named_patterns(item)
    elif isinstance(value, dict):
        yield from named_patterns(list(value.values()))


def uses() -> dict[tuple[str, str], set[str]]:
    """(module, name of a pattern or of a tuple of them) -> the methods it is called with; all if reached by a loop."""
    found: dict[tuple[str, str], set[str]] = {}
    for module in MODULES.values():
        names = {name for name, value in vars(module).items() if name != "__builtins__" and any(named_patterns(value))}
        for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text())):
            called = isinstance(node, ast.Attribute) and node.attr in METHODS and isinstance(node.value, ast.Name)
            if called and node.value.id in names:
                found.setdefault((module.__name__.rpartition(".")[2], node.value.id), set()).add(node.attr)
    return found


USES = uses()
LOOPS = {  # tuples of patterns, which the code reaches through a variable
    ("choices", "_MARKERS"): {"finditer"},
    ("names", "_KINDS"): {"match"},
    ("normalize", "_LEAD_INS"): {"match"},
    ("normalize", "_WRAPPERS"): {"fullmatch"},
    ("units", "_POWERS"): {"sub"},
}
PATTERNS = [
    pytest.param(pattern, USES.get((module, name)) or LOOPS.get((module, name)), id=f"{module}.{name}{index or ''}")
    for module, value in MODULES.items()
    for name, variable in vars(value).items()
    if name != "__builtins__"
    for index, pattern in enumerate(named_patterns(variable))
]


def test_every_pattern_is_a_name_of_its_module() -> None:
    """Else the tests below would not see it."""
    assert len(PATTERNS) > 50
    for module in MODULES.values():
        for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                inline = isinstance(node.func.value, ast.Name) and node.func.value.id == "re"
                assert not inline or node.func.attr in ("compile", "escape"), ast.unparse(node)


def attacks(pattern: re.Pattern[str]) -> Iterator[tuple[str, str]]:
    """(what comes first, what is repeated): general ones, and every short part of what the pattern matches."""
    yield from (("", pump) for pump in PUMPS)
    for text in examples(pattern):
        for start, length in itertools.product(range(len(text)), range(1, 4)):
            yield text[:start], text[start : start + length]
        yield text, " "


LIMIT = 20_000  # steps; several hundred a character


def steps(pattern: re.Pattern[str], method: str, text: str) -> int:
    matcher = Matcher(pattern, text, LIMIT)
    with contextlib.suppress(Exhausted):
        {"fullmatch": matcher.fullmatch, "match": matcher.match}.get(method, matcher.spans)()
    return matcher.steps


@pytest.mark.parametrize(("pattern", "methods"), PATTERNS)
def test_a_pattern_takes_linear_time(pattern: re.Pattern[str], methods: set[str] | None) -> None:
    assert methods, "no use of it found: remove it, or add the tuple that it is in to LOOPS"
    for method in {"scan" if method not in ("fullmatch", "match") else method for method in methods}:
        for first, pump in dict.fromkeys(attacks(pattern)):
            short, long = (first + pump * max(2, size // len(pump)) + END for size in (40, 80))
            if (taken := steps(pattern, method, long)) > 12 * len(long):  # about what one reading of each takes
                before = steps(pattern, method, short)
                # Twice the text: twice the steps if linear, four times if quadratic.
                assert taken < min(2.7 * before, LIMIT), (
                    f"{method} {first!r} + n * {pump!r}: {before}, then {taken} steps"
                )


def test_the_counter_sees_exponential_and_quadratic_time() -> None:
    for pattern, pump in ((r"(?:[A-Z]\s*(?:_?\s*\d+\s*)?)+", "A 1"), (r"(?:[A-Za-z]+'?\s*|\d)+", "aa")):
        taken = [steps(re.compile(pattern), "fullmatch", pump * n + END) for n in (3, 4, 5)]
        assert taken[1] > 1.8 * taken[0] and taken[2] > 1.8 * taken[1]
        assert steps(re.compile(pattern), "fullmatch", pump * 40 + END) > LIMIT
    spaces = [steps(re.compile(r"\s*,\s*x"), "search", " " * n) for n in (20, 40)]
    assert spaces[1] > 3.5 * spaces[0]


@pytest.mark.parametrize(("pattern", "methods"), PATTERNS)
def test_the_counter_reads_as_re_does(pattern: re.Pattern[str], methods: set[str] | None) -> None:
    for text in (*examples(pattern), *(pump * 3 for pump in PUMPS)):
        assert Matcher(pattern, text).fullmatch() == bool(pattern.fullmatch(text)), text
        first = next((match.span() for match in pattern.finditer(text)), None)
        assert next(iter(Matcher(pattern, text).spans()), None) == first, text


HOSTILE = (
    *PUMPS, "x=", "x= 1, ", "1, ", "A. ", "(A) ", "\\sqrt{2}+", "increasing on (1,2), ", "domain: [1,2] and ", "1 h ",
    "the ", "x is ", "a b ", "!", "ab!", "sin(1)", "5 million ", "\\frac", "{1}", "米", "'a', ", "1 & ", "\\alpha",
)  # fmt: skip


def cpu_seconds(pred: str, gold: str, question: str) -> float:
    """The least of several measurements: a busy machine only adds."""
    taken = []
    for _ in range(3):
        start = time.thread_time()
        equivalent(pred, gold, question, lambda gold, pred: (False, ""))
        taken.append(time.thread_time() - start)
    return min(taken)


@pytest.mark.parametrize("pump", HOSTILE)
def test_the_whole_comparison_takes_linear_time(pump: str) -> None:
    for gold, question in (("x = 2", ""), ("(1, 2)", ""), ("A", "Which? (A) 12 (B) 13")):
        sizes = (1_000, 8_000)
        for prefix in ("", "x = "):
            short, long = (cpu_seconds(prefix + pump * (size // len(pump)) + END, gold, question) for size in sizes)
            # Eight times the text: 8 times as long if linear, 64 if quadratic; 5 ms are nothing.
            assert long < max(24 * short, 0.005), f"{prefix!r} + n * {pump!r} for {gold}: {short:.4f} s, {long:.4f} s"


def test_prose_before_an_equals_sign_is_read_in_no_time() -> None:
    """Sentences of this form stopped a trainer for ever; two hundred letters must take less than 100 times ten do."""
    prose = "so " * 70
    texts = [f"The speed of the second train {prose[:length]} is v = 2" for length in (10, 200)]
    short, long = (cpu_seconds(text, "2.5", "") for text in texts)
    assert long < max(100 * short, 0.005)
