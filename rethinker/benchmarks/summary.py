"""What is counted from a table: the headline with its interval, groups, and what did not work.

Every score is {value, low, high, n, clusters} (``evaluation.statistics.Estimate``); ``n`` responses to ``clusters``
problems. Of a benchmark whose headline is a mean of means (``Benchmark.mean_over``) so is every score here but those of
groups. Responses that nothing here can score are listed as unsupported and are in no score. pass@k counts items, not
points: a response is right above half of what can be had.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from rethinker.benchmarks.base import Benchmark
from rethinker.benchmarks.registry import BENCHMARKS
from rethinker.benchmarks.table import Shards
from rethinker.evaluation.statistics import Estimate, mean_of_means, pass_at_k, pass_sizes
from rethinker.rundir.atomic import atomic_write_text, read_json

COUNTED = (  # all but the long texts
    *("qid", "groups", "cluster", "look", "greedy", "index", "tokens", "finished", "reflects", "trigger", "skipped"),
    *("score", "extracted", "reason", "guessed", "judge", "judge_model"),
)


def write_summaries(folder: Path) -> dict[str, Any]:
    """Write ``<name>.json`` of every finished table and ``summary.json`` with their headlines; returns the latter."""
    settings = read_json(folder / "settings.json")
    headlines: dict[str, Any] = {}
    for name, facts in settings["benchmarks"].items():
        table = Shards(folder, name).table
        if not table.exists():
            continue
        benchmark = BENCHMARKS[facts["name"]]
        counted = summarize(read_counted(table), benchmark, settings["modes"], settings["samples"])
        about = {
            "title": benchmark.title,
            "split": facts["split"],
            "protocol": settings["protocol"],
            "items": facts["items"],
            "published": benchmark.splits[facts["split"]],
            "mean_over": benchmark.mean_over,
        }
        _write(folder / f"{name}.json", {"benchmark": benchmark.name} | about | counted)
        modes = {mode: _headline(found) for mode, found in counted["modes"].items()}
        headlines[name] = about | {"modes": modes}
    summary = {name: value for name, value in settings.items() if name != "benchmarks"} | {"benchmarks": headlines}
    _write(folder / "summary.json", summary)
    return summary


def _headline(found: dict[str, Any]) -> dict[str, Any]:
    """Of the greedy responses; and, of sampled ones, ``sampled``: their mean, and pass@k."""
    greedy = found["greedy"]
    names = ("score", "with_guesses", "unparsed", "truncated", "skipped", "unsupported", "judge")
    drawn = {"sampled": found["sampled"]["score"]} if "sampled" in found else {}
    passed = {name: score for name, score in found.items() if name.startswith("pass@")}
    return {name: greedy[name] for name in names if name in greedy} | drawn | passed


def _write(path: Path, content: dict[str, Any]) -> None:
    atomic_write_text(path, json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def read_counted(table: Path) -> pd.DataFrame:
    """The rows of a table without their long texts; ``cluster`` is filled, ``groups`` a dict."""
    rows = pd.DataFrame(pq.read_table(table, columns=list(COUNTED)).to_pylist(), columns=list(COUNTED))
    rows["groups"] = rows["groups"].map(json.loads)
    rows["cluster"] = rows["cluster"].where(rows["cluster"] != "", rows["qid"])
    return rows


def in_mode(rows: pd.DataFrame, mode: str) -> pd.DataFrame:
    """A row for each response of ``mode``: the first look or, where the mode wants it and there is one, the second;
    ``bound`` wants it behind wrong first looks only. ``first_correct`` is added."""
    key = ["qid", "greedy", "index"]
    firsts = rows[rows["look"] == "first"].set_index(key)
    firsts = firsts.assign(first_correct=firsts["score"] > 0.5)
    seconds = rows[rows["look"] == "second"].set_index(key)
    if mode == "plain" or seconds.empty:
        return firsts.reset_index()
    wanted = seconds.index
    if mode == "bound":
        wanted = wanted[~firsts.loc[wanted, "first_correct"].to_numpy(bool)]
    chosen = seconds.loc[wanted].assign(first_correct=firsts.loc[wanted, "first_correct"])
    both = pd.concat([firsts.drop(index=wanted), chosen])
    return both.loc[firsts.index].reset_index()


def summarize(rows: pd.DataFrame, benchmark: Benchmark, modes: list[str], samples: int) -> dict[str, Any]:
    """``modes.<mode>``: ``greedy`` and, with samples, ``sampled`` and pass@k; and what was skipped or unsupported."""
    result: dict[str, Any] = {"skipped": _listed(rows[rows["skipped"].notna() & rows["score"].notna()], "skipped")}
    firsts = rows[(rows["look"] == "first") & rows["greedy"]]
    result["unsupported"] = _listed(firsts[firsts["score"].isna()], "reason")
    result["modes"] = {}
    for mode in dict.fromkeys(("plain", *modes)):
        part = in_mode(rows, mode)
        found = {"greedy": _counts(part[part["greedy"]], benchmark)}
        if samples:
            unasked = part[part["skipped"].notna()]  # one row each; they count as often as what was asked
            sampled = pd.concat([part[~part["greedy"]], *[unasked] * samples], ignore_index=True)
            found["sampled"] = _counts(sampled, benchmark)
            found |= _pass_at_k(sampled, benchmark, samples)
        result["modes"][mode] = found
    return result


def _counts(rows: pd.DataFrame, benchmark: Benchmark) -> dict[str, Any]:
    """Scores and counts of the responses of a mode."""
    asked = rows[rows["skipped"].isna()]
    forced = rows[rows["trigger"].notna()]
    first, final = forced["first_correct"].astype(bool), forced["score"] > 0.5
    result: dict[str, Any] = {
        "score": _score(rows, benchmark),
        "with_guesses": _score(rows.assign(score=rows["guessed"].fillna(rows["score"])), benchmark),
        "unparsed": int((asked["extracted"].isna() & asked["score"].notna()).sum()),
        "truncated": int((~asked["finished"].astype(bool)).sum()),
        "skipped": int(rows.loc[rows["skipped"].notna() & rows["score"].notna(), "qid"].nunique()),
        "unsupported": int(rows["score"].isna().sum()),
        "grader_errors": int(asked["reason"].str.startswith("error:").sum()),
        "tokens_mean": float(asked["tokens"].mean()) if len(asked) else None,
        "reflection": float(asked["reflects"].astype(bool).mean()) if len(asked) else None,
        "forced": len(forced),
        "wrong_to_right": int((~first & final).sum()),
        "right_to_wrong": int((first & ~final).sum()),
    }
    if rows["judge"].notna().any():
        judged = rows[rows["judge"].notna()]
        result["judge"] = {
            "score": _score(judged.assign(score=judged["judge"]), benchmark),
            "agreement": float(((judged["score"] > 0.5) == (judged["judge"] > 0.5)).mean()),
            "models": sorted(judged["judge_model"].unique()),
        }
    result["groups"] = _groups(rows)
    return result


def _pass_at_k(rows: pd.DataFrame, benchmark: Benchmark, samples: int) -> dict[str, Any]:
    """``pass@<k>`` -> score, of the items whose ``samples`` responses can all be scored."""
    scored = rows[rows["score"].notna()]
    right = (scored["score"] > 0.5).groupby(scored["qid"])
    whole = right.transform("size") == samples
    hits = right.transform("sum")[whole].tolist()
    return {
        f"pass@{k}": _score(scored[whole].assign(score=[pass_at_k(samples, int(n), k) for n in hits]), benchmark)
        for k in pass_sizes(samples)
    }


def _score(rows: pd.DataFrame, benchmark: Benchmark) -> dict[str, float | int | None]:
    return _estimate(rows, benchmark.mean_over).to_dict()


def _estimate(rows: pd.DataFrame, mean_over: str | None) -> Estimate:
    scored = rows[rows["score"].notna()]
    strata = [found[mean_over][0] for found in scored["groups"]] if mean_over else [""] * len(scored)
    return mean_of_means(scored["score"].astype(float).tolist(), strata, scored["cluster"].tolist())


def _groups(rows: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Name of a group -> value -> score; a row counts for each of its values."""
    groups = rows["groups"].tolist()
    result: dict[str, dict[str, Any]] = {}
    for name in sorted({name for found in groups for name in found}):
        values = sorted({value for found in groups for value in found.get(name, ())})
        result[name] = {
            value: _estimate(rows[[value in found.get(name, ()) for found in groups]], None).to_dict()
            for value in values
        }
    return result


def _listed(rows: pd.DataFrame, column: str) -> dict[str, list[str]]:
    """Reason -> the items."""
    return {str(reason): part["qid"].tolist() for reason, part in rows.groupby(column)}
