"""What a benchmark is: its items, its prompts, its rule and its headline number.

Two protocols. ``official``: the benchmark's own prompt and its published rule; where it asks a language model to
extract the answer, a deterministic extractor does. ``boxed``: the paper's prompt (the question, its options, the suffix
of ``data.prompt_suffix``) and this library's grader, the same for every benchmark.

An answer that is not found is counted as unparsed and scores 0. Where the published rule would guess (a random letter,
the choice at the smallest edit distance), ``Verdict.guessed`` is what it would have given, reported beside ours.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Any, ClassVar, Literal, get_args

from rethinker.benchmarks.sources import Source
from rethinker.grading import grade

Protocol = Literal["official", "boxed"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a rule says of a response.

    ``score``: in [0, 1]; None where nothing here can score it (``reason`` says what is missing): such an item is
    listed as unsupported and is in no mean. ``extracted``: the answer that was found; None: unparsed, score 0.
    ``guessed``: the score of the published rule where that guesses; None where it does not.
    """

    score: float | None
    extracted: str | None
    reason: str
    guessed: float | None = None

    def __post_init__(self) -> None:
        for score in (self.score, self.guessed):
            assert score is None or 0.0 <= score <= 1.0, f"score {score} is not in [0, 1]"

    @property
    def correct(self) -> bool:
        """Above half of what can be had (the paper's own evaluation counts so)."""
        return self.score is not None and self.score > 0.5


@dataclass(frozen=True, slots=True)
class Item:
    """One question of a benchmark.

    ``question`` holds one ``<image>`` for each image where it stands in the text; images without one come first, in
    order. ``golds``: the gold answers, any of which is right; of a multiple choice its letter. ``groups``: the values
    by which results are broken down, e.g. {"subject": ("algebra",)}; several where a group is multi-label.
    ``cluster``: what items share that ask the same (a problem in five versions); intervals respect it.
    ``extra``: what the official prompt and rule need besides; values that JSON can hold.
    """

    qid: str
    question: str
    golds: tuple[str, ...]
    images: tuple[str, ...] = ()  # absolute paths
    options: tuple[str, ...] = ()  # texts, in the order of their letters; () for free answers
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    cluster: str = ""  # "": its own
    extra: Mapping[str, Any] = field(default_factory=dict)


class Benchmark(ABC):
    """A benchmark; an adapter is a subclass without state."""

    name: ClassVar[str]  # on the command line
    title: ClassVar[str]  # in tables
    hub: ClassVar[str]  # its data set on the Hugging Face hub
    splits: ClassVar[Mapping[str, int]]  # published numbers of items; the first one is the paper's
    protocols: ClassVar[tuple[Protocol, ...]] = PROTOCOLS
    # The headline: the mean over items or, where this names a group, the mean over its values of their means
    # (MEGA-Bench: "task"; MMMU-Pro: "part").
    mean_over: ClassVar[str | None] = None

    @abstractmethod
    def items(self, source: Source, split: str) -> Iterator[Item]:
        """The items of ``split``, in the order of the file; images stay files. Raises ValueError, FileNotFoundError."""

    @abstractmethod
    def official_prompt(self, item: Item) -> str:
        """The benchmark's own text of the user turn, with ``<image>`` where images stand in it."""

    @abstractmethod
    def official_score(self, item: Item, text: str) -> Verdict:
        """The published rule for the response ``text``; never raises on any text, and evaluates none."""

    def boxed_question(self, item: Item) -> str:
        """Question and options as the paper's prompt has them, without its suffix."""
        return item.question + ("\n" + listed(item.options) if item.options else "")

    def boxed_score(self, item: Item, text: str) -> Verdict:
        """The grader's verdict on the last ``\\boxed{}``; right if it means any of the golds."""
        question = self.boxed_question(item)
        grades = [grade(text, gold, question=question) for gold in item.golds]
        best = max(grades, key=lambda each: each.correct)
        return Verdict(float(best.correct), best.extracted, best.reason)

    def prompt(self, item: Item, protocol: Protocol) -> str:
        """The text of the user turn; ``boxed`` without the suffix, which belongs to the policy."""
        return self.official_prompt(item) if protocol == "official" else self.boxed_question(item)

    def score(self, item: Item, text: str, protocol: Protocol) -> Verdict:
        """The verdict of ``protocol`` on the response ``text``."""
        return self.official_score(item, text) if protocol == "official" else self.boxed_score(item, text)


def letters(options: Sequence[str]) -> str:
    """The letters of ``options``: "ABCD" for four."""
    assert len(options) <= len(ascii_uppercase), f"{len(options)} options"
    return ascii_uppercase[: len(options)]


def listed(options: Sequence[str], form: str = "({letter}) {text}") -> str:
    """The options, one a line, e.g. "(A) 12"."""
    return "\n".join(
        form.format(letter=letter, text=text) for letter, text in zip(letters(options), options, strict=True)
    )
