"""A benchmark's items as they are here: read, checked and counted before a model is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

from rethinker.benchmarks.base import Benchmark, Item
from rethinker.benchmarks.registry import find
from rethinker.benchmarks.sources import Source


@dataclass(frozen=True)
class Task:
    """The items of a split, in the order of the file. ``digest``: of their texts, and of their images' names and sizes
    (of images that were stored in rows: of their content)."""

    benchmark: Benchmark
    split: str
    place: str
    items: tuple[Item, ...]
    digest: str

    @property
    def name(self) -> str:
        """Of its files."""
        return file_name(self.benchmark, self.split)


def file_name(benchmark: Benchmark, split: str) -> str:
    """``mathvision-test``: what the files of a benchmark's split are called."""
    return f"{benchmark.name}-{split}"


def choose_place(benchmark: Benchmark, places: Mapping[str, str], root: Path | None) -> str:
    """Where the data of ``benchmark`` are: as ``places`` says, else its folder in ``root``, else on the hub."""
    if benchmark.name in places:
        return places[benchmark.name]
    if root and (root / benchmark.name).exists():
        return str(root / benchmark.name)
    return benchmark.hub


def load_task(text: str, places: Mapping[str, str], root: Path | None = None, limit: int | None = None) -> Task:
    """The task of ``name`` or ``name:split``; its first ``limit`` items.

    Raises ValueError for an unknown name, rows that cannot be read and repeated ids, and FileNotFoundError where there
    are no data, or images are missing.
    """
    benchmark, split = find(text)
    place = choose_place(benchmark, places, root)
    where = f"{benchmark.name}, {place}"
    try:
        items = tuple(islice(_numbered(benchmark, Source(place), split, where), limit))
    except OSError as error:
        hint = f"give --data {benchmark.name}=PLACE, a folder of its parquet files or of the official repository"
        raise FileNotFoundError(f"{where}: {' '.join(str(error).split())[:300]}; {hint}") from error
    if not items:
        raise ValueError(f"{where}: no rows in split {split!r}")
    seen: set[str] = set()
    for item in items:
        if item.qid in seen:
            raise ValueError(f"{where}: two rows have the id {item.qid!r}")
        seen.add(item.qid)
    return Task(benchmark, split, place, items, _digest(items, where))


def _numbered(benchmark: Benchmark, source: Source, split: str, where: str) -> Iterator[Item]:
    """The items; an error says behind which one it came."""
    last = "at the first row"
    try:
        for item in benchmark.items(source, split):
            last = f"behind {item.qid!r}"
            yield replace(item, extra=json.loads(json.dumps(dict(item.extra))))  # as ``rescore`` will read it
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{where}, {last}: {error}") from error


def _digest(items: tuple[Item, ...], where: str) -> str:
    digest = hashlib.sha256()
    missing = []
    for item in items:
        images = []
        for path in map(Path, item.images):
            if path.is_file():
                images.append((path.name, path.stat().st_size))
            else:
                missing.append(path)
        digest.update(json.dumps(asdict(item) | {"images": images}, sort_keys=True).encode())
    if missing:
        raise FileNotFoundError(f"{where}: {len(missing)} images are missing, e.g. {missing[0]}; unpack them there")
    return digest.hexdigest()
