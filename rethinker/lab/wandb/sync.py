"""Send to Weights & Biases what runs recorded and did not send, by ``wandb sync``; the account it and reports need.

A recording is a file ``<run>/wandb/*run-*/*.wandb``: of a process that recorded offline, or online and was killed or
lost the network. What W&B has of it already it does not take again: the steps of a run's lines rise (``wandb_mirror``).
wandb writes the tables and checkpoints of an online process into no recording: those that did not arrive then are in
``rollouts/`` and ``checkpoints/`` only.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rethinker.config import RunConfig, load_config
from rethinker.lab.wandb.mirror import PLACE_FILE, recording_mode, sent_mark
from rethinker.rundir.atomic import atomic_write_text
from rethinker.rundir.paths import RunDir

CUT_SHORT_FILE = "cut_short"  # in a recording: the size in bytes of the file that could not be read to its end
# wandb 0.31 of such a file. It has sent what it could read; with other failures (network, server) nothing is settled.
CUT_SHORT_WORDS = ("ends with an incomplete record", "transactionlog:")


class WandbError(ValueError):
    """W&B cannot be used now, or not for this run; the message says what to do."""


@dataclass(frozen=True)
class Account:
    """Where runs and reports go: the server's pages, and the user or team (WANDB_ENTITY, or the key's own)."""

    api: Any  # wandb.Api
    app_url: str
    entity: str


class Synced(NamedTuple):
    """What ``sync_run`` did, in words, and whether it found a recording that was cut short."""

    words: str
    cut_short: bool

    def __str__(self) -> str:
        return self.words


def connect() -> Account:
    """The W&B account of WANDB_API_KEY or `wandb login`. Raises WandbError without a key, a network or a valid key."""
    import wandb

    host = wandb.setup().settings.base_url
    try:
        credentials = _credentials(host)
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


def check_key(config: RunConfig) -> None:
    """Before a run is launched: raises WandbError where it is to be online on W&B and there is no key for that.

    Nothing is sent: whether the server knows the key is found out when the run begins.
    """
    if not config.tracking.wandb or recording_mode(config) != "online":
        return
    import wandb

    host = wandb.setup().settings.base_url
    try:
        found = _credentials(host) is not None
    except wandb.errors.AuthenticationError as error:
        raise WandbError(f"the W&B key for {host} cannot be used: {error}") from error
    if not found:
        raise WandbError(
            f"tracking.wandb_mode=online, and no W&B key for {host}: run `wandb login`, set WANDB_API_KEY, or record "
            "with tracking.wandb_mode=offline and send it later by `rethinker sync`"
        )


def _credentials(host: str) -> Any:
    """wandb's own search: environment, netrc, settings; None if it finds nothing."""
    from wandb.sdk.lib import wbauth

    # Not wandb.login(): it refuses where WANDB_MODE=offline, which says how to record, not where to send.
    return wbauth.authenticate_session(host=host, source="rethinker", prompt=False)


def _reach(host: str) -> None:
    """wandb would try again and again, and then say that its own service is busy."""
    try:
        urllib.request.urlopen(host, timeout=10).close()
    except urllib.error.HTTPError:
        pass  # whatever it answered, it is there
    except OSError as error:  # URLError and timeouts are of this kind
        raise WandbError(f"{host} cannot be reached ({error}): is this machine on the network?") from error


def recordings(run: Path) -> list[Path]:
    """The ``.wandb`` files of a run, oldest first.

    A folder is offline-run-<time>-<id> or run-<time>-<id>; latest-run is a link to one of them.
    """
    found = RunDir(run).wandb.glob("*run-*/*.wandb")
    return sorted(found, key=lambda file: file.parent.name.removeprefix("offline-"))


def waiting(run: Path) -> list[Path]:
    """The recordings that are to be sent, oldest first: neither sent nor cut short.

    Raises FileNotFoundError if ``run`` is no run, WandbError where nothing was recorded, or where something waits
    that was recorded in another place than it is in now.
    """
    if not RunDir(run).config.is_file():
        raise FileNotFoundError(f"{RunDir(run).config} is missing: {run} is not the folder of a run")
    found = recordings(run)
    if not found:
        raise WandbError(f"{run} recorded nothing for W&B: train with tracking.wandb=true")
    files = [file for file in found if not sent_mark(file).exists() and not _is_cut_short(file)]
    for file in files:
        _check_place(run, file)
    return files


def sync_run(run: Path, account: Account) -> Synced:
    """Send what a run recorded, oldest first (a resumed run has several recordings, which make one W&B run).

    A recording that was cut short is sent as far as it goes, named in the result, and set aside. Raises WandbError with
    what wandb said where another did not arrive; the later ones wait for it then, as W&B takes lines in order only.
    """
    before = sum(sent_mark(file).exists() for file in recordings(run))
    sent, lines, cut_short = 0, [], False
    for file in waiting(run):
        said = _send(run, file)
        if sent_mark(file).exists():  # wandb ends with 0 after a failure, too
            sent += 1
            if not file.parent.name.startswith("offline-"):
                lines.append(f"{file} was online: what of its tables had not arrived is in rollouts/ only")
        elif any(words in said for words in CUT_SHORT_WORDS):
            atomic_write_text(file.with_name(CUT_SHORT_FILE), str(file.stat().st_size))
            cut_short = True
            lines.append(
                f"{file}: cut short, as by a kill: what can be read of it was sent, and it is not tried again unless "
                f"it grows. {said}"
            )
        else:
            raise WandbError(f"{file} was not sent: {said}")
    what = f"{sent} recording{'s' if sent != 1 else ''} sent" if sent else "nothing new to send"
    what += f", {before} sent before" if before else ""
    page = f"{account.app_url}/{account.entity}/{run_config(run).tracking.wandb_project}/runs/{run_id(run)}"
    return Synced("\n".join([f"{run}: {what}; {page}", *lines]), cut_short)


def _send(run: Path, file: Path) -> str:
    """``wandb sync`` of one recording; what it said."""
    with tempfile.TemporaryDirectory() as cache:  # W&B's copies of what it has sent are of no use here
        environment = _environment(run) | {"WANDB_CACHE_DIR": os.environ.get("WANDB_CACHE_DIR", cache)}
        command = [sys.executable, "-m", "wandb", "sync", "--include-online", os.fspath(file)]
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    return " ".join(f"{done.stdout} {done.stderr}".split()) or f"wandb ended with {done.returncode}"


def _check_place(run: Path, file: Path) -> None:
    """A recording names the files of its tables and inputs by absolute paths; wandb leaves out, without a word, what is
    not there."""
    note = file.with_name(PLACE_FILE)
    place = Path(note.read_text(encoding="utf-8")) if note.is_file() else run
    if not (place.exists() and place.samefile(run)):
        raise WandbError(
            f"{run} was recorded as {place}, where W&B looks for its tables and images. If this is a copy of the run, "
            f"rethinker sync {place}; else let that path lead here (ln -s {run.resolve()} {place}) and sync again"
        )


def _is_cut_short(file: Path) -> bool:
    """Whether it was found so, and has not grown since: then somebody was still writing it."""
    note = file.with_name(CUT_SHORT_FILE)
    return note.is_file() and int(note.read_text(encoding="utf-8")) == file.stat().st_size


def sync(runs: Sequence[Path]) -> Iterator[Synced]:
    """``sync_run`` of several, after a look at all of them: a mistake is said before anything is sent."""
    for run in runs:
        waiting(run)
    account = connect()
    for run in runs:
        yield sync_run(run, account)


def run_config(run: Path) -> RunConfig:
    """The config that the run was made with."""
    return load_config(RunDir(run).config)


def run_id(run: Path) -> str:
    """The id of the run's W&B twin. Raises WandbError if it has none."""
    file = RunDir(run).wandb_id
    if not file.is_file():
        raise WandbError(f"{run} was not recorded for W&B (tracking.wandb=true)")
    return file.read_text(encoding="utf-8").strip()


def _environment(run: Path) -> dict[str, str]:
    """Without what would make wandb record, be silent about why it failed, or use this process's service, which has
    its cache elsewhere; wandb's logs go to the run."""
    unwanted = ("WANDB_MODE", "WANDB_SILENT", "WANDB_SERVICE")
    return {name: value for name, value in os.environ.items() if name not in unwanted} | {"WANDB_DIR": os.fspath(run)}
