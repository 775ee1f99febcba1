"""The command line: ``rethinker train | launch | evaluate | report | figures | ...``, one function a command."""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rethinker.config import RunConfig
from rethinker.lab.jobs import commands as job_commands
from rethinker.lab.notebook import execute as notebooks
from rethinker.rundir.paths import RunDir

TRACEBACK = "show where an error came from, of a run's processes too"
SETTINGS = "e.g. seed=1 optim.lr=3e-5; relative paths start in the working folder"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code. Mistakes of the user are one line on stderr and exit code 2."""
    arguments = parse(argv)
    try:
        return arguments.run(arguments)
    except (ValueError, OSError, ImportError) as error:
        if arguments.traceback:
            raise
        print(f"rethinker {arguments.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, where settings (key=value) and names may also stand behind options, which argparse refuses."""
    top = parser()
    arguments, rest = top.parse_known_args(argv)
    more = getattr(arguments, "overrides", getattr(arguments, "names", None))
    if rest and (more is None or any(item.startswith("-") for item in rest)):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if more is not None:
        more.extend(rest)
    return arguments


def parser() -> argparse.ArgumentParser:
    """All commands with their options."""
    top = argparse.ArgumentParser(prog="rethinker", description="Reinforcement learning that makes VLMs think twice.")
    top.add_argument("--traceback", action="store_true", help=TRACEBACK)
    commands = top.add_subparsers(dest="command", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--traceback", action="store_true", default=argparse.SUPPRESS, help=TRACEBACK)
        sub.set_defaults(run=run)
        return sub

    sub = command("train", train, "Train as a config says, evaluate, and write runs/<name>/report.html.")
    sub.add_argument("config", help="YAML file, e.g. experiments/tiny.yaml")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help=SETTINGS)
    sub.add_argument("--resume", action="store_true", help="go on with the run of this name, if there is one")

    job_commands.add_commands(command)

    sub = command("evaluate", evaluate, "Evaluate a checkpoint on data.test in the modes plain, forced and bound.")
    sub.add_argument("config", help="YAML file, e.g. runs/<name>/config.yaml")
    text = "model.path=... names the checkpoint; default for a run's own config.yaml: its best"
    sub.add_argument("overrides", nargs="*", metavar="key=value", help=text)
    sub.add_argument("--out", type=Path, help="folder for evaluation/<label>.json; default: the run's folder")
    sub.add_argument("--label", default="evaluation")

    sub = command("ablate", ablate, "Run a grid of settings and seeds side by side, and collect one table.")
    sub.add_argument("grid", help="YAML file, e.g. experiments/ablations/smoke.yaml; runs that are finished are kept")
    text = "for every run, e.g. optim.lr=3e-5; name= base= seeds=[0,1] slots= baseline= are the grid's own"
    sub.add_argument("overrides", nargs="*", metavar="key=value", help=text)
    sub.add_argument("--slots", type=int, help="runs in parallel (default: the grid's)")
    sub.add_argument("--dry-run", action="store_true", help="check every config and say what would be run")

    sub = command("watch", watch, "Show a run in the terminal while it trains: metrics, charts, newest responses.")
    sub.add_argument("folder", type=Path)
    sub.add_argument("--once", action="store_true", help="show it as it is now and end")
    sub.add_argument("--every", type=float, default=2.0, help="seconds between looks (default: %(default)s)")
    sub.add_argument("--responses", type=int, default=3, help="responses shown (default: %(default)s)")

    sub = command("report", report, "Write report.html for the folders of runs, finished or not.")
    sub.add_argument("folders", nargs="+", type=Path, metavar="RUN", help="a folder of runs stands for all of them")
    sub.add_argument("--wandb", action="store_true", help="also save one W&B Report on all of them, as a draft")
    sub.add_argument("--publish", action="store_true", help="with --wandb: published, not a draft")

    sub = command("sync", sync, "Send to Weights & Biases what runs recorded (tracking.wandb=true) and have not sent.")
    sub.add_argument("folders", nargs="+", type=Path, metavar="RUN", help="a folder of runs stands for all of them")

    sub = command("figures", figures, "Draw the figures of a run's report as SVG and PNG, light and dark.")
    sub.add_argument("folder", type=Path)
    sub.add_argument("names", nargs="*", help="figures to draw; default: all that the run has data for")
    sub.add_argument("--out", type=Path, required=True, help="folder for <name>-<theme>.svg and .png")

    sub = command("notebooks", run_notebooks, "Execute the notebooks by papermill with parameters from a file.")
    notebooks.add_arguments(sub)

    sub = command("make-data", make_data, "Draw the visual-math world in ViRL39K's schema.")
    sub.add_argument("--out", type=Path, default=Path("data/generated/visual_math"))
    sub.add_argument("--train", type=int, default=4000, help="queries (default: %(default)s)")
    sub.add_argument("--validation", type=int, default=120, help="queries (default: %(default)s)")
    sub.add_argument("--test", type=int, default=360, help="queries (default: %(default)s)")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--contact-sheet", type=Path, help="also draw every kind and level into this PNG")

    sub = command("pretrain-tiny", pretrain, "Make, and measure, the tiny VLM that the default experiment starts from.")
    sub.add_argument("--out", type=Path, default=Path("data/tiny-vlm"))
    sub.add_argument("--steps", type=int, help="optimiser steps (default: those of the committed checkpoint)")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")

    sub = command("glossary", glossary, "Explain every metric and column that a run writes (Markdown).")
    sub.add_argument("--out", type=Path, help="file to write; default: the terminal")

    command("doctor", doctor, "Say what is installed, what is broken and how to mend it.")
    return top


def train(arguments: argparse.Namespace) -> int:
    from rethinker.config import check_trainable, load_config
    from rethinker.lab import jobs
    from rethinker.lab.jobs.failures import first_failure
    from rethinker.lab.jobs.foreground import INTERRUPTED
    from rethinker.lab.jobs.preflight import preflight
    from rethinker.lab.wandb.sync import check_key
    from rethinker.rundir.folder import check_folder, run_state

    config = load_config(arguments.config, typed=arguments.overrides)
    check_trainable(config)
    finished = run_state(config.folder) == "finished"
    check_folder(config, resume=arguments.resume or finished)
    report_file = RunDir(config.folder).report
    if finished:
        if not report_file.exists():  # who waited for it was killed before it could write one
            _write_report(config.folder)
        print(f"{config.folder} is finished; its report: {report_file}")
        return 0
    for warning in preflight(config):
        print(f"warning: {warning}", file=sys.stderr)
    _draw_missing(config)
    check_key(config)
    started = time.monotonic()
    code = jobs.train(config, resume=arguments.resume, tracebacks=arguments.traceback)
    state = run_state(config.folder)
    again = shlex.join([*job_commands.called_as(), "train", arguments.config, *arguments.overrides, "--resume"])
    if code == INTERRUPTED:
        print(f"go on with: {again}")
        return code
    if code:
        why = first_failure(config.folder) or f"ended early, with exit code {code}"
        errors = RunDir(config.folder).errors
        where = f"; details: {errors}" if errors.exists() else ""
        print(f"rethinker train: {why}{where}; when this is fixed, resume with: {again}", file=sys.stderr)
        return code
    _write_report(config.folder)
    if state == "stopped":
        print(f"stopped and saved; go on with: {again}")
    else:
        print(f"finished in {(time.monotonic() - started) / 60:.1f} minutes; report: {report_file}")
    return code


def evaluate(arguments: argparse.Namespace) -> int:
    from rethinker.config import DataConfig, check_name, load_config
    from rethinker.lab.jobs.preflight import check_data, check_model
    from rethinker.rundir.folder import best_model

    config = load_config(arguments.config, typed=arguments.overrides)
    folder, run = config.folder, Path(arguments.config).parent
    if Path(arguments.config).name == "config.yaml" and RunDir(run).checkpoints.is_dir():  # the config of a run
        folder = run
        if not any(item.startswith("model.path=") for item in arguments.overrides):
            config = replace(config, model=replace(config.model, path=str(best_model(run))))
            print(f"evaluating {config.model.path}", file=sys.stderr)
    folder = arguments.out or folder
    check_name("--label", arguments.label)
    if RunDir(folder).evaluation(arguments.label).exists():
        raise ValueError(f"{folder} has an evaluation {arguments.label!r} already: choose another --label")
    check_model(config)
    if config.data.test:
        _draw_missing(replace(config, data=DataConfig(config.data.test)))
        check_data("data.test", config.data.test)
    from rethinker.evaluation.held_out import evaluate_checkpoint

    result = evaluate_checkpoint(config)
    path = result.save(folder, arguments.label)
    print(json.dumps(result.summary(), indent=1))
    print(f"written: {path}", file=sys.stderr)
    return 0


def ablate(arguments: argparse.Namespace) -> int:
    from rethinker.lab.ablation.grid import load_grid
    from rethinker.lab.ablation.run import plan, run_grid, save_table
    from rethinker.lab.ablation.table import compare, in_words

    grid = load_grid(arguments.grid, arguments.overrides)
    if arguments.dry_run:
        print(plan(grid).to_string(index=False))
        return 0
    try:
        outcomes = run_grid(grid, arguments.slots)
    except KeyboardInterrupt:
        print("stopped and saved; the same command goes on", file=sys.stderr)
        return 130
    table = save_table(grid)
    print(in_words(compare(table, grid.baseline)))
    print(f"written: {grid.folder / 'table.parquet'}, {grid.folder / 'table.csv'}")
    return 0 if set(outcomes.values()) == {"finished"} else 1


def watch(arguments: argparse.Namespace) -> int:
    from rethinker.lab.watch.terminal import follow

    status = follow(arguments.folder, every=arguments.every, once=arguments.once, responses=arguments.responses)
    return 1 if status.state == "failed" else 0


def report(arguments: argparse.Namespace) -> int:
    if arguments.publish and not arguments.wandb:
        raise ValueError("--publish is for W&B Reports: give --wandb, too")
    runs = _runs(arguments.folders)
    for run in runs:
        if not RunDir(run).metrics.exists():
            raise FileNotFoundError(f"{run} is not the folder of a run (no metrics.jsonl)")
        _write_report(run)
    if arguments.wandb:
        from rethinker.lab.report.wandb_report import save_report

        address = save_report(runs, publish=arguments.publish)
        print(f"W&B report ({'published' if arguments.publish else 'draft'}): {address}")
    return 0


def sync(arguments: argparse.Namespace) -> int:
    from rethinker.lab.wandb.sync import sync

    code = 0
    for done in sync(_runs(arguments.folders)):
        print(done)
        code = 1 if done.cut_short else code
    return code


def figures(arguments: argparse.Namespace) -> int:
    from rethinker.lab.figures.catalogue import save_figures

    paths = save_figures(arguments.folder, arguments.out, arguments.names or None)
    for path in paths:
        print(f"written: {path}")
    if not paths:
        raise ValueError(f"{arguments.folder} has no data for {', '.join(arguments.names) or 'any figure'} yet")
    return 0


def run_notebooks(arguments: argparse.Namespace) -> int:
    return notebooks.print_results(notebooks.run_notebooks(arguments.params, arguments.names, arguments.out))


def make_data(arguments: argparse.Namespace) -> int:
    from rethinker.datasets.world.visual_math import contact_sheet

    _make_data(arguments.out, arguments.train, arguments.validation, arguments.test, arguments.seed)
    print(f"written: {arguments.out}")
    if arguments.contact_sheet:
        print(f"written: {contact_sheet(arguments.contact_sheet)}")
    return 0


def pretrain(arguments: argparse.Namespace) -> int:
    import torch

    from rethinker.tiny.curriculum import PretrainSettings
    from rethinker.tiny.measures import document_base
    from rethinker.tiny.pretrain import pretrain_tiny

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    settings = PretrainSettings(seed=arguments.seed)
    if arguments.steps is not None:
        settings = replace(settings, steps=arguments.steps)
    started = time.monotonic()
    pretrain_tiny(arguments.out, settings)
    minutes = (time.monotonic() - started) / 60
    plural = "s" if arguments.threads > 1 else ""
    options = {"out": arguments.out, "steps": arguments.steps, "seed": arguments.seed, "threads": arguments.threads}
    given = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
    measures = document_base(
        arguments.out,
        command=shlex.join(["rethinker", "pretrain-tiny", *given]),
        seed=arguments.seed,
        made=f"{settings.steps:,} steps in {minutes:.0f} minutes on {arguments.threads} CPU thread{plural}",
    )
    first, forced = measures.first_sampled, measures.forced_sampled
    print(f"written: {arguments.out}; right at once {first:.3f}, after a forced second look {forced:.3f}")
    return 0


def glossary(arguments: argparse.Namespace) -> int:
    from rethinker.rundir.glossary import to_markdown

    if arguments.out:
        arguments.out.write_text(to_markdown(), encoding="utf-8")
    else:
        print(to_markdown(), end="")
    return 0


def doctor(arguments: argparse.Namespace) -> int:
    from rethinker.lab.doctor import print_checks, run_checks

    return print_checks(run_checks())


def _runs(folders: Sequence[Path]) -> list[Path]:
    """The runs that were named, where a folder that is no run stands for the runs in it."""
    runs: list[Path] = []
    for folder in folders:
        inside = sorted(path.parent for path in folder.glob("*/config.yaml"))
        runs += [folder] if RunDir(folder).config.exists() or not inside else inside
    return list(dict.fromkeys(runs))


def _make_data(out: Path, train: int = 4000, validation: int = 120, test: int = 360, seed: int = 0) -> None:
    from rethinker.datasets.world.visual_math import make_data as draw

    draw(out, train, validation, test, seed)


def _draw_missing(config: RunConfig) -> None:
    """Draw what the shipped configs train on, in the repository, where it is missing."""
    from rethinker.lab.jobs.preflight import missing_generated

    for folder in missing_generated([config]):
        print(f"drawing the visual-math world into {folder}", file=sys.stderr)
        try:
            _make_data(folder)
        except OSError as error:
            raise ValueError(
                f"the visual-math world cannot be drawn into {folder} ({error}): draw it elsewhere (rethinker "
                "make-data --out FOLDER) and set data.train=FOLDER/train.parquet, data.validation and data.test, too"
            ) from error


def _write_report(folder: Path) -> None:
    from rethinker.lab.report.write import write_report

    print(f"written: {write_report(folder)}")


if __name__ == "__main__":
    sys.exit(main())
