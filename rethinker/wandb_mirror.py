"""A run's twin on Weights & Biases: what the files hold, mirrored while they are written. wandb is imported on use.

Recorded in the run's folder (``wandb/``), and with ``tracking.wandb_mode=online`` sent at once; what was recorded
offline is sent by ``rethinker sync``. W&B cannot forget: episodes that a killed process had after its last checkpoint
stand there twice once the run has gone on.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rethinker.config import RunConfig, to_dict, to_yaml
from rethinker.files import atomic_write_text
from rethinker.glossary import RECORDS, ROLLOUT_COLUMNS
from rethinker.provenance import data_digests
from rethinker.run_folder import BEST, LAST

ID_FILE = "wandb_id"  # in the run's folder
RESPONSES = "responses"  # the key of the tables


class Mirror:
    """The W&B twin of the run that ``config`` describes. The key stays where W&B keeps it: in no config and no file.

    The twin's id is random and kept in ``wandb_id``: a new run of an old name must not go on in the old one's twin.
    """

    def __init__(self, config: RunConfig, *, job_type: str = "train") -> None:
        import wandb

        self.config, self.folder = config, config.folder
        options = config.tracking
        file = self.folder / ID_FILE
        if not file.exists():
            atomic_write_text(file, secrets.token_hex(8))
        self.run = wandb.init(
            project=options.wandb_project,
            name=config.name,
            id=file.read_text(encoding="utf-8"),
            dir=os.fspath(self.folder),
            config=to_dict(config),
            group=options.wandb_group,
            tags=list(options.wandb_tags),
            job_type=job_type,
            mode=options.wandb_mode,
            resume="allow",
            settings=wandb.Settings(quiet=True),  # no second table of metrics; its errors and addresses stay
        )
        for name, axis in axes().items():
            self.run.define_metric(name, step_metric=axis)
        self._use_inputs()

    def log(self, line: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl: numbers, and histograms (``{edges, counts}``) as W&B's."""
        import numpy as np
        import wandb

        values: dict[str, Any] = {}
        for name, value in line.items():
            if isinstance(value, Mapping):
                values[name] = wandb.Histogram(np_histogram=(np.array(value["counts"]), np.array(value["edges"])))
            elif isinstance(value, int | float):
                values[name] = value
        self.run.log(values)

    def responses(self, episode: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """The table of an episode: ``tracking.wandb_responses`` rows (glossary.ROLLOUT_COLUMNS) with their images."""
        import wandb

        shown = whole_groups(rows, self.config.tracking.wandb_responses)
        if not shown:
            return
        columns = [name for name in ROLLOUT_COLUMNS if name != "images"]
        most = max(len(row["images"]) for row in shown)
        paths = {path for row in shown for path in row["images"]}
        pictures = {path: wandb.Image(path) if Path(path).is_file() else None for path in paths}
        names = ["image", *(f"image {number}" for number in range(2, most + 1))][:most]
        table = wandb.Table(columns=[*names, *columns])
        for row in shown:
            images = [pictures[path] for path in row["images"]]
            table.add_data(*images, *[None] * (most - len(images)), *(row[name] for name in columns))
        with self._staging():
            self.run.log({RESPONSES: table, "episode": episode})

    def evaluation(self, label: str, summary: Mapping[str, Any]) -> None:
        """An evaluation on held-out queries (``evaluation/<label>.json``): numbers of the run's summary (Fig. 7)."""
        self.run.summary.update(evaluation_numbers(label, summary))

    def close(self) -> None:
        """Add the checkpoints, where they are wanted, and finish."""
        if self.config.tracking.wandb_checkpoints:
            self._log_checkpoints()
        self.run.finish()

    def _use_inputs(self) -> None:
        """Lineage: the run uses its data (by their digests: no query and no image leaves the machine) and its config.

        ``use_artifact`` refuses to work offline, so this does what it does for a new artifact: log it, and have the
        server, once it knows it, note that this run used it.
        """
        for artifact in (data_artifact(self.config), config_artifact(self.config)):
            with self._staging():
                self.run._log_artifact(artifact, is_user_created=True, use_after_commit=True)

    def _log_checkpoints(self) -> None:
        """Policy and trainer state of the best and the last checkpoint; one artifact where they are the same."""
        import wandb

        checkpoints = self.folder / "checkpoints"
        aliases: dict[Path, list[str]] = {}
        for name in (LAST, BEST):
            if (checkpoints / name).exists():
                aliases.setdefault((checkpoints / name).resolve(), []).append(name)
        # Offline the files are copied: a run that goes on removes checkpoints before anybody has sent them.
        policy = "mutable" if self.run.offline else "immutable"
        for folder, names in aliases.items():
            progress = json.loads((folder / "trainer.json").read_text(encoding="utf-8"))["trainer"]["progress"]
            artifact = wandb.Artifact(artifact_name("checkpoint", self.config.name), type="model", metadata=progress)
            with self._staging():
                artifact.add_dir(os.fspath(folder), skip_cache=True, policy=policy)
                self.run.log_artifact(artifact, aliases=names)

    @contextmanager
    def _staging(self) -> Iterator[None]:
        """Files that wait for their upload wait in the run's folder instead of the home folder, if nobody chose."""
        if "WANDB_DATA_DIR" in os.environ:
            yield
            return
        os.environ["WANDB_DATA_DIR"] = os.path.abspath(self.folder / "wandb" / "data")
        try:
            yield
        finally:
            del os.environ["WANDB_DATA_DIR"]


def axes() -> dict[str, str]:
    """The step axis of every metric: "step" for those of a step record, "episode" for the others."""
    found = {RESPONSES: "episode"}
    for record, names in RECORDS.items():
        for name in names:
            found[f"{name.partition('/')[0]}/*"] = "step" if record == "step" else "episode"
    return found


def whole_groups(rows: Sequence[Mapping[str, Any]], limit: int) -> list[Mapping[str, Any]]:
    """The first ``limit`` rows, the responses to a query together: an advantage means something within its group."""
    order: dict[str, int] = {}
    for row in rows:
        order.setdefault(row["qid"], len(order))
    return sorted(rows, key=lambda row: order[row["qid"]])[:limit]


def evaluation_numbers(label: str, summary: Mapping[str, Any]) -> dict[str, float]:
    """``evaluation/<label>/<mode>/<measure>`` with ``_low`` and ``_high``, its 95% interval; unknown ones are left out.

    A dot would be a level of the summary, so labels have "_" in its place.
    """
    numbers = {}
    for mode, measures in summary["modes"].items():
        for measure, estimate in measures.items():
            if measure in ("greedy", "rethinking") or measure.startswith("pass@"):
                key = evaluation_key(label, mode, measure)
                for part, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
                    if estimate.get(part) is not None:
                        numbers[key + suffix] = estimate[part]
    return numbers


def evaluation_key(label: str, mode: str, measure: str) -> str:
    """The summary's name of one number of an evaluation."""
    return f"evaluation/{label.replace('.', '_')}/{mode}/{measure}"


def data_artifact(config: RunConfig) -> Any:
    """What the run was trained and measured on: paths as configured and sha256 of the files, none of their content."""
    import wandb

    artifact = wandb.Artifact(artifact_name("data", config.data.train), type="dataset")
    with artifact.new_file("digests.json") as file:
        json.dump(data_digests(config), file, indent=1)
    return artifact


def config_artifact(config: RunConfig) -> Any:
    """The run's config.yaml."""
    import wandb

    artifact = wandb.Artifact(artifact_name("config", config.name), type="config")
    with artifact.new_file("config.yaml") as file:
        file.write(to_yaml(config))
    return artifact


def artifact_name(kind: str, name: str) -> str:
    """A name that W&B allows: letters, digits, "_", "-" and "."; at most 128 of them, the end of ``name`` kept."""
    return f"{kind}-{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)[-100:].strip('-')}"
