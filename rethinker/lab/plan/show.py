"""A plan in words and tables, for the terminal and for a Markdown page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rethinker.config import check_trainable
from rethinker.config.schema import ConfigError
from rethinker.lab.plan import timing
from rethinker.lab.plan.advice import failing, faster, repairs, split, with_servers
from rethinker.lab.plan.case import Case
from rethinker.lab.plan.memory import FRAGMENTATION, GIB, WORKSPACE, fits, kv_tokens, longest, moments, offloaded
from rethinker.lab.plan.timing import Seconds, episode, overlapped, total
from rethinker.lab.plan.tokens import KEPT, episode_tokens

COMPUTED = "Computed by formulas, not run on GPUs."
FORMULAS, BOUNDS = "bytes", "bound by"  # headings of what --explain adds


@dataclass(frozen=True)
class Table:
    """Cells as text, the first column names the row."""

    title: str
    headings: Sequence[str]
    rows: list[Sequence[str]]


@dataclass(frozen=True)
class Page:
    """Tables and sentences of one plan, in order."""

    title: str
    parts: Sequence[Table | list[str]]


def describe(case: Case, source: str, explain: bool = False) -> Page:
    """The plan of a case; ``source`` is where the model's sizes come from."""
    given, case = case, with_servers(case)
    machines = -(-case.gpus // case.per_node)
    where = f"{case.gpus} x {case.gpu.name}" + (f" on {machines} machines" if machines > 1 else "")
    layout = f"{case.servers} GPUs are servers" if case.servers else "trainer and engine on the same GPUs"
    title = f"{case.config.model.path} on {where}, sharding {case.sharding}, {layout}"
    parts: list[Table | list[str]] = [
        [COMPUTED, *_model(case, source), *_chosen(given, case)],
        _memory(case, explain),
        _room(case),
        _episode(case, explain),
        _verdict(case),
    ]
    return Page(title, [*parts, _symbols(case), ASSUMPTIONS] if explain else parts)


def _model(case: Case, source: str) -> list[str]:
    shape = case.shape
    what = "adapters" if case.lora else "all weights" if case.trains_tower else "the language model"
    lines = [
        f"Model: {shape.language / 1e9:.2f}e9 parameters of language and {shape.vision / 1e9:.2f}e9 of vision, from "
        f"{source}; trained are {what}, {case.trained / 1e9:.2f}e9.",
        f"Assumed: prompts of {case.prompt_tokens:,} tokens ({case.image_tokens:,} of an image), responses of "
        f"{case.response_tokens:,} (--prompt-tokens, --response-tokens).",
    ]
    if rests := offloaded(case):
        lines.append(
            f"Offloaded: {rests / GIB:.1f} GiB of weights, gradients and AdamW a GPU rest in the machine's memory; "
            "their way there and back, and the update on the CPU, are not in the seconds."
        )
    try:
        check_trainable(case.config)
    except ConfigError as error:
        lines.append(f"As it is this config cannot be trained: {error}.")
    return lines


def _chosen(given: Case, case: Case) -> list[str]:
    if given.servers == case.servers:
        return []
    return [
        f"Servers: rollout.engine=server and no --servers were given; taken are {case.servers}, with which an episode "
        "is shortest where the next one is generated during training."
    ]


def _memory(case: Case, explain: bool) -> Table:
    columns = moments(case)
    names = dict.fromkeys(part.name for moment in columns for part in moment.parts)
    formulas = {part.name: part.formula for moment in columns for part in moment.parts}
    rows: list[Sequence[str]] = [
        [name, *(_gib(moment.of(name)) for moment in columns), *([formulas[name]] if explain else [])] for name in names
    ]
    rows.append(["sum", *(_gib(moment.bytes) for moment in columns)])
    room = case.gpu.memory / GIB
    rows.append([f"of {room:.1f}", *("fits" if fits(case, moment) else "does not fit" for moment in columns)])
    headings = ["part", *(moment.name for moment in columns), *([FORMULAS] if explain else [])]
    return Table("Memory of a GPU, GiB", headings, [[*row, *[""] * (len(headings) - len(row))] for row in rows])


def _gib(size: float) -> str:
    return f"{size / GIB:.1f}" if size else ""


def _room(case: Case) -> list[str]:
    if not case.vllm:
        return []
    tokens, usual = kv_tokens(case), case.prompt_tokens + case.response_tokens
    gpus = f"{case.parallel} GPU{'s' if case.parallel > 1 else ''}"
    if tokens < longest(case):
        short = f"the longest response takes {longest(case):,} with its prompt"
        return [f"KV cache of an engine ({gpus}): no room, {max(0.0, tokens):,.0f} tokens; {short}."]
    many = timing.sequences(case, usual)
    return [f"KV cache of an engine ({gpus}): {tokens:,.0f} tokens, {many:,.0f} usual sequences at once."]


def _episode(case: Case, explain: bool) -> Table:
    packings = ("shared", "plain")
    columns = [
        (stage, name.name, packing)
        for stage, name in zip(case.stages, case.config.stages, strict=True)
        for packing in packings
    ]
    tokens = [episode_tokens(case, stage, packing) for stage, _, packing in columns]
    parts = [episode(case, stage, packing) for stage, _, packing in columns]
    rows: list[Sequence[str]] = [
        ["tokens generated", *(f"{each.responses + each.second_looks:,.0f}" for each in tokens)],
        ["tokens trained on", *(f"{each.packed:,.0f}" for each in tokens)],
    ]
    for index, part in enumerate(parts[0]):
        cells = [in_seconds(column[index].seconds) for column in parts]
        rows.append([f"{part.name}, s", *cells, *([parts[-2][index].bound] if explain else [])])
    rows.append(["sum, s", *(in_seconds(total(column)) for column in parts)])
    headings = ["", *(f"{name}\n{packing}" for _, name, packing in columns), *([BOUNDS] if explain else [])]
    title = f"An episode, with and without the shared prefix (model.forward={case.config.model.forward})"
    return Table(title, headings, [[*row, *[""] * (len(headings) - len(row))] for row in rows])


def in_seconds(seconds: float) -> str:
    """As text; infinite where nothing can be generated."""
    return f"{seconds:,.0f}" if math.isfinite(seconds) else "no room"


def _verdict(case: Case) -> list[str]:
    if lacking := failing(case):
        what = ", ".join(moment.name for moment in lacking)
        why = f" {case.refused}." if case.refused else ""
        return [f"Does not fit: {what}.{why} What would:", *(f"  {text}" for text in repairs(case))]
    stage, forward = case.config.stages[-1].name, case.config.model.forward
    parts = episode(case, case.stages[-1], forward)
    slowest = max(parts, key=lambda part: part.seconds)
    share = slowest.seconds / total(parts)
    each = [total(episode(case, stage, forward)) for stage in case.stages]
    hours = sum(s * stage.episodes for s, stage in zip(each, case.config.stages, strict=True)) / 3600
    quicker = [f"  {text}" for text in faster(case)]
    return [
        f"Fits. Bottleneck of {stage}: {slowest.name}, {share:.0%} of an episode, bound by {slowest.bound}.",
        *_layouts(case, parts),
        f"The run: {case.config.episodes} episodes in {hours:,.1f} hours, {hours * case.gpus:,.0f} GPU hours, without "
        "evaluations and checkpoints.",
        *(["What would be faster:", *quicker] if quicker else []),
    ]


def _layouts(case: Case, parts: list[Seconds]) -> list[str]:
    if case.servers:
        return [f"An episode with {case.servers} servers: {_both(parts)}."]
    found = split(case)
    if found is None:
        return []
    best, seconds = found
    lacking = ", but it does not fit" if failing(best) else ""
    return [
        f"Colocated: {total(parts):,.0f} s an episode. With {best.servers} of the GPUs as servers: {_both(seconds)}"
        f"{lacking}."
    ]


def _both(parts: list[Seconds]) -> str:
    return f"{total(parts):,.0f} s, or {overlapped(parts):,.0f} s where the next one is generated during training"


def _symbols(case: Case) -> list[str]:
    shape = case.shape
    values = {
        "P, parameters of the language model": f"{shape.language:,}",
        "V, of the vision tower": f"{shape.vision:,}",
        "A, of the adapters": f"{case.adapters:,}" if case.lora else "none",
        "trained": f"{case.trained:,}",
        "layer": f"{shape.layer:,}",
        "head, embeddings": f"{shape.lm_head:,} each{', one matrix' if shape.tied else ''}",
        "h, i, L": f"{shape.width:,}, {shape.mlp:,}, {shape.layers}",
        "kv, bytes a token of the KV cache": f"{shape.kv_token(case.engine_bytes):,}",
        "T, tokens of a forward pass": f"{case.micro_tokens:,} (optim.micro_batch_tokens, or one longest sample)",
    }
    return ["Symbols:", *(f"  {name}: {value}" for name, value in values.items())]


ASSUMPTIONS = [
    "Assumptions:",
    f"  Training: (2·body·tokens + 2·head·scored + 2·L·heads·tokens·context) FLOP forward, twice that backward (once "
    f"with adapters), once more where layers are checkpointed; at {timing.MFU:.0%} of the peak. Exchanges of weights "
    f"and gradients overlap with it, at {timing.LINK:.0%} of the links.",
    "  Every sample is trained on and distinct: an upper bound. Gradients are reduced after each micro-batch.",
    f"  Generation: a step takes the larger of reading weights and KV cache at {timing.ENGINE_BANDWIDTH:.0%} of the "
    f"memory's bandwidth and 2·P·sequences FLOP at {timing.ENGINE_FLOPS:.0%} of the peak, and 2 ms (transformers "
    f"engine: 30 ms); at most {timing.SEQUENCES:,} sequences an engine. The longest response takes a step for each of "
    "rollout.max_new_tokens.",
    f"  Second looks are as long as responses; {KEPT:.0%} of them are kept, at most rethink.max_per_query a query.",
    f"  vLLM takes {WORKSPACE / 1e9:.0f} GB a GPU beside weights and KV cache, and 1 GiB asleep; fragmentation takes "
    f"{FRAGMENTATION:.0%} of what training allocates.",
    f"  Weights reach the engine at {timing.SYNC_HERE / 1e9:.0f} GB/s, servers at {timing.SYNC_SERVERS / 1e9:.0f}.",
    f"  All seconds are multiplied by {timing.OVERHEAD}: whole published steps took 1.25 and 1.29 times such sums.",
    "  Not counted: grading, decoding of images, evaluations, checkpoints, loading.",
]


def print_page(page: Page) -> None:
    """On the terminal."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as RichTable

    console = Console()
    console.print(f"[bold]{escape(page.title)}")
    for part in page.parts:
        if isinstance(part, list):
            for line in part:
                console.print(escape(line), highlight=False)
            continue
        table = RichTable(title=part.title, title_justify="left", title_style="bold")
        for index, heading in enumerate(part.headings):
            table.add_column(heading, justify="right" if index > 0 and not heading.startswith("b") else "left")
        for row in part.rows:
            table.add_row(*map(escape, row))
        console.print(table)


def to_markdown(page: Page) -> str:
    """As a section of a page."""
    out = [f"## {page.title}", ""]
    for part in page.parts:
        if isinstance(part, list):
            out += [*sentences(part), ""]
            continue
        out += [f"**{part.title}**", "", *markdown_table(part.headings, part.rows), ""]
    return "\n".join(out)


def sentences(lines: Sequence[str]) -> list[str]:
    """Sentences and, indented, points of a list, as Markdown."""
    return [f"- {line.strip()}" if line.startswith("  ") else f"{line}  " for line in lines]


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    lines = [[heading.replace("\n", ", ") for heading in headings], ["---"] * len(headings), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]
