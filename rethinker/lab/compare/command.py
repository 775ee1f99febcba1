"""``rethinker compare``: evaluations on benchmarks beside the paper's rows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rethinker.lab.command_line import command, option

if TYPE_CHECKING:
    from rethinker.lab.compare.rows import Evaluation
    from rethinker.lab.compare.tables import Table


@command(
    "compare",
    "Show evaluations on benchmarks beside the paper's rows: table, paired differences and figure.",
    option(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="evaluations, runs that have some, or a folder of runs"
    ),
    option(
        "--paper",
        metavar="LIST",
        default="7b",
        help="the paper's rows: 7b, 32b, 72b, small, proprietary, ablations, fig7, a model's name, or none "
        "(default: %(default)s)",
    ),
    option("--groups", metavar="NAME", help="also the scores by a group of the benchmarks, e.g. subject"),
    option("--out", type=Path, help="folder for tables and figures (default: comparison/ in the first FOLDER)"),
)
def compare(folders: list[Path], paper: str, groups: str | None, out: Path | None) -> int:
    from rethinker.lab.compare.rows import find

    evaluations = find(folders)
    names = [] if paper == "none" else paper.split(",")
    for table in write(evaluations, names, out or folders[0] / "comparison", groups):
        _print(table)
    print(f"written: {(out or folders[0] / 'comparison') / 'comparison.html'}", file=sys.stderr)
    return 0


def write(evaluations: list[Evaluation], names: list[str], out: Path, group: str | None = None) -> list[Table]:
    """Write ``comparison.html`` and ``.md``, the figure, and ``comparison``, ``pass_at_k``, ``groups`` and
    ``differences`` as ``.csv`` to ``out``; returns the tables. ``names``: the paper's rows, as
    `benchmarks.paper.choose` takes them."""
    from rethinker.benchmarks import paper
    from rethinker.lab.compare import page, pairs, rows, tables
    from rethinker.lab.figures.benchmarks import save_figures
    from rethinker.rundir.atomic import atomic_write_text

    table = rows.collect(evaluations, paper.choose(names))
    found, differences, sampled = rows.groups(evaluations), pairs.differences(evaluations), rows.pass_at_k(evaluations)
    shown = [tables.results(table)]
    if len(sampled):
        shown.append(tables.passed(sampled, tables.columns(table)))
    shown.append(tables.protocols(table))
    if len(differences):
        shown.append(tables.paired(differences, pairs.asked_otherwise(evaluations)))
    if group is not None:
        shown.append(tables.by_group(found, group))
    files = {"comparison": table, "pass_at_k": sampled, "groups": found, "differences": differences}
    for name, content in files.items():
        atomic_write_text(out / f"{name}.csv", content.to_csv(index=False))
    notes = ["### About the paper's numbers", "", *(f"- {note}" for note in tables.paper_notes()), ""] if names else []
    atomic_write_text(out / "comparison.md", "\n".join([*(each.markdown() for each in shown), *notes]))
    save_figures(table, tables.columns(table), out)
    page.write_page(out / "comparison.html", evaluations, table, shown)
    return shown


def _print(table: Table) -> None:
    from rich.console import Console
    from rich.table import Table as Rich

    console = Console(width=None if sys.stdout.isatty() else 200)
    shown = Rich(box=None, title=table.title, title_justify="left", title_style="bold")
    for number, header in enumerate(table.headers):
        shown.add_column(header, justify="left" if number < table.words else "right", no_wrap=not number)
    for row in table.rows:
        shown.add_row(*row)
    console.print(shown)
    for note in table.notes:
        console.print(note, style="dim", highlight=False, markup=False)
    console.print()
