"""From the files of a run to tables (pandas). Pure functions: a run's folder in, a table out; nothing is written.

What the columns of ``metrics.jsonl`` and of the roll-outs mean is said in ``rethinker/glossary.py``. A missing file
raises FileNotFoundError, a broken one ValueError, both with the path and what to do. A last line of ``metrics.jsonl``
that a crash cut short is left out and noted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as parquet
from pyarrow import ArrowException

from rethinker.glossary import COORDINATES, RECORDS, ROLLOUT_COLUMNS

OUTCOMES = ("wrong_to_right", "right_to_wrong", "right_to_right", "wrong_to_wrong")


@dataclass(frozen=True)
class Metrics:
    """The records of ``metrics.jsonl`` by kind, with every column of the glossary; notes say what was left out."""

    episodes: pd.DataFrame
    steps: pd.DataFrame
    validations: pd.DataFrame
    notes: tuple[str, ...] = ()

    def stages(self) -> pd.DataFrame:
        """stage, first and last episode, and updates made before it (``step``), in order of the episodes."""
        rows = self.episodes
        table = rows.groupby("stage", sort=False).agg(first=("episode", "min"), last=("episode", "max"))
        ends = rows.groupby("stage", sort=False)["step"].max()
        table["step"] = ends.shift(fill_value=0).astype(int)
        return table.reset_index()


def load_metrics(run: str | Path) -> Metrics:
    """Every record of a run. After a resume the records written again replace those of the time that was lost."""
    path = Path(run) / "metrics.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: is {run} the folder of a run, and has its first episode ended?")
    found = _parse_metrics(_stamp(path))
    return Metrics(found.episodes.copy(), found.steps.copy(), found.validations.copy(), found.notes)


Stamp = tuple[Path, int, int]  # a file as it is now: path, time of its last change, bytes


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return path, status.st_mtime_ns, status.st_size


@lru_cache(maxsize=8)  # a report asks some forty times
def _parse_metrics(stamp: Stamp) -> Metrics:
    path = stamp[0]
    lines = path.read_bytes().split(b"\n")
    notes = []
    kept: dict[str, list[dict[str, Any]]] = {kind: [] for kind in RECORDS}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            if number == len(lines):  # no newline after it: the writer was stopped here
                notes.append(f"{path.name}: the last line ({number}) is cut short and was left out.")
                continue
            raise ValueError(f"{path}, line {number}: not valid JSON ({error}); remove the line by hand") from error
        if (
            not isinstance(record, dict)
            or record.get("record") not in RECORDS
            or not {"episode", "step"} <= set(record)
        ):
            raise ValueError(
                f"{path}, line {number}: not a record of a run (needs record: {', '.join(RECORDS)}; episode; step)"
            )
        _append(kept[record["record"]], record)
    frames = {}
    for kind, names in RECORDS.items():
        columns = list(COORDINATES) + list(names)
        extra = sorted({name for record in kept[kind] for name in record} - set(columns))
        frame = pd.DataFrame(kept[kind], columns=columns + extra)
        numeric = [name for name in columns if name not in ("record", "stage") and not name.startswith("advantages/")]
        try:
            frame[numeric] = frame[numeric].apply(pd.to_numeric)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: a {kind} record holds a value that is not a number: {error}") from error
        frames[kind] = frame
    return Metrics(frames["episode"], frames["step"], frames["validation"], tuple(notes))


def _append(records: list[dict[str, Any]], record: dict[str, Any]) -> None:
    """Add a record; what an earlier life of the run wrote for the same time or later goes."""

    def at(item: dict[str, Any]) -> tuple[int, int]:
        return item["episode"], item["step"]

    while records and (
        at(records[-1]) > at(record) or (at(records[-1]), records[-1].get("stage")) == (at(record), record.get("stage"))
    ):
        records.pop()
    records.append(record)


def load_rollouts(run: str | Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """All responses of all episodes; ``columns`` of glossary.ROLLOUT_COLUMNS (None: all)."""
    wanted = list(ROLLOUT_COLUMNS) if columns is None else list(columns)
    folder = Path(run) / "rollouts"
    paths = sorted(folder.glob("episode-*.parquet"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no episode-*.parquet: has the run's first episode ended?")
    return pd.concat([load_episode(path, wanted) for path in paths], ignore_index=True)


def load_episode(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """The responses of one episode, from its file."""
    try:
        with parquet.ParquetFile(path) as file:
            missing = sorted(set(columns) - set(file.schema_arrow.names))
            table = None if missing else file.read(columns=list(columns)).to_pandas()
    except (ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}); move it away to go on without this episode") from error
    if table is None:
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}: was it written by another version?")
    return table


def vanishing(run: str | Path, by: str | None = None) -> pd.DataFrame:
    """Fig. 2 from the roll-outs: shares of queries by their first responses, an episode (and ``by``: category, level).

    effective + all_correct + all_incorrect = 1. ``wasted_tokens``: share of the tokens of first responses that were
    generated for queries without signal.
    """
    keys = ["episode"] + ([by] if by else [])
    stamps = tuple(_stamp(path) for path in sorted((Path(run) / "rollouts").glob("episode-*.parquet")))
    table = (
        _first_queries(Path(run), stamps)
        .groupby([*keys, "stage"], as_index=False)
        .agg(
            queries=("qid", "size"),
            effective=("effective", "mean"),
            all_correct=("all_correct", "mean"),
            all_incorrect=("all_incorrect", "mean"),
            wasted_tokens=("wasted", "sum"),
            tokens=("tokens", "sum"),
        )
    )
    table["wasted_tokens"] /= table["tokens"].where(table["tokens"] > 0)
    return table


@lru_cache(maxsize=2)  # several figures ask
def _first_queries(run: Path, stamps: tuple[Stamp, ...]) -> pd.DataFrame:
    """A row a query and episode: how its first responses went. ``stamps``: the files that this was read from."""
    keys = ["episode", "stage", "qid", "category", "level"]
    rows = load_rollouts(run, [*keys, "pass", "correct", "tokens"])
    rows = rows[rows["pass"] == "first"]
    queries = rows.groupby(keys, as_index=False, dropna=False).agg(
        accuracy=("correct", "mean"), tokens=("tokens", "sum")
    )
    queries["all_correct"] = queries["accuracy"] == 1
    queries["all_incorrect"] = queries["accuracy"] == 0
    queries["effective"] = ~queries["all_correct"] & ~queries["all_incorrect"]
    queries["wasted"] = queries["tokens"].where(~queries["effective"], 0)
    return queries


def advantage_histograms(run: str | Path) -> pd.DataFrame:
    """Fig. 6: a row a bin: episode, stage, which (before: all samples, after: trained ones), left, right, count."""
    rows = []
    for record in load_metrics(run).episodes.to_dict("records"):
        for which in ("before", "after"):
            histogram = record[f"advantages/{which}"]
            if not isinstance(histogram, dict):
                continue
            edges, counts = histogram["edges"], histogram["counts"]
            if len(edges) != len(counts) + 1:
                raise ValueError(
                    f"{run}: advantages/{which} of episode {record['episode']} has {len(edges)} edges for "
                    f"{len(counts)} counts"
                )
            rows += [
                (record["episode"], record["stage"], which, left, right, count)
                for left, right, count in zip(edges[:-1], edges[1:], counts, strict=True)
            ]
    return pd.DataFrame(rows, columns=["episode", "stage", "which", "left", "right", "count"])


def validation_curve(run: str | Path) -> pd.DataFrame:
    """Fig. 5: episode, step, stage, accuracy with its interval, queries, reflection, length_mean."""
    rows = load_metrics(run).validations
    names = [name for name in rows.columns if name.startswith("validation/")]
    table = rows[["episode", "step", "stage", *names]]
    return table.rename(columns={name: name.removeprefix("validation/") for name in names})


def rethinking_outcomes(run: str | Path) -> pd.DataFrame:
    """Forced Rethinking, an episode: shares of first responses (eligible, forced, kept), of forced ones (outcomes).

    ``rescued``: right after the second look, of those wrong before; ``lost``: wrong after it, of those right before.
    """
    rows = load_metrics(run).episodes
    names = [name for name in rows.columns if name.startswith("rethink/")]
    table = rows[["episode", "step", "stage", *names]]
    table = table.rename(columns={name: name.removeprefix("rethink/") for name in names})
    wrong = table["wrong_to_right"] + table["wrong_to_wrong"]
    right = table["right_to_wrong"] + table["right_to_right"]
    table["rescued"] = table["wrong_to_right"] / wrong.where(wrong > 0)
    table["lost"] = table["right_to_wrong"] / right.where(right > 0)
    return table


def failures(run: str | Path) -> pd.DataFrame:
    """What went wrong, an episode: counts of truncated, empty, unanswered and ungradable responses; skipped steps."""
    rows = load_metrics(run).episodes
    names = ["rollout/responses", "rollout/truncated", "rollout/empty", "grader/no_answer", "grader/failures"]
    return rows[["episode", "stage", *names, "replay/skipped_steps"]]


def load_evaluations(run: str | Path) -> dict[str, dict[str, Any]]:
    """The summaries ``evaluation/<label>.json`` by label, oldest first; {} if there are none yet.

    "start" comes first, the stages follow in the order in which they were trained, then what else there is.
    """
    folder = Path(run) / "evaluation"
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            summary = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON ({error}); evaluate again") from error
        if not isinstance(summary, dict) or "modes" not in summary:
            raise ValueError(f"{path} is not the summary of an evaluation; evaluate again")
        found[path.stem] = summary
    order = ["start"]
    if (Path(run) / "metrics.jsonl").is_file():
        order += load_metrics(run).stages()["stage"].tolist()
    return {
        label: found[label] for label in sorted(found, key=lambda x: (order.index(x) if x in order else len(order), x))
    }


def fig7_table(run: str | Path) -> pd.DataFrame:
    """Fig. 7: label, mode, measure (greedy, pass@k), value, low, high, n, clusters, and the mode's rethinking ratio."""
    rows = []
    for label, summary in load_evaluations(run).items():
        for mode, result in summary["modes"].items():
            ratio = result["rethinking"]["value"]
            rows += [
                {"label": label, "mode": mode, "measure": measure, **estimate, "rethinking": ratio}
                for measure, estimate in result.items()
                if measure == "greedy" or measure.startswith("pass@")
            ]
    return pd.DataFrame(
        rows, columns=["label", "mode", "measure", "value", "low", "high", "n", "clusters", "rethinking"]
    )


def accuracy_by(run: str | Path, by: str) -> pd.DataFrame:
    """Held-out accuracy by ``by`` (category or level): label, mode, the key, measure, value, low, high, n, clusters."""
    if by not in ("category", "level"):
        raise ValueError(f"accuracy_by: {by!r}; allowed are category and level")
    rows = [
        {"label": label, "mode": mode, by: key, "measure": measure, **estimate}
        for label, summary in load_evaluations(run).items()
        for mode, keys in summary[f"by_{by}"].items()
        for key, result in keys.items()
        for measure, estimate in result.items()
    ]
    return pd.DataFrame(rows, columns=["label", "mode", by, "measure", "value", "low", "high", "n", "clusters"])


def evaluation_outcomes(run: str | Path) -> pd.DataFrame:
    """How a forced second look changed held-out answers: label, decoding, counts, and rescued / lost with intervals.

    Row ``kind`` "forced" is the second look, "independent" a second sample that knows nothing of the first.
    """
    rows = []
    for label, summary in load_evaluations(run).items():
        result = summary["modes"].get("forced")
        if result is None:
            continue
        for decoding in ("greedy", "sampled"):
            outcomes = result["outcomes"][decoding]
            if outcomes["forced"]:
                rows.append(_outcome_row(label, decoding, "forced", outcomes) | outcomes["counts"])
        if result["independent"]:
            rows.append(_outcome_row(label, "sampled", "independent", result["independent"]))
    columns = ["label", "decoding", "kind", "forced", *OUTCOMES]
    columns += [f"{name}{part}" for name in ("rescued", "lost") for part in ("", "_low", "_high", "_n")]
    return pd.DataFrame(rows, columns=columns)


def _outcome_row(label: str, decoding: str, kind: str, outcomes: dict[str, Any]) -> dict[str, Any]:
    row = {"label": label, "decoding": decoding, "kind": kind, "forced": outcomes.get("forced")}
    for name in ("rescued", "lost"):
        estimate = outcomes[name]
        row |= {name: estimate["value"], f"{name}_n": estimate["n"]}
        row |= {f"{name}_low": estimate["low"], f"{name}_high": estimate["high"]}
    return row
