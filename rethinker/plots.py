"""The figures of a run, each drawn from its files alone, light or dark, as SVG or PNG.

Intervals are 95%. A figure whose data a run does not have (yet) raises ``NoData`` with the reason. What a figure shows
is in ``plots_training``, ``plots_vanishing``, ``plots_reflection`` and ``plots_evaluation``; how it looks, in
``plot_style``.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib

from rethinker import plots_evaluation, plots_reflection, plots_training, plots_vanishing
from rethinker.files import atomic_write_bytes
from rethinker.plot_style import DARK, LIGHT, THEMES, Drawing, NoData, Theme, settings
from rethinker.run_files import run_seed

__all__ = [
    "DARK",
    "FIGURES",
    "LIGHT",
    "THEMES",
    "Drawing",
    "NoData",
    "Theme",
    "draw",
    "finish",
    "render",
    "save_drawings",
    "save_figures",
]

FIGURES: dict[str, Callable[[Path, Theme], Drawing]] = {
    "overview": plots_training.overview,
    "validation": plots_training.validation,
    "fig7": plots_evaluation.fig7,
    "kinds": plots_evaluation.kinds,
    "vanishing": plots_vanishing.vanishing,
    "vanishing_kinds": plots_vanishing.vanishing_kinds,
    "vanishing_map": plots_vanishing.vanishing_map,
    "waste": plots_vanishing.waste,
    "advantages": plots_training.advantages,
    "rethinking": plots_reflection.rethinking,
    "reflection": plots_reflection.reflection,
    "pays": plots_reflection.pays,
    "words": plots_reflection.words,
}


def draw(run: str | Path, name: str, theme: Theme = LIGHT) -> Drawing:
    """Figure ``name`` of ``FIGURES``. Raises NoData; FileNotFoundError and ValueError for missing or broken files."""
    if name not in FIGURES:
        raise ValueError(f"no figure {name!r}; there are {', '.join(FIGURES)}")
    with matplotlib.rc_context(settings(theme)):
        drawing = FIGURES[name](Path(run), theme)
    seed = run_seed(run)
    return finish(drawing, f"One run, seed\u00a0{'not recorded' if seed is None else seed}.")


def finish(drawing: Drawing, seeds: str) -> Drawing:
    """The drawing with the sentence ``seeds`` at the end of its caption; "n = 3" is kept on one line."""
    return replace(drawing, caption=f"{drawing.caption} {seeds}".replace("n = ", "n\u00a0=\u00a0"))


def render(drawing: Drawing, kind: str) -> bytes:
    """The figure as ``svg`` or ``png`` (at 160 dpi)."""
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else None
    with matplotlib.rc_context({"svg.hashsalt": "rethinker"}):
        drawing.figure.savefig(buffer, format=kind, dpi=160, metadata=metadata)
    return buffer.getvalue()


def save_figures(run: str | Path, folder: str | Path, names: Sequence[str] | None = None) -> list[Path]:
    """Write ``<name>-<theme>.svg`` and ``.png`` for every figure that the run has data for; returns the paths."""
    return save_drawings(names or FIGURES, lambda name, theme: draw(run, name, theme), folder)


def save_drawings(names: Iterable[str], draw_one: Callable[[str, Theme], Drawing], folder: str | Path) -> list[Path]:
    """Write what ``draw_one`` makes of every name and theme; a figure without data is left out. Returns the paths."""
    written = []
    for name in names:
        for theme in THEMES.values():
            try:
                drawing = draw_one(name, theme)
            except NoData:
                continue
            for kind in ("svg", "png"):
                path = Path(folder) / f"{name}-{theme.name}.{kind}"
                written.append(atomic_write_bytes(path, render(drawing, kind)))
    return written
