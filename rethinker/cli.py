"""The command line: ``rethinker train | launch | evaluate | report | figures | ...``, one function per command."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from rethinker.lab import base as _base  # noqa: F401  register their commands, as the next ones do
from rethinker.lab import benchmarks as _benchmarks  # noqa: F401
from rethinker.lab.benchmark_inputs import DATA, NAMES, PROTOCOL, config_of, load_tasks
from rethinker.lab.command_line import CONFIG, FOLDER, RESUME, command, option, run_command, settings
from rethinker.lab.compare import command as _compare  # noqa: F401
from rethinker.lab.export import command as _export  # noqa: F401
from rethinker.lab.inspect import command as _inspect  # noqa: F401
from rethinker.lab.jobs import commands as job_commands
from rethinker.lab.notebook.execute import PARAMS, RESULTS
from rethinker.lab.plan import command as _plan  # noqa: F401
from rethinker.lab.report import command as _report  # noqa: F401
from rethinker.rundir.paths import RunDir


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    return run_command(argv)


@command("train", "Train from a config, evaluate, and write runs/<name>/report.html.", CONFIG, settings(), RESUME)
def train(file: str, overrides: list[str], resume: bool, traceback: bool) -> int:
    from rethinker.config import check_trainable, load_config
    from rethinker.lab import jobs
    from rethinker.lab.jobs.accelerate import this_machine
    from rethinker.lab.jobs.failures import first_failure
    from rethinker.lab.jobs.foreground import INTERRUPTED, REQUEUE
    from rethinker.lab.jobs.preflight import make_missing, preflight
    from rethinker.lab.wandb.sync import check_key
    from rethinker.rundir.folder import check_folder, run_state

    config = load_config(file, typed=overrides)
    check_trainable(config)
    joins = this_machine(config).rank > 0  # of several machines, machine 0 looks after the run
    finished = run_state(config.folder) == "finished"
    check_folder(config, resume=resume or finished)
    report_file = RunDir(config.folder).report
    if finished:
        if not joins and not report_file.exists():  # the process that waited for it was killed before writing one
            _write_report(config.folder)
        print(f"{config.folder} is finished; its report: {report_file}")
        return 0
    for warning in preflight(config):
        print(f"warning: {warning}", file=sys.stderr)
    if not joins:
        make_missing([config], print)
        check_key(config)
    started = time.monotonic()
    code = jobs.train(config, resume=resume, tracebacks=traceback)
    state = run_state(config.folder)
    again = shlex.join([*job_commands.program(), "train", file, *overrides, "--resume"])
    if code in (INTERRUPTED, REQUEUE):
        print(f"resume with: {again}")
        return code
    if code:
        why = first_failure(config.folder) or f"ended early with exit code {code}"
        errors = RunDir(config.folder).errors
        where = f"; details: {errors}" if errors.exists() else ""
        print(f"rethinker train: {why}{where}; when this is fixed, resume with: {again}", file=sys.stderr)
        return code
    if joins:
        return code
    _write_report(config.folder)
    if state == "stopped":
        print(f"stopped and saved; resume with: {again}")
    else:
        print(f"finished in {(time.monotonic() - started) / 60:.1f} minutes; report: {report_file}")
    return code


@command(
    "serve",
    "Start vLLM servers for runs with rollout.engine=server, until Ctrl-C; what ends is started again.",
    option("file", metavar="config", help="YAML file, e.g. experiments/tiny.yaml; with --benchmarks also a model"),
    settings("the run's own, e.g. rollout.servers=FOLDER"),
    option("--servers", type=int, default=1, help="on this machine (default: %(default)s)"),
    option("--port", type=int, default=8100, help="of the first, the next ones follow (default: %(default)s)"),
    option("--host", default="127.0.0.1", help="this machine's private address (default: %(default)s)"),
    NAMES,
    PROTOCOL,
    *DATA,
)
def serve(
    file: str,
    overrides: list[str],
    servers: int,
    port: int,
    host: str,
    benchmarks: str | None,
    protocol: Literal["official", "boxed"] | None,
    data: list[str] | None,
    data_root: Path | None,
) -> int:
    from rethinker.config import load_config
    from rethinker.lab.jobs.preflight import check_model, make_missing
    from rethinker.lab.serve import of_benchmarks, of_run
    from rethinker.lab.serve import serve as run_servers

    if benchmarks is None:
        if protocol or data or data_root:
            raise ValueError("--protocol, --data and --data-root are for benchmarks: add --benchmarks mathvision,...")
        config = load_config(file, typed=overrides)
        check_model(config)
        make_missing([config], print)
        look = partial(of_run, config)
    else:
        config, _ = config_of(file, overrides)
        check_model(config)
        chosen = protocol or "boxed"
        look = partial(of_benchmarks, config, chosen, load_tasks(benchmarks, chosen, data, data_root))
    try:
        run_servers(config, look, servers=servers, host=host, port=port, say=lambda text: print(text, flush=True))
    except RuntimeError as error:  # a server that does not come up, with the end of its log
        print(f"rethinker serve: {error}", file=sys.stderr)
        return 1
    return 0


@command(
    "ablate",
    "Run a grid of settings and seeds in parallel and collect one table.",
    option("file", metavar="grid", help="YAML file, e.g. experiments/ablations/smoke.yaml; finished runs are kept"),
    settings("for every run, e.g. optim.lr=3e-5; name= base= seeds=[0,1] slots= baseline= slurm.*= are the grid's own"),
    option("--slots", type=int, help="runs in parallel (default: the grid's)"),
    option("--on", choices=("slurm", "local"), help="submit the runs as jobs by submitit (local: of this machine)"),
    option("--only", nargs="+", metavar="LABEL", help="run these variants only; the table keeps the others"),
    option("--dry-run", action="store_true", help="check every config and list what would run"),
)
def ablate(
    file: str,
    overrides: list[str],
    slots: int | None,
    on: Literal["slurm", "local"] | None,
    only: list[str] | None,
    dry_run: bool,
) -> int:
    from rethinker.lab.ablation.grid import load_grid
    from rethinker.lab.ablation.run import plan, run_grid, save_table
    from rethinker.lab.ablation.table import compare, in_words

    # argparse takes settings behind --only for labels, too
    labels = None if only is None else [item for item in only if "=" not in item]
    grid = load_grid(file, [*overrides, *(item for item in only or () if "=" in item)], labels)
    if dry_run:
        print(plan(grid).to_string(index=False))
        return 0
    try:
        outcomes = run_grid(grid, slots, on=on)
    except KeyboardInterrupt:
        left = "the jobs stay where they are; the same command waits for them again, scancel ends them"
        print(left if on else "stopped and saved; run the same command to resume", file=sys.stderr)
        return 130
    table = save_table(grid)
    print(f"written: {grid.folder / 'table.parquet'}, {grid.folder / 'table.csv'}")  # also where no comparison follows
    found = compare(table, grid.baseline)
    print(in_words(found[found["label"].isin(labels)] if labels else found))
    return 0 if set(outcomes.values()) == {"finished"} else 1


@command(
    "watch",
    "Show a run in the terminal while it trains: metrics, charts, latest responses.",
    FOLDER,
    option("--once", action="store_true", help="show the current state and exit"),
    option("--every", type=float, default=2.0, help="refresh interval in seconds (default: %(default)s)"),
    option("--responses", type=int, default=3, help="responses shown (default: %(default)s)"),
)
def watch(folder: Path, once: bool, every: float, responses: int) -> int:
    from rethinker.lab.watch.terminal import follow

    status = follow(folder, every=every, once=once, responses=responses)
    return 1 if status.state == "failed" else 0


@command(
    "figures",
    "Save the figures of a run's report as SVG and PNG, light and dark.",
    FOLDER,
    option("names", nargs="*", help="figures to plot; default: all that the run has data for"),
    option("--out", type=Path, required=True, help="folder for <name>-<theme>.svg and .png"),
)
def figures(folder: Path, names: list[str], out: Path) -> int:
    from rethinker.lab.figures.catalogue import save_figures

    paths = save_figures(folder, out, names or None)
    for path in paths:
        print(f"written: {path}")
    if not paths:
        raise ValueError(f"{folder} has no data for {', '.join(names) or 'any figure'} yet")
    return 0


@command(
    "notebooks",
    "Execute the notebooks with papermill, with parameters from a file.",
    option("names", nargs="*", help="notebooks to run, such as 04; default: all"),
    option("--params", type=Path, default=Path(PARAMS), help="parameter file (default: %(default)s)"),
    option("--out", type=Path, help=f"folder for executed copies; default: {RESULTS}/<name of the folder>"),
)
def notebooks(names: list[str], params: Path, out: Path | None) -> int:
    from rethinker.lab.notebook.execute import print_results, run_notebooks

    return print_results(run_notebooks(params, names, out))


@command(
    "glossary",
    "Explain every metric and column that a run writes (Markdown).",
    option("--out", type=Path, help="file to write; default: the terminal"),
)
def glossary(out: Path | None) -> int:
    from rethinker.rundir.glossary import to_markdown

    if out:
        out.write_text(to_markdown(), encoding="utf-8")
    else:
        print(to_markdown(), end="")
    return 0


@command("doctor", "Show what is installed, what is broken and how to repair it.")
def doctor() -> int:
    from rethinker.lab.doctor import print_checks, run_checks

    return print_checks(run_checks())


def _write_report(folder: Path) -> None:
    from rethinker.lab.report.write import write_report

    print(f"written: {write_report(folder)}")


if __name__ == "__main__":
    sys.exit(main())
