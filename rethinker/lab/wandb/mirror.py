"""A run's twin on Weights & Biases: what the files hold, mirrored while they are written. wandb is imported on use.

Recorded in the run's folder (``wandb/``), and with ``tracking.wandb_mode=online`` sent immediately; what was recorded
offline, or did not arrive, is sent by ``rethinker sync``. W&B cannot forget: episodes that a killed process had after
its last checkpoint stand there twice once the run is resumed.

W&B keeps a line of history only if its step is above all that it has, so the steps count on from process to process.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from rethinker.config import RunConfig, to_dict, to_yaml
from rethinker.policy.pictures import ImageError, open_image
from rethinker.rundir.atomic import atomic_write_text
from rethinker.rundir.glossary import RECORDS, ROLLOUT_COLUMNS
from rethinker.rundir.paths import BEST, LAST, RunDir
from rethinker.rundir.pointers import find
from rethinker.rundir.provenance import data_digests

PLACE_FILE = "recorded_in"  # in a recording: the run's absolute path, which the recording names its tables' files by
FINISH_SECONDS = 300.0  # at most for what is still to be sent when a run ends
FINISH_SECONDS_CHECKPOINTS = 6 * 3600.0  # the same with checkpoints among it
RETRIES = 10_000  # of what could not be sent, about a minute apart: a week without network
RESPONSES = "responses"  # the key of the tables


def recording_mode(config: RunConfig) -> Literal["online", "offline", "disabled"]:
    """``tracking.wandb_mode``; WANDB_MODE can lower it: "offline" sends nothing, "disabled" records nothing."""
    wished = os.environ.get("WANDB_MODE")
    if wished == "disabled":
        return "disabled"
    return "offline" if wished in ("offline", "dryrun") else config.tracking.wandb_mode


def open_mirror(config: RunConfig) -> Mirror | None:
    """The twin of a run that starts; None, and a word on the terminal, where WANDB_MODE=disabled."""
    if recording_mode(config) == "disabled":
        print("WANDB_MODE=disabled: nothing is recorded for W&B (tracking.wandb=true)", flush=True)
        return None
    return Mirror(config)


def mirror_errors() -> tuple[type[Exception], ...]:
    """What a ``Mirror`` raises where W&B fails: its server, its service's process, the disk or the time that it has."""
    from wandb.errors import Error
    from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

    return Error, HandleAbandonedError, MailboxClosedError, OSError


class Mirror:
    """The W&B twin of the run that ``config`` describes, a ``Sink`` for its ``Tracker``.

    The key stays where W&B keeps it: in no config and no file.

    The twin's id is random and kept in ``wandb_id``: a new run of an old name must not continue in the old one's twin.
    Raises ValueError where WANDB_MODE=disabled; here and in its methods ``mirror_errors`` where W&B fails.
    """

    name = "W&B"

    def __init__(self, config: RunConfig, *, job_type: str = "train") -> None:
        import wandb

        self.config, self.folder = config, RunDir(config.folder)
        self.errors = mirror_errors()
        self.resend = f"rethinker sync {self.folder}"
        options = config.tracking
        self.mode = recording_mode(config)
        if self.mode == "disabled":
            raise ValueError("WANDB_MODE=disabled: nothing can be recorded for W&B")
        file, steps = self.folder.wandb_id, self.folder.wandb_step
        if not file.exists():
            steps.unlink(missing_ok=True)
            atomic_write_text(file, secrets.token_hex(8))
        patience = FINISH_SECONDS_CHECKPOINTS if options.wandb_checkpoints else FINISH_SECONDS
        with self._own_folders():
            self.run = wandb.init(
                project=options.wandb_project,
                name=config.name,
                id=file.read_text(encoding="utf-8"),
                dir=os.fspath(self.folder),
                config=to_dict(config),
                group=options.wandb_group,
                tags=list(options.wandb_tags),
                job_type=job_type,
                mode=self.mode,
                resume="allow",
                settings=wandb.Settings(
                    quiet=True,  # no second table of metrics; its errors and addresses stay
                    finish_timeout=patience,
                    finish_timeout_raises=True,
                    # After its own 20 minutes wandb would drop what it could not send, and finish as if it had.
                    x_file_stream_retry_max=RETRIES,
                    x_file_transfer_retry_max=RETRIES,
                    x_graphql_retry_max=RETRIES,
                ),
            )
        self.recording = Path(self.run.settings.sync_file)
        atomic_write_text(self.recording.with_name(PLACE_FILE), os.path.abspath(self.folder))
        known = int(steps.read_text(encoding="utf-8")) if steps.exists() else 0
        self.step = max(known, self.run.starting_step)
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
        self._log(values)

    def responses(self, episode: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """The table of an episode: ``tracking.wandb_responses`` rows (glossary.ROLLOUT_COLUMNS) with their images."""
        import wandb

        shown = whole_groups(rows, self.config.tracking.wandb_responses)
        if not shown:
            return
        columns = [name for name in ROLLOUT_COLUMNS if name != "images"]
        most = max(len(row["images"]) for row in shown)
        paths = {path for row in shown for path in row["images"]}
        pictures = {path: _picture(path) for path in paths}
        names = ["image", *(f"image {number}" for number in range(2, most + 1))][:most]
        table = wandb.Table(columns=[*names, *columns])
        for row in shown:
            images = [pictures[path] for path in row["images"]]
            table.add_data(*images, *[None] * (most - len(images)), *(row[name] for name in columns))
        with self._own_folders():
            self._log({RESPONSES: table, "episode": episode})

    def evaluation(self, label: str, summary: Mapping[str, Any]) -> None:
        """An evaluation on held-out queries (``evaluation/<label>.json``): numbers of the run's summary (Fig. 7)."""
        self.run.summary.update(evaluation_numbers(label, summary))

    def close(self) -> bool:
        """Add the checkpoints, where they are wanted, and finish: online, wait until all has arrived. False: offline.

        Raises TimeoutError if it has not after FINISH_SECONDS (with checkpoints: FINISH_SECONDS_CHECKPOINTS).
        """
        if self.config.tracking.wandb_checkpoints:
            self._log_checkpoints()
        self.run.finish()
        if self.mode == "online":
            sent_mark(self.recording).touch()
        return self.mode == "online"

    def _log(self, values: Mapping[str, Any]) -> None:
        # First the count: a process that is killed in between leaves a gap, and never a step that comes twice.
        atomic_write_text(self.folder.wandb_step, str(self.step + 1))
        self.run.log(values, step=self.step, commit=True)
        self.step += 1

    def _use_inputs(self) -> None:
        """Lineage: the run uses its data (by their digests: no query and no image leaves the machine) and its config.

        ``use_artifact`` refuses to work offline, so this does what it does for a new artifact: log it, and have the
        server, once it knows it, note that this run used it.
        """
        with self._own_folders():
            for artifact in (data_artifact(self.config), config_artifact(self.config)):
                self.run._log_artifact(artifact, is_user_created=True, use_after_commit=True)

    def _log_checkpoints(self) -> None:
        """Policy and trainer state of the best and the last checkpoint; one artifact where they are the same."""
        import wandb

        aliases: dict[Path, list[str]] = {}
        for name in (LAST, BEST):
            if folder := find(self.folder.checkpoints, name):
                aliases.setdefault(folder, []).append(name)
        # Offline the files are copied: a continuing run removes checkpoints before they are uploaded.
        policy = "mutable" if self.mode == "offline" else "immutable"
        name = artifact_name("checkpoint", self.config.name)
        with self._own_folders():
            for folder, names in aliases.items():
                progress = json.loads((folder / "trainer.json").read_text(encoding="utf-8"))["trainer"]["progress"]
                artifact = wandb.Artifact(name, type="model", metadata=progress)
                artifact.add_dir(os.fspath(folder), skip_cache=True, policy=policy)
                self.run.log_artifact(artifact, aliases=names)

    @contextmanager
    def _own_folders(self) -> Iterator[None]:
        """Files that wait for their upload, and W&B's copies, are in the run's folder instead of the home folder, if
        nobody chose."""
        own = {"WANDB_DATA_DIR": "data", "WANDB_CACHE_DIR": "cache"}
        missing = [name for name in own if name not in os.environ]
        for name in missing:
            os.environ[name] = os.path.abspath(self.folder.wandb / own[name])
        try:
            yield
        finally:
            for name in missing:
                del os.environ[name]


def _picture(path: str) -> Any:
    """An image as the policy sees it, for a table; None if it cannot be read any more."""
    import wandb

    kind = "jpg" if path.lower().endswith((".jpg", ".jpeg")) else "png"  # a photograph is several times larger as PNG
    try:
        return wandb.Image(open_image(path), file_type=kind)
    except ImageError:
        return None


def sent_mark(recording: Path) -> Path:
    """The empty file that says of a recording (``.wandb``) that all of it was sent; its name is ``wandb sync``'s."""
    return recording.with_name(f"{recording.name}.synced")


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

    artifact = wandb.Artifact(artifact_name("data", to_dict(config)["data"]["train"]), type="dataset")
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
