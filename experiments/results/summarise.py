"""``summarise.py RUN...`` writes default_runs.json: the numbers of the README's results from the runs' folders.

Runs of ``experiments/tiny.yaml`` with another name, seed or engine; one that the file has already, by engine and seed,
is replaced, the others stay. tests/test_readme.py compares README and file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rethinker.lab.analysis.choice import rates
from rethinker.lab.figures.choice import held_out_looks

FILE = Path(__file__).with_name("default_runs.json")
ENGINES = {"VllmEngine": "vLLM", "ServerEngine": "vLLM servers", "TransformersEngine": "transformers"}


def summarise(run: Path) -> dict[str, Any]:
    """Accuracies (with interval), reflection and tokens a response of every evaluation, the shares of wrong and right
    first looks and of all of each kind that got a second one; engine against trainer over the whole run."""
    provenance = json.loads((run / "provenance.json").read_text(encoding="utf-8"))
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    episodes = [line for line in lines if line["record"] == "episode"]
    stages = list(dict.fromkeys(line["stage"] for line in episodes))
    evaluations = {}
    for label in ("start", *stages):
        modes = json.loads((run / "evaluation" / f"{label}.json").read_text(encoding="utf-8"))["modes"]
        evaluations[label] = {
            mode: {name: [values[name][part] for part in ("value", "low", "high")] for name in ("pass@1", "greedy")}
            | {"reflection": values["reflection"]["value"], "tokens": values["tokens_mean"]}
            for mode, values in modes.items()
        }
        plain = held_out_looks(run, label).query("mode == 'plain'")
        shares = rates(plain) | plain.groupby("category")["second"].mean().to_dict()
        right = plain.groupby("category")["first_correct"].mean().to_dict()
        evaluations[label]["plain"] |= {"second_looks": shares, "right_first_looks": right}
    return {
        "engine": ENGINES[provenance["engine"]],
        "seed": provenance["seed"],
        "started": provenance["started"],
        "commit": provenance["git"]["commit"],
        "versions": provenance["versions"],
        "episodes": len(episodes),
        "evaluations": evaluations,
        "gap_max": max(line["gap/max"] for line in episodes if line["gap/max"] is not None),
        "canary_max": max(line["canary/gap"] for line in episodes if line["canary/gap"] is not None),
    }


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit("summarise.py RUN...: the folders of the default runs")
    known = json.loads(FILE.read_text(encoding="utf-8"))
    found = {(run["engine"], run["seed"]): run for run in [*known, *(summarise(Path(run)) for run in sys.argv[1:])]}
    runs = sorted(found.values(), key=lambda run: (run["engine"] != "vLLM", run["seed"]))
    FILE.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
