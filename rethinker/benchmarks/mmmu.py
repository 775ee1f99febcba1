"""MMMU (arXiv 2311.16502), validation, and MMMU-Pro (arXiv 2409.02813).

MMMU's official prompt is that of its evaluation of LLaVA-1.5 (configs/llava1.5.yaml); MMMU-Pro's is "cot" of
mmmu-pro/prompts.yaml. Both rules are their repositories' parsers; where they draw a letter at random, the expectation
is ``guessed``. MMMU-Pro's headline is the mean of its parts "standard (10 options)" and "vision".
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import ClassVar

from rethinker.benchmarks.base import Benchmark, Item, Verdict, listed
from rethinker.benchmarks.image_tokens import in_order
from rethinker.benchmarks.rules import mmmu as rule
from rethinker.benchmarks.sources import Row, Source, text_in
from rethinker.grading import grade

DOMAINS: Mapping[str, tuple[str, ...]] = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
DOMAIN_OF = {subject: domain for domain, subjects in DOMAINS.items() for subject in subjects}
COT = (
    "The last line of your response should be of the following format: 'Answer: $LETTER' (without quotes) where LETTER "
    "is one of options. Think step by step before answering."
)
STANDARD_PROMPT = f"Answer the preceding multiple choice question. {COT}"
VISION_PROMPT = f"Write out the multiple-choice question in the image and then solve it. {COT}"
LETTER_PROMPT = "Answer with the option's letter from the given choices directly."
VISION_ONLY = "Answer the question shown in the image."  # ours, boxed: question and options are in the image
OPEN_PROMPT = "Answer the question using a single word or phrase."


class MMMU(Benchmark):
    """Split ``validation``: 847 multiple-choice and 53 open questions; four open ones have a letter for gold answer."""

    name = "mmmu"
    title = "MMMU"
    hub = "MMMU/MMMU"
    splits: ClassVar[Mapping[str, int]] = {"validation": 900}

    def items(self, source: Source, split: str) -> Iterator[Item]:
        for row in source.rows(split, configs=tuple(sorted(DOMAIN_OF))):
            qid = text_in(row, "id")
            multiple = text_in(row, "question_type") == "multiple-choice"
            (question, *options), images = _placed(row, source, text_in(row, "question"), options_in(row))
            yield Item(
                qid=qid,
                question=question,
                golds=(text_in(row, "answer").strip(),) if multiple else _golds(text_in(row, "answer")),
                images=images,
                options=tuple(options) if multiple else (),
                groups=_groups(subject_of(qid)),
            )

    def official_prompt(self, item: Item) -> str:
        if item.options:
            return f"{item.question}\n{listed(item.options)}\n\n{LETTER_PROMPT}"
        return f"{item.question}\n{OPEN_PROMPT}"

    def official_score(self, item: Item, text: str) -> Verdict:
        if item.options:
            return Verdict(*rule.score_choice(text, item.golds[0], item.options))
        return Verdict(*rule.score_open(text, item.golds))


class MMMUPro(Benchmark):
    """Splits: ``overall`` (the parts standard10 and vision), and each part alone; the same 1,730 questions in all."""

    name = "mmmu_pro"
    title = "MMMU-Pro"
    hub = "MMMU/MMMU_Pro"
    splits: ClassVar[Mapping[str, int]] = {"overall": 3460, "standard10": 1730, "vision": 1730, "standard4": 1730}
    mean_over = "part"

    configs: ClassVar[Mapping[str, str]] = {
        "standard10": "standard (10 options)",
        "standard4": "standard (4 options)",
        "vision": "vision",
    }

    def items(self, source: Source, split: str) -> Iterator[Item]:
        for part in ("standard10", "vision") if split == "overall" else (split,):
            for row in source.rows("test", configs=(self.configs[part],)):
                yield self._item(row, source, part)

    def _item(self, row: Row, source: Source, part: str) -> Item:
        qid, question, options = text_in(row, "id"), "", options_in(row)
        images: tuple[str, ...]
        if part == "vision":  # the question is in the image
            images = (source.image(row.get("image")),)
        else:
            (question, *options), images = _placed(row, source, text_in(row, "question"), options)
        return Item(
            qid=f"{part}-{qid}",
            question=question,
            golds=(text_in(row, "answer").strip(),),
            images=images,
            options=tuple(options),
            groups={"part": (part,), **_groups(subject_of(qid))},
            cluster=qid,
        )

    def official_prompt(self, item: Item) -> str:
        if not item.question:
            return VISION_PROMPT
        return f"{item.question}\n{listed(item.options, '{letter}. {text}')}\n{STANDARD_PROMPT}"

    def official_score(self, item: Item, text: str) -> Verdict:
        return Verdict(*rule.score_pro(text, item.golds[0], item.options))

    def boxed_question(self, item: Item) -> str:
        return super().boxed_question(item) if item.question else VISION_ONLY

    def boxed_score(self, item: Item, text: str) -> Verdict:
        """The grader knows the options of the part "vision", too, which its prompt does not list."""
        verdict = grade(text, item.golds[0], question=f"{item.question}\n{listed(item.options)}")
        return Verdict(float(verdict.correct), verdict.extracted, verdict.reason)


def options_in(row: Row) -> list[str]:
    """The options, a string of a Python list in the column. One row of MMMU-Pro holds its list in a list
    (validation_Accounting_29): it is taken out, though the published parser then knows only A, and its gold is B."""
    text = text_in(row, "options")
    try:
        options = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f"{row.get('id')}: the options {text[:80]!r} are no Python list") from error
    if isinstance(options, list) and len(options) == 1 and isinstance(options[0], list):
        options = options[0]
    if not isinstance(options, list):
        raise ValueError(f"{row.get('id')}: the options {text[:80]!r} are no Python list")
    return [str(option) for option in options]


def subject_of(qid: str) -> str:
    """ "Art_Theory" of "validation_Art_Theory_12"."""
    return qid.partition("_")[2].rpartition("_")[0]


def _golds(answer: str) -> tuple[str, ...]:
    """The accepted answers of an open question; several are a string of a list: "['24/7', '3.429']"."""
    if answer.startswith("[") and answer.endswith("]"):
        try:
            several = ast.literal_eval(answer)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return (answer,)  # an interval, or another answer in brackets
        if isinstance(several, list) and several and all(isinstance(each, str) for each in several):
            return tuple(several)
    return (answer,)


def _placed(row: Row, source: Source, question: str, options: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    images = {k: source.image(row[f"image_{k}"]) for k in range(1, 8) if row.get(f"image_{k}")}
    return in_order((question, *options), images)


def _groups(subject: str) -> dict[str, tuple[str, ...]]:
    if subject not in DOMAIN_OF:
        raise ValueError(f"no subject of MMMU: {subject!r}")
    return {"domain": (DOMAIN_OF[subject],), "subject": (subject,)}
