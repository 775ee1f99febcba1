"""``rethinker export``. Nothing here is from the paper."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rethinker.lab.command_line import CONFIG, command, option, settings


@command(
    "export",
    "Write a config's data, grader and numbers in the formats of another trainer.",
    CONFIG,
    settings(),
    option("--to", choices=("verl", "prime-rl"), required=True, help="the trainer"),
    option("--out", type=Path, required=True, help="folder to write, new or empty"),
)
def export(file: str, overrides: list[str], to: Literal["verl", "prime-rl"], out: Path) -> int:
    from rethinker.config import load_config
    from rethinker.lab.export.write import export as write_export
    from rethinker.lab.jobs.preflight import make_missing

    config = load_config(file, typed=overrides)
    make_missing([config], print)
    write_export(config, to, out, print)
    print(f"written: {out}; what could not be carried over: {out / 'README.md'}")
    return 0
