"""Items to rows: first looks and, where a mode wants them, forced second looks, by ``evaluation.evaluate``.

Modes are not stored. A row is a first look or the trajectory of a second one; ``summary`` chooses among them, so that
a change of a rule changes which responses the mode ``bound`` continues, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rethinker.benchmarks.base import Item, Protocol, Verdict
from rethinker.benchmarks.table import Row, make_row
from rethinker.benchmarks.tasks import Task
from rethinker.config import RethinkConfig
from rethinker.datasets.checks import image_fault, special_token
from rethinker.evaluation.evaluate import evaluate
from rethinker.policy.policy import Policy
from rethinker.rollout.base import Responder
from rethinker.seeding import stable_seed
from rethinker.types import Grade, Query, Sampling

UNSUPPORTED = "unsupported"  # in the column ``skipped``
Fault = Callable[[Query], "tuple[str, str] | None"]  # (reason, detail) for a query that cannot be asked


@dataclass(frozen=True)
class Asking:
    """How every item is asked: greedily, and ``samples`` times with ``sampling``; ``modes`` besides plain."""

    protocol: Protocol
    modes: tuple[str, ...]
    samples: int
    sampling: Sampling
    rethink: RethinkConfig
    seed: int


def query_of(task: Task, item: Item, protocol: Protocol) -> Query:
    """The query of an item. Its ``answer`` is the item's id: the rule, not a gold answer alone, judges (``Rule``)."""
    return Query(item.qid, task.benchmark.prompt(item, protocol), item.qid, item.images)


class Rule:
    """The verdicts of a task's rule, and what ``looks`` takes for a grader: it finds the item by the query's answer."""

    def __init__(self, task: Task, items: Sequence[Item], protocol: Protocol) -> None:
        self.task = task
        self.items = {item.qid: item for item in items}
        self.protocol = protocol
        self._verdicts: dict[tuple[str, str], Verdict] = {}

    def verdict(self, qid: str, text: str) -> Verdict:
        """The verdict on a response, computed once."""
        key = qid, text
        if key not in self._verdicts:
            self._verdicts[key] = self.task.benchmark.score(self.items[qid], text, self.protocol)
        return self._verdicts[key]

    def grade(self, answers: Sequence[tuple[str, str, str]]) -> list[Grade]:
        """``looks.GradeMany``."""
        verdicts = [self.verdict(qid, text) for text, qid, _ in answers]
        return [Grade(verdict.correct, verdict.extracted, verdict.reason) for verdict in verdicts]


def find_skipped(task: Task, protocol: Protocol, room: Fault) -> dict[str, str]:
    """Why items cannot be asked, by their ids: an unreadable image, a token of the chat format in the text, no room in
    the model's context (``room``), a placeholder without an image. No image is decoded that need not be."""
    skipped = {}
    for item in task.items:
        query = query_of(task, item, protocol)
        fault = next((found for path in item.images if (found := image_fault(Path(path)))), None)
        if fault is None and (token := special_token(query.question)):
            fault = "special token in the question", f"{token} is a token of the chat format"
        try:
            fault = fault or room(query)
        except ValueError as error:
            fault = "placeholder without image", str(error)
        if fault:
            skipped[item.qid] = f"{fault[0]}: {fault[1]}"
    return skipped


def ask(
    task: Task, items: Sequence[Item], engine: Responder, policy: Policy, how: Asking, skipped: Mapping[str, str]
) -> list[Row]:
    """The rows of ``items``, in their order: of each the greedy looks, then the sampled ones."""
    rule = Rule(task, items, how.protocol)
    found: dict[str, list[Row]] = {item.qid: [] for item in items}
    empty = {qid: rule.verdict(qid, "") for qid in found}
    # What has no score for an empty response has none for any: nothing here can score the item.
    hopeless = {qid: verdict for qid, verdict in empty.items() if verdict.score is None}
    unasked = {qid: skipped[qid] for qid in found if qid in skipped} | dict.fromkeys(hopeless, UNSUPPORTED)
    queries = [query_of(task, item, how.protocol) for item in items if item.qid not in unasked]
    if queries:
        evaluation = evaluate(
            engine,
            policy,
            queries,
            modes=("plain", *how.modes),
            samples=how.samples,
            sampling=how.sampling,
            rethink=how.rethink,
            seed=stable_seed(how.seed, "benchmark", task.name),
            grade=rule.grade,
        )
        prompts = {query.qid: query.question for query in queries}
        for response in evaluation.rows.to_dict("records"):
            if response["mode"] == "plain" or isinstance(response["trigger"], str):  # pandas has NaN for None
                qid = response["qid"]
                found[qid].append(_row(rule, rule.items[qid], prompts[qid], response))
    for qid, reason in unasked.items():
        found[qid] = [_unasked_row(rule, qid, reason, hopeless.get(qid))]
    return [row for item in items for row in _once(found[item.qid])]


def _unasked_row(rule: Rule, qid: str, reason: str, verdict: Verdict | None) -> Row:
    item = rule.items[qid]
    prompt = rule.task.benchmark.prompt(item, rule.protocol)
    response = {"look": "first", "greedy": True, "index": 0, "text": "", "tokens": 0, "finished": True}
    verdict = verdict or Verdict(0.0, None, "not asked")
    return make_row(item, prompt, **response, reflects=False, skipped=reason, **verdict_columns(verdict))


def _row(rule: Rule, item: Item, prompt: str, response: Mapping[Any, Any]) -> Row:
    verdict = rule.verdict(item.qid, response["text"])
    return make_row(
        item,
        prompt,
        look="first" if response["mode"] == "plain" else "second",
        trigger=response["trigger"] if isinstance(response["trigger"], str) else None,
        **{name: response[name] for name in ("greedy", "index", "text", "tokens", "finished", "reflects")},
        **verdict_columns(verdict),
    )


def verdict_columns(verdict: Verdict) -> Row:
    """The columns of a verdict."""
    return {
        "score": verdict.score,
        "extracted": verdict.extracted,
        "reason": verdict.reason,
        "guessed": verdict.guessed,
    }


def _once(rows: list[Row]) -> list[Row]:
    """Greedy before sampled, first before second look; forced and bound share their second looks."""
    by_key = {(not row["greedy"], row["index"], row["look"]): row for row in rows}
    return [by_key[key] for key in sorted(by_key)]
