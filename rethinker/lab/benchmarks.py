"""``rethinker evaluate | rescore``: a checkpoint on ``data.test``, or on the paper's benchmarks."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rethinker.lab.benchmark_inputs import DATA, NAMES, PROTOCOL, best_of_run, config_of, load_tasks
from rethinker.lab.command_line import command, option, settings
from rethinker.rundir.paths import RunDir

if TYPE_CHECKING:
    from rethinker.benchmarks.judge import Judge

MODES = ("plain", "forced", "bound")
CHUNK = 256  # items
NEEDS_BENCHMARKS = (
    "protocol",
    "mode",
    "engine",
    "samples",
    "data",
    "data_root",
    "limit",
    "chunk",
    "judge",
    "judge_model",
)
USED = ("model", "rollout", "rethink", "launch")  # sections of a config
COUNTS = ("unparsed", "truncated", "skipped", "unsupported")
JUDGE = (
    option("--judge", metavar="URL", help="OpenAI-compatible endpoint, e.g. http://localhost:8000/v1"),
    option("--judge-model", metavar="NAME", help="its model; the key: RETHINKER_JUDGE_KEY, else OPENAI_API_KEY"),
)


@command(
    "evaluate",
    "Evaluate a checkpoint on data.test in the modes plain, forced and bound, or on --benchmarks.",
    option("file", metavar="config", help="YAML file, e.g. runs/<name>/config.yaml; with --benchmarks also a model"),
    settings("model.path=... names the checkpoint (default for a run's own config.yaml: its best)"),
    option(
        "--out", type=Path, help="folder for evaluation/<label>.json, or of --benchmarks; default: the run's folder"
    ),
    option("--label", help="name of the results (default: evaluation; of --benchmarks: the protocol)"),
    NAMES,
    PROTOCOL,
    option("--mode", metavar="LIST", help="plain, forced and bound (default: plain)"),
    option("--engine", choices=("auto", "transformers", "vllm", "server"), help="as rollout.engine"),
    option("--samples", type=int, metavar="N", help="sampled responses beside the greedy one (default: 0)"),
    *DATA,
    option("--limit", type=int, metavar="N", help="the first items only, to try things out"),
    option("--chunk", type=int, metavar="N", help=f"items that are asked, and scored, together (default: {CHUNK})"),
    *JUDGE,
)
def evaluate(
    file: str, overrides: list[str], out: Path | None, label: str | None, benchmarks: str | None, **given: Any
) -> int:
    if benchmarks is not None:
        return _on_benchmarks(file, overrides, out, label, benchmarks, **given)
    for name in NEEDS_BENCHMARKS:
        if given[name] is not None:
            raise ValueError(f"--{name.replace('_', '-')} is for benchmarks: add --benchmarks mathvision,...")
    return _on_test(file, overrides, out, label or "evaluation")


def _on_test(file: str, overrides: list[str], out: Path | None, label: str) -> int:
    from rethinker.config import DataConfig, check_name, load_config
    from rethinker.lab.jobs.preflight import check_data, check_model, make_missing

    config, folder = best_of_run(load_config(file, typed=overrides), Path(file), overrides)
    folder = out or folder
    check_name("--label", label)
    if RunDir(folder).evaluation(label).exists():
        raise ValueError(f"{folder} has an evaluation {label!r} already: choose another --label")
    check_model(config)
    if config.data.test:
        make_missing([replace(config, data=DataConfig(config.data.test))], lambda text: print(text, file=sys.stderr))
        check_data("data.test", config.data.test, config.data.columns_for("test"))
    from rethinker.evaluation.held_out import evaluate_checkpoint

    result = evaluate_checkpoint(config)
    path = result.save(folder, label)
    print(json.dumps(result.summary(), indent=1))
    print(f"written: {path}", file=sys.stderr)
    return 0


def _on_benchmarks(
    file: str,
    overrides: list[str],
    out: Path | None,
    label: str | None,
    benchmarks: str,
    *,
    protocol: Any,
    mode: str | None,
    engine: str | None,
    samples: int | None,
    data: list[str] | None,
    data_root: Path | None,
    limit: int | None,
    chunk: int | None,
    judge: str | None,
    judge_model: str | None,
) -> int:
    from rethinker.config import check_name
    from rethinker.lab.jobs.preflight import check_model

    protocol, samples, chunk = protocol or "boxed", samples or 0, CHUNK if chunk is None else chunk
    for name, number, least in (("samples", samples, 0), ("chunk", chunk, 1), ("limit", limit, 1)):
        if number is not None and number < least:
            raise ValueError(f"--{name} {number}: needs at least {least}")
    modes = _modes(mode or "plain")
    _check_effect(overrides, protocol)
    label = label or protocol
    check_name("--label", label)
    judging = _judge(judge, judge_model)
    config, folder = config_of(file, [*overrides, *([f"rollout.engine={engine}"] if engine else [])])
    folder = out or folder / "benchmarks" / label
    check_model(config)
    from rethinker.benchmarks import checkpoint, running

    tasks = load_tasks(benchmarks, protocol, data, data_root, limit)
    how = checkpoint.asking(config, protocol, modes, samples)
    try:
        summary = running.run_tasks(
            folder,
            tasks,
            how,
            checkpoint.settings_of(config, how, limit),
            lambda left: checkpoint.start(config, how, left),
            chunk=chunk,
            judge=judging,
        )
    except KeyboardInterrupt:
        print(f"stopped; what was saved is in {folder}; the same command resumes it", file=sys.stderr)
        return 130
    _print(summary, folder)
    return 0


def _check_effect(overrides: Iterable[str], protocol: str) -> None:
    """Raises ValueError for a setting that changes nothing here."""
    for item in overrides:
        key = item.partition("=")[0]
        prompt = key in ("data.prompt_suffix", "data.prompt_hint")
        if prompt and protocol == "official":
            raise ValueError(f"{item}: the protocol official has the benchmark's own prompt; add --protocol boxed")
        if "." in key and not prompt and key.partition(".")[0] not in USED:
            raise ValueError(
                f"{item}: has no effect on --benchmarks, which use {', '.join(USED)} and the prompt's texts"
            )


def _modes(text: str) -> list[str]:
    words = text.split(",")
    for word in words:
        if word not in MODES:
            raise ValueError(f"--mode {text}: {word!r} is none of {', '.join(MODES)}")
    return [mode for mode in MODES if mode in words]


def _judge(url: str | None, model: str | None) -> Judge | None:
    if (url is None) != (model is None):
        raise ValueError("--judge URL and --judge-model NAME belong together")
    if url is None or model is None:
        return None
    from rethinker.benchmarks.judge import Judge

    return Judge(url, model)


@command(
    "rescore",
    "Score the responses of an evaluation on benchmarks again, without the model.",
    option("folder", type=Path, metavar="FOLDER", help="with settings.json, e.g. runs/<name>/benchmarks/boxed"),
    *JUDGE,
)
def rescore(folder: Path, judge: str | None, judge_model: str | None) -> int:
    from rethinker.benchmarks.rescoring import rescore as score_again
    from rethinker.benchmarks.running import SETTINGS, only_writer
    from rethinker.benchmarks.summary import write_summaries

    judging = _judge(judge, judge_model)
    if not (folder / SETTINGS).is_file():
        raise FileNotFoundError(f"{folder} is not the folder of an evaluation on benchmarks (no {SETTINGS})")
    with only_writer(folder):
        for name, changed in score_again(folder, judging).items():
            print(f"{name}: {changed} scores changed", file=sys.stderr)
        summary = write_summaries(folder)
    _print(summary, folder)
    return 0


def _print(summary: dict[str, Any], folder: Path) -> None:
    """A table of the headlines."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    samples = summary["samples"]
    drawn = {f"mean of {samples}": "sampled", f"pass@{samples}": f"pass@{samples}"} if samples else {}
    for name in ("benchmark", "items", "mode", "greedy" if samples else "score", "guessing", *drawn):
        table.add_column(name, no_wrap=True)
    table.add_column("of the responses")
    for found in summary["benchmarks"].values():
        items = str(found["items"]) + (f" of {found['published']}" if found["items"] != found["published"] else "")
        about = [f"{found['title']} {found['split']}", items]
        for mode, result in found["modes"].items():
            guessing = _percent(result["with_guesses"]).partition(" ")[0]
            counts = [f"{result[name]} {name}" for name in COUNTS if result[name]]
            sampled = [_percent(result[name]) for name in drawn.values()]
            table.add_row(*about, mode, _percent(result["score"]), guessing, *sampled, ", ".join(counts))
            about = ["", ""]
    console = Console()
    console.width = console.width if console.is_terminal else 140
    console.print(f"protocol {summary['protocol']}, {summary['model']['path']}", soft_wrap=True, highlight=False)
    console.print(table)
    print(f"written: {folder}", file=sys.stderr)


def _percent(score: dict[str, Any]) -> str:
    if score["value"] is None:
        return "-"
    return f"{100 * score['value']:.1f} [{100 * score['low']:.1f}, {100 * score['high']:.1f}]"
