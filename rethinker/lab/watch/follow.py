"""Reading a run while it is written: ``RunReader`` follows ``metrics.jsonl`` and the newest roll-outs.

Each look reads what came since the last one, so that it costs the same late in a run as early, and training nothing.
``run_files`` reads a run as a whole. Nothing here is from the paper.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rethinker.rundir.glossary import RECORDS
from rethinker.rundir.paths import RunDir
from rethinker.rundir.reader import load_episode

COLUMNS = (
    "qid", "category", "level", "question", "gold", "images", "pass", "text", "correct", "first_text", "first_correct",
    "kept",
)  # fmt: skip
TAIL_BYTES = 256  # before the place where reading goes on: another text there is another file
PACE_EPISODES = 10  # that the time left is reckoned from


@dataclass(frozen=True, slots=True)
class ShownResponse:
    """A response of the newest episode, for reading."""

    qid: str
    category: str
    level: int
    question: str
    gold: str
    images: tuple[str, ...]  # paths as the run knows them
    first: str  # y1
    second: str | None  # trigger and second look; None where nothing was forced
    first_correct: bool
    correct: bool  # of the whole


class RunReader:
    """The records of a run, up to date after every ``update``."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._forget()

    def _forget(self) -> None:
        self.episodes: list[dict[str, Any]] = []  # lines of metrics.jsonl by kind (rundir/glossary.py)
        self.steps: list[dict[str, Any]] = []
        self.validations: list[dict[str, Any]] = []
        self._file: tuple[int, int] | None = None  # device and inode of what was read
        self._offset, self._tail = 0, b""

    def update(self) -> bool:
        """Read what is new; True if anything is. A last line without its end waits for the next time.

        A resume writes the file anew, without what came after the checkpoint: then all is read again. Raises
        ValueError for a line that is not a record.
        """
        path = RunDir(self.folder).metrics
        try:
            file = path.open("rb")
        except FileNotFoundError:
            changed = self._file is not None
            self._forget()
            return changed
        with file:
            status = os.fstat(file.fileno())
            identity = status.st_dev, status.st_ino
            changed = False
            if identity != self._file or not self._goes_on(file, status.st_size):
                changed = self._file is not None
                self._forget()
                self._file = identity
            file.seek(self._offset)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        for line in whole.splitlines():
            self._add(path, line)
        self._offset += len(whole)
        self._tail = (self._tail + whole)[-TAIL_BYTES:]
        return changed or bool(whole)

    def _goes_on(self, file: Any, size: int) -> bool:
        """Whether what was read is still there, in front of where reading goes on."""
        if size < self._offset:
            return False
        file.seek(self._offset - len(self._tail))
        return file.read(len(self._tail)) == self._tail

    def _add(self, path: Path, line: bytes) -> None:
        try:
            record = json.loads(line)
            lists = dict(zip(RECORDS, (self.episodes, self.steps, self.validations), strict=True))
            lists[record["record"]].append(record)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: not a record of a run ({error!r}): {line[:80]!r}; remove the line") from error

    def series(self, name: str) -> list[float | None]:
        """A metric of every episode."""
        return [record.get(name) for record in self.episodes]

    def seconds_left(self, episodes: int) -> float | None:
        """Until ``episodes`` have ended, by the pace of the last ones; None before two have."""
        recent = self.episodes[-PACE_EPISODES - 1 :]
        if len(recent) < 2:
            return None
        first, last = recent[0], recent[-1]
        pace = (last["seconds"] - first["seconds"]) / (last["episode"] - first["episode"])
        return max(0.0, (episodes - last["episode"]) * pace)

    def rollouts(self) -> Path | None:
        """The file of the newest episode that has been read; None before the first. A later one may be there already:
        its metrics come with the next look, and so do its responses."""
        last = self.episodes[-1]["episode"] if self.episodes else 0
        read = [file for episode, file in RunDir(self.folder).all_rollouts().items() if episode <= last]
        return read[-1] if read else None

    def responses(self, n: int) -> list[ShownResponse]:
        """One response each of ``n`` queries of the newest episode, evenly spread over it; nobody chose.

        A query's forced trajectory, a kept one first, where it has any; else its first response.
        """
        path = self.rollouts()
        if path is None:
            return []
        try:
            rows = load_episode(path, COLUMNS).to_dict("records")
        except ValueError:
            if path.exists():
                raise
            return []  # a resume has just removed it
        queries: dict[str, dict[str, Any]] = {}
        for row in rows:
            if row["qid"] not in queries or _rank(row) > _rank(queries[row["qid"]]):
                queries[row["qid"]] = row
        chosen = list(queries.values())
        count = min(n, len(chosen))
        return [_response(chosen[index * len(chosen) // count]) for index in range(count)]


def _rank(row: dict[str, Any]) -> int:
    return (row["pass"] == "forced") + bool(row["kept"])


def _response(row: dict[str, Any]) -> ShownResponse:
    forced, text = row["pass"] == "forced", row["text"]
    # Decoding y1 alone and y1 with what follows could differ where they meet; then the whole is the second look.
    first = row["first_text"] if forced and text.startswith(row["first_text"]) else "" if forced else text
    return ShownResponse(
        qid=row["qid"],
        category=row["category"],
        level=int(row["level"]),
        question=row["question"].replace("<image>", "").strip(),
        gold=row["gold"],
        images=tuple(row["images"]),
        first=first.strip(),
        second=text[len(first) :].strip() if forced else None,
        first_correct=bool(row["first_correct"] if forced else row["correct"]),
        correct=bool(row["correct"]),
    )
