"""What is wrong with a run: pure functions from its episodes' metrics to findings in words, with counts and advice.

An *episode* is its line of ``metrics.jsonl``; *settings* is a config as a plain dict, where what is missing has its
default. Terminal, live views and report all say what is found here. The thresholds are ours.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rethinker.rundir.reader import stage_settings

LITTLE = 0.05  # share of samples with an advantage, below which an episode has little to learn from
LIKELY = 0.1  # share of responses or groups from which something is a likely cause of an episode without signal
COLD, HOT = 0.5, 1.5  # temperatures below and above which sampling is a likely cause
DRIFT = 3.0  # times its usual gap from which the engine is said to drift away from the trainer
WINDOW = 10  # the newest episodes, which the live views look at

Episode = Mapping[str, Any]
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Finding:
    """Something that a person should know of a run, in words with counts; ``episodes`` are those that show it."""

    name: str
    episodes: tuple[int, ...]
    text: str
    causes: tuple[str, ...] = ()  # the likely ones of an episode without signal, each with what to try

    def __str__(self) -> str:
        return "\n  - ".join([self.text, *self.causes])


@dataclass(frozen=True)
class Cause:
    """Why there is little to learn from: ``part`` of ``whole``, both names of ``counts``.

    ``alone``: the share from which it is a finding in an episode that has signal. ``text`` is a format string over the
    settings, by section, and over part, whole, and the other counts.
    """

    name: str
    part: str
    whole: str
    alone: float
    text: str


CAUSES = (
    Cause(
        "no boxed answer",
        "unboxed",
        "responses",
        0.5,
        "{part} of {whole} responses have no \\boxed{{}} answer: does the question or data.prompt_suffix="
        "{data[prompt_suffix]!r} ask for one, and does model.path follow instructions?",
    ),
    Cause(
        "noise",
        "noisy",
        "responses",
        0.5,
        "{part} of {whole} responses have no boxed answer at rollout.temperature={rollout[temperature]}: lower it",
    ),
    Cause(
        "truncated",
        "cut",
        "responses",
        0.25,
        "{part} of {whole} responses are cut at rollout.max_new_tokens={rollout[max_new_tokens]}: raise it",
    ),
    Cause(
        "empty",
        "empty",
        "firsts",
        0.1,
        "{part} of {whole} first responses are empty: does the chat template of model.path fit the model?",
    ),
    Cause(
        "not gradable",
        "ungraded",
        "responses",
        0.05,
        "the grader failed on {part} of {whole} responses (error or timeout), which count as wrong: see grade_reason "
        "in rollouts/ and the gold answers",
    ),
    Cause(
        "too hard",
        "wrong_groups",
        "groups",
        0.8,
        "{part} of {whole} groups are all wrong, while {boxed} responses have a boxed answer: too hard, or the gold "
        "answers or images do not fit the questions; look at rollouts/, take easier data, or raise rollout.group_size="
        "{rollout[group_size]}",
    ),
    Cause(
        "too easy",
        "right_groups",
        "groups",
        0.8,
        "{part} of {whole} groups are all right: too easy; take harder data, or replay.mode=dynamic_sampling",
    ),
    Cause(
        "all alike",
        "alike_groups",
        "groups",
        0.8,
        "{part} of {whole} groups agree at rollout.temperature={rollout[temperature]}: raise it",
    ),
    Cause(
        "evened out",
        "evened_groups",
        "groups",
        0.5,
        "{part} of {whole} groups had both right and wrong first responses and lost them to Forced Rethinking: lower "
        "rethink.fraction={rethink[fraction]} or rethink.max_per_query={rethink[max_per_query]}",
    ),
    Cause(
        "nothing to force",
        "unforceable",
        "unreflecting",
        0.9,
        "{part} of {whole} first responses could not be forced to rethink: each was empty, cut, or left no room for a "
        "second look (rollout.max_new_tokens={rollout[max_new_tokens]}, "
        "rethink.min_second_look_tokens={rethink[min_second_look_tokens]})",
    ),
    Cause(
        "dynamic sampling fell short",
        "unfilled",
        "wanted_groups",
        1e-9,
        "dynamic sampling lacked {part} of {whole} groups with an advantage after {rounds} rollouts "
        "(replay.max_rollouts={replay[max_rollouts]}, or no query was left): it trains on fewer samples",
    ),
)


def diagnose(episodes: Sequence[Episode], settings: Settings) -> list[Finding]:
    """What is wrong with these episodes, the worst first; [] where nothing is."""
    options = {stage: stage_settings(settings, stage) for stage in {episode["stage"] for episode in episodes}}
    nothing: list[Counted] = []
    little: list[Counted] = []
    rest: list[Counted] = []
    for episode in episodes:
        counted = Counted(episode, options[episode["stage"]], counts(episode, options[episode["stage"]]))
        (nothing if learned_nothing(episode) else little if learned_little(episode) else rest).append(counted)
    found = []
    for name, some in (("nothing learned", nothing), ("little signal", little)):
        if some:
            found.append(_without_signal(name, some, episodes))
    for cause in CAUSES:
        some = [counted for counted in rest if _share(cause, counted.counts) >= cause.alone]
        if some:
            numbers = _numbers(some)
            found.append(
                Finding(cause.name, numbers, f"{cause.name} in {_span(numbers, episodes)}: {_words(cause, some)}")
            )
    adrift = [episode for episode in episodes if _drift(episode) > DRIFT]
    if adrift:
        numbers, worst = tuple(int(episode["episode"]) for episode in adrift), max(adrift, key=_drift)
        words = describe_drift(worst["canary/gap"], worst["canary/usual"])
        found.append(Finding("engine drifts", numbers, f"engine drifts in {_span(numbers, episodes)}: {words}"))
    return found


def describe_drift(gap: float, usual: float) -> str:
    """A gap between engine and trainer after a weight sync that is many times the usual one, in words."""
    return (
        f"after a weight sync engine and trainer differ by {gap:.2g} nats per token, {gap / usual:.0f} times as much "
        f"as at the start of the run ({usual:.2g}): does the engine get all weights?"
    )


def _drift(episode: Episode) -> float:
    """The canary's gap by its usual one; 0 without a canary."""
    usual = _number(episode, "canary/usual")
    return _number(episode, "canary/gap") / usual if usual else 0.0


def news(episodes: Sequence[Episode], settings: Settings) -> list[Finding]:
    """What to say after the newest episode: findings that it shows, when 1, 2, 4, 8, ... episodes have shown them."""
    return [
        finding
        for finding in diagnose(episodes, settings)
        if finding.episodes[-1] == episodes[-1]["episode"] and len(finding.episodes).bit_count() == 1
    ]


def learned_nothing(episode: Episode) -> bool:
    """Whether every step was skipped: no sample, fresh or stored, had an advantage."""
    return _number(episode, "replay/batch_fill", 1.0) == 0


def learned_little(episode: Episode) -> bool:
    """Whether fewer than ``LITTLE`` of the episode's samples have an advantage."""
    return _number(episode, "replay/effective_before", 1.0) < LITTLE


def counts(episode: Episode, options: Settings) -> Counter[str]:
    """Responses, groups and steps of an episode by what became of them; a metric that is missing counts nothing.

    ``options``: the settings of its stage, complete.
    """
    responses, firsts = round(_number(episode, "rollout/responses")), first_responses(episode)
    groups = round(firsts / options["rollout"]["group_size"])
    wrong, right, mixed, after = (
        round(groups * _number(episode, name))
        for name in ("queries/all_incorrect", "queries/all_correct", "queries/effective", "replay/effective_before")
    )
    unboxed, ungraded = (round(_number(episode, f"grader/{name}")) for name in ("no_answer", "failures"))
    boxed = responses - unboxed
    # With skip_reflective the responses that reflect unforced are left alone: nothing is wrong with them.
    reflecting = round(firsts * _number(episode, "reflection/share")) if options["rethink"]["skip_reflective"] else 0
    eligible = round(firsts * _number(episode, "rethink/eligible", 1.0))
    return Counter(
        responses=responses,
        firsts=firsts,
        groups=groups,
        wrong_groups=wrong if boxed >= LIKELY * responses else 0,  # else the lack of answers says it all
        right_groups=0 if options["reward"]["token_price"] else right,  # with a price they differ in length, and learn
        unanimous=wrong + right,
        all_wrong=wrong,
        alike_groups=wrong + right if options["rollout"]["temperature"] < COLD else 0,
        evened_groups=max(0, mixed - after) if options["rethink"]["fraction"] else 0,
        boxed=boxed,
        unboxed=unboxed,
        ungraded=ungraded,
        noisy=unboxed if options["rollout"]["temperature"] > HOT else 0,
        cut=round(_number(episode, "rollout/truncated")),
        empty=round(_number(episode, "rollout/empty")),
        unreflecting=firsts - reflecting if options["rethink"]["fraction"] else 0,
        unforceable=max(0, firsts - reflecting - eligible) if options["rethink"]["fraction"] else 0,
        wanted_groups=options["queries_per_episode"],
        unfilled=round(_number(episode, "replay/unfilled")),
        rounds=round(_number(episode, "rollout/rounds")),
        skipped=round(_number(episode, "replay/skipped_steps")),
    )


def first_responses(episode: Episode) -> int:
    """Responses of an episode without its forced continuations."""
    return round(_number(episode, "rollout/responses") / (1 + _number(episode, "rethink/forced")))


@dataclass(frozen=True)
class Counted:
    """An episode, the settings of its stage, its counts."""

    episode: Episode
    options: Settings
    counts: Counter[str]


def _without_signal(name: str, some: Sequence[Counted], episodes: Sequence[Episode]) -> Finding:
    numbers, total = _numbers(some), _total(some)
    skipped = f"{'no update made, ' if name == 'nothing learned' else ''}steps skipped: {total['skipped']}"
    text = (
        f"{name} in {_span(numbers, episodes)}: {total['unanimous']} of {total['groups']} groups are unanimous "
        f"({total['all_wrong']} all wrong, {total['right_groups']} all right), {skipped}"
    )
    causes = [_words(cause, some) for cause in CAUSES if _share(cause, total) >= min(LIKELY, cause.alone)]
    return Finding(name, numbers, text, tuple(causes or ["no cause stands out: look at the responses in rollouts/"]))


def _numbers(some: Sequence[Counted]) -> tuple[int, ...]:
    return tuple(int(counted.episode["episode"]) for counted in some)


def _span(numbers: Sequence[int], episodes: Sequence[Episode]) -> str:
    first, last = numbers[0], numbers[-1]
    if len(numbers) == 1:
        return f"episode {first}"
    if len(numbers) == last - first + 1:
        return f"episodes {first} to {last}"
    return f"{len(numbers)} of the episodes {episodes[0]['episode']} to {episodes[-1]['episode']} (last in {last})"


def _words(cause: Cause, some: Sequence[Counted]) -> str:
    total = _total(some)
    words = {**some[-1].options, **total, "part": total[cause.part], "whole": total[cause.whole]}
    return cause.text.format_map(words)


def _total(some: Sequence[Counted]) -> Counter[str]:
    total: Counter[str] = Counter()
    for counted in some:
        total.update(counted.counts)
    return total


def _share(cause: Cause, total: Counter[str]) -> float:
    return total[cause.part] / total[cause.whole] if total[cause.whole] else 0.0


def _number(episode: Episode, name: str, missing: float = 0.0) -> float:
    value = episode.get(name)
    return missing if value is None or math.isnan(value) else float(value)
