"""From the tables to what a figure draws: means over seeds with intervals, by tokens, and points of the frontier."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from rethinker.evaluation.statistics import over_seeds
from rethinker.lab.evidence.bootstrap import mean_effect
from rethinker.lab.evidence.effects import effect
from rethinker.lab.evidence.measures import budget, curves, finished_seeds, values
from rethinker.lab.evidence.tables import Tables

BINS = 20  # of the token axis, for metrics of episodes
LINE = ["variant", "tokens", "value", "low", "high", "seeds"]
CHOICE = ("category", "level")
LEAST = 100  # reflecting responses of a run whose words are shown


def validation_lines(tables: Tables, grid: str, variants: Sequence[str]) -> pd.DataFrame:
    """Greedy validation accuracy over tokens, of all finished seeds of each variant: columns ``LINE``."""
    rows = []
    for variant in variants:
        seeds, most = finished_seeds(tables, (grid, variant)), budget(tables, (grid, variant))
        if seeds and most:
            found = curves(tables, grid, variant, seeds, most)
            at = np.linspace(0.0, most, found.shape[1])
            rows += _line(variant, at[::5], found[:, ::5])
    return pd.DataFrame(rows, columns=LINE)


def training_lines(tables: Tables, grid: str, variants: Sequence[str], column: str) -> pd.DataFrame:
    """A metric of episodes over tokens, means of ``BINS`` equal spans of tokens: columns ``LINE``."""
    rows = []
    for variant in variants:
        seeds, most = finished_seeds(tables, (grid, variant)), budget(tables, (grid, variant))
        found = []
        for seed in seeds if most else ():
            part = tables.of("episodes", grid, variant, seed)
            spans = np.minimum(part["tokens"] / most * BINS, BINS - 1e-9).astype(int)
            found.append(part[column].astype(float).groupby(spans).mean().reindex(range(BINS)).to_numpy())
        if found:
            rows += _line(variant, (np.arange(BINS) + 0.5) * most / BINS, np.array(found))
    return pd.DataFrame(rows, columns=LINE)


def _line(variant: str, at: np.ndarray, found: np.ndarray) -> list[dict[str, float | str]]:
    rows: list[dict[str, float | str]] = []
    for tokens, column in zip(at, found.T, strict=True):
        known = column[~np.isnan(column)].tolist()
        if known:
            mean, low, high = over_seeds(known) if len(known) > 1 else (known[0], np.nan, np.nan)
            row = {"variant": variant, "tokens": float(tokens), "value": mean, "low": low, "high": high}
            rows.append(row | {"seeds": len(known)})
    return rows


def frontier_points(
    tables: Tables, grid: str, variants: Sequence[str], modes: Sequence[str] = ("plain", "forced", "bound")
) -> pd.DataFrame:
    """Test accuracy (with its interval over seeds and queries) over tokens a response, of each variant and mode."""
    rows = []
    for variant in variants:
        for mode in modes:
            found = effect(tables, f"test/{mode}/accuracy", grid, variant)
            if found.seeds:
                tokens = effect(tables, f"test/{mode}/tokens", grid, variant).value
                second = effect(tables, f"test/{mode}/second", grid, variant).value
                row = {"variant": variant, "mode": mode, "tokens": tokens, "second": second}
                rows.append(row | {"accuracy": found.value, "low": found.low, "high": found.high, "seeds": found.seeds})
    return pd.DataFrame(rows, columns=["variant", "mode", "tokens", "second", "accuracy", "low", "high", "seeds"])


def second_looks(tables: Tables, grid: str, variant: str, by: str = "category") -> pd.DataFrame:
    """Shares of wrong and of right first looks that got a second one, by kind or level, with intervals over seeds.

    Columns ``by``, first ("wrong", "right"), value, low, high, seeds, looks (first looks of all seeds).
    """
    rows = tables.of("queries", grid, variant)
    rows = rows[rows["last"].astype(bool) & (rows["mode"] == "plain")]
    known = rows["samples"] - rows["unknown_first"]
    rows = rows.assign(wrong=known - rows["first_correct"], right=rows["first_correct"])
    rows = rows.assign(right_second=rows["second"] - rows["unknown_first"] - rows["second_wrong"])
    found = []
    for key, part in rows.groupby(by):
        for first, hit in (("wrong", "second_wrong"), ("right", "right_second")):
            counts = part.groupby("seed")[[hit, first]].sum()
            counts = counts[counts[first] > 0]
            if len(counts):
                share = mean_effect((counts[hit] / counts[first]).to_numpy(float))
                line = {by: key, "first": first, "value": share.value, "low": share.low, "high": share.high}
                found.append(line | {"seeds": share.seeds, "looks": int(counts[first].sum())})
    return pd.DataFrame(found, columns=[by, "first", "value", "low", "high", "seeds", "looks"])


def gains(tables: Tables, grid: str, variant: str, always: str) -> pd.DataFrame:
    """Per kind and level: what second looks gain where they are always taken, what they cost, and how often ``variant``
    takes them.

    Columns category, level, gain (accuracy of ``always`` minus that of its own first looks), cost (reward: the
    variant's price of a token times the tokens by which a response of ``always`` with a second look is longer than one
    of the grid's without; 0 without a price), second (share of the variant's sampled responses), first (accuracy of its
    first looks), low and high (95 % interval of gain over queries). Means over all finished seeds of each, plain.
    """
    keys = list(CHOICE)
    rows = tables["queries"]
    rows = rows[(rows["grid"] == grid) & rows["last"].astype(bool) & (rows["mode"] == "plain")]
    rows = rows.assign(known=rows["samples"] - rows["unknown_first"])
    sums = ["samples", "known", "correct", "first_correct", "second", "second_tokens"]
    there, here = (rows[rows["variant"] == name].groupby(keys)[sums].sum() for name in (always, variant))
    short = (rows["tokens"] - rows["second_tokens"]).sum() / max(1, (rows["samples"] - rows["second"]).sum())
    table = pd.DataFrame(
        {
            "gain": there["correct"] / there["samples"] - there["first_correct"] / there["known"],
            "cost": token_price(tables, grid, variant) * (there["second_tokens"] / there["second"] - short),
            "second": here["second"] / here["samples"],
            "first": here["first_correct"] / here["known"],
        }
    )
    queries = rows[rows["variant"] == always].groupby([*keys, "qid"])[sums].sum()
    each = (queries["correct"] / queries["samples"] - queries["first_correct"] / queries["known"]).dropna()
    found = {key: mean_effect(part.to_numpy(float)) for key, part in each.groupby(keys)}
    for end in ("low", "high"):
        table[end] = table["gain"] + pd.Series({key: getattr(item, end) - item.value for key, item in found.items()})
    return table.dropna(subset=["gain", "cost", "second", "first"]).reset_index()


def words(tables: Tables, grid: str, variants: Sequence[str]) -> pd.DataFrame:
    """Fig. 3 over runs: word, share, before, forced (means); words that the table has of every run that counts.

    Runs count in which at least ``LEAST`` responses reflect.
    ``attrs``: runs, reflecting (responses of all of them).
    """
    table = tables["words"]
    table = table[(table["grid"] == grid) & table["variant"].isin(list(variants))]
    table = table[table["reflecting"] >= LEAST]
    runs = table.groupby(["variant", "seed"])["reflecting"].first()
    found = table.groupby("word").agg(
        share=("share", "mean"), before=("before", "mean"), forced=("forced", "mean"), runs=("share", "size")
    )
    found = found[found["runs"] == len(runs)].drop(columns="runs").sort_values("share", ascending=False, kind="stable")
    found = found.reset_index()
    found.attrs = {"runs": len(runs), "reflecting": int(runs.sum())}
    return found


def token_price(tables: Tables, grid: str, variant: str) -> float:
    """The variant's ``reward.token_price``, from its settings; 0 where they name none."""
    settings = " ".join(tables.of("runs", grid, variant)["settings"].astype(str))
    price = re.search(r"reward\.token_price=([\d.e-]+)", settings)
    return float(price[1]) if price else 0.0


def spread(tables: Tables, grid: str, variants: Sequence[str], measure: str) -> pd.DataFrame:
    """How far the seeds of a variant lie apart: variant, seeds, mean, standard deviation, smallest, largest."""
    rows = []
    for variant in variants:
        seeds = finished_seeds(tables, (grid, variant))
        if seeds:
            found = values(tables, measure, grid, variant, seeds, budget(tables, (grid, variant))).mean(axis=1).dropna()
            row = {"variant": variant, "seeds": len(found), "mean": found.mean(), "sd": found.std(ddof=1)}
            rows.append(row | {"smallest": found.min(), "largest": found.max()})
    return pd.DataFrame(rows, columns=["variant", "seeds", "mean", "sd", "smallest", "largest"])
