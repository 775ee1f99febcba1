"""The figures of a grid, by name, from the committed tables."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from rethinker.lab.evidence import series
from rethinker.lab.evidence.effects import effect
from rethinker.lab.evidence.grids import GridPage, shown
from rethinker.lab.evidence.tables import WORDS, Tables
from rethinker.lab.figures import evidence as figures
from rethinker.lab.figures.style import THEMES, Drawing, NoData, Theme


def draw(tables: Tables, name: str, grid: GridPage, kind: str, theme: Theme = THEMES["light"]) -> Drawing:
    """Figure ``kind`` of ``FIGURES`` of a grid. Raises NoData where no run is finished."""
    return FIGURES[kind](tables, name, grid, theme)


def _validation(tables: Tables, name: str, grid: GridPage, theme: Theme) -> Drawing:
    lines = series.validation_lines(tables, name, shown(tables, name, grid))
    caption = f"Grid {name}: greedy validation accuracy over generated tokens."
    return figures.over_tokens({"Validation accuracy": lines}, caption, theme=theme, from_zero=False)


def _training(columns: dict[str, str], what: str) -> Callable[[Tables, str, GridPage, Theme], Drawing]:
    def draw_them(tables: Tables, name: str, grid: GridPage, theme: Theme) -> Drawing:
        variants = shown(tables, name, grid)
        parts = {title: series.training_lines(tables, name, variants, column) for title, column in columns.items()}
        return figures.over_tokens(parts, f"Grid {name}: {what}, over generated tokens.", theme=theme)

    return draw_them


def _differences(tables: Tables, name: str, grid: GridPage, theme: Theme) -> Drawing:
    rows = []
    for variant in shown(tables, name, grid, every=True):
        if grid.against and variant != grid.against:
            found = effect(tables, "test/plain/accuracy", name, variant, grid.against)
            rows.append({"label": f"{variant} ({found.seeds})", **found.__dict__})
    title = f"Held-out accuracy minus {grid.against}, in points"
    caption = f"Grid {name}: {title.lower()}; paired by seed (number in brackets), bootstrap over seeds and queries."
    return figures.forest(pd.DataFrame(rows, columns=["label", "value", "low", "high"]), title, caption, theme=theme)


def _frontier(tables: Tables, name: str, grid: GridPage, theme: Theme) -> Drawing:
    points = series.frontier_points(tables, name, shown(tables, name, grid))
    caption = (
        f"Grid {name}: held-out accuracy over tokens a response; lines up and down: bootstrap over seeds and queries."
    )
    return figures.frontier(points, caption, theme=theme)


def _pays(tables: Tables, name: str, grid: GridPage, theme: Theme) -> Drawing:
    variants = shown(tables, name, grid)
    chosen = [variant for variant in variants if variant != grid.against]
    if grid.against not in variants or not chosen:
        raise NoData("No run of this figure is finished yet.")
    cells = series.gains(tables, name, chosen[0], grid.against)
    points = series.frontier_points(tables, name, variants, modes=("plain",))
    caption = (
        f"Grid {name}: left, share of held-out responses of {chosen[0]} that take a second look, a mark per kind and "
        f"level (larger: harder), over the accuracy that second looks gain in {grid.against} less the price of their "
        "tokens; lines: 95% over queries; right, held-out accuracy over tokens a response, plain; lines: bootstrap "
        "over seeds and queries."
    )
    return figures.pays(cells, points, "Second looks, where they pay and where not", caption, theme=theme)


def _second_looks(by: str, what: str) -> Callable[[Tables, str, GridPage, Theme], Drawing]:
    def draw_them(tables: Tables, name: str, grid: GridPage, theme: Theme) -> Drawing:
        variants = shown(tables, name, grid)
        parts = {variant: series.second_looks(tables, name, variant, by) for variant in sorted(variants[:3])}
        some = f" (three of {len(variants)} variants)" if len(variants) > 3 else ""
        caption = (
            f"Grid {name}: share of sampled held-out responses that take a second look, by {what} and first "
            f"look{some}; lines: bootstrap over seeds."
        )
        return figures.second_looks(parts, by, caption, theme=theme)

    return draw_them


def _advantages(tables: Tables, name: str, grid: GridPage, theme: Theme) -> Drawing:
    parts = {variant: tables.of("advantages", name, variant) for variant in shown(tables, name, grid)}
    parts = {variant: part for variant, part in parts.items() if len(part)}
    if not parts:
        raise NoData("No run of this figure is finished yet.")
    caption = (
        f"Grid {name}: advantages of all samples and of the trained ones (the paper's Fig. 6), all episodes and seeds "
        "together."
    )
    runs = ", ".join(f"{variant} {part['seed'].nunique()}" for variant, part in parts.items())
    return figures.advantages(parts, f"{caption} Seeds: {runs}.", theme=theme)


def _words(tables: Tables, name: str, grid: GridPage, theme: Theme) -> Drawing:
    found = series.words(tables, name, shown(tables, name, grid))
    if found.empty:
        raise NoData(f"No finished run has {series.LEAST} responses that reflect, or these have no word in common.")
    caption = (
        f"Grid {name}: the words of reflection (the paper's Fig. 3) in first responses of training that reflect by "
        f"themselves; words that are among the {WORDS} most frequent ones of every run, each counted once "
        "a response, without frequent function words. Left: area by frequency, down to a least size; purple: by "
        f"itself a word of reflection. Right: means over {found.attrs['runs']} runs ({found.attrs['reflecting']:,} "
        "responses); rings: in forced second looks behind the trigger's words; diamonds: in the same responses before "
        "their reflection begins."
    )
    return figures.words(found, caption, theme=theme)


FIGURES: dict[str, Callable[[Tables, str, GridPage, Theme], Drawing]] = {
    "validation": _validation,
    "signal": _training(
        {
            "Effective queries": "effective",
            "Trained samples with a signal": "effective_after",
            "Batch filled": "batch_fill",
        },
        "where the signal is",
    ),
    "reflection": _training(
        {"Spontaneous reflection": "reflection", "Accuracy of first responses": "accuracy"}, "reflection and accuracy"
    ),
    "differences": _differences,
    "frontier": _frontier,
    "advantages": _advantages,
    "words": _words,
    "pays": _pays,
    "second_looks": _second_looks("category", "kind"),
    "levels": _second_looks("level", "level"),
}
