"""Where a benchmark's rows come from: the hub, a folder of parquet files, or the official repository's JSON and images.

Rows are read as they are asked for, a few at a time, because a row of parquet may hold megabytes of images. Images that
are stored in rows become files named by their content (``datasets.rows.stored_image``); decoding is the policy's work.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rethinker.config.paths import is_hub_id
from rethinker.datasets.rows import stored_image

Row = dict[str, Any]
BATCH = 16  # rows of parquet in memory
BUFFER = 2**20  # bytes of a column that are read at a time; else its whole row group is
_SHARD = re.compile(r"-\d{5}-of-\d{5}.*$")  # of the hub's file names, behind the split's name


@dataclass(frozen=True)
class Source:
    """``place``: a parquet, JSON or JSON lines file, a folder of them, or the name of a data set ("owner/name")."""

    place: str

    @property
    def root(self) -> Path:
        """Where relative image paths start."""
        path = Path(self.place)
        return (path.parent if path.is_file() else path).resolve()

    def rows(self, split: str, *, configs: Sequence[str] = (), files: Sequence[str] = ()) -> Iterator[Row]:
        """The rows of ``split``.

        configs: of the data set on the hub, read one after the other; in a folder the names of subfolders. Where a
        folder has none of them, the split's files are taken wherever they are.
        files: the split's JSON or JSON lines in the official repository, of which the first that is there is read. Of
        an object of objects the rows get their key as "_key".
        Raises FileNotFoundError, naming what was looked for, and ValueError for a file that cannot be read.
        """
        place = Path(self.place)
        if place.is_file():
            return _file_rows(place)
        if place.is_dir():
            if (place / "dataset_info.json").is_file() or (place / "dataset_dict.json").is_file():
                return _saved_rows(place, split)
            found = _parquet_files(place, split, configs)
            if found:
                return (row for file in found for row in _file_rows(file))
            for name in files:
                if (place / name).is_file():
                    return _file_rows(place / name)
            wanted = " or ".join([f"{split}.parquet", f"{split}-00000-of-...parquet", *files])
            raise FileNotFoundError(f"{place}: no {wanted} in it or its folders")
        if is_hub_id(self.place):
            return _hub_rows(self.place, split, configs)
        raise FileNotFoundError(f"no data at {self.place}: give a folder, a file, or owner/name of the hub")

    def image(self, value: Any, *folders: str) -> str:
        """The path of an image: of bytes from a row, or of a path relative to ``root`` or one of its ``folders``.

        A file that is not there is not an error here; the runner lists all that are missing. Raises ValueError for what
        is neither.
        """
        if isinstance(value, Mapping) and value.get("bytes"):
            return str(stored_image(value["bytes"]))
        name = value.get("path") if isinstance(value, Mapping) else value
        if not isinstance(name, str) or not name:
            raise ValueError(f"{self.place}: an image is {str(value)[:80]!r}, neither bytes nor a path")
        candidates = [self.root / name, *(self.root / folder / name for folder in folders)]
        return str(next((path for path in candidates if path.is_file()), candidates[0]))


def _parquet_files(folder: Path, split: str, configs: Sequence[str]) -> list[Path]:
    """The split's files, config by config, and by name within one."""
    files = sorted(file for file in folder.rglob("*.parquet") if _SHARD.sub("", file.stem) == split)
    by_config = [file for config in configs for file in files if config in file.relative_to(folder).parts[:-1]]
    return by_config or files


def _file_rows(path: Path) -> Iterator[Row]:
    if path.suffix == ".parquet":
        with pq.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False) as file:  # else all that was read stays
            for batch in file.iter_batches(batch_size=BATCH):
                yield from batch.to_pylist()
    elif path.suffix == ".jsonl":
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _object(_parsed(line, f"{path}, line {number}"), f"{path}, line {number}")
    elif path.suffix == ".json":
        content = _parsed(path.read_text(encoding="utf-8-sig"), str(path))
        if isinstance(content, dict):
            yield from ({"_key": key, **_object(row, f"{path}, {key!r}")} for key, row in content.items())
        elif isinstance(content, list):
            yield from (_object(row, f"{path}, row {number}") for number, row in enumerate(content))
        else:
            raise ValueError(f"{path}: holds neither a list nor an object of rows")
    else:
        raise ValueError(f"{path}: can read .parquet, .json and .jsonl files")


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error})") from error


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: not an object")
    return value


def _saved_rows(folder: Path, split: str) -> Iterator[Row]:
    """The rows of what ``datasets.save_to_disk`` wrote."""
    import datasets

    data = datasets.load_from_disk(str(folder))
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise FileNotFoundError(f"{folder}: no split {split!r}; there are {', '.join(data)}")
        data = data[split]
    return _stored(data)


def _hub_rows(name: str, split: str, configs: Sequence[str]) -> Iterator[Row]:
    import datasets

    for config in configs or (None,):
        yield from _stored(datasets.load_dataset(name, config, split=split))


def _stored(data: Any) -> Iterator[Row]:
    """Rows as they are stored: an embedded image stays bytes."""
    raw = data.with_format("arrow")
    for start in range(0, len(data), BATCH):
        yield from raw[start : start + BATCH].to_pylist()


def text_in(row: Row, name: str) -> str:
    """The text in column ``name``, "" for null. Raises ValueError where the column is missing or no text."""
    if name not in row:
        raise ValueError(f"no column {name!r}; there are {', '.join(row)}")
    value = row[name]
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"column {name!r} holds {str(value)[:80]!r}, not a text")
    return str(value)


def texts_in(row: Row, name: str) -> tuple[str, ...]:
    """The list of texts in column ``name``, () for null. Raises ValueError as ``text_in`` does."""
    if name not in row:
        raise ValueError(f"no column {name!r}; there are {', '.join(row)}")
    value = row[name]
    if value is None:
        return ()
    if not isinstance(value, Iterable) or isinstance(value, str | Mapping):
        raise ValueError(f"column {name!r} holds {str(value)[:80]!r}, not a list")
    return tuple(str(each) for each in value)
