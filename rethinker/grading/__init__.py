"""The one grader that training and evaluation share.

`grade` takes the last balanced ``\\boxed{...}`` of a response and decides, deterministically and without a judge
model, whether it means the gold answer. Short answers are compared in this process, in microseconds, by patterns whose
time grows linearly; long ones, and all that need math-verify, in worker processes that are killed at the time limit.
Both run the same `equivalent`, so that a verdict does not depend on where it was reached. Model output is never
evaluated.

Differs from the official code of arXiv:2504.08837 in: a response without a box is wrong and does not raise; a choice is
matched by its letter or text and not by ``startswith``; verdicts are binary, without a bonus for reflection words.

`Grade.reason` begins with ``error:`` where the grader itself failed (no worker, a gold answer that math-verify cannot
read, a crash in its comparison), so that a trainer can count it. Every other reason is a property of the answer. Only
timeouts depend on the machine's speed; every other verdict is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from rethinker.grading.equivalence import equivalent
from rethinker.grading.extract import (
    MAX_ANSWER_CHARS,
    MAX_BRACE_DEPTH,
    brace_depth,
    extract_boxed,
    extract_gold,
    gold_fault,
)
from rethinker.grading.gold import check_gold, check_golds, plausible_golds
from rethinker.grading.pool import POOL
from rethinker.types import Grade

SHORT_ANSWER_CHARS = 200  # ours: up to here an answer and its gold answer are compared in this process
SHORT_QUESTION_CHARS = 4000  # its options are read, once for a question

__all__ = ["check_gold", "check_golds", "extract_boxed", "extract_gold", "grade", "grade_many", "plausible_golds"]


class _Undecided(Exception):
    """The cheap readings leave a question open that a worker must answer."""


def grade(response_text: str, gold: str, *, question: str = "", timeout_s: float = 3.0) -> Grade:
    """Grade the final answer of ``response_text`` against ``gold`` (with or without its box).

    ``question``: its text, where it lists the options of a multiple choice or asks for an order. ``timeout_s``: worker
    seconds (CPU time, see `pool`) for this response, all comparisons together. Never raises on any text; a ``gold``
    that `check_gold` reports gives ``error: ...``.
    """
    extracted, gold = extract_boxed(response_text), extract_gold(gold)
    return _settle(extracted, gold, question) or _judge(extracted or "", gold, question, timeout_s)


def grade_many(items: Sequence[tuple[str, str, str]], *, timeout_s: float = 3.0) -> list[Grade]:
    """Grade ``(response_text, gold, question)`` triples; the i-th grade belongs to the i-th item.

    Equal (answer, gold, question) triples are judged once per call; open ones go to the workers in parallel.
    """
    keys = [(extract_boxed(text), extract_gold(gold), question) for text, gold, question in items]
    settled = {key: _settle(*key) for key in dict.fromkeys(keys)}
    grades = {key: verdict for key, verdict in settled.items() if verdict is not None}
    open_keys = [key for key, verdict in settled.items() if verdict is None]
    if open_keys:
        with ThreadPoolExecutor(min(POOL.size, len(open_keys))) as threads:
            verdicts = threads.map(lambda key: _judge(key[0] or "", key[1], key[2], timeout_s), open_keys)
            grades.update(zip(open_keys, verdicts, strict=True))
    return [grades[key] for key in keys]


def _settle(extracted: str | None, gold: str, question: str) -> Grade | None:
    """The grade, if it needs no worker."""
    if extracted is None:
        return Grade(False, None, "no boxed answer")
    problem = gold_fault(gold)
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
    if max(len(extracted), len(gold)) > SHORT_ANSWER_CHARS or len(question) > SHORT_QUESTION_CHARS:
        return None
    try:
        correct, reason = equivalent(extracted, gold, question, _undecided)
    except Exception:  # _Undecided, or a fault of ours: a worker decides, or says what is wrong and goes on
        return None
    return Grade(correct, extracted, reason)


def _judge(extracted: str, gold: str, question: str, timeout_s: float) -> Grade:
    reply = POOL.ask(extracted, gold, question, timeout_s)
    return Grade(reply.correct, extracted, reply.reason)


def _undecided(gold: str, pred: str) -> tuple[bool, str]:
    raise _Undecided
