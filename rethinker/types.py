"""The records that flow through the library: queries in, samples out.

All are frozen: a stage of the algorithm returns new records (``dataclasses.replace``) and never edits one in place.
Images are stored as paths until they are needed, so that a record stays small; values of tokens, which may be given as
tuples, are kept as arrays that behave like them (``arrays.Numbers``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from rethinker.arrays import Flags, Floats, Ints


@dataclass(frozen=True, slots=True)
class Query:
    """One question about zero or more images; ``answer`` is the gold answer without its ``\\boxed{}``.

    ``question`` holds one ``<image>`` for each image where it stands in the text (ViRL39K's convention); images
    without a placeholder come first, in order.
    """

    qid: str
    question: str
    answer: str
    images: tuple[str, ...] = ()  # absolute paths
    category: str = ""  # the kind of question
    source: str = ""
    level: int = 0  # difficulty, 0 if the data set has none
    pass_rate: float | None = None  # of a reference model, if the data set has one


@dataclass(frozen=True, slots=True)
class Request:
    """Ask an engine for ``n`` responses to ``query``; results are paired with it by ``request_id``, never by position.

    ``prefix_ids`` are response tokens that are already given (Forced Rethinking: y1 without EOS, and the trigger): the
    engine continues after them and returns the continuation only.
    ``seed`` makes the samples of this request reproducible whatever else is in the batch. ``first`` is the number of
    the first one: samples of one seed may be asked for in several requests, and are the same.
    """

    request_id: str
    query: Query
    seed: int
    n: int = 1
    prefix_ids: tuple[int, ...] = ()
    first: int = 0


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. ``temperature`` 0 is greedy."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 2048


@dataclass(frozen=True, slots=True)
class Response:
    """What the policy generated. ``token_ids`` includes the EOS token when ``finished``.

    ``logprobs`` (nats, one per token) are those of the distribution that was sampled: after temperature, top_p and the
    ban of vision tokens.
    """

    token_ids: Ints
    logprobs: Floats
    finished: bool  # ended with EOS; False: cut at the token limit
    text: str  # decoded without special tokens

    def __post_init__(self) -> None:
        _keep_as(self, token_ids=Ints, logprobs=Floats)


@dataclass(frozen=True, slots=True)
class Grade:
    """A verdict. ``reason`` says how it was reached ("exact", "choice letter", "no boxed answer", "timeout", ...)."""

    correct: bool
    extracted: str | None
    reason: str


Outcome = Literal["wrong_to_right", "right_to_wrong", "right_to_right", "wrong_to_wrong"]


@dataclass(frozen=True, slots=True)
class Rethinking:
    """How a forced second look went. Token counts partition the trajectory: y1, forced, y2."""

    trigger: str  # the kind: a key of rethink.TRIGGERS
    first_text: str
    first_tokens: int  # tokens of y1 that stay as they were sampled
    trigger_tokens: int  # the forced ones: the trigger, and before it what the seam changed of y1
    first_correct: bool
    own_answer: bool  # y2 gives a boxed answer; else the last one is y1's
    kept: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """One response of a group with everything that training needs.

    ``prompt_tokens``: length of the query's prompt as the model reads it, image tokens included.
    ``sampled_mask``: tokens that the policy sampled (False: the forced trigger).
    ``nll_mask``: tokens under the NLL loss of Forced Rethinking (empty: none).
    ``behavior_logprobs``: of the frozen behaviour policy as the trainer computes it, one per token; the denominator of
    the ratio.
    ``unanimous``: its group agrees in correctness; an advantage that it has is then that of the price of tokens.
    """

    sample_id: str  # "<episode>/<qid>/<index in the group>"
    query: Query
    response: Response
    grade: Grade
    reward: float
    episode: int
    sampled_mask: Flags
    nll_mask: Flags = ()
    behavior_logprobs: Floats = ()
    advantage: float = 0.0
    replayed: bool = False
    rethinking: Rethinking | None = None
    prompt_tokens: int = 0
    unanimous: bool = False

    def __post_init__(self) -> None:
        _keep_as(self, sampled_mask=Flags, nll_mask=Flags, behavior_logprobs=Floats)

    @property
    def effective(self) -> bool:
        """abs(advantage) > 0, and not for the price of tokens alone (``reward.token_price``): what SSR stores."""
        return abs(self.advantage) > 0.0 and not self.unanimous

    @property
    def moves_policy(self) -> bool:
        """abs(advantage) > 0: effective, or shorter or longer than the others of its unanimous group."""
        return abs(self.advantage) > 0.0

    @property
    def rollout_logprobs(self) -> Floats:
        """The engine's log-probs, one per token (0.0 where the token was forced)."""
        return self.response.logprobs

    @property
    def outcome(self) -> Outcome:
        """What a forced second look changed: correctness of y1, then of the whole trajectory."""
        assert self.rethinking is not None
        name = {True: "right", False: "wrong"}
        return f"{name[self.rethinking.first_correct]}_to_{name[self.grade.correct]}"  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Group:
    """The samples of one query; ``first_correct`` is the correctness of the first responses y1, before rethinking."""

    query: Query
    samples: tuple[Sample, ...]
    first_correct: tuple[bool, ...] = field(default=())

    @property
    def effective(self) -> bool:
        """0 < mean correctness < 1 on the first responses."""
        return 0 < sum(self.first_correct) < len(self.first_correct)


def _keep_as(record: object, **kinds: Any) -> None:
    """Turn the fields of a frozen record into sequences of these kinds."""
    for name, kind in kinds.items():
        values = getattr(record, name)
        if type(values) is not kind:
            object.__setattr__(record, name, kind(values))
