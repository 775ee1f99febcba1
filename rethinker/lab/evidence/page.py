"""The page ``docs/evidence.md``: its generated parts and figures, from the committed tables and ``evidence.yaml``.

A generated part stands between ``<!-- begin: NAME -->`` and ``<!-- end: NAME -->``; what is outside is written by hand.
Names: ``verdicts``, ``claim ID``, ``grid NAME``, ``knowing``, ``sweeps``, ``runs``.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import yaml

from rethinker.config.schema import ConfigError, build
from rethinker.lab.ablation.origin import short
from rethinker.lab.evidence import knowing, series
from rethinker.lab.evidence.bootstrap import Effect
from rethinker.lab.evidence.claims import Claim, judge, read_claims
from rethinker.lab.evidence.drawings import FIGURES, draw
from rethinker.lab.evidence.effects import effect
from rethinker.lab.evidence.grids import HEADINGS, GridPage, shown
from rethinker.lab.evidence.tables import Tables
from rethinker.lab.evidence.words import anchor, bound_words, in_words, markdown, measured, measured_words, picture
from rethinker.lab.figures.evidence import short_number
from rethinker.lab.figures.output import render
from rethinker.lab.figures.style import THEMES, Drawing, NoData, Theme
from rethinker.rundir.atomic import atomic_write_bytes, atomic_write_text

MADE_OF = "made-of.sha256"  # beside the figures
SETTING = re.compile(r"([\w.]+)=(.*?)(?= [\w.]+=|$)")
MECHANISM = {
    "effective/start": "effective queries, start",
    "effective/end": "end",
    "effective_after/end": "trained samples with a signal, end",
    "batch_fill/end": "batch filled, end",
    "reflection/start": "reflection, start",
    "reflection/end": "end",
    "length/end": "tokens of y1, end",
    "updates": "updates",
    "tokens_to/0.6": "tokens to 60 %",
    "tokens_to/0.75": "tokens to 75 %",
}


@dataclass(frozen=True)
class Plan:
    """The page's plan: grids and claims of ``evidence.yaml``."""

    grids: dict[str, GridPage]
    claims: list[Claim]


def load_plan(path: Path) -> Plan:
    """The plan of a file. Raises ConfigError for an unknown key or figure, or a claim that is wrong."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or set(values) != {"grids", "claims"}:
            raise ConfigError("needs the keys grids and claims, and no others")
        grids = {str(name): build(GridPage, dict(item), str(name)) for name, item in values["grids"].items()}
        for name, grid in grids.items():
            if wrong := sorted(set(grid.figures) - set(FIGURES)):
                raise ConfigError(f"{name}.figures: no {', '.join(wrong)}; there are {', '.join(FIGURES)}")
        return Plan(grids, read_claims(values["claims"], set(grids)))
    except (ConfigError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from None


def make_page(text: str, tables: Tables, plan: Plan, pictures: str = "../experiments/evidence/figures") -> str:
    """``text`` with its generated parts made anew; ``pictures``: where the figures lie, from the page.

    Raises ValueError for a part of an unknown name, or one that does not end.
    """
    judged = judge(tables, plan.claims)

    def replace(match: re.Match[str]) -> str:
        name = match["name"]
        return f"<!-- begin: {name} -->\n{part(name, tables, plan, judged, pictures)}\n<!-- end: {name} -->"

    pattern = re.compile(r"<!-- begin: (?P<name>.+?) -->\n(?:.*?\n)?<!-- end: (?P=name) -->", re.DOTALL)
    made, count = pattern.subn(replace, text)
    if count != text.count("<!-- begin:"):
        raise ValueError("a generated part has no end of the same name")
    return made


def part(name: str, tables: Tables, plan: Plan, judged: pd.DataFrame, pictures: str) -> str:
    """The Markdown of a generated part."""
    kind, _, rest = name.partition(" ")
    if name == "verdicts":
        return verdicts(judged)
    if name == "sweeps":
        return sweeps(tables)
    if name == "runs":
        return runs(tables, plan)
    if name == "knowing":
        return knowing.part(tables, pictures)
    if kind == "claim" and rest in set(judged["claim"]):
        return claim(judged[judged["claim"] == rest])
    if kind == "grid" and rest in plan.grids:
        return grid_part(rest, plan.grids[rest], tables, pictures)
    raise ValueError(f"no generated part is called {name!r}")


def verdicts(judged: pd.DataFrame) -> str:
    """One line a claim."""
    first = judged.groupby("claim", sort=False).first()
    rows = []
    for key, row in first.iterrows():
        parts = judged[judged["claim"] == key]
        counts = parts["verdict"].value_counts()
        words = ", ".join(
            f"{word}: {counts[word]}" for word in ("holds", "does not hold", "cannot be said") if word in counts
        )
        rows.append([f"[{row['title']}](#{anchor(row['title'])})", row["source"], f"**{claim_verdict(parts)}**"])
        rows[-1].append(words if len(parts) > 1 else "")
    return markdown(["claim", "source", "verdict here", "its parts"], rows)


def claim_verdict(parts: pd.DataFrame) -> str:
    """The claim's verdict, and whether runs are missing."""
    verdict = str(parts["claim_verdict"].iloc[0])
    if not parts["seeds"].any():
        return f"{verdict}: not run yet"
    return f"{verdict}, so far" if (parts["seeds"] < parts["planned"]).any() else verdict


def claim(parts: pd.DataFrame) -> str:
    """What they saw, what was measured part by part, and the verdict."""
    rows = []
    for row in parts.to_dict("records"):
        rows.append([row["says"], measured_words(row), in_words(row)])
        missing = row["seeds"] < row["planned"]
        rows[-1] += [f"{row['seeds']}" + f" of {row['planned']}" * missing, bound_words(row), row["verdict"]]
    table = markdown(["statement", "measured", "value [95%]", "seeds", "claimed", "verdict"], rows)
    first = parts.iloc[0]
    source = first["source"]
    whose = f"T{source[1:]}" if source.startswith("this project") else f"They ({source})"
    return f"{whose}: {first['saw']}.\n\n{table}\n\n**Verdict: {claim_verdict(parts)}.**"


def claims(judged: pd.DataFrame, only: str = "") -> str:
    """Every claim below its title; ``only``: the one of this id. Raises ValueError if there is none."""
    parts = judged[judged["claim"] == only] if only else judged
    if only and parts.empty:
        raise ValueError(f"no claim is called {only!r}: there are {', '.join(judged['claim'].unique())}")
    each = parts.groupby("claim", sort=False)
    return "\n\n".join(f"### {rows['title'].iloc[0]}\n\n{claim(rows)}" for _, rows in each)


def grid_part(name: str, grid: GridPage, tables: Tables, pictures: str) -> str:
    """A grid's tables and figures."""
    variants = shown(tables, name, grid, every=True)
    if not variants:
        return "*No run of this grid is finished yet.*"
    spreads = series.spread(tables, name, variants, "test/plain/accuracy").set_index("variant")["sd"]
    rows, how, differences = [], [], []
    both = [*grid.measures, *grid.paired]
    for variant in variants:
        found = {measure: effect(tables, measure, name, variant) for measure in grid.measures}
        seeds = max((each.seeds for each in found.values()), default=0)
        spread = f"{100 * spreads[variant]:.1f}" if pd.notna(spreads.get(variant)) else "–"
        rows.append([variant, str(seeds), *_cells(found), spread])
        how.append([variant, *_cells({measure: effect(tables, measure, name, variant) for measure in MECHANISM})])
        if grid.against and variant != grid.against:
            paired = {measure: effect(tables, measure, name, variant, grid.against) for measure in both}
            if seeds := max(each.seeds for each in paired.values()):
                differences.append([variant, str(seeds), *_cells(paired, grid.against)])
    head = [HEADINGS.get(measure, f"`{measure}`") for measure in both]
    blocks = [measured(["variant", "seeds", *head[: len(grid.measures)], "test: sd of seeds"], rows)]
    if differences:
        blocks.append(
            f"Minus {grid.against}, paired by seed; curves at the pair's equal tokens, tests at the runs' ends:"
        )
        blocks.append(measured(["variant", "pairs", *head], differences))
    blocks.append("How it went, in the first and last tenth of each variant's tokens:")
    blocks.append(measured(["variant", *MECHANISM.values()], how))
    for kind in grid.figures:
        try:
            drawing = draw(tables, name, grid, kind)
        except NoData:
            continue
        blocks += [picture(f"{name}-{kind}", drawing.caption, pictures), f"*{drawing.caption}*"]
    return "\n\n".join(blocks)


def _cells(found: dict[str, Effect], against: str | None = None) -> list[str]:
    """Effects of measures as text; ``against``: they are differences."""
    return [in_words({"measure": name, "against": against, **each.__dict__}) for name, each in found.items()]


def sweeps(tables: Tables) -> str:
    """Learning rates that were tried: mean validation accuracy over seeds, the best of each variant in bold.

    Of rates that are equal in it the one with the higher mean over the whole run.
    """
    table = tables["sweeps"]
    table = table[table["state"] == "finished"]
    if table.empty:
        return "*No run of a sweep is finished yet.*"
    rows = []
    for (grid, variant), runs_ in table.groupby(["grid", "variant"], sort=False):
        means = runs_.groupby("lr").agg(mean=("accuracy", "mean"), whole=("mean", "mean"), size=("lr", "size"))
        texts = {lr: f"{lr:g}: {100 * row['mean']:.1f} ({row['size']:.0f})" for lr, row in means.iterrows()}
        best = means.sort_values(["mean", "whole"]).index[-1]
        cells = [f"**{text}**" if lr == best else text for lr, text in texts.items()]
        rows.append([grid, variant, ", ".join(cells)])
    return markdown(["sweep", "variant", "rate: validation accuracy, last three validations (seeds)"], rows)


def runs(tables: Tables, plan: Plan) -> str:
    """What was run: a line a grid and variant."""
    table = tables["runs"]
    if table.empty:
        return "*No run has been collected yet.*"
    rows = []
    for name in dict.fromkeys([*plan.grids, *table["grid"]]):
        own = own_settings(table[table["grid"] == name])
        for variant, part_ in table[table["grid"] == name].groupby("variant"):
            done = part_[part_["state"] == "finished"]
            some = done if len(done) else part_
            size = [
                short_number(float(some["tokens"].mean())),
                *(f"{some[key].mean():.0f}" for key in ("steps", "episodes")),
            ]
            size = size if some["tokens"].any() else ["–"] * 3
            rows.append([name, str(variant), f"{len(done)} of {len(part_)}", *size, own[str(variant)], code(done)])
    head = ["grid", "variant", "finished", "tokens", "updates", "episodes", "settings unlike most of the grid", "code"]
    return markdown(head, rows)


def own_settings(rows: pd.DataFrame) -> dict[str, str]:
    """variant -> its settings that at most half of the grid's variants share, of those in which these differ."""
    first = rows.groupby("variant")["settings"].first()
    each = {str(name): dict(SETTING.findall(text)) for name, text in first.items()}
    counts = Counter(item for settings in each.values() for item in settings.items())
    rare = {
        name: [f"{key}={value}" for key, value in settings.items() if 2 * counts[key, value] <= len(each)]
        for name, settings in each.items()
    }
    return {name: f"`{' '.join(words)}`" if words else "" for name, words in rare.items()}


def code(rows: pd.DataFrame) -> str:
    """The commits that the runs were made by, and how many by each."""
    counts = rows["commit"].map(short).value_counts(sort=False)
    return ", ".join(f"{commit}{f': {count}' if len(counts) > 1 else ''}" for commit, count in counts.items())


def digests(folder: Path) -> str:
    """SHA-256 of all that figures are made of: the tables and the plan in ``folder``; a line each, as sha256sum's."""
    files = [*sorted((folder / "results").glob("*.*")), folder / "evidence.yaml"]
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(folder)}" for file in files]
    return "\n".join(lines) + "\n"


def write_all(root: Path) -> list[Path]:
    """Every figure with what they are made of, and the page; returns what was written. ``root``: of the repository."""
    from rethinker.lab.evidence.tables import load

    folder, page = root / "experiments" / "evidence", root / "docs" / "evidence.md"
    tables, plan = load(folder / "results"), load_plan(folder / "evidence.yaml")
    drawings: dict[str, Callable[[Theme], Drawing]] = {
        f"{name}-{kind}": partial(draw, tables, name, grid, kind)
        for name, grid in plan.grids.items()
        for kind in grid.figures
    }
    drawings["knowing"] = partial(knowing.figure, tables)
    written = []
    for name, drawing in drawings.items():
        for theme in THEMES.values():
            try:
                drawn = render(drawing(theme), "svg")
            except NoData:
                continue
            written.append(atomic_write_bytes(folder / "figures" / f"{name}-{theme.name}.svg", drawn))
    written.append(atomic_write_text(folder / "figures" / MADE_OF, digests(folder)))
    text = make_page(page.read_text(encoding="utf-8"), tables, plan)
    return [*written, atomic_write_text(page, text)]
