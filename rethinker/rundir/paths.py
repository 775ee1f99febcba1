"""The names of everything in a run's folder, ``runs/<name>/``. Nothing is read, written or checked here."""

from __future__ import annotations

import os
from pathlib import Path

BEST = "best"  # the checkpoint with the best validation accuracy
LAST = "last"  # the newest checkpoint
PREVIOUS = "previous"  # the one before it; "previous-2" is the one before that


class RunDir(os.PathLike[str]):
    """A run's folder and the paths in it; the files are the interface between training, reports and notebooks."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def __fspath__(self) -> str:
        return os.fspath(self.folder)

    def __str__(self) -> str:
        return str(self.folder)

    # What the run writes.

    @property
    def config(self) -> Path:
        """Every setting, resolved."""
        return self.folder / "config.yaml"

    @property
    def metrics(self) -> Path:
        """A line of JSON for each episode, optimizer step and validation; see ``glossary``."""
        return self.folder / "metrics.jsonl"

    @property
    def provenance(self) -> Path:
        """Commit, versions, machine, seed, checksums of the data, and every start."""
        return self.folder / "provenance.json"

    @property
    def status(self) -> Path:
        """``{"state": "starting" | "running" | "stopped" | "finished"}``."""
        return self.folder / "status.json"

    @property
    def stop_request(self) -> Path:
        """Its presence asks the run to save and stop after the episode."""
        return self.folder / "STOP"

    def dropped(self, use: str) -> Path:
        """The queries of "train", "validation" or "test" that could not be used."""
        return self.folder / "dropped" / f"{use}.json"

    def rollouts(self, episode: int) -> Path:
        """Every response of an episode, graded."""
        return self.folder / "rollouts" / f"episode-{episode:05d}.parquet"

    def all_rollouts(self) -> dict[int, Path]:
        """The rollout files there are, by episode, in order."""
        files = sorted((self.folder / "rollouts").glob("episode-*.parquet"))
        return {int(file.stem.removeprefix("episode-")): file for file in files}

    def evaluation(self, label: str) -> Path:
        """The summary of an evaluation."""
        return self.folder / "evaluation" / f"{label}.json"

    def evaluation_rows(self, label: str) -> Path:
        """Every response of an evaluation."""
        return self.evaluation(label).with_name(f"{label}.parquet")

    def all_evaluations(self) -> list[Path]:
        """The summaries there are, by name."""
        return sorted((self.folder / "evaluation").glob("*.json"))

    @property
    def phases(self) -> Path:
        """What each of several processes does (``phases.Phases``)."""
        return self.folder / "phases"

    @property
    def checkpoints(self) -> Path:
        """The folder of all checkpoints; ``pointers.find`` finds one by its name."""
        return self.folder / "checkpoints"

    @property
    def report(self) -> Path:
        """All of it, to read."""
        return self.folder / "report.html"

    # Who runs it.

    @property
    def job_config(self) -> Path:
        """The config of the last start."""
        return self.folder / "job" / "config.yaml"

    def machine_config(self, rank: int) -> Path:
        """The config of the last start on machine ``rank``, of a run of several; machine 0's is ``job_config``."""
        return self.job_config.with_name(f"config-{rank}.yaml") if rank else self.job_config

    @property
    def job_record(self) -> Path:
        """Who started the run, and where."""
        return self.folder / "job" / "record.json"

    @property
    def job_exit_code(self) -> Path:
        """How its processes ended; missing while they live, or if no process waited for them."""
        return self.folder / "job" / "exit_code"

    @property
    def job_lock(self) -> Path:
        """Held by the process that started the run and by accelerate's launcher, as long as they live."""
        return self.folder / "job" / "lock"

    @property
    def writer_lock(self) -> Path:
        """Held by the process that writes the run, whose id is in it."""
        return self.folder / "job" / "writer"

    @property
    def log(self) -> Path:
        """What a run in the background prints."""
        return self.folder / "launch.log"

    @property
    def errors(self) -> Path:
        """Tracebacks of its processes since the last start."""
        return self.folder / "errors.log"

    # Its twin on W&B.

    @property
    def wandb(self) -> Path:
        """wandb's own recordings."""
        return self.folder / "wandb"

    @property
    def wandb_id(self) -> Path:
        """The id of the run on W&B."""
        return self.folder / "wandb_id"

    @property
    def wandb_step(self) -> Path:
        """W&B's step of the next line."""
        return self.folder / "wandb_step"
