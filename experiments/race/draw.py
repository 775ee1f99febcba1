"""Figures and tables from results/*.csv: race.svg and race.png, race-reflecting.svg and .png, race.md."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import beside  # noqa: F401
import matplotlib
import numpy as np
import pandas as pd
import records
from entrants import ENTRANTS, STARTS
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter
from race import table_of

from rethinker.lab.figures.evidence import short_number
from rethinker.lab.figures.output import render
from rethinker.lab.figures.style import LIGHT, Drawing, legend, panels, settings
from rethinker.rundir.atomic import atomic_write_bytes, atomic_write_text

THRESHOLDS = (0.6, 0.75)
CLOCKS = (("cpu_s", "CPU seconds of training"), ("wall_s", "wall seconds of training"), ("tokens", "tokens generated"))
LOOKS = {
    "trl-grpo": (LIGHT.orange, (0, (4, 2))),
    "grpo": (LIGHT.blue, "-"),
    "ssr": (LIGHT.green, (0, (1, 1))),
    "grpo-rethink": (LIGHT.purple, (0, (4, 2))),
    "ssr-rethink": (LIGHT.ink, "-"),
    "ssr-rethink-vllm": (LIGHT.sky_line, (0, (5, 1, 1, 1))),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent / "results")
    folder = parser.parse_args(arguments).folder
    text = page(folder)
    if not text:
        print(f"{folder}: no finished runs yet", file=sys.stderr)
        return 1
    atomic_write_text(folder / "race.md", text)
    print(text)
    for name in STARTS:
        file = table_of(folder, "race", name)
        if len(table := records.read(file)):
            for kind in ("svg", "png"):
                atomic_write_bytes(file.with_suffix(f".{kind}"), render(draw(table), kind))
    return 0


def page(folder: Path) -> str:
    """The text of race.md: what each start's tables say; empty where there are none."""
    parts = []
    for name, start in STARTS.items():
        file = table_of(folder, "race", name)
        if len(table := records.read(file)):
            parts.append(f"## {start.title}\n\n{words(file, table, table_of(folder, 'sweep', name))}")
    return "\n".join(parts)


def words(file: Path, table: pd.DataFrame, sweep: Path) -> str:
    """The tables of a race and of its sweep, and what they were made with."""
    titles = {name: entrant.title for name, entrant in ENTRANTS.items()}
    text = records.summary(table, titles, THRESHOLDS)
    facts = list(json.loads(file.with_suffix(".json").read_text()).values())
    machines = dict.fromkeys(f"{each['machine']['processor']}, {each['machine']['cores']} cores" for each in facts)
    versions = dict.fromkeys(
        ", ".join(f"{name} {each['versions'][name]}" for name in ("torch", "transformers", "trl")) for each in facts
    )
    text += f"\n{'; '.join(machines)}; {'; '.join(versions)}; load up to {table['load_1min'].max():.1f}. "
    text += "Validation: mean of the last three.\n"
    if len(rates := records.read(sweep)):
        ends = [rows["cpu_s"].iloc[-1] for _, rows in records.validations(rates)]
        text += (
            f"\nLearning rates: mean of the last three validations at the end of {min(ends):.0f} to {max(ends):.0f} "
            "CPU seconds, one seed; in bold what was raced, –: not run, or failed.\n\n"
        )
        text += records.sweep_summary(rates, titles)
        marks = " and ".join(f"{mark:.0%}" for mark in THRESHOLDS)
        text += f"\nThe same runs' CPU seconds to {marks}.\n\n"
        text += records.sweep_times(rates, titles, THRESHOLDS)
    return text


def draw(table: pd.DataFrame) -> Drawing:
    """Validation accuracy over each clock: thin lines are seeds, a thick one their mean where all have been."""
    with matplotlib.rc_context(settings(LIGHT)):
        figure, axes = panels(len(CLOCKS), height=4.0)
        for axis, (clock, label) in zip(axes, CLOCKS, strict=True):
            for method, (color, dash) in LOOKS.items():
                _lines(axis, table[table["method"] == method], clock, color, dash, ENTRANTS[method].title)
            for threshold in THRESHOLDS:
                axis.axhline(threshold, color=LIGHT.muted, linewidth=0.8)
            axis.set_xlabel(label)
            axis.xaxis.set_major_formatter(FuncFormatter(short_number))
            axis.set_ylim(0, 1)
        axes[0].set_ylabel("validation accuracy, greedy")
        legend(axes[0], loc="lower right")
    queries = int(table["queries"][table["split"] == "validation"].iloc[0])
    return Drawing(figure, f"Greedy accuracy on {queries} validation queries; thin lines are seeds, thick ones means.")


def _lines(axis: Axes, table: pd.DataFrame, clock: str, color: str, dash: object, title: str) -> None:
    runs = [rows for _, rows in records.validations(table)]
    if not runs:
        return
    for rows in runs:
        axis.plot(rows[clock], rows["accuracy"], color=color, linewidth=0.7, alpha=0.5)
    grid = np.linspace(0, min(rows[clock].max() for rows in runs), 100)
    mean = np.mean([np.interp(grid, rows[clock], rows["accuracy"]) for rows in runs], axis=0)
    axis.plot(grid, mean, color=color, linestyle=dash, linewidth=2, label=title)


if __name__ == "__main__":
    sys.exit(main())
