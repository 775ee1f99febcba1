"""Send to Weights & Biases what runs recorded offline, by ``wandb sync``; the account that it and reports need."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rethinker.config import RunConfig, load_config
from rethinker.wandb_mirror import ID_FILE


class WandbError(ValueError):
    """W&B cannot be used now, or not for this run; the message says what to do."""


@dataclass(frozen=True)
class Account:
    """Where runs and reports go: the server's pages, and the user or team (WANDB_ENTITY, or the key's own)."""

    api: Any  # wandb.Api
    app_url: str
    entity: str

    def run_url(self, project: str, run_id: str) -> str:
        """The page of a run."""
        return f"{self.app_url}/{self.entity}/{project}/runs/{run_id}"


@dataclass(frozen=True)
class Synced:
    """What ``sync_run`` did: folders sent now, folders that had been sent before, and the run's page."""

    run: Path
    sent: tuple[Path, ...]
    earlier: tuple[Path, ...]
    url: str

    def __str__(self) -> str:
        number = len(self.sent)
        what = f"{number} recording{'s' if number != 1 else ''} sent" if number else "nothing new to send"
        return f"{self.run}: {what}{f', {len(self.earlier)} sent before' if self.earlier else ''}; {self.url}"


def connect() -> Account:
    """The W&B account of WANDB_API_KEY or `wandb login`. Raises WandbError without a key, a network or a valid key."""
    import wandb
    from wandb.sdk.lib import wbauth

    host = wandb.setup().settings.base_url
    try:
        # Not wandb.login(): it refuses where WANDB_MODE=offline, which says how to record, not where to send.
        credentials = wbauth.authenticate_session(host=host, source="rethinker", prompt=False)
        if credentials is None:
            raise WandbError(f"no W&B key for {host}: run `wandb login`, or set WANDB_API_KEY for this command only")
        _reach(host)
        credentials.verify()
        api = wandb.Api(timeout=30)
        entity = api.settings["entity"] or api.default_entity
    except wandb.errors.AuthenticationError as error:
        raise WandbError(f"{host} refuses the key: {error}") from error
    if not entity:
        raise WandbError(f"{host} names no user or team for this key: set WANDB_ENTITY")
    return Account(api, wandb.setup().settings.app_url, entity)


def _reach(host: str) -> None:
    """wandb would try again and again, and then say that its own service is busy."""
    try:
        urllib.request.urlopen(host, timeout=10).close()
    except urllib.error.HTTPError:
        pass  # whatever it answered, it is there
    except OSError as error:  # URLError and timeouts are of this kind
        raise WandbError(f"{host} cannot be reached ({error}): is this machine on the network?") from error


def recordings(run: Path) -> tuple[list[Path], list[Path]]:
    """Folders that the run recorded offline, oldest first: those not sent yet, those sent.

    Raises FileNotFoundError where ``run`` is no run, WandbError where nothing was recorded offline.
    """
    if not (run / "config.yaml").is_file():
        raise FileNotFoundError(f"{run / 'config.yaml'} is missing: {run} is not the folder of a run")
    found = sorted(path.parent for path in (run / "wandb").glob("offline-run-*/*.wandb"))
    if not found:
        online = any((run / "wandb").glob("run-*"))
        why = "it was online (tracking.wandb_mode)" if online else "train with tracking.wandb=true"
        raise WandbError(f"{run} recorded nothing offline for W&B: {why}")
    sent = [folder for folder in found if _sent(folder)]
    return [folder for folder in found if folder not in sent], sent


def sync_run(run: Path, account: Account) -> Synced:
    """Send a run's offline recordings, oldest first (a run that went on has several, which make one W&B run).

    Raises WandbError with what wandb said where a recording did not arrive.
    """
    waiting, earlier = recordings(run)
    for folder in waiting:  # one after the other: each goes on where the one before ended
        command = [sys.executable, "-m", "wandb", "sync", os.fspath(folder)]
        done = subprocess.run(
            command, env=_environment(run), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode or not _sent(folder):  # wandb ends with 0 after a failure, too
            said = " ".join(f"{done.stdout} {done.stderr}".split())
            raise WandbError(f"{folder} was not sent: {said or f'wandb ended with {done.returncode}'}")
    config = run_config(run)
    return Synced(run, tuple(waiting), tuple(earlier), account.run_url(config.tracking.wandb_project, run_id(run)))


def sync(runs: Sequence[Path]) -> list[Synced]:
    """``sync_run`` of several, after a look at all of them: a mistake is said before anything is sent."""
    for run in runs:
        recordings(run)
    account = connect()
    return [sync_run(run, account) for run in runs]


def run_config(run: Path) -> RunConfig:
    """The config that the run was made with."""
    return load_config(run / "config.yaml")


def run_id(run: Path) -> str:
    """The id of the run's W&B twin. Raises WandbError where it has none."""
    file = run / ID_FILE
    if not file.is_file():
        raise WandbError(f"{run} was not recorded for W&B (tracking.wandb=true)")
    return file.read_text(encoding="utf-8").strip()


def _sent(folder: Path) -> bool:
    return any(folder.glob("*.wandb.synced"))


def _environment(run: Path) -> dict[str, str]:
    """Without what would make wandb record, or be silent about why it failed; its logs go to the run."""
    kept = {name: value for name, value in os.environ.items() if name not in ("WANDB_MODE", "WANDB_SILENT")}
    return kept | {"WANDB_DIR": os.fspath(run)}
