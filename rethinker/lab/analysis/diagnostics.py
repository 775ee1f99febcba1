"""From the files of a run to tables (pandas). Pure functions: a run's folder in, a table out; nothing is written.

``rethinker/rundir/glossary.py`` explains the columns of ``metrics.jsonl`` and of the rollouts. Missing and broken files
raise what ``rethinker/rundir/reader.py`` raises; its functions are also available here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from rethinker.rundir.reader import (
    Metrics,
    Stamp,
    load_episode,
    load_evaluations,
    load_metrics,
    load_rollouts,
    rollout_stamps,
    run_seed,
)

__all__ = [
    "OUTCOMES",
    "Metrics",
    "accuracy_by",
    "advantage_histograms",
    "evaluation_outcomes",
    "fig7_table",
    "load_episode",
    "load_evaluations",
    "load_metrics",
    "load_rollouts",
    "rethinking_outcomes",
    "run_seed",
    "validation_curve",
    "vanishing",
    "waste",
    "waste_by",
]

OUTCOMES = ("wrong_to_right", "right_to_wrong", "right_to_right", "wrong_to_wrong")
KEYS = ("category", "level")  # what tables can be split by


def vanishing(run: str | Path, by: str | Sequence[str] | None = None, windows: int | None = None) -> pd.DataFrame:
    """Fig. 2 from the rollouts: shares of queries by their first responses, an episode.

    ``by``: category, level or both. ``windows``: cut the run into that many spans of (about) equally many episodes,
    with the columns window (from 1), first and last (episodes) in the place of episode and stage. A query counts once
    an episode. effective + all_correct + all_incorrect = 1. ``wasted_tokens``: share of the tokens of first responses
    that were generated for queries without signal.
    """
    split = _split_keys(by)
    queries = _first_queries(Path(run), rollout_stamps(run))
    keys = ["episode", *split, "stage"]
    if windows is not None:
        queries = queries.merge(_windows(queries["episode"], windows), on="episode")
        keys = ["window", "first", "last", *split]
    table = queries.groupby(keys, as_index=False).agg(
        queries=("qid", "size"),
        effective=("effective", "mean"),
        all_correct=("all_correct", "mean"),
        all_incorrect=("all_incorrect", "mean"),
        wasted_tokens=("wasted", "sum"),
        tokens=("tokens", "sum"),
    )
    table["wasted_tokens"] /= table["tokens"].where(table["tokens"] > 0)
    return table


def _split_keys(by: str | Sequence[str] | None) -> list[str]:
    split = [by] if isinstance(by, str) else list(by or ())
    wrong = [key for key in split if key not in KEYS]
    if wrong:
        raise ValueError(f"cannot split by {', '.join(map(repr, wrong))}; allowed are {' and '.join(KEYS)}")
    return split


def _windows(episodes: pd.Series, count: int) -> pd.DataFrame:
    """episode -> window, first, last; no more windows than episodes."""
    if count < 1:
        raise ValueError(f"windows must be at least 1, got {count}")
    known = sorted(episodes.unique().tolist())
    count = min(count, len(known))
    table = pd.DataFrame({"episode": known, "window": [1 + i * count // len(known) for i in range(len(known))]})
    spans = table.groupby("window")["episode"]
    return table.assign(first=spans.transform("min"), last=spans.transform("max"))


@lru_cache(maxsize=2)  # several figures ask
def _first_queries(run: Path, stamps: tuple[Stamp, ...]) -> pd.DataFrame:
    """A row per query and episode: how its first responses went. ``stamps``: the files that this was read from."""
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


FATES = ("signal", "no_signal", "not_kept")


@lru_cache(maxsize=2)
def _token_fates(run: Path, stamps: tuple[Stamp, ...]) -> pd.DataFrame:
    """Generated tokens of every response and what became of them: one row per response with ``generated`` and ``fate``.

    signal: in a sample with an advantage other than zero; not_kept: a forced second look that was thrown away;
    no_signal: everything else, also responses of groups that dynamic sampling refused. A y1 that gave way to its kept
    trajectory shares the trajectory's fate: its tokens are the trajectory's beginning.
    """
    names = ["episode", "stage", "sample_id", "category", "level", "pass", "tokens"]
    rows = load_rollouts(run, [*names, "first_tokens", "trigger_tokens", "advantage", "kept"])
    forced, kept = rows["pass"] == "forced", rows["kept"].fillna(False).astype(bool)
    given = rows[["first_tokens", "trigger_tokens"]].astype(float).fillna(0.0).sum(axis=1)
    rows["generated"] = rows["tokens"].astype(float) - given.where(forced, 0.0)
    advantage = rows["advantage"].astype(float)
    place = pd.MultiIndex.from_frame(rows[["episode", "sample_id"]])
    of_kept = advantage[forced & kept]
    of_kept.index = place[forced & kept]
    heir = pd.Series(of_kept[~of_kept.index.duplicated()].reindex(place).to_numpy(), index=rows.index)
    effective = advantage.where(advantage.notna() | forced, heir).fillna(0.0).abs() > 0
    rows["fate"] = "no_signal"
    rows.loc[forced & ~kept, "fate"] = "not_kept"
    rows.loc[effective, "fate"] = "signal"
    return rows


def waste(run: str | Path) -> pd.DataFrame:
    """What samples without advantage cost, an episode: tokens, shares of them, and seconds.

    tokens (generated) = signal + no_signal + not_kept; ``<fate>_share`` are the shares. Seconds are given to responses
    by their tokens: ``rollout_seconds`` is time/rollout and ``rollout_lost`` the part of it that y1 without signal
    took; ``rethink_seconds`` and ``rethink_lost`` are the same for forced second looks; ``lost_share`` is both losses
    by time/episode. A batch ends with its longest response, so leaving responses out would save less than that.
    """
    rows = _token_fates(Path(run), rollout_stamps(run))
    table = _fate_tokens(rows, ["episode", "stage"])
    metrics = load_metrics(run).episodes.set_index("episode")
    for name, which in (("rollout", "first"), ("rethink", "forced")):
        part = rows[rows["pass"] == which]
        total = part.groupby("episode")["generated"].sum()
        lost = part[part["fate"] != "signal"].groupby("episode")["generated"].sum()
        share = (lost.reindex(total.index, fill_value=0.0) / total.where(total > 0)).reindex(table["episode"])
        seconds = metrics[f"time/{name}"].astype(float).reindex(table["episode"])
        table[f"{name}_seconds"] = seconds.to_numpy()
        table[f"{name}_lost"] = (seconds * share.fillna(0.0)).to_numpy()
    episode = metrics["time/episode"].astype(float).reindex(table["episode"]).to_numpy()
    table["lost_share"] = (table["rollout_lost"] + table["rethink_lost"]) / episode
    return table


def waste_by(run: str | Path, by: str | Sequence[str]) -> pd.DataFrame:
    """Tokens of the whole run by category, level or both: tokens, what became of them, shares."""
    return _fate_tokens(_token_fates(Path(run), rollout_stamps(run)), _split_keys(by))


def _fate_tokens(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    sums = rows.pivot_table(index=keys, columns="fate", values="generated", aggfunc="sum", fill_value=0.0)
    sums = sums.reindex(columns=list(FATES), fill_value=0.0).astype(float)
    total = sums.sum(axis=1)
    shares = sums.div(total.where(total > 0), axis=0).add_suffix("_share")
    table = pd.concat([total.rename("tokens"), sums, shares], axis=1)
    return table.reset_index()


def advantage_histograms(run: str | Path) -> pd.DataFrame:
    """Fig. 6: one row per bin: episode, stage, which (before: all samples, after: trained ones), left, right, count."""
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

    Row ``kind`` "forced" is the second look, "independent" a second sample that knows nothing of the first, in place of
    the second look of the same responses.
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
