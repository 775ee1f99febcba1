"""The result of an evaluation: one row per response, and everything that is counted from the rows."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd

from rethinker.evaluation.statistics import Estimate, binomial, clustered, mean_pass_at_k, pass_sizes
from rethinker.rundir.atomic import atomic_write_bytes, atomic_write_text, read_json
from rethinker.rundir.paths import RunDir

MODES = ("plain", "forced", "bound")

COLUMNS = {
    "qid": "id of the query",
    "category": "kind of question",
    "level": "difficulty, 0 if the data set has none",
    "mode": "plain, forced or bound",
    "greedy": "decoded greedily; False: sampled",
    "index": "number of the sample of its query, from 0",
    "text": "the whole response, with trigger and second look where forced",
    "tokens": "its length, EOS and trigger included",
    "finished": "ended with EOS",
    "correct": "the grader's verdict on the final answer",
    "extracted": "the answer that the grader found",
    "grade_reason": "how the verdict was reached",
    "reflects": "the first response contains a reflection of its own (never looks at the forced trigger)",
    "first_correct": "correctness of the first response",
    "first_text": "the first response",
    "trigger": "kind of the forced trigger; null if the response was not continued",
    "images": "image paths",
    "question": "the question's text",
    "gold": "the gold answer",
}
TYPES = {"level": "int64", "index": "int64", "tokens": "int64"} | {
    name: "bool" for name in ("greedy", "finished", "correct", "reflects", "first_correct")
}
OUTCOMES = ("wrong_to_right", "right_to_wrong", "right_to_right", "wrong_to_wrong")


def empty_rows() -> pd.DataFrame:
    """No rows, with every column and its type (a rank whose shard of the queries is empty)."""
    return pd.DataFrame({name: pd.Series(dtype=TYPES.get(name, "object")) for name in COLUMNS})


@dataclass(frozen=True)
class Evaluation:
    """Rows (columns: ``COLUMNS``) of ``modes``, each with one greedy and ``samples`` sampled responses per query."""

    rows: pd.DataFrame
    modes: tuple[str, ...]
    samples: int
    settings: dict[str, Any]

    @staticmethod
    def merge(parts: Sequence[Evaluation]) -> Evaluation:
        """The evaluation of all queries from those of shards of them (one per rank).

        Raises ValueError if the parts were made differently or share a query.
        """
        if not parts:
            raise ValueError("Evaluation.merge: no parts")
        first = parts[0]
        for part in parts[1:]:
            if (part.modes, part.samples, part.settings) != (first.modes, first.samples, first.settings):
                raise ValueError("Evaluation.merge: the parts have different modes, samples or settings")
        qids = [qid for part in parts for qid in part.rows["qid"].unique()]
        if len(set(qids)) != len(qids):
            twice = next(qid for qid in qids if qids.count(qid) > 1)
            raise ValueError(f"Evaluation.merge: query {twice!r} is in more than one part; shard without overlap")
        filled = [part.rows for part in parts if len(part.rows)]
        rows = pd.concat(filled, ignore_index=True) if filled else empty_rows()
        order = {mode: position for position, mode in enumerate(first.modes)}
        rows = rows.sort_values(  # the same file however the queries were sharded
            ["mode", "qid", "greedy", "index"],
            key=lambda column: column.map(order) if column.name == "mode" else column,
            ignore_index=True,
        )
        return Evaluation(rows, first.modes, first.samples, first.settings)

    def validation_metrics(self) -> dict[str, float | int | None]:
        """The metrics of a validation record (glossary.VALIDATION) from the greedy plain responses."""
        rows = self.rows[(self.rows["mode"] == "plain") & self.rows["greedy"]]
        accuracy = binomial(rows["correct"].tolist())
        return {
            "validation/accuracy": accuracy.value,
            "validation/low": accuracy.low,
            "validation/high": accuracy.high,
            "validation/queries": accuracy.n,
            "validation/reflection": _mean(rows["reflects"]),
            "validation/length_mean": _mean(rows["tokens"]),
        }

    def summary(self) -> dict[str, Any]:
        """Counts and shares for ``<label>.json``; every accuracy is {value, low, high, n, clusters}.

        ``modes.<mode>``: greedy, pass@k for powers of two and k = samples, ``rethinking`` (share of sampled responses
        that reflect by themselves or were forced), tokens, finished; for forced modes ``outcomes``: how the answers
        changed, and ``independent``: the same for a second *independent* sample in place of a second look, of the same
        first responses: each that was continued with each other sample of its query. (Responses that are cut at the
        token limit get no second look; they are the hard ones, and would count against resampling only.) ``rescued``
        is wrong_to_right as a share of wrong first answers, ``lost`` is right_to_wrong as a share of right ones. Also
        ``by_category`` and ``by_level``: the same accuracies.
        """
        if self.rows.empty:
            raise ValueError("an evaluation without responses has no summary")
        result: dict[str, Any] = {
            "queries": int(self.rows["qid"].nunique()),
            "samples": self.samples,
            "settings": self.settings,
            "grading": _counts(self.rows),
            "modes": {},
            "by_category": {},
            "by_level": {},
        }
        for mode in self.modes:
            rows = self.rows[self.rows["mode"] == mode]
            result["modes"][mode] = self._accuracies(rows) | self._behaviour(rows)
            for name, column in (("by_category", "category"), ("by_level", "level")):
                result[name][mode] = {str(key): self._accuracies(part) for key, part in rows.groupby(column)}
        return result

    def _accuracies(self, rows: pd.DataFrame) -> dict[str, Any]:
        greedy = binomial(rows.loc[rows["greedy"], "correct"].tolist())
        result = {"greedy": greedy.to_dict()}
        if self.samples:
            grouped = rows[~rows["greedy"]].groupby("qid")["correct"]
            counts = {str(qid): (len(values), int(values.sum())) for qid, values in grouped}
            for k in pass_sizes(self.samples):
                result[f"pass@{k}"] = mean_pass_at_k(counts, k).to_dict()
        return result

    def _behaviour(self, rows: pd.DataFrame) -> dict[str, Any]:
        part = rows[~rows["greedy"]] if self.samples else rows
        result: dict[str, Any] = {
            "reflection": _share(part, part["reflects"]).to_dict(),
            "rethinking": _share(part, part["reflects"] | part["trigger"].notna()).to_dict(),
            "tokens_mean": _mean(part["tokens"]),
            "finished": _mean(part["finished"]),
        }
        if rows["mode"].iloc[0] != "plain":
            result["outcomes"] = {
                "greedy": _outcomes(rows[rows["greedy"]]),
                "sampled": _outcomes(rows[~rows["greedy"]]),
            }
            result["independent"] = _independent(rows[~rows["greedy"]], self.samples)
        return result

    def save(self, folder: str | PathLike[str], label: str) -> Path:
        """Write ``<folder>/evaluation/<label>.parquet`` and ``.json`` (the summary); returns the JSON's path.

        folder: the run's. label: "start" before training, later the stage's name. The parquet is written first, so a
        JSON never stands alone.
        """
        if not label or "/" in label or label.startswith("."):
            raise ValueError(f"evaluation label {label!r} is not a file name")
        summary = {"label": label, "modes_evaluated": list(self.modes)} | self.summary()
        buffer = io.BytesIO()
        self.rows.to_parquet(buffer, index=False)
        atomic_write_bytes(RunDir(folder).evaluation_rows(label), buffer.getvalue())
        text = json.dumps(summary, indent=1, allow_nan=False) + "\n"
        return atomic_write_text(RunDir(folder).evaluation(label), text)


def load(folder: str | PathLike[str], label: str) -> Evaluation:
    """The evaluation that ``Evaluation.save(folder, label)`` wrote. Raises FileNotFoundError or ValueError."""
    run = RunDir(folder)
    file, responses = run.evaluation(label), run.evaluation_rows(label)
    for path in (responses, file):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: run `rethinker evaluate` on this run first")
    summary = read_json(file)
    rows = pd.read_parquet(responses)
    rows["images"] = [list(paths) for paths in rows["images"]]
    return Evaluation(rows, tuple(summary["modes_evaluated"]), int(summary["samples"]), summary["settings"])


def _mean(values: pd.Series) -> float | None:
    return float(values.mean()) if len(values) else None


def _share(rows: pd.DataFrame, hit: pd.Series) -> Estimate:
    """The share of ``hit`` with the queries as clusters."""
    grouped = hit.astype(float).groupby(rows["qid"])
    return clustered(grouped.sum().tolist(), grouped.size().tolist())


def _counts(rows: pd.DataFrame) -> dict[str, int]:
    reasons = rows["grade_reason"].value_counts()
    return {str(reason): int(count) for reason, count in sorted(reasons.items())}


def _outcomes(rows: pd.DataFrame) -> dict[str, Any]:
    """How the forced second look changed the answer, over the responses that were continued."""
    forced = rows[rows["trigger"].notna()]
    first, final = forced["first_correct"], forced["correct"]
    hits = dict(zip(OUTCOMES, (~first & final, first & ~final, first & final, ~first & ~final), strict=True))
    return {
        "forced": len(forced),
        "responses": len(rows),
        "counts": {name: int(hit.sum()) for name, hit in hits.items()},
        "rescued": _share(forced[~first], final[~first]).to_dict(),
        "lost": _share(forced[first], ~final[first]).to_dict(),
    }


def _independent(rows: pd.DataFrame, samples: int) -> dict[str, Any] | None:
    """What an independent second sample does: over the ordered pairs of a first response that was continued and another
    of its query. Needs 2 samples."""
    if samples < 2:
        return None
    continued = rows["trigger"].notna()
    first = rows["first_correct"].astype(bool)
    # Of each query: first responses that are right, and the continued ones that are right, and wrong.
    right, from_right, from_wrong = (
        hit.groupby(rows["qid"]).sum().to_numpy() for hit in (first, first & continued, ~first & continued)
    )
    return {
        "rescued": clustered((from_wrong * right).tolist(), (from_wrong * (samples - 1)).tolist()).to_dict(),
        "lost": clustered((from_right * (samples - right)).tolist(), (from_right * (samples - 1)).tolist()).to_dict(),
    }
