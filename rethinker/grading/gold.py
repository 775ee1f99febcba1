"""Which gold answers can be graded against: asked once, when data is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from rethinker.grading.equations import assignment
from rethinker.grading.extract import extract_gold, gold_fault
from rethinker.grading.lists import split_list
from rethinker.grading.names import is_name, same_relation
from rethinker.grading.normalize import clean, strip_lead_in, to_latex
from rethinker.grading.plain import parse_time, word_form
from rethinker.grading.pool import POOL
from rethinker.grading.quantity import parse_quantity
from rethinker.grading.units import split_unit

READ_TIMEOUT_S = 5.0  # of a worker's CPU time, for one gold answer


def check_gold(answer: str | None) -> str | None:
    """Why a gold answer (with or without its box) cannot be graded against; None if it can.

    Rows with a reason are to be reported with their qid and dropped, never graded as zero. Numbers, words, names and
    letters are checked in microseconds; math-verify is asked in a worker whether it can read anything else.
    """
    return check_golds([answer])[0]


def check_golds(answers: Sequence[str | None]) -> list[str | None]:
    """`check_gold` of each answer, equal ones once, what math-verify must read in parallel.

    Raises RuntimeError if the workers cannot be started: that is no fault of the data.
    """
    distinct = list(dict.fromkeys(answers))
    faults = {answer: gold_fault(answer) for answer in distinct}
    asked = {
        answer: latex
        for answer in distinct
        if answer is not None and faults[answer] is None and (latex := mathematics(extract_gold(answer)))
    }
    if asked:
        with ThreadPoolExecutor(min(POOL.size, len(asked))) as threads:
            faults.update(zip(asked, threads.map(_unreadable, asked, asked.values()), strict=True))
    return [faults[answer] for answer in answers]


def plausible_golds(answers: Sequence[str | None]) -> list[str | None]:
    """`check_golds` as far as the text itself tells, in microseconds an answer: math-verify is not asked."""
    return [gold_fault(answer) for answer in answers]


def mathematics(gold: str) -> tuple[str, ...]:
    """What math-verify would have to read, as LaTeX, to compare an answer with ``gold``; () if it is plain."""
    if gold.isalnum() and gold.isascii():
        return ()
    text = strip_lead_in(clean(gold))
    if _is_plain(text) or same_relation(text, text):
        return ()
    _, value = assignment(text)
    listed = split_list(value)
    parts = (assignment(item)[1] for item in listed.items) if listed else (value,)
    return tuple(to_latex(split_unit(part)[0]) for part in parts if not _is_plain(part))


def _is_plain(text: str) -> bool:
    return bool(parse_quantity(text) or parse_time(text) or word_form(text) or is_name(text))


@lru_cache(maxsize=65536)
def _unreadable(answer: str, parts: tuple[str, ...]) -> str | None:
    for latex in parts:
        reply = POOL.read(latex, READ_TIMEOUT_S)
        if reply.reason.startswith("error: grader worker"):
            raise RuntimeError(reply.reason)
        if not reply.correct:
            why = "takes too long to read" if reply.reason == "timeout" else reply.reason.removeprefix("error: ")
            return f"{why}: {answer[:80]!r}"
    return None
