"""The tidy tables: their columns, their files, and the rows of one variant.

They are all that figures, effects and verdicts read. ``collect`` makes them from the runs' folders.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from rethinker.rundir.atomic import atomic_write_bytes, atomic_write_text

RUN = ("grid", "variant", "seed")

EPISODE = {  # column of ``episodes`` -> metric of an episode's record
    "accuracy": "accuracy/first",
    "reward": "reward/mean",
    "effective": "queries/effective",
    "all_correct": "queries/all_correct",
    "all_incorrect": "queries/all_incorrect",
    "effective_before": "replay/effective_before",
    "effective_after": "replay/effective_after",
    "replayed": "replay/share",
    "batch_fill": "replay/batch_fill",
    "skipped_steps": "replay/skipped_steps",
    "reflection": "reflection/share",
    "accuracy_with": "reflection/accuracy_with",
    "accuracy_without": "reflection/accuracy_without",
    "length": "rollout/length_mean",
    "forced": "rethink/forced",
    "kept": "rethink/kept",
    "wrong_to_right": "rethink/wrong_to_right",
    "right_to_wrong": "rethink/right_to_wrong",
}
STEP = {"entropy": "policy/entropy", "grad_norm": "policy/grad_norm", "clip_fraction": "policy/clip_fraction"}
TIME = ("stage", "episode", "step", "tokens", "seconds")
PROGRESS = ("state", "episodes", "steps", "tokens", "seconds")
PLANNED = "not begun"  # state of a run that is in its grid's file only
MADE = ("commit", "engine", "versions", "data", "config")
TEST = ("accuracy", "low", "high", "n", "queries", "greedy", "reflection", "second", "tokens", "rescued", "lost")
WORDS = 30  # of a run, in ``words``
QUERY_TOKENS = ("tokens", "second_tokens")
KNOWING = ("improbability", "probe", "looks", "by_kind", "by_level", "by_both")  # scores; see ``knowing``
QUERY = ("samples", "correct", "first_correct", "second", "second_wrong", "unknown_first", *QUERY_TOKENS, "greedy")

TABLES: dict[str, tuple[str, ...]] = {
    "runs": (*RUN, *PROGRESS, "settings", *MADE),
    "episodes": (*RUN, *TIME, *EPISODE, *STEP),
    "validations": (*RUN, *TIME, "accuracy", "reflection", "length", "queries"),
    "tests": (*RUN, "label", "last", "mode", *TEST),
    "queries": (*RUN, "label", "last", "mode", "qid", "category", "level", *QUERY),
    "advantages": (*RUN, "which", "left", "right", "count"),
    "words": (*RUN, "word", "responses", "share", "before", "forced", "reflecting"),
    "sweeps": (*RUN, "lr", "state", "tokens", "accuracy", "best", "mean"),
    "knowing": (
        *RUN,
        "qid",
        "category",
        "level",
        "answer",
        "first_correct",
        "tokens",
        "second_correct",
        "second_tokens",
        *KNOWING,
    ),
}
PARQUET = ("episodes", "queries", "advantages", "knowing")  # the others are CSV, for people

COLUMNS = {
    "grid, variant, seed": "which run: the grid's name, its label, the seed",
    "tokens": "generated since the start of the run, thrown-away ones included; tests: a response; queries: sum",
    "seconds": "wall-clock since the start of the run; other runs shared the machine",
    "settings": "what sets the run apart from others of its grid, the seed not counted",
    "config": "first digits of the SHA-256 of the settings that are not at their default, without names and folders",
    "label, last": "stage whose end was evaluated, and whether it is the run's last one",
    "accuracy": "in validations greedy; in tests pass@1 of the samples, interval over queries; in episodes of y1",
    "second": "share of (queries: number of) sampled responses with a second look, spontaneous or forced",
    "rescued, lost": "forced second looks: share right after it of the wrong ones, wrong after it of the right ones",
    "first_correct": "samples whose first look was right (what stands before the second look, see analysis.choice)",
    "second_tokens": "tokens of the samples with a second look",
    "knowing": "a row per first look: its answer, whether that (first_correct) and a second look forced behind it"
    " (second_correct) are right, tokens of the first and of both (second_tokens)",
    "improbability": "-log p of the first look up to its answer's last digit, nats",
    "looks": "log-odds of going on against ending there, nats",
    "probe": "log-odds of a wrong first look, by a linear probe of the states at that digit",
    "by_kind, by_level": "accuracy that a second look gains on other queries of its kind (and level)",
    "by_both": "P(right after a second look), by kind and level, minus P(right now), by improbability too",
    "which, left, right, count": "samples of all episodes, before or after selection, by bin of advantages; empty"
    " bins at the ends are left out",
    "word, responses": "the most frequent words of reflection in first responses of training, and how many hold it",
    "share, before, forced": "words: of the reflecting responses those that hold it in their second look, or before it;"
    " of forced second looks those that hold it",
    "reflecting": "first responses that reflect, of the whole run",
    "second_wrong": "samples with a second look after a wrong first one",
    "unknown_first": "samples that reflect before any answer; not in first_correct and second_wrong",
    "greedy": "the greedy response is right (tests: share of queries)",
    "best, mean": "of the greedy validation accuracy over the run; accuracy: its mean over the last three validations",
}


class Tables(dict[str, pd.DataFrame]):
    """name -> table, of ``TABLES``; not changed once it is made."""

    def __init__(self, tables: Mapping[str, pd.DataFrame]) -> None:
        super().__init__(tables)
        self._rows = cache(self._find)
        self.effects: dict[tuple[Any, ...], Any] = {}  # what ``effects.effect`` has found

    def of(self, name: str, grid: str, variant: str, seed: int | None = None) -> pd.DataFrame:
        """The rows of a variant in a table, or those of one run."""
        rows = self._rows(name, grid, variant)
        return rows if seed is None else rows[rows["seed"] == seed]

    def _find(self, name: str, grid: str, variant: str) -> pd.DataFrame:
        table = self[name]
        return table[(table["grid"] == grid) & (table["variant"] == variant)]


def ordered(name: str, parts: list[pd.DataFrame]) -> pd.DataFrame:
    """One table of its columns, runs in the order of their names."""
    columns = list(TABLES[name])
    filled = [part for part in parts if len(part)]
    table = pd.concat(filled, ignore_index=True)[columns] if filled else pd.DataFrame(columns=columns)
    return table.sort_values(list(RUN), kind="stable", ignore_index=True)


def save(tables: Mapping[str, pd.DataFrame], folder: Path) -> list[Path]:
    """Write ``<name>.csv`` or, for the large ones, ``<name>.parquet``, and what they hold; returns the paths."""
    written = []
    for name, table in tables.items():
        if name in PARQUET:
            buffer = io.BytesIO()
            table.to_parquet(buffer, index=False, compression="zstd")
            written.append(atomic_write_bytes(folder / f"{name}.parquet", buffer.getvalue()))
        else:
            written.append(atomic_write_text(folder / f"{name}.csv", table.to_csv(index=False)))
    return [*written, atomic_write_text(folder / "README.md", _readme())]


def _readme() -> str:
    """What the tables hold."""
    lines = [
        "# Tables of the evidence",
        "",
        "Written by `experiments/evidence/tables.py`, `knowing` by `experiments/evidence/knowing.py`; read by"
        " `make evidence`.",
        "",
    ]
    lines += ["| table | columns |", "|---|---|"]
    lines += [f"| {name} | {', '.join(columns)} |" for name, columns in TABLES.items()]
    lines += ["", "| column | meaning |", "|---|---|", *(f"| {name} | {words} |" for name, words in COLUMNS.items())]
    return "\n".join(lines) + "\n"


def load(folder: Path) -> Tables:
    """The tables that ``save`` wrote; a missing file is a table without rows."""
    tables: dict[str, pd.DataFrame] = {}
    for name, columns in TABLES.items():
        path = folder / f"{name}.{'parquet' if name in PARQUET else 'csv'}"
        read = pd.read_parquet if name in PARQUET else pd.read_csv
        tables[name] = read(path) if path.is_file() else pd.DataFrame(columns=list(columns))
        if name == "runs":
            texts = ["settings", *MADE]
            tables[name][texts] = tables[name][texts].astype(object).fillna("")
        if missing := sorted(set(columns) - set(tables[name])):
            raise ValueError(f"{path} lacks the columns {', '.join(missing)}: collect it again")
    return Tables(tables)


def merge(before: Mapping[str, pd.DataFrame], found: Mapping[str, pd.DataFrame]) -> Tables:
    """The tables with the runs of ``found`` in the place of theirs in ``before``. Of the other runs in ``before`` those
    remain that are still in their grid's file, and those of grids that ``found`` does not have.

    Sweeps are replaced as a whole. A run that remains gets the words for its settings as they are now among its grid's
    runs, if those settings are still its own.
    """
    planned = found["runs"][list(RUN)]
    here = planned[found["runs"]["state"] != PLANNED]
    merged = {}
    for name, table in before.items():
        if name == "sweeps":
            kept = table[~table["grid"].isin(set(found["sweeps"]["grid"]))]
        else:
            still = _among(table, planned) | ~table["grid"].isin(set(planned["grid"]))
            replaced = found["words"] if name == "words" else here  # words stay where the responses were deleted since
            kept = table[still & ~_among(table, replaced)]
        new = found[name]
        if name == "runs":
            known = new.set_index([*RUN, "config"])["settings"]
            now = [known.get(key) for key in kept[[*RUN, "config"]].itertuples(index=False, name=None)]
            kept = kept.assign(
                settings=[old if text is None else text for old, text in zip(kept["settings"], now, strict=True)]
            )
            new = new[(new["state"] != PLANNED) | ~_among(new, kept)]
        merged[name] = ordered(name, [kept, new])
    return Tables(merged)


def _among(table: pd.DataFrame, runs: pd.DataFrame) -> pd.Series:
    """Which rows are of one of ``runs``."""
    keys = set(runs[list(RUN)].itertuples(index=False, name=None))
    return pd.Series([key in keys for key in table[list(RUN)].itertuples(index=False, name=None)], table.index, bool)
