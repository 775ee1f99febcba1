"""Drawings as files: captions made whole, SVG and PNG, light and dark."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import matplotlib

from rethinker.lab.figures.style import THEMES, Drawing, NoData, Theme
from rethinker.rundir.atomic import atomic_write_bytes


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
