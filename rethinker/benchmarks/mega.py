"""MEGA-Bench, core: 440 tasks with their own output formats and metrics (arXiv:2410.10563).

Each prompt holds the task, one solved example and the question; each item brings its parser, metrics and aggregation.
The headline is the macro mean over tasks. Items that cannot be scored here (`rules.mega.UNSUPPORTED`, and questions
about videos) get no score and are reported as unsupported; the mean is then over the other tasks, so that it is no
longer the published one: say how many tasks it covers.

``boxed``: the same texts with the paper's suffix; the last box stands for what follows ``Answer:``, and the same
metrics judge it. It shows what a model that boxes its answers loses to the format alone.

The data set's columns do not name a task's output format and application: where the official ``all_task_meta.json``
stands beside the data, its values become groups.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from rethinker.benchmarks.base import Benchmark, Item, Verdict
from rethinker.benchmarks.rules import mega as rules
from rethinker.benchmarks.sources import Row, Source, text_in
from rethinker.grading.extract import extract_boxed

EXAMPLE_IMAGES = 4  # official: further images of the example are left out
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif")
META = "all_task_meta.json"
_META_GROUPS = ("output_format", "num_input", "input_format", "app")
_MARK = re.compile(r"<image>|<video>")


class MegaBench(Benchmark):
    name: ClassVar[str] = "mega"
    title: ClassVar[str] = "MEGA-Bench"
    hub: ClassVar[str] = "TIGER-Lab/MEGA-Bench"
    splits: ClassVar[Mapping[str, int]] = {"core": 6531, "core_single_image": 4108}
    mean_over: ClassVar[str | None] = "task"

    def items(self, source: Source, split: str) -> Iterator[Item]:
        meta = _task_meta(source.root / META)
        for row in source.rows("test", configs=(split,), files=(f"{split}.jsonl", f"{split}.json")):
            yield _item(source, row, meta)

    def official_prompt(self, item: Item) -> str:
        return item.question

    def boxed_question(self, item: Item) -> str:
        return item.question

    def official_score(self, item: Item, text: str) -> Verdict:
        if item.extra.get("unsupported"):
            return Verdict(None, None, item.extra["unsupported"])
        scored = rules.score(text, item.extra["answer"], item.extra["metric_info"], item.extra["eval_context"])
        if not scored.parsed:  # the published rule takes the whole response, or nothing, as the answer
            return Verdict(0.0, None, "no JSON object" if scored.parsed is None else "empty answer", scored.score)
        return Verdict(scored.score, scored.parsed, _reason(scored.fields))

    def boxed_score(self, item: Item, text: str) -> Verdict:
        answer = extract_boxed(text)
        if item.extra.get("unsupported") or answer is None:
            return self.official_score(item, "") if item.extra.get("unsupported") else Verdict(0.0, None, "no box")
        if item.extra["metric_info"]["response_parse_function"] == "json":
            return self.official_score(item, answer.replace("\\{", "{").replace("\\}", "}"))
        return self.official_score(item, f"Answer: {answer}")


def _item(source: Source, row: Row, meta: Mapping[str, Mapping[str, Any]]) -> Item:
    qid = text_in(row, "id")
    task = text_in(row, "task_name")
    parts: list[str] = []
    images: list[str] = []
    reason = ""
    for text, media in (
        ("task_description", "global_media"),
        ("example_text", "example_media"),
        ("query_text", "query_media"),
    ):
        part, paths, video = _part(text_in(row, text), _literal(row, media, list, qid), qid, text == "example_text")
        parts.append(part)
        images += [source.image(path, "data") for path in paths]
        reason = reason or video
    question = "\n".join(part for part in parts if part)
    if reason:  # of a video; no image is asked for, so that none can be missing
        question, images = _MARK.sub("", question), []
    answer, metric_info, context = (
        _literal(row, column, dict, qid) for column in ("answer", "metric_info", "eval_context")
    )
    reason = reason or rules.fault(metric_info, context) or ""
    described = {name: _values(meta.get(task, {}).get(name)) for name in _META_GROUPS}
    return Item(
        qid=qid,
        question=question,
        golds=(json.dumps(answer, ensure_ascii=False),),
        images=tuple(images),
        groups={
            "task": (task,),
            "parser": (str(metric_info["response_parse_function"]),),
            "metric": tuple(sorted(set(map(str, metric_info["field_score_function"].values())))),
            **{name: values for name, values in described.items() if values},
        },
        extra={"answer": answer, "metric_info": metric_info, "eval_context": context, "unsupported": reason},
    )


def _part(text: str, media: list[str], qid: str, example: bool) -> tuple[str, list[str], str]:
    """(text with one ``<image>`` an image, the images' paths, why it is unsupported or "") of one part of a prompt."""
    marks = len(_MARK.findall(text))
    if marks > len(media):
        raise ValueError(f"{qid}: {marks} image marks for {len(media)} files in {text[:60]!r}")
    text = "<image>" * (len(media) - marks) + text
    videos = [path for path in media if path.lower().endswith(VIDEOS)]
    if videos:
        return text, [], f"video: frames are not extracted here ({Path(videos[0]).name})"
    if example and len(media) > EXAMPLE_IMAGES:
        kept = iter([True] * EXAMPLE_IMAGES + [False] * (len(media) - EXAMPLE_IMAGES))
        text = _MARK.sub(lambda mark: mark[0] if next(kept) else "", text)
        media = media[:EXAMPLE_IMAGES]
    return text.strip(), media, ""


def _literal(row: Row, column: str, kind: type, qid: str) -> Any:
    """The list or dict that a column of text holds; an empty text holds none."""
    if column not in row:
        raise ValueError(f"{qid}: no column {column!r}; there are {', '.join(row)}")
    value = row[column]
    try:
        value = ast.literal_eval(value) if isinstance(value, str) and value.strip() else value
    except (ValueError, SyntaxError) as error:
        raise ValueError(f"{qid}: column {column!r} is no Python literal: {str(value)[:80]!r}") from error
    value = kind() if value in (None, "") else value
    if not isinstance(value, kind):
        raise ValueError(f"{qid}: column {column!r} holds {str(value)[:80]!r}, not a {kind.__name__}")
    return value


@cache
def _task_meta(path: Path) -> dict[str, dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _values(value: Any) -> tuple[str, ...]:
    return () if value is None else tuple(map(str, value)) if isinstance(value, list) else (str(value),)


def _reason(fields: Mapping[str, float]) -> str:
    return ", ".join(f"{field} {value:.3g}" for field, value in fields.items())
