"""MathVista (arXiv 2310.02255), testmini: 1,000 problems about figures, 540 of them with choices.

The official zero-shot prompt is the data set's column ``query`` (evaluation/build_query.py); where a file lacks it, as
the repository's JSON does, it is built. The official rule is evaluation/calculate_score.py's behind a deterministic
extractor; its choice at the smallest edit distance, which it gives to every answer it cannot place, is ``guessed``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from rethinker.benchmarks.base import Benchmark, Item, Verdict, letters, listed
from rethinker.benchmarks.rules import mathvista as rule
from rethinker.benchmarks.rules.numeric import latex_value
from rethinker.benchmarks.sources import Row, Source, text_in, texts_in

HINTS = {
    "text": "and provide the correct option letter, e.g., A, B, C, D, at the end.",
    "integer": "requiring an integer answer and provide the final value, e.g., 1, 2, 3, at the end.",
    "float1": "requiring a floating-point number with one decimal place and provide the final value, e.g., 1.2, 1.3, "
    "1.4, at the end.",
    "float2": "requiring a floating-point number with two decimal places and provide the final value, e.g., 1.23, "
    "1.34, 1.45, at the end.",
    "list": "requiring a Python list as an answer and provide the final list, e.g., [1, 2, 3], [1.2, 1.3, 1.4], at the "
    "end.",
}
METADATA = ("language", "source", "category", "task", "context", "grade")


class MathVista(Benchmark):
    """Split ``testmini``; the answers of ``test`` are not public.

    The gold answer of a choice is its letter here; all letters where several choices have the same text.
    """

    name = "mathvista"
    title = "MathVista"
    hub = "AI4Math/MathVista"
    splits: ClassVar[Mapping[str, int]] = {"testmini": 1000}

    def items(self, source: Source, split: str) -> Iterator[Item]:
        for row in source.rows(split, files=(f"data/{split}.json", f"{split}.json")):
            answer, choices = text_in(row, "answer"), texts_in(row, "choices")
            answer_type = text_in(row, "answer_type")
            precision = row.get("precision")
            qid = text_in(row, "pid") if "pid" in row else row["_key"]
            if choices and answer not in choices:
                raise ValueError(f"{self.name} {qid}: the answer {answer!r} is none of the choices")
            named = [letter for letter, text in zip(letters(choices), choices, strict=True) if text == answer]
            yield Item(
                qid=qid,
                question=text_in(row, "question") + (f" (Unit: {row['unit']})" if row.get("unit") else ""),
                golds=tuple(named) if choices else (answer,),
                images=(source.image(row.get("decoded_image") or row.get("image")),),
                options=choices,
                groups=_groups(row),
                extra={
                    "query": row.get("query") or "",
                    "answer": answer,
                    "answer_type": answer_type,
                    "precision": None if precision is None else int(precision),
                },
            )

    def official_prompt(self, item: Item) -> str:
        if item.extra["query"]:
            return item.extra["query"]
        kind = item.extra["answer_type"]
        hint = HINTS[f"float{item.extra['precision']}" if kind == "float" else kind]
        choices = "\nChoices:\n" + listed(item.options) if item.options else ""
        return f"Hint: Please answer the question {hint}\nQuestion: {item.question}{choices}"

    def official_score(self, item: Item, text: str) -> Verdict:
        extra = item.extra
        outcome = rule.score(text, extra["answer"], item.options, extra["answer_type"], extra["precision"])
        return Verdict(*outcome)

    def boxed_score(self, item: Item, text: str) -> Verdict:
        """As the grader says; a float is right, too, if it is the gold answer when rounded to the row's precision."""
        verdict = super().boxed_score(item, text)
        if verdict.correct or item.extra["answer_type"] != "float" or verdict.extracted is None:
            return verdict
        value = latex_value(verdict.extracted.lower())
        if value is None or str(round(value, item.extra["precision"])) != item.golds[0]:
            return verdict
        return Verdict(1.0, verdict.extracted, "rounds to the gold answer")


def _groups(row: Row) -> dict[str, tuple[str, ...]]:
    metadata: Mapping[str, Any] = row["metadata"]
    groups = {name: (text_in(row, name),) for name in ("question_type", "answer_type")}
    groups |= {name: (str(metadata[name]),) for name in METADATA}
    return groups | {"skills": tuple(map(str, metadata["skills"]))}
