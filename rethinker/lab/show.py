"""What notebooks show: figures with captions, and HTML; in JupyterLab, under papermill and on GitHub's pages."""

from __future__ import annotations

from pathlib import Path

from IPython.display import HTML, Image, Markdown, display

from rethinker.plots import THEMES, Drawing, NoData, draw, render
from rethinker.repository import repository_root

PIXELS_AN_INCH = 80  # on the page; the picture itself has twice as many


def show(drawing: Drawing) -> None:
    """The figure and, below it, its caption."""
    width = int(drawing.figure.get_size_inches()[0] * PIXELS_AN_INCH)
    display(Image(data=render(drawing, "png"), width=width, alt=drawing.caption))
    display(Markdown(f"*{drawing.caption.replace('*', chr(92) + '*')}*"))


def show_html(text: str) -> None:
    """HTML made by this package (page texts are escaped where they are made)."""
    display(HTML(text))


def show_report(run: Path) -> None:
    """Where a run's report is: a link that JupyterLab opens, and the path."""
    report = run / "report.html"
    if not report.is_file():
        raise FileNotFoundError(f"{report} is missing: write it with `rethinker report {run}`")
    try:
        shown = report.resolve().relative_to(repository_root())
    except ValueError:  # a run outside the repository: JupyterLab cannot open it
        display(Markdown(f"Report: `{report}`"))
    else:
        display(Markdown(f"Report: [{shown}](../{shown})"))  # notebooks stand one folder below the root


def show_figures(run: str | Path, *names: str, theme: str = "light") -> None:
    """Figures of a run by their names in ``plots.FIGURES``; where it has no data for one, the reason in words.

    ``theme``: "light" or "dark". Raises ValueError for an unknown name or theme.
    """
    if theme not in THEMES:
        raise ValueError(f"no theme {theme!r}; there are {', '.join(THEMES)}")
    for name in names:
        try:
            show(draw(run, name, THEMES[theme]))
        except NoData as reason:
            display(Markdown(f"*{name}: {reason}*"))
