"""MathVerse (arXiv 2403.14624), testmini: 788 problems in five versions that move text into the image.

The official prompt is the column ``query_wo`` (answer only, the primary metric; ``query_cot`` is not used). Its scores
come from two calls of a language model; here a deterministic extractor and the library's grader take their place
(`rules.mathverse`). The headline is the mean over the 3,940; the sixth version, text only, is a split of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from rethinker.benchmarks.base import Benchmark, Item, Verdict
from rethinker.benchmarks.rules import mathverse as rule
from rethinker.benchmarks.sources import Source, text_in
from rethinker.grading import grade

VISION_ONLY = "Answer the question shown in the image."  # ours, boxed: the column ``question`` is empty there


class MathVerse(Benchmark):
    """Splits ``testmini`` and ``testmini_text_only``. The five versions of a problem are one cluster."""

    name = "mathverse"
    title = "MathVerse"
    hub = "AI4Math/MathVerse"
    splits: ClassVar[Mapping[str, int]] = {"testmini": 3940, "testmini_text_only": 788}

    def items(self, source: Source, split: str) -> Iterator[Item]:
        files = (f"{split}.json", f"data/{split}.json")
        for row in source.rows(split, configs=(split,), files=files):
            metadata: Mapping[str, Any] = row["metadata"]
            question, image = text_in(row, "question"), row.get("image")
            yield Item(
                qid=text_in(row, "sample_index"),
                question=question or VISION_ONLY,
                golds=(rule.clean_gold(text_in(row, "answer")),),
                images=(source.image(image, "images"),) if image else (),
                groups={
                    "version": (text_in(row, "problem_version"),),
                    "subject": (str(metadata["subject"]),),
                    "subfield": (str(metadata["subfield"]),),
                },
                cluster=text_in(row, "problem_index"),
                extra={
                    "query": text_in(row, "query_wo"),
                    # With its options, which the column ``question`` lacks where the question is in the image.
                    "full_question": str(row.get("question_for_eval") or question),
                    "choice": text_in(row, "question_type") == "multi-choice",
                },
            )

    def official_prompt(self, item: Item) -> str:
        query: str = item.extra["query"]
        return query

    def official_score(self, item: Item, text: str) -> Verdict:
        return Verdict(*rule.score(text, item.golds[0], item.extra["full_question"], item.extra["choice"]))

    def boxed_score(self, item: Item, text: str) -> Verdict:
        verdict = grade(text, item.golds[0], question=item.extra["full_question"])
        return Verdict(float(verdict.correct), verdict.extracted, verdict.reason)
