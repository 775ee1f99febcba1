"""A run made ready for others: its checkpoints on held-out queries, report.html, and a W&B recording from its files.

All of it goes to a folder beside the run (``<run>-shared``): the run's own evaluations, which may be on other queries,
stay as they are.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pandas as pd

from rethinker import diagnostics
from rethinker.config import RunConfig, load_config, to_yaml
from rethinker.files import atomic_write_text
from rethinker.glossary import ROLLOUT_COLUMNS
from rethinker.repository import repository_root
from rethinker.run_folder import STATUS_FILE
from rethinker.wandb_mirror import Mirror

FILES = ("metrics.jsonl", "provenance.json", STATUS_FILE)  # of the run, copied
SOURCE = "shared_from.json"  # marks a folder that this module made


def share_folder(
    run: Path, *, queries: int | None, samples: int, wandb_mode: Literal["online", "offline"] = "offline"
) -> Path:
    """Make ``<run>-shared``: the run's files and a config that says how its checkpoints are to be evaluated.

    ``queries``: held-out queries, None: all; ``samples``: sampled responses a query beside the greedy one. What an
    earlier call with other settings, or of an earlier run of this name, left there is removed. Raises ValueError where
    the folder is not one of these.
    """
    config = load_config(run / "config.yaml")
    name = f"{run.name}-shared"
    config = replace(
        config,
        name=name,
        runs_dir=os.fspath(run.parent),
        data=replace(config.data, test_limit=queries),
        evaluation=replace(config.evaluation, samples=samples),
        tracking=replace(config.tracking, wandb=True, wandb_mode=wandb_mode, wandb_checkpoints=False),
    )
    folder, source = config.folder, {"run": name, "started": _started(run), "config": to_yaml(config)}
    if folder.exists():
        if not (folder / SOURCE).is_file():
            raise ValueError(f"{folder} is in the way: it was not made here; move it")
        if json.loads((folder / SOURCE).read_text(encoding="utf-8")) == source:
            return folder
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    for file in FILES:
        if (run / file).is_file():
            shutil.copyfile(run / file, folder / file)
    if (run / "rollouts").is_dir():
        shutil.copytree(run / "rollouts", folder / "rollouts")
    atomic_write_text(folder / "config.yaml", to_yaml(config))
    atomic_write_text(folder / SOURCE, json.dumps(source))
    return folder


def evaluate_stages(run: Path, folder: Path) -> None:
    """Evaluate the model that ``run`` started from and the checkpoint at the end of each of its stages, in ``folder``.

    Every evaluation is a process of its own (a notebook's kernel stays off the GPU); those that are there are kept.
    Raises RuntimeError with the last words of an evaluation that failed, FileNotFoundError where ``run`` has no
    checkpoint of a stage yet.
    """
    config = load_config(folder / "config.yaml")
    models = {"start": config.model.path}
    for stage in config.stages:
        if (run / "checkpoints" / stage.name / "model").is_dir():
            models[stage.name] = os.fspath((run / "checkpoints" / stage.name / "model").resolve())
    if len(models) == 1:
        raise FileNotFoundError(f"{run} has no checkpoint of a finished stage yet")
    for label, model in models.items():
        if not (folder / "evaluation" / f"{label}.json").is_file():
            _evaluate(folder, label, model)


def results(folder: Path) -> pd.DataFrame:
    """Fig. 7 as a table for reading: evaluation, mode, measure, accuracy with its 95% interval, queries, responses."""
    table = diagnostics.fig7_table(folder)
    interval = [
        "–" if pd.isna(low) else f"{100 * low:.1f} to {100 * high:.1f}"
        for low, high in zip(table["low"], table["high"], strict=True)
    ]
    return pd.DataFrame(
        {
            "evaluation": table["label"],
            "mode": table["mode"],
            "measure": table["measure"],
            "accuracy": [f"{value:.1%}" for value in table["value"]],
            "95% interval": interval,
            "queries": table["clusters"].astype(int),
            "responses": table["n"].astype(int),
        }
    )


def record(folder: Path) -> str:
    """Record a run on W&B from its files: metrics, responses, evaluations; returns what to do next, in words.

    As ``tracking.wandb_mode`` says, offline or at once. What was recorded before is not recorded again.
    """
    config = load_config(folder / "config.yaml")
    offline = config.tracking.wandb_mode == "offline"
    if not any((folder / "wandb").glob("*run-*/*.wandb")):
        mirror = Mirror(config, job_type="share")
        _replay(mirror, config)
        mirror.close()
    here = _shown(folder)
    how = f"Recorded offline. Send it: rethinker sync {here}" if offline else "Sent."
    return f"{how}\nThen, if you like, a W&B Report: rethinker report {here} --wandb"


def _replay(mirror: Mirror, config: RunConfig) -> None:
    folder = config.folder
    if (folder / "metrics.jsonl").is_file():
        for text in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            mirror.log(line)
            rollouts = folder / "rollouts" / f"episode-{line['episode']:05d}.parquet"
            if line["record"] == "episode" and rollouts.is_file():
                rows = diagnostics.load_episode(rollouts, list(ROLLOUT_COLUMNS)).astype(object)
                mirror.responses(line["episode"], rows.where(rows.notna(), None).to_dict("records"))
    for label, summary in diagnostics.load_evaluations(folder).items():
        mirror.evaluation(label, summary)


def _evaluate(folder: Path, label: str, model: str) -> None:
    command = [sys.executable, "-m", "rethinker.cli", "evaluate", os.fspath(folder.resolve() / "config.yaml")]
    command += [f"model.path={model}", "--out", os.fspath(folder.resolve()), "--label", label]
    done = subprocess.run(command, cwd=repository_root(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the evaluation of {model} failed: {done.stderr.strip()[-2000:]}")


def _started(run: Path) -> str | None:
    file = run / "provenance.json"
    return json.loads(file.read_text(encoding="utf-8")).get("started") if file.is_file() else None


def _shown(folder: Path) -> str:
    """The path as a person would write it: from the repository's root where it is below it."""
    root, folder = repository_root(), folder.resolve()
    return os.fspath(folder.relative_to(root) if folder.is_relative_to(root) else folder)
