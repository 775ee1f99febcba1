"""Real responses of a run in which rethinking changed the answer, for reading."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow.parquet as parquet
from pyarrow import ArrowException

from rethinker.grading import extract_boxed, grade_many
from rethinker.lab.analysis.diagnostics import load_episode, load_evaluations
from rethinker.rethink import REFLECTION_PATTERN
from rethinker.rundir.paths import RunDir
from rethinker.rundir.reader import split_looks

COLUMNS = {
    "source": "where it comes from, in words",
    "qid": "id of the query",
    "category": "kind of question",
    "level": "difficulty",
    "question": "the question's text",
    "gold": "the gold answer",
    "images": "image paths",
    "first": "the response up to the second look",
    "second": "the second look, from its first word (or the forced trigger) on",
    "forced": "the trigger was forced; False: the policy reflected by itself",
    "first_answer": "the answer of the first part",
    "final_answer": "the final answer",
    "first_correct": "the first part's verdict",
    "correct": "the verdict on the whole",
}

ROLLOUT = (
    "qid", "category", "level", "question", "gold", "images", "pass", "text", "correct", "extracted", "first_text",
    "first_correct",
)  # fmt: skip


def changed_responses(run: str | Path, n: int) -> pd.DataFrame:
    """Up to ``n`` responses (columns: ``COLUMNS``) whose second look changed the verdict, each of another query.

    First what the last evaluation's plain responses did by themselves, then forced second looks on held-out queries,
    then those of training, latest first. Three quarters wrong->right where there are enough right->wrong for the
    rest, at least one of each if there is one. Within these the kinds of question take turns in order of qid: not
    hand-picked. Raises ValueError if ``n`` is below 1.
    """
    if n < 1:
        raise ValueError(f"{n} responses cannot be shown: give 1 or more")
    sources = [*_held_out(run), _training(run, n)]
    table = pd.concat([source for source in sources if len(source)] or [_table([])], ignore_index=True)
    table = table[table["first_correct"] != table["correct"]]
    rescued, lost = (table[table["correct"] == right].drop_duplicates("qid") for right in (True, False))
    lost = _turns(lost).head(max(n // 4, n - len(rescued), 1 if n > 1 else 0))
    rescued = _turns(rescued[~rescued["qid"].isin(lost["qid"])]).head(n - len(lost))
    return pd.concat([rescued, lost], ignore_index=True)


def _turns(table: pd.DataFrame) -> pd.DataFrame:
    """By order of source, and within a source the first of every category, then the second of every one, ..."""
    source = table["source"].map({name: position for position, name in enumerate(table["source"].unique())})
    table = table.assign(_source=source).sort_values(["_source", "qid"], kind="stable")
    table["_turn"] = table.groupby(["_source", "category"]).cumcount()
    return table.sort_values(["_source", "_turn", "category"], kind="stable").drop(columns=["_source", "_turn"])


def _held_out(run: str | Path) -> list[pd.DataFrame]:
    labels = list(load_evaluations(run))[::-1]
    found = []
    for position, label in enumerate(labels):
        path = RunDir(run).evaluation_rows(label)
        try:
            rows = parquet.read_table(path).to_pandas()
        except (ArrowException, OSError) as error:
            raise ValueError(f"{path} cannot be read ({error}); evaluate again") from error
        if position == 0:
            found.append(_spontaneous(rows, f"held out, after {label}: by itself"))
        forced = rows[(rows["mode"] == "forced") & rows["trigger"].notna()]
        found.append(_forced(forced, f"held out, {_when(label)}: forced"))
    return found


def _when(label: str) -> str:
    return "before training" if label == "start" else f"after {label}"


def _spontaneous(rows: pd.DataFrame, source: str) -> pd.DataFrame:
    """Plain responses that reflect, cut at the first reflection word; the first part is graded here."""
    parts = []
    for row in rows[(rows["mode"] == "plain") & rows["reflects"]].to_dict("records"):
        match = REFLECTION_PATTERN.search(row["text"])
        if match and extract_boxed(row["text"][: match.start()]) is not None:
            parts.append((row, row["text"][: match.start()], row["text"][match.start() :]))
    grades = grade_many([(first, row["gold"], row["question"]) for row, first, _ in parts])
    return _table(
        [
            _entry(row, source, first, second, False, grade.correct)
            for (row, first, second), grade in zip(parts, grades, strict=True)
        ]
    )


def _training(run: str | Path, n: int) -> pd.DataFrame:
    """Forced second looks of training, latest episode first; no more episodes than ``n`` responses can come from."""
    found = []
    rescued: set[str] = set()
    lost: set[str] = set()
    most_lost = max(n // 4, 1)
    for episode, path in reversed(RunDir(run).all_rollouts().items()):
        rows = load_episode(path, ROLLOUT)
        rows = rows[rows["pass"] == "forced"]
        table = _forced(rows, f"training, episode {episode}: forced")
        found.append(table)
        rescued |= set(table["qid"][table["correct"]])
        lost |= set(table["qid"][~table["correct"]])
        if len(rescued) >= n + most_lost and len(lost) >= most_lost:  # a query that is shown as lost is not shown twice
            break
    return pd.concat([table for table in found if len(table)] or [_table([])], ignore_index=True)


def _forced(rows: pd.DataFrame, source: str) -> pd.DataFrame:
    changed = rows[rows["first_correct"].astype(bool) != rows["correct"]].to_dict("records")
    return _table(
        [
            _entry(row, source, *split_looks(row["text"], row["first_text"]), True, row["first_correct"])
            for row in changed
        ]
    )


def _entry(row: dict, source: str, first: str, second: str, forced: bool, first_correct: bool) -> dict:
    return {
        **{name: row[name] for name in ("qid", "category", "level", "question", "gold")},
        "source": source,
        "images": list(row["images"]),
        "first": first.strip(),
        "second": second.strip(),
        "forced": forced,
        "first_answer": extract_boxed(first),
        "final_answer": row["extracted"],
        "first_correct": first_correct,
        "correct": bool(row["correct"]),
    }


def _table(entries: list[dict]) -> pd.DataFrame:
    table = pd.DataFrame(entries, columns=list(COLUMNS))
    return table.astype({"first_correct": bool, "correct": bool, "forced": bool})
