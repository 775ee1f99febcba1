"""What each process of a run does: read where the process group times out, whose own error names no rank and no reason.

A file a rank, ``phases/rank-<rank>.json``, is there while the run runs, and after a failure.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rethinker.rundir.atomic import read_json

TIMED_OUT = re.compile(r"timed? ?-?out", re.IGNORECASE)  # gloo, NCCL and torch's store


class Phases:
    """The notes of ``rank`` among ``ranks`` in ``folder``; of a single process none are made."""

    def __init__(self, folder: Path, rank: int, ranks: int) -> None:
        self.folder, self.rank, self.ranks = folder, rank, ranks

    def enter(self, what: str) -> None:
        """Note that this rank begins with ``what``."""
        if self.ranks > 1:
            self.folder.mkdir(parents=True, exist_ok=True)
            new = self.folder / f".rank-{self.rank}.new"
            new.write_text(json.dumps({"what": what, "since": time.time()}), encoding="utf-8")
            new.replace(self._file(self.rank))

    def describe(self) -> str:
        """What every rank began last, the longest ago first: that one is probably waited for."""
        now = time.time()
        read = [(rank, read_json(self._file(rank))) for rank in range(self.ranks)]
        notes = [(note["since"], rank, note["what"]) for rank, note in read if note]
        return "; ".join(f"rank {rank}: {what}, for {now - since:,.0f} s" for since, rank, what in sorted(notes))

    def close(self) -> None:
        """Remove this rank's note; the run has ended well."""
        self._file(self.rank).unlink(missing_ok=True)
        if self.rank == 0 and self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Inside, a time-out of the process group is raised as RuntimeError that says what every rank does."""
        try:
            yield
        except RuntimeError as error:  # DistBackendError and DistStoreError are RuntimeErrors too
            if self.ranks == 1 or not TIMED_OUT.search(str(error)):
                raise
            raise RuntimeError(
                f"rank {self.rank} waited for the other processes until the time was over. What each began last: "
                f"{self.describe()}"
            ) from error

    def _file(self, rank: int) -> Path:
        return self.folder / f"rank-{rank}.json"


@contextmanager
def measured(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the seconds of the block to ``seconds[name]``."""
    start = time.perf_counter()
    yield
    seconds[name] += time.perf_counter() - start
