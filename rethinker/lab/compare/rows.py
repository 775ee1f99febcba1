"""From the files of evaluations, and the paper's numbers, to one tidy table: a row for each model and benchmark."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rethinker.benchmarks import paper

COLUMNS = {
    "row": "what is compared: an evaluation in one mode and decoding, or a row of the paper",
    "kind": "'ours' or 'paper'",
    "source": "folder of the evaluation, or the paper's table",
    "model": "checkpoint, or the paper's name of the model",
    "protocol": "'official' or 'boxed'; of the paper: its own",
    "decoding": "'greedy', or how many samples at which temperature",
    "mode": "'plain', 'forced' or 'bound'",
    "benchmark": "name of the benchmark",
    "split": "its split",
    "title": "both, as tables call them",
    "value": "the score, from 0 to 1",
    "low": "lower end of its 95% interval; of the paper's rows there is none",
    "high": "upper end",
    "n": "responses behind the score",
    "clusters": "problems they answer",
    "items": "items of the split that were evaluated",
    "published": "items that the split has",
    "with_guesses": "score with the published rule's guesses for unparsed answers",
    "unparsed": "responses without an answer that the rule finds; they score 0",
    "truncated": "responses cut at the token limit",
    "skipped": "items that could not be asked; they score 0",
    "unsupported": "responses that nothing here can score; they are in no score",
    "grader_errors": "responses whose comparison failed",
    "tokens": "mean length of a response",
    "reflection": "share of responses that reflect by themselves",
    "judge": "score of the judge model, where one was asked",
    "mark": "footnote: what makes the number less comparable",
}
SUMMARY = "summary.json"


@dataclass(frozen=True)
class Evaluation:
    """A folder of ``rethinker evaluate --benchmarks``: its settings, and its counts by file name (benchmark-split)."""

    folder: Path
    label: str
    settings: dict[str, Any]
    counts: dict[str, dict[str, Any]]


def find(places: Iterable[Path]) -> list[Evaluation]:
    """The evaluations in runs, folders of runs, or folders of evaluations, in their order.

    Raises FileNotFoundError where a place has none, ValueError for a broken file.
    """
    folders: list[Path] = []
    for place in places:
        found = [place] if (place / SUMMARY).is_file() else sorted(path.parent for path in place.rglob(SUMMARY))
        if not found:
            raise FileNotFoundError(
                f"{place}: no {SUMMARY} of an evaluation on benchmarks (rethinker evaluate --benchmarks)"
            )
        folders += [folder for folder in found if folder not in folders]
    labels = [_label(folder) for folder in folders]
    return [
        _load(folder, label if labels.count(label) == 1 else str(folder))
        for folder, label in zip(folders, labels, strict=True)
    ]


def collect(evaluations: Sequence[Evaluation], chosen: Sequence[paper.PaperRow]) -> pd.DataFrame:
    """The rows of the paper, then those of the evaluations, with the columns of ``COLUMNS``."""
    rows = [*(row for each in chosen for row in _paper_rows(each)), *(r for each in evaluations for r in _rows(each))]
    order = {row: place for place, row in enumerate(dict.fromkeys(each["row"] for each in rows))}
    return pd.DataFrame(sorted(rows, key=lambda each: order[each["row"]]), columns=list(COLUMNS))


def groups(evaluations: Sequence[Evaluation]) -> pd.DataFrame:
    """Scores by group: the columns row, title, group, item (its value), value, low, high, n, clusters."""
    rows = []
    for each in evaluations:
        for counted in each.counts.values():
            for row, _, found in _measures(each, counted):
                for group, items in found.get("groups", {}).items():
                    for item, score in items.items():
                        about = {"row": row, "title": title(counted)}
                        rows.append(about | {"group": group, "item": item} | score)
    columns = ("row", "title", "group", "item", "value", "low", "high", "n", "clusters")
    return pd.DataFrame(rows, columns=list(columns))


def pass_at_k(evaluations: Sequence[Evaluation]) -> pd.DataFrame:
    """pass@k of sampled responses: the columns row, title, samples, k, value, low, high, n, clusters; no rows where
    only greedy responses were made."""
    rows = []
    for each in evaluations:
        for counted in each.counts.values():
            for mode, found in counted["modes"].items():
                about = {"row": _named(each, mode), "title": title(counted), "samples": each.settings.get("samples")}
                rows += [
                    about | {"k": int(name.removeprefix("pass@"))} | score
                    for name, score in found.items()
                    if name.startswith("pass@")
                ]
    columns = ("row", "title", "samples", "k", "value", "low", "high", "n", "clusters")
    return pd.DataFrame(rows, columns=list(columns))


def _load(folder: Path, label: str) -> Evaluation:
    settings = _json(folder / SUMMARY)
    names = settings.pop("benchmarks", None)
    if not isinstance(names, dict):
        raise ValueError(f"{folder / SUMMARY}: no summary of an evaluation on benchmarks")
    return Evaluation(folder, label, settings, {name: _json(folder / f"{name}.json") for name in names})


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error


def _label(folder: Path) -> str:
    """``run (label)`` of ``run/benchmarks/label``; else the folder's name."""
    folder = folder.resolve()
    return f"{folder.parent.parent.name} ({folder.name})" if folder.parent.name == "benchmarks" else folder.name


def _measures(each: Evaluation, counted: dict[str, Any]) -> Iterator[tuple[str, tuple[str, str], dict[str, Any]]]:
    """(name of the row, (mode, decoding), counts) for each mode, and for its greedy and sampled responses."""
    samples = each.settings.get("samples") or 0
    temperature = (each.settings.get("rollout") or {}).get("temperature")
    sampled = f"{samples} samples" + ("" if temperature is None else f" at temperature {temperature:g}")
    for mode, found in counted["modes"].items():
        for measure, decoding, short in (("greedy", "greedy", ""), ("sampled", sampled, f"mean of {samples} samples")):
            if measure in found:
                yield _named(each, mode, short), (mode, decoding), found[measure]


def _named(each: Evaluation, mode: str, short: str = "") -> str:
    return ", ".join([each.label, *([mode] if mode != "plain" else []), *([short] if short else [])])


def _rows(each: Evaluation) -> Iterator[dict[str, Any]]:
    for counted in each.counts.values():
        for row, (mode, decoding), found in _measures(each, counted):
            score = found["score"]
            yield {
                "row": row,
                "kind": "ours",
                "source": str(each.folder),
                "model": (each.settings.get("model") or {}).get("path", ""),
                "protocol": each.settings.get("protocol", ""),
                "decoding": decoding,
                "mode": mode,
                "benchmark": counted["benchmark"],
                "split": counted["split"],
                "title": title(counted),
                "items": counted["items"],
                "published": counted["published"],
                "with_guesses": (found.get("with_guesses") or {}).get("value"),
                "tokens": found.get("tokens_mean"),
                "judge": ((found.get("judge") or {}).get("score") or {}).get("value"),
                "mark": _mark(counted, found),
                **{name: score[name] for name in ("value", "low", "high", "n", "clusters")},
                **{
                    name: found.get(name)
                    for name in ("unparsed", "truncated", "skipped", "unsupported", "grader_errors", "reflection")
                },
            }


def title(counted: dict[str, Any]) -> str:
    """What tables call the split of a benchmark: the paper's column, or its own name."""
    about, name = paper.about(), counted["benchmark"]
    if about["splits"].get(name) == counted["split"]:
        return str(about["columns"][name])
    return f"{counted['title']} {counted['split']}"


def _mark(counted: dict[str, Any], found: dict[str, Any]) -> str:
    remarks = []
    if counted["items"] != counted["published"]:
        remarks.append(f"{counted['items']} of {counted['published']} items")
    if found.get("unsupported"):
        remarks.append(f"without {found['unsupported']} responses that cannot be scored here")
    return "; ".join(remarks)


def _paper_rows(row: paper.PaperRow) -> Iterator[dict[str, Any]]:
    about = paper.about()
    mode = next((mode for mode in ("forced", "bound") if row.model.endswith(f"({mode})")), "plain")
    for benchmark, value in row.values.items():
        yield {
            "row": row.model if row.group != "rethinking" else f"{row.model}, {row.source}",
            "kind": "paper",
            "source": row.source,
            "model": row.model,
            "protocol": "the paper's",
            "decoding": "greedy",
            "mode": mode,
            "benchmark": benchmark,
            "split": about["splits"][benchmark],
            "title": about["columns"][benchmark],
            "value": value / 100,
            "mark": about["marks"][row.marks[benchmark]] if benchmark in row.marks else "",
        }
