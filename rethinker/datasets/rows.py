"""Where rows come from: parquet and JSON lines files, folders of them, Hugging Face data sets on disk or on the hub."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rethinker.datasets.columns import REQUIRED_COLUMNS, ColumnMap, Row
from rethinker.policy.archive import cache_folder

_SUFFIXES = (".parquet", ".jsonl")
_SAVED = ("dataset_info.json", "dataset_dict.json")  # by datasets.save_to_disk
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")


def open_rows(
    path: str | Path, split: str | None, columns: Mapping[str, Any] | None = None
) -> tuple[Iterable[Row], Path]:
    """The rows behind ``path``, read as they are asked for, and the folder in which relative image paths start.
    ``columns``: of ``data.columns``, for data with others than the schema's.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        ValueError: the split is not named, not there, or columns are missing.
    """
    mapped = ColumnMap(columns) if columns else None
    rows, folder = _open(path, split, mapped)
    return (mapped.rows(rows) if mapped else rows), folder


def _open(path: str | Path, split: str | None, mapped: ColumnMap | None) -> tuple[Iterable[Row], Path]:
    place, path = Path(path), str(path)
    if place.is_file():
        return _open_file(place, mapped), place.resolve().parent
    if place.is_dir():
        if any((place / name).is_file() for name in _SAVED):
            return _open_dataset(_loaded(path), split, path, mapped), place.resolve()
        return _open_files(_choose_files(place, split), mapped), place.resolve()
    if path.count("/") == 1 and not path.startswith((".", "/", "~")):
        return _open_dataset(_loaded(path), split, path, mapped), Path.cwd()
    raise FileNotFoundError(f"no data at {path}: give a parquet or JSON lines file, a folder of them, or owner/name")


def column_types(path: str | Path, split: str | None) -> dict[str, str]:
    """The columns at ``path`` as they are there, and their types; of JSON lines, those of the first row. ``path``: as
    for ``open_rows``, which has found it readable."""
    place = Path(path)
    if place.is_dir() and not any((place / name).is_file() for name in _SAVED):
        place = _choose_files(place, split)[0]
    if place.suffix == ".parquet":
        return {field.name: str(field.type) for field in pq.read_schema(place)}
    if place.suffix == ".jsonl":
        return {name: type(value).__name__ for name, value in next(iter(_json_rows(place)), {}).items()}
    data = _split_of(_loaded(str(path)), split, str(path))
    return {name: str(feature) for name, feature in data.features.items()}


def _choose_files(folder: Path, split: str | None) -> list[Path]:
    """The files of a split, which may be in shards, as the hub has them: data/train-00000-of-00002.parquet, ..."""
    files = [file for file in folder.iterdir() if file.suffix in _SUFFIXES]
    files = sorted(files or [file for file in folder.glob("data/*") if file.suffix in _SUFFIXES])
    names = {file: _SHARD.sub("", file.stem) + file.suffix for file in files}
    chosen = [file for file in files if split in (None, Path(names[file]).stem)]
    if len({names[file] for file in chosen}) == 1:
        return chosen
    there = ", ".join(dict.fromkeys(names.values())) or f"no file that ends in {' or '.join(_SUFFIXES)}"
    raise ValueError(f"{folder}: split {split!r} names {len(chosen)} files; the folder has {there}")


def _open_files(paths: Sequence[Path], mapped: ColumnMap | None) -> Iterable[Row]:
    return itertools.chain.from_iterable([_open_file(path, mapped) for path in paths])


def _open_file(path: Path, mapped: ColumnMap | None) -> Iterable[Row]:
    if path.suffix == ".parquet":
        _check_columns(pq.read_schema(path).names, str(path), mapped)
        return _parquet_rows(path)
    if path.suffix == ".jsonl":
        return _json_rows(path)
    raise ValueError(f"{path}: can read {' and '.join(_SUFFIXES)} files")


def _parquet_rows(path: Path) -> Iterator[Row]:
    with pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False) as file:  # rows may hold pictures
        for batch in file.iter_batches(batch_size=64):
            yield from batch.to_pylist()


def _json_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as lines:  # Windows' editors put a byte-order mark first
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: not an object with the columns {', '.join(REQUIRED_COLUMNS)}")
            yield row


def _open_dataset(data: Any, split: str | None, path: str, mapped: ColumnMap | None) -> Iterable[Row]:
    data = _split_of(data, split, path)
    _check_columns(data.column_names, path, mapped)
    return _undecoded_rows(data)


def _loaded(path: str) -> Any:
    import datasets

    return datasets.load_from_disk(path) if Path(path).is_dir() else datasets.load_dataset(path)


def _split_of(data: Any, split: str | None, path: str) -> Any:
    import datasets

    if not isinstance(data, datasets.DatasetDict):
        return data
    names = list(data)
    if split is None and len(names) == 1:
        split = names[0]
    if split not in data:
        raise ValueError(f"{path}: no split {split!r}; there are {', '.join(names)}")
    return data[split]


def _undecoded_rows(data: Any) -> Iterator[Row]:
    """Rows as they are stored: an embedded image stays bytes, so that it reaches the policy unchanged."""
    for start in range(0, len(data), 256):
        yield from data.with_format("arrow")[start : start + 256].to_pylist()


def _check_columns(names: Iterable[str], where: str, mapped: ColumnMap | None) -> None:
    names = list(names)
    missing = mapped.missing(names) if mapped else [name for name in REQUIRED_COLUMNS if name not in names]
    if missing:
        hint = "" if mapped else "; data.columns maps others to them, e.g. {question: problem, image: images}"
        raise ValueError(f"{where}: no column {', '.join(missing)}; there are {', '.join(names)}{hint}")


def stored_images() -> Path:
    """The folder of ``stored_image``. Nothing removes files there: whoever is short of space may, and what is missing
    is written again."""
    return cache_folder() / "images"


def stored_image(data: bytes) -> Path:
    """Images that a Hugging Face data set holds as bytes become files (named by content): queries refer to paths."""
    cache = stored_images()
    suffix = ".png" if data.startswith(b"\x89PNG") else ".jpg" if data.startswith(b"\xff\xd8") else ".img"
    path = cache / (hashlib.sha256(data).hexdigest() + suffix)
    if not path.exists() or path.stat().st_size != len(data):  # a power failure may have left an empty file
        cache.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        temporary.write_bytes(data)
        os.replace(temporary, path)
    return path
