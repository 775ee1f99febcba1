"""From the records of an episode to its metrics and its table of responses; pure functions, names of the glossary."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rethinker.rethink import contains_reflection, outcomes
from rethinker.types import Group, Query, Sample

# Bins of width 1/8 centred on multiples of 1/8: with 8 binary rewards and no division by std, one value a bin.
ADVANTAGE_EDGES = tuple(-3.0625 + 0.125 * i for i in range(50))


@dataclass
class EpisodeRecord:
    """What happened in an episode, over all ranks.

    ``queries``: groups that it is to train on, of ``group_size`` first responses. ``firsts``: y1 of every query;
    ``candidates``: every forced trajectory; ``all_groups``: what advantages were computed on, of every rollout;
    ``groups``: those of them that it trains on, all but what dynamic sampling dropped; ``trained``: the samples of all
    steps. ``rounds``: of rollouts (more than one with dynamic sampling only). ``on_policy``: one update, on the
    episode's own samples. ``homes``: the rank that rolled a query out, by its qid. ``gaps``: ``engine_gaps`` of every
    rank. ``canary``: ``rollout.canary_gap`` after the sync; ``usual_gap``: after the first one of the run.
    ``weight_lag``: episodes by which the weights that wrote it are older than those that its updates start from.
    """

    number: int
    stage: str
    queries: int
    group_size: int
    firsts: list[Group] = field(default_factory=list)
    candidates: list[Sample] = field(default_factory=list)
    all_groups: list[Group] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    trained: list[Sample] = field(default_factory=list)
    eligible: int = 0
    rounds: int = 0
    skipped_steps: int = 0
    on_policy: bool = False
    homes: dict[str, int] = field(default_factory=dict)
    gaps: list[tuple[float, int, float]] = field(default_factory=list)
    canary: float | None = None
    usual_gap: float | None = None
    weight_lag: int = 0
    images_decoded: int = 0
    images_encoded: int = 0

    @property
    def generated(self) -> list[Sample]:
        """Every response: first ones, and forced trajectories."""
        return [*(sample for group in self.firsts for sample in group.samples), *self.candidates]

    @property
    def tokens(self) -> int:
        """Tokens that were generated."""
        return sum(map(generated_tokens, self.generated))

    def add_round(
        self,
        queries: Sequence[Query],
        *,
        firsts: Sequence[Group],
        groups: Sequence[Group],
        candidates: Sequence[Sample],
        effective_only: bool,
    ) -> None:
        """Add a round of rollouts, of all ranks, in the order of its queries: the same for any number of ranks.

        ``effective_only``: groups without an advantage are not trained on (dynamic sampling).
        """
        place = {query.qid: index for index, query in enumerate(queries)}
        self.firsts += sorted(firsts, key=lambda group: place[group.query.qid])
        self.candidates += sorted(candidates, key=lambda sample: place[sample.query.qid])
        fresh = sorted(groups, key=lambda group: place[group.query.qid])
        self.all_groups += fresh
        useful = [group for group in fresh if not effective_only or any(s.effective for s in group.samples)]
        self.groups += useful[: self.queries - len(self.groups)]


def share(hits: Iterable[bool]) -> float | None:
    """Mean of booleans; None of nothing."""
    values = list(hits)
    return sum(values) / len(values) if values else None


def mean(values: Sequence[float]) -> float | None:
    """Their mean; None of nothing."""
    return float(np.mean(values)) if values else None


def histogram(advantages: Sequence[float]) -> dict[str, list[float]]:
    """Counts over ADVANTAGE_EDGES; what lies outside is counted in the outermost bins."""
    inside = np.clip(np.asarray(advantages, dtype=float), ADVANTAGE_EDGES[0], ADVANTAGE_EDGES[-1])
    counts, _ = np.histogram(inside, bins=ADVANTAGE_EDGES)
    return {"edges": list(ADVANTAGE_EDGES), "counts": counts.tolist()}


def episode_metrics(episode: EpisodeRecord) -> dict[str, Any]:
    """The metrics of glossary.EPISODE that the records alone determine."""
    firsts = [sample for group in episode.firsts for sample in group.samples]
    samples = [sample for group in episode.all_groups for sample in group.samples]
    trained = {_key(sample) for sample in episode.trained}
    reflects = [contains_reflection(sample.response.text) for sample in firsts]
    correct = [sample.grade.correct for sample in firsts]
    generated = episode.generated
    forced = outcomes(episode.candidates)
    gap_tokens = sum(count for _, count, _ in episode.gaps)

    def of_forced(name: str) -> float | None:
        return forced[name] / forced["forced"] if forced["forced"] else None

    return {
        "queries/effective": share(group.effective for group in episode.firsts),
        "queries/all_correct": share(all(group.first_correct) for group in episode.firsts),
        "queries/all_incorrect": share(not any(group.first_correct) for group in episode.firsts),
        "accuracy/first": share(correct),
        "reward/mean": mean([sample.reward for sample in samples]),
        "reward/correctness": share(sample.grade.correct for sample in samples),
        "reflection/share": share(reflects),
        "reflection/accuracy_with": share(c for c, r in zip(correct, reflects, strict=True) if r),
        "reflection/accuracy_without": share(c for c, r in zip(correct, reflects, strict=True) if not r),
        "rethink/eligible": episode.eligible / len(firsts),
        "rethink/forced": forced["forced"] / len(firsts),
        "rethink/kept": forced["kept"] / len(firsts),
        "rethink/no_answer": of_forced("no_answer"),
        "rethink/trained": share(_key(sample) in trained for sample in samples if sample.rethinking is not None),
        "rethink/wrong_to_right": of_forced("wrong_to_right"),
        "rethink/right_to_wrong": of_forced("right_to_wrong"),
        "rethink/right_to_right": of_forced("right_to_right"),
        "rethink/wrong_to_wrong": of_forced("wrong_to_wrong"),
        "advantages/before": histogram([sample.advantage for sample in samples]),
        "advantages/after": histogram([sample.advantage for sample in episode.trained]),
        "replay/effective_before": share(sample.effective for sample in samples),
        "replay/effective_after": share(sample.effective for sample in episode.trained),
        "replay/share": share(sample.replayed for sample in episode.trained),
        "replay/batch_fill": len(episode.trained) / (episode.queries * episode.group_size),
        "replay/unfilled": episode.queries - len(episode.groups),
        "replay/skipped_steps": episode.skipped_steps,
        "rollout/rounds": episode.rounds,
        "rollout/responses": len(generated),
        "rollout/tokens": episode.tokens,
        "rollout/length_mean": float(np.mean([len(sample.response.token_ids) for sample in firsts])),
        "rollout/empty": sum(not sample.response.text.strip() for sample in firsts),
        "rollout/truncated": sum(not sample.response.finished for sample in generated),
        "images/distinct": len({image for group in episode.firsts for image in group.query.images}),
        "gap/mean": sum(total for total, _, _ in episode.gaps) / gap_tokens if gap_tokens else None,
        "gap/max": max(largest for _, _, largest in episode.gaps) if gap_tokens else None,
        "canary/gap": episode.canary,
        "canary/usual": episode.usual_gap,
        "images/decoded": episode.images_decoded,
        "images/encoded": episode.images_encoded,
        "grader/failures": sum(sample.grade.reason.startswith(("error", "timeout")) for sample in generated),
        "grader/no_answer": sum(sample.grade.reason == "no boxed answer" for sample in generated),
    }


def replay_ages(episode: EpisodeRecord) -> dict[str, float | None]:
    """Ages of the replayed samples, in episodes."""
    ages = [episode.number - sample.episode for sample in episode.trained if sample.replayed]
    return {
        "replay/age_mean": mean(ages),
        "replay/age_max": float(max(ages)) if ages else None,
    }


def engine_gaps(samples: Sequence[Sample]) -> tuple[float, int, float]:
    """Sum, number and maximum of abs(engine - trainer) of the log-probs of sampled first-response tokens, in nats."""
    total, count, largest = 0.0, 0, 0.0
    for sample in samples:
        if not sample.behavior_logprobs or sample.rethinking is not None:
            continue
        rollout = np.asarray(sample.rollout_logprobs, dtype=np.float64)
        gaps = np.abs(rollout - np.asarray(sample.behavior_logprobs, dtype=np.float64))
        total = float(np.cumsum(np.concatenate([[total], gaps]))[-1])  # in order, as Python's sum does
        count += len(gaps)
        largest = max(largest, float(gaps.max()))
    return total, count, largest


def generated_tokens(sample: Sample) -> int:
    """Tokens that were generated for this record: all of y1, or y2 alone of a forced trajectory."""
    if sample.rethinking is None:
        return len(sample.response.token_ids)
    return len(sample.response.token_ids) - sample.rethinking.first_tokens - sample.rethinking.trigger_tokens


def rollout_rows(episode: EpisodeRecord) -> list[dict[str, Any]]:
    """One row a response of the episode, columns as in glossary.ROLLOUT_COLUMNS."""
    in_groups = {_key(sample): sample for group in episode.all_groups for sample in group.samples}
    placed = _placed(episode)
    replays = Counter(_key(sample) for sample in episode.trained if sample.replayed)
    rows = []
    for sample in episode.generated:
        key = placed.get(_key(sample), _key(sample))
        used = in_groups.get(key)
        query, rethinking = sample.query, sample.rethinking
        row: dict[str, Any] = {
            "episode": episode.number,
            "stage": episode.stage,
            "sample_id": sample.sample_id,
            "qid": query.qid,
            "category": query.category,
            "level": query.level,
            "question": query.question,
            "gold": query.answer,
            "images": list(query.images),
            "pass": "first" if rethinking is None else "forced",
            "text": sample.response.text,
            "tokens": len(sample.response.token_ids),
            "finished": sample.response.finished,
            "correct": sample.grade.correct,
            "extracted": sample.grade.extracted,
            "grade_reason": sample.grade.reason,
            "reflects": contains_reflection(rethinking.first_text if rethinking else sample.response.text),
            "reward": used.reward if used else None,
            "advantage": used.advantage if used else None,
            "replays": replays[key],
            "trigger": None,
            "first_text": None,
            "first_tokens": None,
            "trigger_tokens": None,
            "first_correct": None,
            "kept": None,
        }
        if rethinking is not None:
            row |= {
                "trigger": rethinking.trigger,
                "first_text": rethinking.first_text,
                "first_tokens": rethinking.first_tokens,
                "trigger_tokens": rethinking.trigger_tokens,
                "first_correct": rethinking.first_correct,
                "kept": rethinking.kept,
            }
        rows.append(row)
    return rows


Key = tuple[str, bool]  # sample id, whether it is a forced trajectory: a y1 and what took its place share the id


def _key(sample: Sample) -> Key:
    return sample.sample_id, sample.rethinking is not None


def _placed(episode: EpisodeRecord) -> dict[Key, Key]:
    """From kept candidates to their place in the group: an appended trajectory has an id of its own there."""
    kept = defaultdict(list)
    for candidate in episode.candidates:
        if candidate.rethinking is not None and candidate.rethinking.kept:
            kept[candidate.query.qid].append(_key(candidate))
    return {
        candidate: _key(sample)
        for group in episode.all_groups
        for candidate, sample in zip(
            kept[group.query.qid], (s for s in group.samples if s.rethinking is not None), strict=True
        )
    }
