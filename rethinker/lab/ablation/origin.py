"""Where the runs of a grid come from (code, engine, processes, data), and what of it differs: among them, from now.

A run is found again by its settings alone. Code and data that changed since it was made do not show in those, so they
are compared here and said, never hidden: whether a change matters to the comparison is for a person to judge.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from rethinker.config import RunConfig
from rethinker.rundir import provenance
from rethinker.rundir.atomic import read_json
from rethinker.rundir.paths import RunDir

ORIGIN = ("commit", "engine", "processes", "data")  # columns of the table
CHANGES = "+changes"  # behind a commit: the code was not as committed
_COMMIT = re.compile(r"\b([0-9a-f]{7})[0-9a-f]{33}\b")


def origin(folder: Path) -> dict[str, Any]:
    """``ORIGIN`` of the run in ``folder``, from its provenance.json; None each before its first start.

    ``commit`` names those of all its starts, ``data`` is one checksum over its splits (None if they are no files).
    """
    facts = read_json(RunDir(folder).provenance)
    if not facts:
        return dict.fromkeys(ORIGIN)
    commits = dict.fromkeys(_commit(start["git"]) for start in facts["starts"])
    values = (" then ".join(commits), facts["engine"], facts["processes"], _checksum(facts["data"]))
    return dict(zip(ORIGIN, values, strict=True))


class CurrentProvenance:
    """The code and the data as they are now."""

    def __init__(self) -> None:
        self._commit = _commit(provenance.git_state(Path(__file__).parent))
        self._data: dict[str, str | None] = {}  # by what a config says of its data

    def differs(self, config: RunConfig) -> str:
        """What changed since the run of ``config`` was last started, in words; "" for nothing, or a run not begun."""
        made = origin(config.folder)
        if made["commit"] is None:
            return ""
        words = []
        if made["commit"] != self._commit:
            words.append(f"code {made['commit']}, now {self._commit}")
        elif self._commit.endswith(CHANGES):
            words.append("perhaps code (uncommitted changes, then and now)")
        if made["data"] != self._checksum(config):
            words.append("data")
        return short("; ".join(words))

    def _checksum(self, config: RunConfig) -> str | None:
        data = repr(config.data)
        if data not in self._data:
            self._data[data] = _checksum(provenance.data_digests(config))
        return self._data[data]


def mixture(table: pd.DataFrame) -> str:
    """What the runs of a table have not in common of their ``ORIGIN``, as a sentence; "" if they have all."""
    runs = table.groupby("run", sort=False).first().dropna(subset=["commit"])
    parts = []
    for column in ORIGIN:
        counts = runs[column].astype("object").fillna("unknown").value_counts(sort=False)
        if len(counts) > 1:
            shares = [f"{value}: {count} run{'s' * (count > 1)}" for value, count in counts.items()]
            parts.append(f"{column} ({', '.join(shares)})")
    return short(f"The runs differ in {', '.join(parts)}.") if parts else ""


def short(text: str) -> str:
    """``text`` with commits of seven digits."""
    return _COMMIT.sub(r"\1", text)


def _commit(git: Mapping[str, Any]) -> str:
    return (git["commit"] or "no commit") + (CHANGES if git["changed"] else "")


def _checksum(splits: Mapping[str, Mapping[str, str | None]]) -> str | None:
    digests = {split: data["sha256"] for split, data in sorted(splits.items())}
    if not any(digests.values()):
        return None
    return "sha256:" + hashlib.sha256(json.dumps(digests).encode()).hexdigest()[:12]
