"""Where rows come from: parquet and JSON lines files, folders of them, Hugging Face data sets on disk or on the hub."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

REQUIRED_COLUMNS = ("question", "answer", "qid")
_SUFFIXES = (".parquet", ".jsonl")
Row = Mapping[str, Any]


def open_rows(path: str | Path, split: str | None) -> tuple[Iterable[Row], Path]:
    """The rows behind ``path``, read as they are asked for, and the folder in which relative image paths start.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        ValueError: the split is not named, not there, or columns are missing.
    """
    place, path = Path(path), str(path)
    if place.is_file():
        return _open_file(place), place.resolve().parent
    if place.is_dir():
        if (place / "dataset_info.json").is_file() or (place / "dataset_dict.json").is_file():
            import datasets

            return _open_dataset(datasets.load_from_disk(path), split, path), place.resolve()
        return _open_file(_choose_file(place, split)), place.resolve()
    if path.count("/") == 1 and not path.startswith((".", "/", "~")):
        import datasets

        return _open_dataset(datasets.load_dataset(path), split, path), Path.cwd()
    raise FileNotFoundError(f"no data at {path}: give a parquet or JSON lines file, a folder of them, or owner/name")


def _choose_file(folder: Path, split: str | None) -> Path:
    files = sorted(file for file in folder.iterdir() if file.suffix in _SUFFIXES)
    chosen = [file for file in files if split in (None, file.stem)]
    if len(chosen) == 1:
        return chosen[0]
    there = ", ".join(file.name for file in files) or f"no file that ends in {' or '.join(_SUFFIXES)}"
    raise ValueError(f"{folder}: split {split!r} names {len(chosen)} files; the folder has {there}")


def _open_file(path: Path) -> Iterable[Row]:
    if path.suffix == ".parquet":
        _check_columns(pq.read_schema(path).names, str(path))
        return _parquet_rows(path)
    if path.suffix == ".jsonl":
        return _json_rows(path)
    raise ValueError(f"{path}: can read {' and '.join(_SUFFIXES)} files")


def _parquet_rows(path: Path) -> Iterator[Row]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1024):
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


def _open_dataset(data: Any, split: str | None, path: str) -> Iterable[Row]:
    import datasets

    if isinstance(data, datasets.DatasetDict):
        names = list(data)
        if split is None and len(names) == 1:
            split = names[0]
        if split not in data:
            raise ValueError(f"{path}: no split {split!r}; there are {', '.join(names)}")
        data = data[split]
    _check_columns(data.column_names, path)
    return _undecoded_rows(data)


def _undecoded_rows(data: Any) -> Iterator[Row]:
    """Rows as they are stored: an embedded image stays bytes, so that it reaches the policy unchanged."""
    for start in range(0, len(data), 256):
        yield from data.with_format("arrow")[start : start + 256].to_pylist()


def _check_columns(names: Iterable[str], where: str) -> None:
    missing = [name for name in REQUIRED_COLUMNS if name not in set(names)]
    if missing:
        raise ValueError(f"{where}: no column {', '.join(missing)}; there are {', '.join(names)}")


def stored_image(data: bytes) -> Path:
    """Images that a Hugging Face data set holds as bytes become files (named by content): queries refer to paths."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rethinker" / "images"
    suffix = ".png" if data.startswith(b"\x89PNG") else ".jpg" if data.startswith(b"\xff\xd8") else ".img"
    path = cache / (hashlib.sha256(data).hexdigest() + suffix)
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        temporary.write_bytes(data)
        os.replace(temporary, path)
    return path
