"""A benchmark with a rule of one line, a policy without a model, and an engine that answers by the item's id."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from letters import EOS, encode

from rethinker.benchmarks.asking import Asking
from rethinker.benchmarks.base import Benchmark, Item, Verdict
from rethinker.benchmarks.sources import Source, text_in, texts_in
from rethinker.config import RethinkConfig
from rethinker.rollout.base import Arrived
from rethinker.types import Request, Response, Sampling


class Toy(Benchmark):
    """The text behind the last "=" is the answer; "/2": half a point; "?": cannot be scored; none: a guess is 0.25."""

    name = "toy"
    title = "Toy"
    hub = "owner/toy"
    splits: ClassVar[Mapping[str, int]] = {"test": 4, "mini": 2}

    def items(self, source: Source, split: str) -> Iterator[Item]:
        for row in source.rows(split, files=(f"{split}.jsonl",)):
            yield Item(
                qid=text_in(row, "id"),
                question=text_in(row, "question"),
                golds=(text_in(row, "answer"),),
                images=tuple(source.image(image) for image in row.get("images", ())),
                options=texts_in(row, "options") if "options" in row else (),
                groups={"subject": (text_in(row, "subject"),), "skills": tuple(row.get("skills", ()))},
                cluster=row.get("problem", ""),
                extra={"unit": row.get("unit")},
            )

    def official_prompt(self, item: Item) -> str:
        return f"Answer: {item.question}"

    def official_score(self, item: Item, text: str) -> Verdict:
        _, mark, answer = text.rpartition("=")
        if answer == "?":
            return Verdict(None, answer, "needs a calculator")
        if not mark:
            return Verdict(0.0, None, "nothing found", guessed=0.25)
        if answer == f"{item.golds[0]}/2":
            return Verdict(0.5, answer, "half")
        return Verdict(float(answer == item.golds[0]), answer, "equal" if answer == item.golds[0] else "different")


class Engine:
    """``first(qid, index)`` and ``second(qid, index)`` say what it answers; "~" at the end: cut at the limit.

    ``before(call)`` runs before every call of ``generate``, ``after(count)`` whenever another response has arrived.
    Results do not depend on how requests come together.
    """

    def __init__(
        self,
        first: Callable[[str, int], str],
        second: Callable[[str, int], str] = lambda qid, index: "=0",
        before: Callable[[int], None] = lambda call: None,
        after: Callable[[int], None] = lambda count: None,
    ) -> None:
        self.first, self.second, self.before, self.after = first, second, before, after
        self.asked: list[str] = []
        self.prompts: dict[str, str] = {}
        self.calls = self.responses = 0
        self.closed = False

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, arrived: Arrived | None = None
    ) -> Mapping[str, tuple[Response, ...]]:
        self.before(self.calls)
        self.calls += 1
        done = {}
        for request in requests:
            done[request.request_id] = self._responses(request, sampling)
            if arrived:
                arrived({request.request_id: done[request.request_id]})
            self.responses += request.n
            self.after(self.responses)
        return done

    def _responses(self, request: Request, sampling: Sampling) -> tuple[Response, ...]:
        qid = request.query.qid
        self.prompts[qid] = request.query.question
        if request.prefix_ids:
            label = request.request_id.rpartition("/")[2]
            return (self._response(self.second(qid, -1 if label == "greedy" else int(label))),)
        if sampling.temperature == 0:
            self.asked.append(qid)
            return (self._response(self.first(qid, -1)),)
        return tuple(self._response(self.first(qid, request.first + index)) for index in range(request.n))

    @staticmethod
    def _response(text: str) -> Response:
        finished = not text.endswith("~")
        ids = encode(text.rstrip("~")) + ((EOS,) if finished else ())
        return Response(ids, (0.0,) * len(ids), finished, text.rstrip("~"))

    def sync_weights(self, model: object) -> None: ...

    def sleep(self) -> None: ...

    def close(self) -> None:
        self.closed = True


def write_rows(folder: Path, rows: Sequence[dict[str, Any]], split: str = "test") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def asking(modes: tuple[str, ...] = (), samples: int = 0, **changes: Any) -> Asking:
    values: dict[str, Any] = {
        "protocol": "official",
        "sampling": Sampling(temperature=1.0, top_p=1.0, max_new_tokens=60),
        "rethink": RethinkConfig(min_second_look_tokens=8),
        "seed": 3,
    }
    return Asking(modes=modes, samples=samples, **(values | changes))


def settings(how: Asking, **changes: Any) -> dict[str, Any]:
    """What ``checkpoint.settings_of`` says of a model, in short."""
    values = {"protocol": how.protocol, "modes": ["plain", *how.modes], "samples": how.samples}
    return values | {"model": {"path": "toy"}} | changes
