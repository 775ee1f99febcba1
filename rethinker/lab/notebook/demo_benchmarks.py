"""Evaluations on benchmarks for notebook 10, made in seconds without a model.

Files in the schemas of MathVision and MEGA-Bench hold questions of the visual-math world; a script answers them with a
stated skill and with the habits of real models: boxes, bare sentences, a lost format, a response that is cut. Data,
responses and so all scores are made up; reading, scoring, counting and comparing are the library's.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rethinker.benchmarks.base import Benchmark, Item, Protocol
from rethinker.benchmarks.summary import write_summaries
from rethinker.benchmarks.table import Row, Shards, make_row
from rethinker.benchmarks.tasks import Task, load_task
from rethinker.datasets.world.puzzles import Puzzle
from rethinker.datasets.world.visual_math import draw_puzzles
from rethinker.rethink import REFLECTION_PATTERN, TRIGGERS
from rethinker.rundir.atomic import atomic_write_text

PROTOCOL: Protocol = "boxed"
MODES = ["plain", "forced", "bound"]


@dataclass(frozen=True)
class Writer:
    """``skill``: chance of a right answer by the level of a question; ``boxes``: of a box around it; ``cut``: of a
    response that ends at the limit; ``rescue`` and ``spoil``: of a second look that mends, or spoils, the first."""

    skill: tuple[float, float, float]
    boxes: float
    cut: float
    rescue: float
    spoil: float


WRITERS = {
    "script-base": Writer((0.55, 0.35, 0.2), boxes=0.75, cut=0.04, rescue=0.2, spoil=0.15),
    "script-trained": Writer((0.8, 0.6, 0.4), boxes=0.97, cut=0.02, rescue=0.2, spoil=0.08),
}


def demo_data(folder: Path, items: int, seed: int = 0) -> dict[str, str]:
    """Write ``items`` questions in each benchmark's schema below ``folder``; returns places by benchmark."""
    puzzles = list(draw_puzzles("test", 2 * items, seed, set()))
    places = {name: str(folder / name) for name in ("mathvision", "mega")}
    _write(folder / "mathvision", "data/test.jsonl", "images", puzzles[:items], _mathvision_row)
    _write(folder / "mega", "core.jsonl", "data", puzzles[items:], _mega_row)
    return places


def demo_evaluations(folder: Path, items: int = 48, seed: int = 0) -> list[Path]:
    """The folders of two evaluations, of the ``WRITERS``, on the data of ``demo_data``; made again each time."""
    places = demo_data(folder / "data", items, seed)
    tasks = [load_task(name, places) for name in places]
    return [_evaluate(folder / name, tasks, writer, seed) for name, writer in WRITERS.items()]


def verdicts(benchmark: Benchmark, item: Item, responses: Sequence[str]) -> pd.DataFrame:
    """What each protocol says of hand-made responses: a row for each of both."""
    rows = []
    for text in responses:
        for protocol in benchmark.protocols:
            found = benchmark.score(item, text, protocol)
            rows.append({"response": text, "protocol": protocol} | asdict(found))
    table = pd.DataFrame(rows).set_index(["response", "protocol"]).astype(object)
    return table.where(table.notna(), None)


def _evaluate(folder: Path, tasks: Sequence[Task], writer: Writer, seed: int) -> Path:
    facts = {
        task.name: {"name": task.benchmark.name, "split": task.split, "items": len(task.items), "digest": task.digest}
        for task in tasks
    }
    settings = {"protocol": PROTOCOL, "modes": MODES, "samples": 0, "model": {"path": f"a script: {folder.name}"}}
    for task in tasks:
        rng = random.Random(f"{seed}/{folder.name}/{task.name}")
        shards = Shards(folder, task.name)
        shards.write(0, [row for item in task.items for row in _rows(task, item, writer, rng)])
        shards.merge(1)
    atomic_write_text(folder / "settings.json", json.dumps(settings | {"benchmarks": facts}, indent=1) + "\n")
    write_summaries(folder)
    return folder


def _rows(task: Task, item: Item, writer: Writer, rng: random.Random) -> Iterator[Row]:
    """A first look and, where that ended by itself, a forced second one."""
    gold, wrong = _answers(item, rng)
    right = rng.random() < writer.skill[_level(item) - 1]
    if rng.random() < writer.cut:
        yield _row(task, item, "Let me count them one by one. First", look="first", finished=False)
        return
    first = _sentence(gold if right else wrong, writer, rng)
    yield _row(task, item, first, look="first")
    right = rng.random() >= writer.spoil if right else rng.random() < writer.rescue
    kind = rng.choice(list(TRIGGERS))
    second = f"{first}\n\n{TRIGGERS[kind]}\n\n{_sentence(gold if right else wrong, writer, rng)}"
    yield _row(task, item, second, look="second", trigger=kind)


def _row(task: Task, item: Item, text: str, **columns: Any) -> Row:
    verdict = asdict(task.benchmark.score(item, text, PROTOCOL))
    values = {"greedy": True, "index": 0, "text": text, "tokens": len(text.split()), "finished": True} | columns
    reflects = values["look"] == "first" and bool(REFLECTION_PATTERN.search(text))
    return make_row(item, task.benchmark.prompt(item, PROTOCOL), reflects=reflects, **values, **verdict)


def _sentence(answer: str, writer: Writer, rng: random.Random) -> str:
    if rng.random() < writer.boxes:
        return f"I looked at the image step by step. The answer is \\boxed{{{answer}}}."
    return rng.choice((f"The answer is {answer}.", f"Answer: {answer}", f"It must be **{answer}**."))


def _level(item: Item) -> int:
    return int(next(iter(item.groups.get("level", ("2",)))))


def _answers(item: Item, rng: random.Random) -> tuple[str, str]:
    """The gold answer, and another one of its kind."""
    if item.options:
        gold = item.golds[0]
        return gold, rng.choice([letter for letter in "ABCDE"[: len(item.options)] if letter != gold])
    if "answer" in item.extra:  # MEGA-Bench: fields
        fields = dict(item.extra["answer"])
        off = {name: str(int(value) + rng.choice((1, 2))) for name, value in fields.items()}
        if item.extra["metric_info"]["response_parse_function"] == "json":
            return json.dumps(fields), json.dumps(off)
        (gold,), (other,) = fields.values(), off.values()
        return gold, other
    return item.golds[0], str(int(item.golds[0]) + rng.choice((1, 2, 3)))


def _write(folder: Path, name: str, images: str, puzzles: Sequence[Puzzle], make: Any) -> None:
    (folder / images).mkdir(parents=True, exist_ok=True)
    rows = []
    for number, puzzle in enumerate(puzzles):
        path = f"{images}/{number}.png"
        puzzle.image.save(folder / path)
        rows.append(make(number, puzzle, path))
    atomic_write_text(folder / name, "".join(json.dumps(row) + "\n" for row in rows))


def _mathvision_row(number: int, puzzle: Puzzle, image: str) -> dict[str, Any]:
    """Every second question is a multiple choice, whose gold answer is a letter."""
    answer, options = puzzle.answer, list[str]()
    if number % 2:
        place = number % 5
        options = [str(int(answer) + step - place) for step in range(5)]
        answer = "ABCDE"[place]
    question = puzzle.question.replace("<image>", "<image1>")
    row = {"id": str(number), "question": question, "options": options, "answer": answer, "solution": None}
    return row | {"level": puzzle.level, "subject": puzzle.kind, "image": image}


def _mega_row(number: int, puzzle: Puzzle, image: str) -> dict[str, Any]:
    """A task for each kind of puzzle; three of six want JSON, one has a metric that nothing here can compute."""
    as_json = puzzle.kind in ("bars", "table", "clock")
    metric = "gpt_4o_as_judge" if puzzle.kind == "clock" else "exact_str_match"
    form = '{"answer": "..."}' if as_json else "Answer: ..."
    return {
        "id": str(number),
        "task_name": puzzle.kind,
        "task_description": "Answer a question on an image.",
        "global_media": "[]",
        "example_text": f"The output format is {form}",
        "example_media": "[]",
        "query_text": f"Question: {puzzle.question}",
        "query_media": str([image]),
        "answer": str({"answer": puzzle.answer}),
        "metric_info": str(
            {
                "field_score_function": {"answer": metric},
                "aggregation": {"function": "mean", "field_weights": {"answer": 1}},
                "response_parse_function": "json" if as_json else "answer_string",
            }
        ),
        "eval_context": "{}",
    }
