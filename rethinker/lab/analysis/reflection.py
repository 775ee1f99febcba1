"""Tables about reflection, from run files: how often, where, in which words, and whether it pays.

A first response y1 reflects when it holds a word of ``rethink.REFLECTION_PATTERN`` that was not forced. Intervals are
95% and take queries as clusters. Files that are missing or broken raise what ``rethinker/rundir/reader.py`` raises.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as parquet
from pyarrow import ArrowException

from rethinker.evaluation.statistics import Z95, clustered
from rethinker.grading import extract_boxed, grade_many
from rethinker.lab.analysis.diagnostics import KEYS, OUTCOMES
from rethinker.rethink import REFLECTION_PATTERN, TRIGGERS
from rethinker.rundir.paths import RunDir
from rethinker.rundir.reader import Stamp, load_evaluations, load_rollouts, rollout_stamps

PAYS = ("what", "key", "value", "low", "high", "groups", "queries", "with_reflection", "without_reflection")

# Words that say nothing about reflecting; "wait", "let's", "again", "wrong" and their like are not among them.
_STOP = (
    "a an and are as at be been but by can do does for from had has have i if in into is it its of on or our so that "
    "the their them then there these they this those to was we were what which will with you your"
)
STOP_WORDS = frozenset(_STOP.split())


@lru_cache(maxsize=2)  # several figures ask
def _first_responses(run: Path, stamps: tuple[Stamp, ...]) -> pd.DataFrame:
    """One row per first response; ``stamps``: the files that this was read from."""
    rows = load_rollouts(run, ["episode", "stage", "qid", "category", "level", "pass", "correct", "reflects"])
    rows = rows[rows["pass"] == "first"].drop(columns="pass")
    return rows.astype({"correct": float, "reflects": bool}).reset_index(drop=True)


def reflection_over_time(run: str | Path, by: str | None = None) -> pd.DataFrame:
    """An episode (and ``by``: category or level): responses, ``reflects`` (their number), ``share``."""
    keys = ["episode", *_split(by), "stage"]
    rows = _first_responses(Path(run), rollout_stamps(run))
    table = rows.groupby(keys, as_index=False).agg(responses=("reflects", "size"), reflects=("reflects", "sum"))
    return table.assign(share=table["reflects"] / table["responses"])


def reflection_by(run: str | Path, by: str | None = None) -> pd.DataFrame:
    """A stage (and ``by``): the share of y1 that reflect with its interval, n responses, clusters queries.

    Stages come in the order of the run, in each what it is split by in its own.
    """
    rows = _first_responses(Path(run), rollout_stamps(run))
    rows = rows.assign(stage=pd.Categorical(rows["stage"], rows["stage"].unique(), ordered=True))
    keys = ["stage", *_split(by)]
    table = []
    for key, part in rows.groupby(keys, observed=True):
        queries = part.groupby("qid")["reflects"].agg(["sum", "size"])
        estimate = clustered(queries["sum"].tolist(), queries["size"].tolist())
        table.append(dict(zip(keys, key, strict=True)) | estimate.to_dict())
    table = pd.DataFrame(table, columns=[*keys, "value", "low", "high", "n", "clusters"])
    return table.rename(columns={"value": "share"})


def _split(by: str | None) -> list[str]:
    if by is not None and by not in KEYS:
        raise ValueError(f"cannot split by {by!r}; allowed are {' and '.join(KEYS)}")
    return [] if by is None else [by]


def does_reflection_pay(run: str | Path) -> pd.DataFrame:
    """Accuracy of y1 that reflect minus accuracy of y1 that do not (columns: ``PAYS``).

    ``what`` "raw": all responses together, where difficulty and training time are confounded with reflecting.
    "within": inside groups (the responses of one query in one episode, written by one policy), which neither can
    confound; then the same by "level" and "category" (``key``). Only groups that hold both sorts count. A group's
    difference has the weight n1 n0 / (n1 + n0), which is the least-squares estimate with a constant for each group.
    The variance is that of sums over queries (all their episodes), linearised. Without groups (or queries, for the
    interval) value (low, high) are NaN. It is a comparison and no experiment: which responses of a group reflect is
    the policy's choice.
    """
    rows = _first_responses(Path(run), rollout_stamps(run))
    groups = _paired_groups(rows)
    table = [_raw_difference(rows), _within("within", "all", groups)]
    for by in KEYS[::-1]:
        if groups[by].nunique() > 1:
            table += [_within(by, str(key), part) for key, part in groups.groupby(by)]
    return pd.DataFrame(table, columns=list(PAYS))


def _paired_groups(rows: pd.DataFrame) -> pd.DataFrame:
    """Groups with both sorts: qid, category, level, difference, weight, n1 and n0 (reflecting and other responses)."""
    keys = ["episode", "qid", "category", "level"]
    cells = rows.groupby([*keys, "reflects"], dropna=False)["correct"].agg(["mean", "size"]).unstack("reflects")
    cells = cells.reindex(columns=pd.MultiIndex.from_product([["mean", "size"], [False, True]])).dropna()
    n0, n1 = cells["size"][False], cells["size"][True]
    difference = cells["mean"][True] - cells["mean"][False]
    columns = {"difference": difference, "weight": n0 * n1 / (n0 + n1), "n1": n1, "n0": n0}
    return pd.DataFrame(columns, index=cells.index).reset_index()


def _within(what: str, key: str, groups: pd.DataFrame) -> dict[str, Any]:
    weight = float(groups["weight"].sum())
    value = float((groups["weight"] * groups["difference"]).sum() / weight) if weight else math.nan
    residuals = (groups["weight"] * (groups["difference"] - value)).groupby(groups["qid"]).sum()
    spread = _spread(residuals.to_numpy(float), weight)
    counts = {"groups": len(groups), "queries": len(residuals)}
    sorts = {"with_reflection": int(groups["n1"].sum()), "without_reflection": int(groups["n0"].sum())}
    return {"what": what, "key": key} | _around(value, spread) | counts | sorts


def _raw_difference(rows: pd.DataFrame) -> dict[str, Any]:
    reflects = rows["reflects"]
    n1, n0 = int(reflects.sum()), int((~reflects).sum())
    value = spread = math.nan
    if n1 and n0:
        with_it, without = rows.loc[reflects, "correct"].mean(), rows.loc[~reflects, "correct"].mean()
        value = float(with_it - without)
        terms = np.where(reflects, (rows["correct"] - with_it) / n1, (without - rows["correct"]) / n0)
        spread = _spread(pd.Series(terms).groupby(rows["qid"].to_numpy()).sum().to_numpy(), 1.0)
    groups = len(rows[["episode", "qid"]].drop_duplicates())
    counts = {"groups": groups, "queries": rows["qid"].nunique(), "with_reflection": n1, "without_reflection": n0}
    return {"what": "raw", "key": "all"} | _around(value, spread) | counts


def _spread(sums: np.ndarray, weight: float) -> float:
    """1.96 standard errors of an estimate whose clusters have the residual ``sums``."""
    count = len(sums)
    return Z95 * math.sqrt(float((sums**2).sum()) * count / (count - 1)) / weight if count > 1 else math.nan


def _around(value: float, spread: float) -> dict[str, float]:
    """A difference of shares lies in [-1, 1]; NaN stays NaN."""
    low, high = (math.nan, math.nan) if math.isnan(spread) else (max(-1.0, value - spread), min(1.0, value + spread))
    return {"value": value, "low": low, "high": high}


def self_corrections(run: str | Path) -> pd.DataFrame:
    """What unforced reflection did to held-out answers: label, responses, queries, counts of ``OUTCOMES``, ungraded.

    Sampled plain responses that reflect (greedy ones are others: the same policy, decoded in another way) are cut where
    their reflection begins; the answer before it is graded and compared with the verdict on the whole. ``rescued``:
    share right after it, of those wrong before; ``lost``: share wrong after it, of those right before; with intervals.
    ``ungraded``: responses without an answer before it.
    """
    table = []
    for label in load_evaluations(run):
        path = RunDir(run).evaluation_rows(label)
        names = ["qid", "mode", "greedy", "gold", "question", "text", "correct"]
        try:
            rows = parquet.read_table(path, columns=names).to_pandas()
        except (ArrowException, OSError) as error:
            raise ValueError(f"{path} cannot be read ({error}); evaluate again") from error
        rows = rows[(rows["mode"] == "plain") & ~rows["greedy"].astype(bool)]
        found = [REFLECTION_PATTERN.search(text) for text in rows["text"]]
        parts = [
            (row, row["text"][: match.start()])
            for row, match in zip(rows.to_dict("records"), found, strict=True)
            if match
        ]
        known = [(row, first) for row, first in parts if extract_boxed(first) is not None]
        grades = grade_many([(first, row["gold"], row["question"]) for row, first in known])
        known_first = [grade.correct for grade in grades]
        table.append({"label": label} | _changes([row for row, _ in known], known_first, len(parts) - len(known)))
    columns = [f"{name}{part}" for name in ("rescued", "lost") for part in ("", "_low", "_high")]
    return pd.DataFrame(table, columns=["label", "responses", "queries", *OUTCOMES, *columns, "ungraded"])


def _changes(rows: list[dict[str, Any]], first: list[bool], ungraded: int) -> dict[str, Any]:
    """From the verdicts before (``first``) and after reflection of the same responses to a line of the table."""
    frame = pd.DataFrame(
        {
            "qid": [row["qid"] for row in rows],
            "first": pd.Series(first, dtype=bool),
            "last": pd.Series([bool(row["correct"]) for row in rows], dtype=bool),
        }
    )
    line: dict[str, Any] = {"responses": len(rows), "queries": frame["qid"].nunique(), "ungraded": ungraded}
    word = {True: "right", False: "wrong"}
    for name in OUTCOMES:
        before, _, after = name.partition("_to_")
        line[name] = int(((frame["first"].map(word) == before) & (frame["last"].map(word) == after)).sum())
    for name, start in (("rescued", False), ("lost", True)):
        part = frame[frame["first"] == start]
        changed = (part["last"] != start).groupby(part["qid"]).agg(["sum", "size"])
        estimate = clustered(changed["sum"].tolist(), changed["size"].tolist())
        line |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return line


def reflection_words(run: str | Path, count: int = 40) -> pd.DataFrame:
    """Fig. 3: the ``count`` most frequent words from the reflection on, in y1 that reflect (all episodes).

    word, responses (that hold it), ``share`` (of the reflecting ones) with its interval ``low`` and ``high``,
    ``before`` (share of the same responses that hold it before the reflection begins) and ``forced`` (share of the
    forced second looks that hold it after the trigger's words, up to a reflection of their own; NaN if there is none).
    ``attrs``: reflecting and queries (responses that reflect, and their queries), forced (second looks).
    A word counts once per response; STOP_WORDS, numbers, single letters and LaTeX commands are left out.
    """
    return _words(Path(run), rollout_stamps(run), count).copy()


@lru_cache(maxsize=2)  # both themes ask
def _words(run: Path, stamps: tuple[Stamp, ...], count: int) -> pd.DataFrame:
    rows = load_rollouts(run, ["pass", "qid", "text", "trigger", "first_text"])
    first, forced = rows[rows["pass"] == "first"], rows[rows["pass"] == "forced"]
    cut = [(qid, *_split_reflection(text)) for qid, text in zip(first["qid"], first["text"], strict=True)]
    reflecting = [(qid, before, after) for qid, before, after in cut if after]
    inside = _counts(after for _, _, after in reflecting)
    before = _counts(text for _, text, _ in reflecting)
    second = _counts(_second_look(row) for row in forced.to_dict("records"))
    shown = sorted(inside, key=lambda word: (-inside[word], word))[:count]
    sizes = Counter(qid for qid, _, _ in reflecting)
    holding: dict[str, Counter[str]] = {word: Counter() for word in shown}
    for qid, _, after in reflecting:
        for word in words(after) & holding.keys():
            holding[word][qid] += 1
    table = []
    for word in shown:
        estimate = clustered([holding[word][qid] for qid in sizes], list(sizes.values()))
        shares = (estimate.value, estimate.low, estimate.high, before[word] / len(reflecting))
        table.append((word, inside[word], *shares, second[word] / len(forced) if len(forced) else math.nan))
    found = pd.DataFrame(table, columns=["word", "responses", "share", "low", "high", "before", "forced"])
    found.attrs |= {"reflecting": len(reflecting), "queries": len(sizes), "forced": len(forced)}
    return found


def _split_reflection(text: str) -> tuple[str, str]:
    """A response up to where its reflection begins, and the rest ("" where it does not reflect)."""
    match = REFLECTION_PATTERN.search(text)
    return (text[: match.start()], text[match.start() :]) if match else (text, "")


def _second_look(row: dict[str, Any]) -> str:
    """What a forced trajectory says after the trigger's words, up to a reflection of its own."""
    given = row["first_text"] + TRIGGERS[row["trigger"]]
    return _split_reflection(row["text"].removeprefix(given))[0]


def _counts(texts: Iterable[str]) -> Counter[str]:
    """In how many texts each word is."""
    found: Counter[str] = Counter()
    for text in texts:
        found.update(words(text))
    return found


def words(text: str) -> set[str]:
    """The different words of a text in lower case, without STOP_WORDS, numbers, single letters and LaTeX commands."""
    plain = re.sub(r"\\[A-Za-z]+", " ", text).lower().replace("\u2019", "'")
    return set(re.findall(r"[^\W\d_]{2,}(?:['-][^\W\d_]+)*", plain)) - STOP_WORDS
