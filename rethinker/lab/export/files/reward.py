"""Rethinker's grader as verl's reward function: the correctness of the last boxed answer, 0 or 1."""

from typing import Any

from rethinker.grading import grade


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None, **_: Any
) -> dict[str, float]:
    """The score of a response; ``extra_info`` has the question, where the options of a multiple choice are."""
    question = str((extra_info or {}).get("question", ""))
    correct = float(grade(solution_str, ground_truth, question=question).correct)
    return {"score": correct, "acc": correct}
