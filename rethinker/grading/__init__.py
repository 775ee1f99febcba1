"""The one grader that training and evaluation share.

`grade` takes the last balanced ``\\boxed{...}`` of a response and decides, deterministically and without a judge
model, whether it means the gold answer. Cheap readings run in this process in microseconds; only what they leave open
is asked of math-verify, in worker processes that are killed at the time limit. Model output is never evaluated.

Differs from the official code of arXiv:2504.08837 in: a response without a box is wrong and does not raise; a choice is
matched by its letter or text and not by ``startswith``; verdicts are binary, without a bonus for reflection words.

`Grade.reason` begins with ``error:`` where the grader itself failed (no worker, a gold answer that math-verify cannot
read, a crash in its comparison), so that a trainer can count it. Every other reason is a property of the answer. Only
timeouts depend on the machine's speed; every other verdict is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from rethinker.grading.equivalence import Ask, equivalent
from rethinker.grading.extract import (
    MAX_ANSWER_CHARS,
    MAX_BRACE_DEPTH,
    brace_depth,
    check_gold,
    extract_boxed,
    extract_gold,
)
from rethinker.grading.pool import POOL
from rethinker.types import Grade

__all__ = ["check_gold", "extract_boxed", "extract_gold", "grade", "grade_many"]


class _Undecided(Exception):
    """The cheap readings leave a question open that a worker must answer."""


class _Refused(Exception):
    """A worker gave no verdict: the answer is too large, too slow, or the grader failed."""


def grade(response_text: str, gold: str, *, question: str = "", timeout_s: float = 3.0) -> Grade:
    """Grade the final answer of ``response_text`` against ``gold`` (with or without its box).

    ``question``: its text, where it lists the options of a multiple choice or asks for an order. ``timeout_s``: worker
    seconds (CPU time, see `pool`) for this response, all comparisons together. Never raises on any text; a ``gold``
    that `check_gold` reports gives ``error: ...``.
    """
    settled = _settle(extract_boxed(response_text), extract_gold(gold), question)
    return settled if isinstance(settled, Grade) else _judge(settled, extract_gold(gold), question, timeout_s)


def grade_many(items: Sequence[tuple[str, str, str]], *, timeout_s: float = 3.0) -> list[Grade]:
    """Grade ``(response_text, gold, question)`` triples; the i-th grade belongs to the i-th item.

    Equal (answer, gold, question) triples are judged once per call; open ones go to the workers in parallel.
    """
    keys = [(extract_boxed(text), extract_gold(gold), question) for text, gold, question in items]
    grades: dict[tuple[str | None, str, str], Grade] = {}
    open_keys: list[tuple[str, str, str]] = []
    for key in dict.fromkeys(keys):
        settled = _settle(*key)
        if isinstance(settled, Grade):
            grades[key] = settled
        else:
            open_keys.append((settled, key[1], key[2]))
    if open_keys:
        with ThreadPoolExecutor(min(POOL.size, len(open_keys))) as threads:
            for key, verdict in zip(
                open_keys, threads.map(lambda key: _judge(key[0], key[1], key[2], timeout_s), open_keys), strict=True
            ):
                grades[key] = verdict
    return [grades[key] for key in keys]


def _settle(extracted: str | None, gold: str, question: str) -> Grade | str:
    """The grade, if it needs no worker; else the extracted answer."""
    if extracted is None:
        return Grade(False, None, "no boxed answer")
    problem = check_gold(gold)
    if problem is not None:
        return Grade(False, extracted, f"error: {problem}")
    if not extracted:
        return Grade(False, extracted, "empty answer")
    if extracted == gold:
        return Grade(True, extracted, "exact")
    if len(extracted) > MAX_ANSWER_CHARS:
        return Grade(False, extracted, "too long")
    if (brace_depth(extracted) or 0) > MAX_BRACE_DEPTH:
        return Grade(False, extracted, "too deep")
    try:
        correct, reason = equivalent(extracted, gold, question, _undecided)
    except _Undecided:
        return extracted
    return Grade(correct, extracted, reason)


def _judge(extracted: str, gold: str, question: str, timeout_s: float) -> Grade:
    try:
        correct, reason = equivalent(extracted, gold, question, _asker(timeout_s))
    except _Refused as refusal:
        return Grade(False, extracted, str(refusal))
    return Grade(correct, extracted, reason)


def _asker(timeout_s: float) -> Ask:
    left = timeout_s

    def ask(gold: str, pred: str) -> tuple[bool, str]:
        nonlocal left
        if left <= 0:
            raise _Refused("timeout")
        reply, seconds = POOL.ask(gold, pred, left)
        left -= seconds
        if reply.status == "error":
            raise _Refused(f"error: {reply.detail}")
        if reply.status in ("timeout", "refused"):
            raise _Refused(reply.detail)
        if reply.status == "failed":  # not raised: a later option or item may still decide
            return False, f"error: {reply.detail}"
        return reply.status == "equal", reply.detail

    return ask


def _undecided(gold: str, pred: str) -> tuple[bool, str]:
    raise _Undecided
