"""What a command of ``rethinker`` is made of: a function with its options in front of it, and the parser of all."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

Run = TypeVar("Run", bound=Callable[..., int])
Option = tuple[tuple[str, ...], dict[str, Any]]  # the arguments of ``add_argument``
TRACEBACK = "show where an error came from, those of a run's processes too"


@dataclass(frozen=True)
class Command:
    """``run`` takes what the options give, by name, and ``traceback`` where it has such a parameter."""

    run: Callable[..., int]
    text: str
    options: tuple[Option, ...]


COMMANDS: dict[str, Command] = {}
ORDER = (  # of the help, and every command
    *("train", "launch", "jobs", "watch", "tail", "stop", "evaluate", "rescore", "compare", "report", "figures"),
    *("sync", "ablate", "notebooks", "plan", "serve", "export", "data", "make-data", "pretrain-tiny"),
    *("glossary", "doctor"),
)


def command(name: str, text: str, *options: Option) -> Callable[[Run], Run]:
    """Decorates the function of a command, which returns the exit code."""

    def add(run: Run) -> Run:
        COMMANDS[name] = Command(run, text, options)
        return run

    return add


def option(*names: str, **details: Any) -> Option:
    """An argument of a command."""
    return names, details


def settings(text: str = "e.g. seed=1 optim.lr=3e-5") -> Option:
    """Settings of a config, as they are typed."""
    text += "; relative paths are relative to the working directory"
    return option("overrides", nargs="*", metavar="key=value", help=text)


CONFIG = option("file", metavar="config", help="YAML file, e.g. experiments/tiny.yaml")
RESUME = option("--resume", action="store_true", help="resume the run of this name, if there is one")
FOLDER = option("folder", type=Path, metavar="RUN")
FOLDERS = option("folders", nargs="+", type=Path, metavar="RUN", help="a run, or a folder of runs")


def run_command(argv: Sequence[str] | None) -> int:
    """Run a command; returns the exit code. User errors are one line on stderr and exit code 2."""
    given = vars(parse(argv))
    name, traceback = given.pop("command"), given["traceback"]
    run = COMMANDS[name].run
    if "traceback" not in inspect.signature(run).parameters:
        del given["traceback"]
    try:
        return run(**given)
    except (ValueError, OSError, ImportError) as error:
        if traceback:
            raise
        print(f"rethinker {name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, where settings (key=value) and names may also stand behind options, which argparse refuses."""
    top = parser()
    arguments, rest = top.parse_known_args(argv)
    more = getattr(arguments, "overrides", getattr(arguments, "names", None))
    if rest and (more is None or any(item.startswith("-") for item in rest)):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if more is not None:
        more.extend(rest)
    return arguments


def parser() -> argparse.ArgumentParser:
    """All commands with their options."""
    top = argparse.ArgumentParser(prog="rethinker", description="Reinforcement learning that makes VLMs think twice.")
    top.add_argument("--traceback", action="store_true", help=TRACEBACK)
    commands = top.add_subparsers(dest="command", required=True)
    for name, each in sorted(COMMANDS.items(), key=lambda item: ORDER.index(item[0])):
        sub = commands.add_parser(name, help=each.text, description=each.text)
        # SUPPRESS: else the default here would undo the option where it stands in front of the command.
        sub.add_argument("--traceback", action="store_true", default=argparse.SUPPRESS, help=TRACEBACK)
        for names, details in each.options:
            sub.add_argument(*names, **details)
    return top
