"""Tables of a comparison as cells of text, and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from rethinker.benchmarks import paper

MISSING = "-"
RARE = {"truncated": "truncated", "skipped": "not asked", "unsupported": "not scored", "grader_errors": "errors"}
OTHER_SCORES = {"with_guesses": "with guesses", "judge": "judge"}
MEANINGS = {
    "not asked": "the prompt did not fit, or an image could not be read; wrong.",
    "not scored": "nothing here can score the response; it is in no mean.",
    "with guesses": "the score if unparsed answers count as the published rule guesses them.",
    "judge": "the score that the judge model gives to the same responses.",
}


@dataclass(frozen=True)
class Table:
    """``title`` and ``notes`` are sentences; the first ``words`` columns hold words, the others numbers."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    words: int = 1

    def markdown(self) -> str:
        """The table with its title and notes."""
        cells = [[cell.replace("|", "\\|") for cell in row] for row in self.rows]
        lines = [
            f"### {self.title}",
            "",
            _line(self.headers),
            _line([":--" if place < self.words else "--:" for place in range(len(self.headers))]),
        ]
        lines += [_line(row) for row in cells]
        return "\n".join([*lines, *(["", *(f"- {note}" for note in self.notes)] if self.notes else []), ""])


def results(table: pd.DataFrame) -> Table:
    """A row for each model, a column for each benchmark: percent, with intervals where there are any."""
    titles = columns(table)
    rows = [
        [str(row), *(_cell(part[part["title"] == title]) for title in titles)]
        for row, part in table.groupby("row", sort=False)
    ]
    notes = []
    if (table["kind"] == "paper").any():
        notes.append(f"Rows without an interval are the paper's ({paper.about()['title']}).")
        seen = set(table[table["title"].isin(titles)]["mark"])
        notes += [f"{mark}." for mark in paper.about()["marks"].values() if mark in seen]
    if table["low"].notna().any():
        notes.append(
            "In brackets: 95% intervals over the problems of a benchmark; they hold for this model's responses."
        )
    if ((table["kind"] == "ours") & (table["mark"] != "")).any():
        notes.append("‡ Not the whole benchmark: see how each row was made.")
    return Table("Results in percent", ["", *titles], rows, notes)


def passed(found: pd.DataFrame, titles: Sequence[str]) -> Table:
    """pass@k in percent: of each row as many lines as it has k, a column for each of ``titles``."""
    lines = [
        [str(row), str(k), *(_one(part[part["title"] == title]) for title in titles)]
        for (row, k), part in found.groupby(["row", "k"], sort=False)
    ]
    notes = [
        "At least one of k sampled responses is right: estimated without bias from all samples of an item (Chen et al. "
        "2021), right being above half of what can be had. No one chooses among the k: it bounds what selection could "
        "reach."
    ]
    return Table("pass@k, in percent", ["", "k", *titles], lines, notes)


def protocols(table: pd.DataFrame) -> Table:
    """How each row of ours was made, and what went wrong, benchmark by benchmark; what never happened has no column."""
    ours = table[table["kind"] == "ours"]
    shown = {
        "benchmark": ours["title"],
        **{name: ours[name] for name in ("protocol", "decoding", "mode")},
        "items": ours["items"].map(_count) + " of " + ours["published"].map(_count),
        "responses": ours["n"].map(_count),
        "unparsed": ours["unparsed"].map(_count),
        **{words: ours[name].map(_count) for name, words in RARE.items() if ours[name].fillna(0).any()},
        **{words: ours[name].map(_percent) for name, words in OTHER_SCORES.items() if _differs(ours, name)},
        "tokens": ours["tokens"].map(_count),
    }
    rows = [[str(row), *map(str, cells)] for row, *cells in zip(ours["row"], *shown.values(), strict=True)]
    notes = ["An answer that is not found (unparsed) is wrong."]
    notes += [f"{words[0].upper()}{words[1:]}: {text}" for words, text in MEANINGS.items() if words in shown]
    if (table["kind"] == "paper").any():
        notes.append(f"The paper's rows: {paper.about()['protocol']}.")
    return Table("How each row was made", ["", *shown], rows, notes, words=5)


def paired(differences: pd.DataFrame, warnings: Sequence[str] = ()) -> Table:
    """Differences between evaluations, in points. ``warnings``: what makes them less than they seem."""
    headers = ["after", "before", "benchmark", "mode", "difference in points", "items"]
    rows = [
        [
            *(str(row[name]) for name in ("after", "before", "title", "mode")),
            _interval(row["difference"], row["low"], row["high"], "{:+.1f}"),
            _count(row["n"]),
        ]
        for row in differences.to_dict("records")
    ]
    notes = ["In brackets: 95% intervals over problems.", *(f"{text}." for text in warnings)]
    return Table("Differences, paired by item", headers, rows, notes, words=4)


def by_group(groups: pd.DataFrame, name: str) -> Table:
    """The scores of one group (e.g. "subject"): a row for each of its values. Raises ValueError where none has it."""
    part = groups[groups["group"] == name]
    if part.empty:
        known = ", ".join(dict.fromkeys(groups["group"]))
        raise ValueError(f"no evaluation has the group {name!r}; there are {known}")
    headers = list(dict.fromkeys(part["row"]))
    rows = []
    for (title, item), scores in part.groupby(["title", "item"], sort=False):
        n = _count(scores["n"].max())
        cells = [_one(scores[scores["row"] == row]) for row in headers]
        rows.append([str(title), str(item), n, *cells])
    return Table(f"By {name}, in percent", ["benchmark", name, "responses", *headers], rows, words=2)


def paper_notes() -> list[str]:
    """What to know of the paper's numbers, a sentence or two each."""
    return [" ".join(note.split()) for note in paper.about()["notes"]]


def columns(table: pd.DataFrame) -> list[str]:
    """The benchmarks of a comparison: the paper's columns in its order, others behind; without evaluations all of the
    paper's, with them those that were evaluated."""
    ours = table[table["kind"] == "ours"]
    present = set((ours if len(ours) else table)["title"])
    order = list(paper.about()["columns"].values())
    return [title for title in order if title in present] + [
        title for title in dict.fromkeys(table["title"]) if title in present and title not in order
    ]


def _cell(part: pd.DataFrame) -> str:
    if part.empty:
        return MISSING
    row = part.iloc[0]
    text = _interval(row["value"], row["low"], row["high"])
    if row["kind"] == "paper":
        return text + ("†" if row["mark"] else "")
    return text + ("‡" if row["mark"] else "")


def _one(part: pd.DataFrame) -> str:
    return MISSING if part.empty else _interval(*part.iloc[0][["value", "low", "high"]])


def _interval(value: float | None, low: float | None, high: float | None, form: str = "{:.1f}") -> str:
    if value is None or pd.isna(value):
        return MISSING
    text = form.format(100 * value)
    if low is None or high is None or pd.isna(low):
        return text
    return f"{text} [{form.format(100 * low)}, {form.format(100 * high)}]"


def _percent(value: float | None) -> str:
    return MISSING if value is None or pd.isna(value) else f"{100 * value:.1f}"


def _count(value: float | None) -> str:
    return MISSING if value is None or pd.isna(value) else f"{value:,.0f}"


def _differs(ours: pd.DataFrame, name: str) -> bool:
    values = ours[name].astype(float)
    return bool((values.notna() & ((values - ours["value"].astype(float)).abs() > 1e-12)).any())


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
