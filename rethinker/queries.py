"""The queries of a run: what each split is read from, what was dropped, what is looked at when it is drawn."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from accelerate.utils import gather_object
from rich.markup import escape

from rethinker.config import RunConfig
from rethinker.config.settings import Split
from rethinker.datasets.drawn import DrawnChecks
from rethinker.datasets.filters import RowFilter, training_filter
from rethinker.datasets.io import Dropped, describe_dropped
from rethinker.evaluation.held_out import checked_when_drawn, read_split
from rethinker.policy.lengths import PromptRoom
from rethinker.rundir.atomic import atomic_write_text
from rethinker.rundir.paths import RunDir
from rethinker.types import Query


class RunQueries:
    """``train``, ``validation`` and ``test``; ``drawn``: what looks at training queries when they are drawn, with
    ``data.checks=when_drawn``.

    Dropped rows are reported by ``say`` and in ``dropped/<use>.json``, what a filter kept by ``say``. Raises ValueError
    if a source is given and no row of it can be used.
    """

    def __init__(
        self, config: RunConfig, room: PromptRoom, accelerator: Any, say: Callable[[str], Any], *, resumed: bool
    ) -> None:
        self._config, self._room, self._say = config, room, say
        self._folder = RunDir(config.folder) if accelerator.is_main_process else None
        self._dropped = _dropped_before(RunDir(config.folder)) if resumed else {}
        self.train = self._read("train", training_filter(config.data))
        self.validation = self._read("validation")
        self.test = self._read("test")
        self.drawn: DrawnChecks | None = None
        if checked_when_drawn(config, "train"):
            self.drawn = DrawnChecks(
                room,
                lambda dropped: self._report("train", dropped),
                rank=accelerator.process_index,
                ranks=accelerator.num_processes,
                gather=gather_object,
            )

    def _read(self, use: Split, keep: RowFilter | None = None) -> list[Query]:
        queries, dropped = read_split(self._config, use, self._room, keep)
        source = getattr(self._config.data, use)
        if source is None:
            return []
        if keep:
            self._say(escape(f"{source}: {keep}"))
        self._report(use, dropped)
        if not queries:
            why = f" ({str(keep).splitlines()[0]})" if keep else ""
            raise ValueError(
                f"data.{use}={source}: none of its {keep.read.total() if keep else len(dropped)} rows can be used{why}"
            )
        return queries

    def _report(self, use: Split, dropped: list[Dropped]) -> None:
        """Report rows, in the file with those reported before."""
        if not dropped:
            return
        self._say(escape(f"{getattr(self._config.data, use)}: {describe_dropped(dropped)}"))
        rows = self._dropped.setdefault(use, {})
        rows |= {(row.qid, row.reason): asdict(row) for row in dropped}
        if self._folder:
            atomic_write_text(self._folder.dropped(use), json.dumps(list(rows.values()), indent=1))


def _dropped_before(folder: RunDir) -> dict[Split, dict[tuple[str, str], dict[str, str]]]:
    """What a run that is resumed has reported: what it had left out when it drew it is not drawn again."""
    file = folder.dropped("train")
    rows = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    return {"train": {(row["qid"], row["reason"]): row for row in rows}}
