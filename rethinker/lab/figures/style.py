"""How every figure looks: themes, axes of time and share, lines and legends.

Colours are Okabe and Ito's (2008), which stay apart for colour-blind readers; lines also differ in dash, bars in
their labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import ScaledTranslation


class NoData(ValueError):
    """The run has no data for a figure; the message says which and when it will be there."""


@dataclass(frozen=True)
class Drawing:
    """A figure and what it shows in words (numbers of cases and intervals included)."""

    figure: Figure
    caption: str


@dataclass(frozen=True)
class Theme:
    """Colours of a figure."""

    name: str
    paper: str
    ink: str
    muted: str
    grid: str
    blue: str
    orange: str
    green: str
    purple: str
    sky: str
    grey: str
    sky_line: str  # of these two for thin lines and small markers: 3 to 1 against the paper, as WCAG 2.2 wants (1.4.11)
    grey_line: str


LIGHT = Theme(
    "light",
    "#ffffff",
    "#1c1e21",
    "#63676e",
    "#e4e6ea",
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#b4578c",
    "#56b4e9",
    "#b8bdc5",
    "#2f93cf",
    "#868c95",
)
DARK = Theme(
    "dark",
    "#15171a",
    "#e8eaed",
    "#9aa0a8",
    "#2d3136",
    "#58b0e8",
    "#f08a4b",
    "#3cc39a",
    "#dd94bd",
    "#c4e6fa",
    "#5b616a",
    "#c4e6fa",
    "#7d848e",
)
THEMES = {theme.name: theme for theme in (LIGHT, DARK)}


def settings(theme: Theme) -> dict[str, Any]:
    """matplotlib's rcParams of a theme."""
    return {
        "figure.facecolor": theme.paper,
        "axes.facecolor": theme.paper,
        "savefig.facecolor": theme.paper,
        "text.color": theme.ink,
        "axes.labelcolor": theme.muted,
        "axes.edgecolor": theme.grid,
        "axes.titlecolor": theme.ink,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "grid.color": theme.grid,
        "hatch.color": theme.paper,
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],  # matplotlib's own: the same figure on every machine
        "font.size": 9.5,
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 22,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "lines.linewidth": 1.9,
        "lines.solid_capstyle": "round",
        "legend.frameon": True,
        "legend.framealpha": 0.85,
        "legend.facecolor": theme.paper,
        "legend.edgecolor": "none",
        "legend.fontsize": 8.5,
    }


DASHES: tuple[str | tuple[float, tuple[float, ...]], ...] = (
    "-",
    (0, (4, 1.5)),
    (0, (1, 1.3)),
    (0, (5, 1.5, 1, 1.5)),
    (0, (8, 2)),
    (0, (2, 2.5)),
)


def colors(theme: Theme) -> tuple[str, ...]:
    """Six colours of lines for things without an order; each has its dash in ``DASHES``."""
    return theme.blue, theme.orange, theme.purple, theme.green, theme.sky_line, theme.grey_line


def strength(theme: Theme) -> Colormap:
    """From paper to blue: shares in a map."""
    return LinearSegmentedColormap.from_list(f"strength-{theme.name}", [theme.paper, theme.blue])


def grid(count: int, columns: int = 3, height: float = 1.9, sharey: bool = True) -> tuple[Figure, list[Axes]]:
    """A figure of ``count`` small panels in rows of ``columns``, height in inches a row.

    ``sharey``: one scale for all.
    """
    rows = -(-count // columns)
    layout = ConstrainedLayoutEngine(wspace=0.05, hspace=0.04, w_pad=0.06, h_pad=0.06)
    figure = Figure(figsize=(10.4, height * rows + 0.5), layout=layout)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=sharey).ravel()
    for spare in axes[count:]:
        spare.set_visible(False)
    return figure, list(axes[:count])


def panels(count: int, height: float = 3.3) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` panels side by side; height in inches."""
    layout = ConstrainedLayoutEngine(wspace=0.06, w_pad=0.08, h_pad=0.06)
    figure = Figure(figsize=(10.4 if count > 1 else 6.8, height), layout=layout)
    axes = figure.subplots(1, count, squeeze=False)[0]
    return figure, list(axes)


def share_axis(axis: Axes, top: float | None = 1.0) -> None:
    """Percent on the vertical axis, from 0; a tick between two whole ones keeps its decimals."""
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))
    axis.set_ylim(0, top)


def legend(axis: Axes, columns: int = 1, **where: Any) -> None:
    """A legend on the paper's colour, without a border; ``where``: matplotlib's keywords."""
    axis.legend(ncols=columns, handlelength=1.6, columnspacing=1.2, **where)


def legend_below(axis: Axes, columns: int, lines: int = 3) -> None:
    """A legend below the panel, where it covers no data; ``lines`` of text (tick labels, axis label) stand between."""
    down = ScaledTranslation(0, -(0.1 + 0.175 * lines), axis.figure.dpi_scale_trans)
    where = {"bbox_to_anchor": (0.5, 0), "bbox_transform": axis.transAxes + down, "borderaxespad": 0}
    legend(axis, columns, loc="upper center", **where)
