"""EMMA (arXiv 2501.05444): 2,788 problems of mathematics, physics, chemistry and coding, and a mini set of 400.

The official prompt is "CoT" of configs/gpt.yaml as a YAML reader gives it (folded line breaks); the rule is the rule
mode of evaluation/evaluate.py. Which mode made the published table is not in the code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from rethinker.benchmarks.base import Benchmark, Item, Verdict, letters, listed
from rethinker.benchmarks.image_tokens import in_order
from rethinker.benchmarks.rules import emma as rule
from rethinker.benchmarks.sources import Row, Source, text_in, texts_in

MINI = "luckychao/EMMA-mini"  # on the hub
SUBJECTS = ("Math", "Physics", "Chemistry", "Coding")
CHOICE_PROMPT = 'Answer with the option\'s letter from the given choices and put the letter in one "\\boxed{}". '
OPEN_PROMPT = 'Answer the question using a single word or phrase and put the answer in one "\\boxed{}". '
COT = "Please solve the problem step by step."


class EMMA(Benchmark):
    """Splits ``full`` and ``mini`` (100 problems a subject; another data set on the hub, or a folder of its own).

    29 of the physics rows have their gold letter in lower case: it is upper case here.
    """

    name = "emma"
    title = "EMMA"
    hub = "luckychao/EMMA"
    splits: ClassVar[Mapping[str, int]] = {"full": 2788, "mini": 400}

    def items(self, source: Source, split: str) -> Iterator[Item]:
        if split == "mini" and source.place == self.hub:
            source = Source(MINI)
        for row in source.rows("test", configs=SUBJECTS):
            pid, answer = text_in(row, "pid"), text_in(row, "answer").strip()
            options = texts_in(row, "options") if text_in(row, "type").lower() == "multiple choice" else ()
            if options:
                answer = answer.upper()
                if len(answer) != 1 or answer not in letters(options):
                    raise ValueError(f"{self.name} {pid}: the answer {answer!r} is none of {len(options)} options")
            images = {k: source.image(row[f"image_{k}"]) for k in range(1, 6) if row.get(f"image_{k}")}
            texts = (text_in(row, "context"), text_in(row, "question"), *options)
            (context, question, *placed), shown = in_order(texts, images)
            yield Item(
                qid=pid,
                question=f"{context}\n{question}",
                golds=(answer,),
                images=shown,
                options=tuple(placed),
                groups=_groups(row),
                # The rule compares with the option's text as the data set has it, image tokens included.
                extra={"option": options[ord(answer) - ord("A")] if options else answer},
            )

    def official_prompt(self, item: Item) -> str:
        if item.options:
            options = listed(item.options, "{letter}: {text}") + "\n"
            return f"{item.question}\n{options}\n{CHOICE_PROMPT}{COT}"
        return f"{item.question}\n{OPEN_PROMPT}{COT}"

    def official_score(self, item: Item, text: str) -> Verdict:
        return Verdict(*rule.score(text, item.golds[0], item.extra["option"]))

    def boxed_question(self, item: Item) -> str:
        return super().boxed_question(item).lstrip("\n")


def _groups(row: Row) -> dict[str, tuple[str, ...]]:
    subject = text_in(row, "subject")
    categories = [name.strip() for name in text_in(row, "category").split(";")]
    task = text_in(row, "task")
    return {
        "subject": (subject,),
        "type": (text_in(row, "type").lower(),),
        "category": tuple(f"{subject}: {name}" for name in categories if name),
        "task": (f"{subject}: {task}",) if task else (),
    }
