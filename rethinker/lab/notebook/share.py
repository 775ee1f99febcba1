"""A run made ready for others: its checkpoints on held-out queries, report.html, and a W&B recording from its files.

All of it goes to a folder of its own (``shared/<run>`` beside the run), which is not listed among the jobs: the run's
own evaluations, which may be on other queries, stay as they are. Sharing again makes what is new, and nothing twice.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import closing, nullcontext, redirect_stderr
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd

from rethinker.config import RunConfig, load_config, to_dict, to_yaml
from rethinker.config.repository import repository_root
from rethinker.lab.analysis import diagnostics
from rethinker.lab.notebook.show import shown
from rethinker.lab.wandb.mirror import Mirror, recording_mode, sent_mark
from rethinker.lab.wandb.sync import recordings
from rethinker.rundir.atomic import atomic_write_text
from rethinker.rundir.glossary import ROLLOUT_COLUMNS
from rethinker.rundir.paths import RunDir
from rethinker.rundir.pointers import find
from rethinker.rundir.provenance import data_digests

SHARED = "shared"  # beside the run; a folder in it has the run's name
STATE_FILE = "shared.json"  # marks a folder of this module: digests of what was evaluated, and of what was recorded
SUPERSEDED = "superseded"  # in wandb/: recordings that were interrupted or are of an earlier state, kept, never sent
ERROR_CHARACTERS = 2000  # of the log of an evaluation that failed


def share_folder(run: Path, *, data: str = "", queries: int = 0, samples: int = 0, wandb_mode: str = "offline") -> Path:
    """Make ``shared/<run>``: the run's files and a config that says how its checkpoints are to be evaluated.

    ``data``: held-out queries (a file, as for ``data.test``); ``queries``: the first so many of them; ``samples``:
    sampled responses per query beside the greedy one; "" or 0: as the run's config says. What the run has written since
    an earlier call is copied; evaluations and recordings stay. Raises ValueError if the run has no held-out queries,
    or the folder is not one of these; ConfigError for a bad value.
    """
    overrides = [f"name={run.name}", f"runs_dir={run.parent / SHARED}", f"tracking.wandb_mode={wandb_mode}"]
    overrides += ["tracking.wandb=true", "tracking.wandb_checkpoints=false"]
    given = {"data.test": data, "data.test_limit": queries, "evaluation.samples": samples}
    config = load_config(RunDir(run).config, overrides + [f"{key}={value}" for key, value in given.items() if value])
    if config.data.test is None:
        raise ValueError(f"{run} names no held-out queries (data.test is not set): give data=FILE.parquet")
    folder = config.folder
    if not (folder / STATE_FILE).is_file():
        if folder.exists():
            raise ValueError(f"{folder} is in the way: it was not made here; move it")
        atomic_write_text(folder / STATE_FILE, "{}")
    source = RunDir(run)
    for file in (source.metrics, source.provenance, source.status):
        if file.is_file():
            shutil.copyfile(file, folder / file.name)
    shutil.rmtree(folder / "rollouts", ignore_errors=True)
    shutil.copytree(run / "rollouts", folder / "rollouts")
    atomic_write_text(RunDir(folder).config, to_yaml(config))
    return folder


def evaluate_stages(run: Path, folder: Path) -> None:
    """Evaluate the model that ``run`` started from and the checkpoint at the end of each of its stages, in ``folder``.

    Every evaluation is a process of its own (a notebook's kernel stays off the GPU) and leaves a log beside its result.
    One of the same weights, queries and settings is kept, another of its name is replaced. Raises RuntimeError with the
    last words of an evaluation that failed, FileNotFoundError if ``run`` has no checkpoint of a stage yet.
    """
    config = load_config(RunDir(folder).config)
    models = {"start": config.model.path}
    for stage in config.stages:
        if checkpoint := find(RunDir(run).checkpoints, stage.name):
            models[stage.name] = os.fspath(checkpoint.resolve() / "model")
    if len(models) == 1:
        raise FileNotFoundError(f"{run} has no checkpoint of a finished stage yet")
    digests = {label: _evaluation_digest(config, model) for label, model in models.items()}
    made = _state(folder).get("evaluations", {})
    kept = [
        label for label in models if RunDir(folder).evaluation(label).is_file() and made.get(label) == digests[label]
    ]
    missing = [label for label in models if label not in kept]
    for label in missing:  # all of them before the first new one: no two of different queries stand side by side
        RunDir(folder).evaluation(label).unlink(missing_ok=True)
    for number, label in enumerate(missing, 1):
        print(f"{label} ({number} of {len(missing)}) ...", flush=True)
        started = time.monotonic()
        evaluate(folder, label, models[label])
        made[label] = digests[label]
        _remember(folder, evaluations=made)
        print(f"{label}: evaluated in {time.monotonic() - started:.0f} seconds", flush=True)


def results(folder: Path) -> pd.DataFrame:
    """Fig. 7 as a table for reading: evaluation, mode, measure, accuracy with its 95% interval, queries, responses."""
    table = diagnostics.fig7_table(folder)
    ends = table["low"].notna()
    interval = (100 * table["low"]).map("{:.1f}".format) + " to " + (100 * table["high"]).map("{:.1f}".format)
    shown_columns = {
        "evaluation": table["label"],
        "mode": table["mode"],
        "measure": table["measure"],
        "accuracy": table["value"].map("{:.1%}".format),
        "95% interval": interval.where(ends, "–"),
        "queries": table["clusters"].astype(int),
        "responses": table["n"].astype(int),
    }
    return pd.DataFrame(shown_columns)


def record(folder: Path) -> str:
    """Record a run on W&B from its files: metrics, responses, evaluations; returns what to do next, in words.

    As ``tracking.wandb_mode`` (or WANDB_MODE) says, offline or immediately. What was recorded to its end is not
    recorded again, unless the files have changed since: then it becomes another run on W&B, which cannot forget. A
    recording that was never sent is moved to ``wandb/superseded`` in that case, as is one that was interrupted. Raises
    what ``Mirror`` does.
    """
    config = load_config(RunDir(folder).config)
    digest, recorded = _recording_digest(folder), _state(folder).get("recorded", {})
    if recorded.get("digest") != digest:
        _supersede(folder)
        mode = recording_mode(config)
        # Offline wandb advises to go online, by a path of this machine; online it says where the run is to be seen.
        with redirect_stderr(io.StringIO()) if mode == "offline" else nullcontext():
            _replay(config)
        recorded = {"digest": digest, "mode": mode}
        _remember(folder, recorded=recorded)
    here = shown(folder)
    how = f"Recorded offline. Send it: rethinker sync {here}" if recorded["mode"] == "offline" else "Sent."
    return f"{how}\nThen, if you like, a W&B Report: rethinker report {here} --wandb"


def _replay(config: RunConfig) -> None:
    """Tell W&B what the files of a run say, as training would have."""
    run = RunDir(config.folder)
    with closing(Mirror(config, job_type="share")) as mirror:
        text = run.metrics.read_text(encoding="utf-8") if run.metrics.is_file() else ""
        for whole in text.split("\n")[:-1]:  # after the last newline: half a line, of a run that is training
            line = json.loads(whole)
            mirror.log(line)
            rollouts = run.rollouts(line["episode"])
            if line["record"] == "episode" and rollouts.is_file():
                rows = diagnostics.load_episode(rollouts, list(ROLLOUT_COLUMNS)).astype(object)
                mirror.responses(line["episode"], rows.where(rows.notna(), None).to_dict("records"))
        for label, summary in diagnostics.load_evaluations(config.folder).items():
            mirror.evaluation(label, summary)


def evaluate(folder: Path, label: str, model: str) -> None:
    command = [sys.executable, "-m", "rethinker.cli", "evaluate", os.fspath(RunDir(folder.resolve()).config)]
    command += [f"model.path={model}", "--out", os.fspath(folder.resolve()), "--label", label]
    log = RunDir(folder).evaluation(label).with_suffix(".log")
    log.parent.mkdir(exist_ok=True)
    with log.open("w", encoding="utf-8") as output:
        done = subprocess.run(command, cwd=repository_root(), stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        said = log.read_text(encoding="utf-8", errors="replace").strip()
        raise RuntimeError(f"the evaluation of {model} failed ({shown(log)}): {said[-ERROR_CHARACTERS:]}")


def _evaluation_digest(config: RunConfig, model: str) -> str:
    """What an evaluation depends on: weights, held-out queries, and the settings of generation and evaluation."""
    settings = to_dict(config)
    kept = {name: settings[name] for name in ("model", "data", "rollout", "rethink", "evaluation", "seed")}
    kept["data"] = {key: value for key, value in kept["data"].items() if not key.startswith(("train", "validation"))}
    kept["model"] = {**kept["model"], "path": model if not Path(model).is_dir() else ""}
    weights = {path.name: _digest_of(path) for path in sorted(Path(model).glob("*")) if path.is_file()}
    kept |= {"weights": weights, "queries": data_digests(config)["test"]}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _recording_digest(folder: Path) -> str:
    """What a recording says: metrics (an episode's responses come with its line), evaluations, and where it goes."""
    tracking = replace(load_config(RunDir(folder).config).tracking, wandb_mode="offline")  # how it is sent is no part
    files = [RunDir(folder).metrics, *RunDir(folder).all_evaluations()]
    digests = {path.name: _digest_of(path) for path in files if path.is_file()}
    return hashlib.sha256(json.dumps([asdict(tracking), digests], sort_keys=True).encode()).hexdigest()


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _supersede(folder: Path) -> None:
    """Make room for a recording that is another run on W&B; what was not sent is kept, out of the way of ``sync``."""
    RunDir(folder).wandb_id.unlink(missing_ok=True)
    for file in recordings(folder):
        if not sent_mark(file).exists():
            aside = RunDir(folder).wandb / SUPERSEDED
            aside.mkdir(exist_ok=True)
            file.parent.rename(aside / file.parent.name)


def _state(folder: Path) -> dict[str, Any]:
    return json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))


def _remember(folder: Path, **news: Any) -> None:
    atomic_write_text(folder / STATE_FILE, json.dumps({**_state(folder), **news}, indent=1))
