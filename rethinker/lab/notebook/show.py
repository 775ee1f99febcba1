"""What notebooks show: figures with captions, and HTML; in JupyterLab, under papermill and on GitHub's pages."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
from IPython.display import HTML, Image, Markdown, display

from rethinker.config.repository import repository_root
from rethinker.lab.figures.catalogue import THEMES, Drawing, NoData, draw, render
from rethinker.lab.report.write import write_report
from rethinker.rundir.paths import RunDir

PIXELS_AN_INCH = 80  # on the page; the picture itself has twice as many


def show(drawing: Drawing) -> None:
    """The figure and, below it, its caption."""
    width = int(drawing.figure.get_size_inches()[0] * PIXELS_AN_INCH)
    display(Image(data=render(drawing, "png"), width=width, alt=drawing.caption))
    display(Markdown(f"*{drawing.caption.replace('*', chr(92) + '*')}*"))


def show_html(text: str) -> None:
    """HTML made by this package (page texts are escaped where they are made)."""
    display(HTML(text))


def show_markdown(text: str) -> None:
    """Markdown made by this package."""
    display(Markdown(text))


def show_if(draw_it: Callable[[], Drawing]) -> None:
    """What ``draw_it`` draws, as ``show`` does; where it raises NoData, the reason in words."""
    try:
        drawing = draw_it()
    except NoData as reason:
        display(Markdown(f"*{reason}*"))
    else:
        show(drawing)


def show_table(table: pd.DataFrame) -> None:
    """A table whose texts are shown to their ends (pandas cuts them after 50 characters)."""
    with pd.option_context("display.max_colwidth", None):
        display(table)


def shown(path: str | Path) -> str:
    """The path as a person would write it: from the repository's root where it is below it."""
    root, path = repository_root(), Path(path).resolve()
    return os.fspath(path.relative_to(root) if path.is_relative_to(root) else path)


def show_report(run: str | Path) -> None:
    """Where a run's report is: a link that JupyterLab opens, and the path.

    It is written if it is missing; where the run's files do not allow that, the reason in words.
    """
    report = RunDir(run).report
    try:
        if not report.is_file():
            write_report(run)
    except (FileNotFoundError, ValueError) as reason:
        display(Markdown(f"No report: {reason}"))
        return
    where = shown(report)
    if os.path.isabs(where):  # outside the repository: JupyterLab cannot open it
        display(Markdown(f"Report: `{where}`"))
    else:
        display(Markdown(f"Report: [{where}](../{where})"))  # notebooks stand one folder below the root


def show_figures(run: str | Path, *names: str, theme: str = "light") -> None:
    """Figures of a run by their names in ``catalogue.FIGURES``; where it has no data for one, the reason in words.

    ``theme``: "light" or "dark". Raises ValueError for an unknown name or theme.
    """
    if theme not in THEMES:
        raise ValueError(f"no theme {theme!r}; there are {', '.join(THEMES)}")
    for name in names:
        show_if(partial(draw, run, name, THEMES[theme]))
