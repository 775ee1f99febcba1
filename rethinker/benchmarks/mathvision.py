"""MathVision (MATH-V, arXiv 2402.14804): 3,040 competition problems, each with one image.

The official prompt is that of models/Qwen-VL.py (mathllm/MATH-V), step by step; its text keeps ``<image1>`` where the
problem names a part of its image, and the image itself comes first. The rule is evaluation/evaluate.py's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from rethinker.benchmarks.base import Benchmark, Item, Verdict, listed
from rethinker.benchmarks.rules import mathvision as rule
from rethinker.benchmarks.sources import Source, text_in, texts_in

PROMPT = (
    'Please solve the problem step by step and put your answer in one "\\boxed{}". If it is a multiple choice '
    'question, only one letter is allowed in the "\\boxed{}".\n'
)


class MathVision(Benchmark):
    """Splits ``test`` (the paper's) and ``testmini``, a subset of it with 19 problems of each of 16 subjects."""

    name = "mathvision"
    title = "MathVision"
    hub = "MathLLMs/MathVision"
    splits: ClassVar[Mapping[str, int]] = {"test": 3040, "testmini": 304}

    def items(self, source: Source, split: str) -> Iterator[Item]:
        for row in source.rows(split, files=(f"data/{split}.jsonl", f"{split}.jsonl")):
            image = row.get("decoded_image") or row.get("image")
            subject, level = text_in(row, "subject"), text_in(row, "level")
            groups = {"subject": subject, "level": level, "subject_level": f"{subject}, level {level}"}
            yield Item(
                qid=text_in(row, "id"),
                question=text_in(row, "question"),
                golds=(text_in(row, "answer"),),
                images=(source.image(image),),
                options=texts_in(row, "options"),
                groups={name: (value,) for name, value in groups.items()},
            )

    def official_prompt(self, item: Item) -> str:
        drawn = "".join(item.options) == "ABCDE"  # the options are in the image
        options = "" if drawn or not item.options else listed(item.options) + "\n"
        return f"{PROMPT}{item.question}\n{options}"

    def official_score(self, item: Item, text: str) -> Verdict:
        return Verdict(*rule.score(text, item.golds[0], item.options))
