"""A W&B Report on one or several runs: panels for the paper's Figs 2, 5, 6 and 7 that W&B draws from what the runs
sent, and the words and numbers of ``report.html`` from the runs' files. wandb-workspaces is imported on use.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rethinker.lab.analysis import diagnostics
from rethinker.lab.figures.words import unanimous_words
from rethinker.lab.report.results import absent, by_mode, cards, gains, progress
from rethinker.lab.wandb.mirror import RESPONSES, evaluation_key
from rethinker.lab.wandb.sync import Account, WandbError, connect, run_config, run_id
from rethinker.rundir.atomic import read_json
from rethinker.rundir.diagnosis import diagnose
from rethinker.rundir.paths import RunDir
from rethinker.rundir.reader import load_settings, metrics_so_far

TITLE_LENGTH = 128  # W&B's limit


def save_report(runs: Sequence[Path], *, publish: bool = False) -> str:
    """Save a report on ``runs`` as a draft, which only its author sees, or published; returns its address.

    Raises WandbError without key or network, for a run that W&B does not have (yet) and for runs of several projects.
    """
    import wandb_workspaces.reports.v2 as wr

    project = one_project(runs)
    account = connect()
    for run in runs:
        _check_sent(run, account, project)
    names = ", ".join(run.resolve().name for run in runs)
    report = wr.Report(
        project=project,
        entity=account.entity,
        title=f"Rethinker: {names}"[:TITLE_LENGTH],
        description=f"{len(runs)} run{'s' if len(runs) > 1 else ''}, by rethinker report --wandb",
        blocks=report_blocks(runs, entity=account.entity, project=project),
    )
    report.save(draft=not publish)
    return str(report.url)


def one_project(runs: Sequence[Path]) -> str:
    """The W&B project of all ``runs``. Raises WandbError where they have several or were not recorded for W&B."""
    projects = {}
    for run in runs:
        run_id(run)
        projects[run_config(run).tracking.wandb_project] = run
    if len(projects) > 1:
        raise WandbError(f"a report is on one project, but the runs have {', '.join(sorted(projects))}")
    return next(iter(projects))


def run_sets(runs: Sequence[Path]) -> dict[str, list[Path]]:
    """The runs by their group (``tracking.wandb_group``); a run without group is a set of its own, by its name."""
    sets: dict[str, list[Path]] = {}
    for run in runs:
        sets.setdefault(run_config(run).tracking.wandb_group or run.resolve().name, []).append(run)
    return sets


def report_blocks(runs: Sequence[Path], *, entity: str, project: str) -> list[Any]:
    """The blocks of the report (wandb_workspaces.reports.v2), from the runs' files alone: no network is used."""
    import wandb_workspaces.reports.v2 as wr

    sets = run_sets(runs)
    several = len(runs) > 1

    def grid(*panels: Any) -> Any:
        found = [
            wr.Runset(
                entity=entity,
                project=project,
                name=name,
                filters=f"Metric('ID') in {[run_id(run) for run in members]}",
                groupby=["group"] if len(members) > 1 else [],  # lines are means over the group's runs
            )
            for name, members in sets.items()
        ]
        return wr.PanelGrid(runsets=found, panels=list(panels))

    def line(title: str, *metrics: str, share: bool = True, **options: Any) -> Any:
        limits = (0.0, 1.0) if share else (None, None)
        return wr.LinePlot(title=title, x="episode", y=list(metrics), title_x="episode", range_y=limits, **options)

    shares = ("queries/effective", "queries/all_correct", "queries/all_incorrect")
    return [
        wr.TableOfContents(),
        wr.H2("Results"),
        *(wr.MarkdownBlock(headline(run)) for run in runs),
        wr.H2("Vanishing advantages (the paper's Fig. 2)"),
        wr.MarkdownBlock(
            f"{' '.join(dict.fromkeys(f'{unanimous_words(run)}.' for run in runs))} Effective: neither. "
            + _per_episode(runs)
        ),
        grid(
            line("Queries by their first responses", *shares, plot_type="line" if several else "stacked-area"),
            line("Effective queries", "queries/effective"),
        ),
        wr.H2("Accuracy during training (Fig. 5)"),
        wr.MarkdownBlock(
            "Greedy accuracy on the validation queries with its 95% Wilson interval (low, high); next to it the mean "
            "correctness of sampled first responses on training queries."
        ),
        grid(
            line("Validation, greedy", "validation/accuracy", "validation/low", "validation/high"),
            line("Training queries, sampled", "accuracy/first"),
        ),
        wr.H2("Advantages before and after the selection of samples (Fig. 6)"),
        wr.MarkdownBlock("Samples at zero do not move the policy. Before: all samples; after: those trained on."),
        grid(
            line("Advantages, before", "advantages/before", share=False),
            line("Advantages, after", "advantages/after", share=False),
            line(
                "Share whose advantage, by correctness, is not zero",
                "replay/effective_before",
                "replay/effective_after",
            ),
        ),
        wr.H2("Second looks at test time (Fig. 7)"),
        wr.MarkdownBlock(
            "plain: the model as it is; forced: every response continued after a trigger; bound: wrong responses only, "
            "which needs the label. A bar's name ends with its measure (pass@1: one sampled response; greedy: an "
            "evaluation without samples). The bars have no intervals; those of the table are 95%, with queries as "
            "clusters."
        ),
        grid(wr.BarPlot(title="Held-out accuracy", metrics=fig7_keys(runs), range_x=(0.0, 1.0))),
        *(wr.MarkdownBlock(fig7_words(run)) for run in runs),
        wr.H2("Unforced reflection"),
        grid(
            line("Share of first responses that reflect", "reflection/share"),
            line("Forced, kept", "rethink/forced", "rethink/kept"),
        ),
        wr.H2("Responses"),
        grid(wr.WeavePanelSummaryTable(table_name=RESPONSES)),
        wr.H2("Settings and caveats"),
        wr.UnorderedList(items=caveats(runs)),
        *([grid(wr.RunComparer(diff_only="split"))] if several else []),
        wr.CodeBlock(code=RunDir(runs[0]).config.read_text(encoding="utf-8"), language="yaml"),
    ]


def headline(run: Path) -> str:
    """The run's headline numbers as Markdown: those of report.html."""
    metrics = metrics_so_far(run)
    lines = [f"**{run.resolve().name}**: {progress(run, metrics) or 'no episode has ended yet'}", *metrics.notes]
    lines += map(str, diagnose(metrics.episodes.to_dict("records"), load_settings(run)))
    evaluations = cards(run)
    lines += [f"{card['name']}: **{card['value']}**; {'; '.join(card['remarks'])}" for card in evaluations]
    if evaluations:
        lines.append(gains(run, [card["label"] for card in evaluations]))
    return "\n\n".join(filter(None, lines))


def fig7_keys(runs: Sequence[Path]) -> list[str]:
    """The names under which the runs' summaries hold the bars of Fig. 7, each once: pass@1, greedy without samples."""
    keys = []
    for run in runs:
        for label, summary in diagnostics.load_evaluations(run).items():
            for mode, measures in summary["modes"].items():
                keys.append(evaluation_key(label, mode, "pass@1" if "pass@1" in measures else "greedy"))
    return list(dict.fromkeys(keys))


def fig7_words(run: Path) -> str:
    """The numbers of Fig. 7 with intervals, as a Markdown table."""
    evaluated = diagnostics.fig7_table(run)
    if evaluated.empty:
        return f"{run.resolve().name}: no evaluation has been made yet."
    table = by_mode(evaluated)
    lines = [[run.resolve().name, *table.headers[1:]], ["---"] * len(table.headers)]
    lines += [["{} ({})".format(*cell) if isinstance(cell, tuple) else str(cell) for cell in row] for row in table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def caveats(runs: Sequence[Path]) -> list[str]:
    """What a reader has to know before believing the panels."""
    found = [f"{run.resolve().name}: {text}" for run in runs if (text := absent(run))]
    for name, members in run_sets(runs).items():
        size = len(members)
        seeds = sorted({run_config(run).seed for run in members})
        found.append(
            f"{name}: {size} run{'s' if size > 1 else ''}, seed{'s' if len(seeds) > 1 else ''} "
            f"{', '.join(map(str, seeds))}. Intervals are over held-out queries, not over seeds."
        )
    for run in runs:
        facts = read_json(RunDir(run).provenance)
        if not facts:
            found.append(f"{run.resolve().name}: provenance.json is missing: code and machine are not recorded.")
            continue
        git = facts.get("git", {})
        changed = ", with changes that are not committed" if git.get("changed") else ""
        found.append(f"{run.resolve().name}: code of commit {git.get('commit') or 'unknown'}{changed}.")
    if len(runs) > 1:
        found.append(f"The settings below are those of {runs[0].resolve().name}; the comparer shows what differs.")
    return found


def _per_episode(runs: Sequence[Path]) -> str:
    sizes = sorted({run_config(run).queries_per_episode for run in runs})
    return f"n = {' or '.join(map(str, sizes))} queries per episode."


def _check_sent(run: Path, account: Account, project: str) -> None:
    import wandb

    path = f"{account.entity}/{project}/{run_id(run)}"
    try:
        account.api.run(path)
    except (wandb.errors.CommError, ValueError) as error:
        raise WandbError(f"W&B does not have {run} ({path}) yet: `rethinker sync {run}` ({error})") from error
