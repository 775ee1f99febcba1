"""``report.html`` of a run: headline numbers, what is wrong, figures, tables, real responses, configuration.

It is written from the run's files alone and works on a run that is not finished or has one stage only: what is missing
is said in words. The page is ``templates/report.html``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rethinker.lab.analysis import diagnostics
from rethinker.lab.figures import catalogue
from rethinker.lab.report.gallery import changed_responses
from rethinker.lab.report.html import environment
from rethinker.lab.report.results import absent, cards, evaluation_tables, failure_tables, gains, progress
from rethinker.rundir.atomic import atomic_write_text, read_json
from rethinker.rundir.diagnosis import diagnose
from rethinker.rundir.paths import RunDir
from rethinker.rundir.reader import load_settings, metrics_so_far

RESPONSES = 12  # in the gallery


def write_report(run_folder: str | Path) -> Path:
    """Write ``<run_folder>/report.html`` and return its path.

    Raises FileNotFoundError if the folder is no run at all (no config.yaml), ValueError for a broken file.
    """
    run, paths = Path(run_folder), RunDir(run_folder)
    if not paths.config.is_file():
        raise FileNotFoundError(f"{paths.config} is missing: {run} is not the folder of a run")
    metrics = metrics_so_far(run)
    headline = cards(run)
    page = environment.get_template("report.html").render(
        name=run.resolve().name,
        status=progress(run, metrics),
        notes=metrics.notes,
        findings=diagnose(metrics.episodes.to_dict("records"), load_settings(run)),
        cards=headline,
        evaluated=bool(diagnostics.load_evaluations(run)),
        gained=gains(run, [card["label"] for card in headline]) if headline else "",
        absent=absent(run),
        figures=[_figure(run, name) for name in catalogue.FIGURES],
        responses=changed_responses(run, RESPONSES).to_dict("records"),
        tables=evaluation_tables(run, metrics),
        failures=failure_tables(run, metrics),
        provenance=_provenance(paths.provenance),
        config=paths.config.read_text(encoding="utf-8"),
    )
    return atomic_write_text(paths.report, page)


def _figure(run: Path, name: str) -> dict[str, Any]:
    """A figure for both colour schemes; why there is none, in words."""
    try:
        light, dark = (catalogue.draw(run, name, theme) for theme in catalogue.THEMES.values())
    except (catalogue.NoData, FileNotFoundError) as error:
        return {"missing": f"{name}: {error}"}
    return {
        "missing": "",
        "light": catalogue.render(light, "svg"),
        "dark": catalogue.render(dark, "svg"),
        "caption": light.caption,
        "wide": light.figure.get_size_inches()[0] > 8,  # several panels side by side
    }


def _provenance(path: Path) -> str:
    """Its text, indented; "" if it is missing."""
    facts = read_json(path)
    return json.dumps(facts, indent=2, ensure_ascii=False) if facts else ""
