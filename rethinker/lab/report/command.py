"""``rethinker report | sync``: what runs have to show, as pages and on Weights & Biases."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rethinker.lab.command_line import FOLDERS, command, option
from rethinker.rundir.paths import RunDir


@command(
    "report",
    "Write report.html for runs, finished or not.",
    FOLDERS,
    option("--wandb", action="store_true", help="also save one W&B Report on all of them, as a draft"),
    option("--publish", action="store_true", help="with --wandb: published, not a draft"),
)
def report(folders: list[Path], wandb: bool, publish: bool) -> int:
    from rethinker.lab.report.write import write_report

    if publish and not wandb:
        raise ValueError("--publish is for W&B Reports: add --wandb")
    runs = _runs(folders, lambda run: RunDir(run).metrics.exists(), "no episode has ended yet (no metrics.jsonl)")
    for run in runs:
        if not RunDir(run).metrics.exists():
            raise FileNotFoundError(f"{run} is not the folder of a run (no metrics.jsonl)")
        print(f"written: {write_report(run)}")
    if wandb:
        from rethinker.lab.report.wandb_report import save_report

        lacks = "nothing for a W&B report (tracking.wandb=true records it)"
        recorded = _runs(folders, lambda run: run in runs and RunDir(run).wandb_id.is_file(), lacks)
        address = save_report(recorded, publish=publish)
        print(f"W&B report ({'published' if publish else 'draft'}): {address}")
    return 0


@command("sync", "Upload to Weights & Biases what runs recorded (tracking.wandb=true) but have not sent yet.", FOLDERS)
def sync(folders: list[Path]) -> int:
    from rethinker.lab.wandb.sync import recordings
    from rethinker.lab.wandb.sync import sync as send

    runs = _runs(folders, lambda run: bool(recordings(run)), "nothing was recorded for W&B (tracking.wandb=true)")
    code = 0
    for done in send(runs):
        print(done)
        code = 1 if done.cut_short else code
    return code


def _runs(folders: Sequence[Path], usable: Callable[[Path], bool], lacks: str) -> list[Path]:
    """The named runs; a folder that is not a run stands for the usable runs in it, and the others are said.

    Raises FileNotFoundError if nothing is left.
    """
    runs: list[Path] = []
    for folder in folders:
        inside = sorted(path.parent for path in folder.glob("*/config.yaml"))
        if RunDir(folder).config.exists() or not inside:
            runs.append(folder)
            continue
        for run in inside:
            if usable(run):
                runs.append(run)
            else:
                print(f"skipped: {run}: {lacks}", file=sys.stderr)
    if not runs:
        raise FileNotFoundError(f"no run in {', '.join(map(str, folders))} can be used: {lacks}")
    return list(dict.fromkeys(runs))
