"""The figures of a run, each drawn from its files alone, light or dark, as SVG or PNG.

Intervals are 95%. A figure whose data a run does not have (yet) raises ``NoData`` with the reason. What a figure shows
is in ``figures/``, one module per topic; how it looks, in ``figures.style``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib

from rethinker.lab.figures import choice, evaluation, reflection, training, vanishing
from rethinker.lab.figures.output import finish, render, save_drawings
from rethinker.lab.figures.style import DARK, LIGHT, THEMES, Drawing, NoData, Theme, settings
from rethinker.rundir.reader import run_seed

__all__ = ["DARK", "FIGURES", "LIGHT", "THEMES", "Drawing", "NoData", "Theme", "draw", "render", "save_figures"]

FIGURES: dict[str, Callable[[Path, Theme], Drawing]] = {
    "overview": training.overview,
    "validation": training.validation,
    "fig7": evaluation.fig7,
    "kinds": evaluation.kinds,
    "second_looks": choice.second_looks,
    "frontier": choice.frontier,
    "vanishing": vanishing.vanishing,
    "vanishing_kinds": vanishing.vanishing_kinds,
    "vanishing_map": vanishing.vanishing_map,
    "waste": vanishing.waste,
    "advantages": training.advantages,
    "rethinking": reflection.rethinking,
    "reflection": reflection.reflection,
    "pays": reflection.pays,
    "words": reflection.words,
}


def draw(run: str | Path, name: str, theme: Theme = LIGHT) -> Drawing:
    """Figure ``name`` of ``FIGURES``. Raises NoData; FileNotFoundError and ValueError for missing or broken files."""
    if name not in FIGURES:
        raise ValueError(f"no figure {name!r}; there are {', '.join(FIGURES)}")
    with matplotlib.rc_context(settings(theme)):
        drawing = FIGURES[name](Path(run), theme)
    seed = run_seed(run)
    return finish(drawing, f"One run, seed\u00a0{'not recorded' if seed is None else seed}.")


def save_figures(run: str | Path, folder: str | Path, names: Sequence[str] | None = None) -> list[Path]:
    """Write ``<name>-<theme>.svg`` and ``.png`` for every figure that the run has data for; returns the paths."""
    return save_drawings(names or FIGURES, lambda name, theme: draw(run, name, theme), folder)
