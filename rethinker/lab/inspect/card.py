"""A data set's card: one pass over its rows, every gold answer read, a sample of its images opened."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import Progress

from rethinker.config import RunConfig, data_source
from rethinker.datasets.checks import image_fault
from rethinker.datasets.columns import Row
from rethinker.datasets.filters import RowFilter, filter_of, named_filters, training_filter
from rethinker.datasets.io import Dropped, load_queries
from rethinker.datasets.pass_rate import pass_rate
from rethinker.datasets.rows import column_types
from rethinker.grading import check_golds
from rethinker.policy.archive import opened
from rethinker.types import Query

RATES = ("PassRate_32BTrained", "PassRate_7BBase")
LISTED = 20  # categories, sources, and unusable rows of a kind
ANSWERS = (  # the first that matches the whole gold answer
    ("letter of a choice", r"\(?[A-Z]\)?"),
    ("whole number", r"[-+]?\d[\d,]*"),
    ("decimal", r"[-+]?\d*\.\d+"),
    ("fraction", r"[-+]?(\\d?frac.*|\d+\s*/\s*\d+)"),
    ("number with a unit", r"[-+]?[\d.,]+\s*(\\?%|\^?\{?\\circ\}?|°|\\text\{.*\}|\\mathrm\{.*\}|[A-Za-z]+)"),
    ("yes or no", r"(?i:yes|no|true|false)"),
    ("words", r"[^\W\d_][^\\=^_{}\d]*"),
)


def answer_type(gold: str) -> str:
    """The kind of a gold answer, by its form."""
    return next((name for name, form in ANSWERS if re.fullmatch(form, gold.strip())), "expression")


@dataclass
class Seen:
    """Counts every row that is read, and says whether it is wanted."""

    wanted: RowFilter | None
    filters: dict[str, RowFilter]
    rows: int = 0
    categories: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    rates: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in RATES})

    def __call__(self, row: Row) -> bool:
        self.rows += 1
        self.categories[str(row.get("category") or "(none)")] += 1
        self.sources[str(row.get("source") or "(none)")] += 1
        for name, found in self.rates.items():
            value = row.get(name)
            if isinstance(value, int | float) and (rate := pass_rate(value)) is not None:
                found.append(rate)
        if any(self.rates.values()):
            for each in self.filters.values():
                each(row)
        return self.wanted is None or self.wanted(row)


@dataclass
class Card:
    """What ``str`` shows. ``sizes``: width and height of the images that were opened; ``tokens``: of their prompts."""

    source: str
    columns: dict[str, str]
    seen: Seen
    queries: Sequence[Query]
    dropped: Sequence[Dropped]
    sizes: Sequence[tuple[int, int]]
    tokens: Sequence[int]

    def __str__(self) -> str:
        images = Counter(min(len(query.images), 2) for query in self.queries)
        kept = len(self.queries)
        parts = [
            f"# {self.source}",
            f"{self.seen.rows:,} rows, {kept:,} usable" + (" of those wanted" if self.seen.wanted else ""),
            _table("Columns", self.columns.items()),
            str(self.seen.wanted or ""),
            _counts("Categories (all rows)", self.seen.categories),
            _counts("Sources (all rows)", self.seen.sources),
            *(_rates(name, rates, self.seen.rows) for name, rates in self.seen.rates.items() if rates),
            _table("Named filters (data.filter)", self._filters()),
            _counts("Images (usable rows)", Counter({_IMAGES[count]: number for count, number in images.items()})),
            _table("Sizes", self._sizes()),
            _counts("Answers (usable rows)", Counter(answer_type(query.answer) for query in self.queries)),
            _table("Prompt", self._tokens()),
            self._unusable(),
        ]
        return "\n\n".join(part for part in parts if part)

    def _filters(self) -> Iterable[tuple[str, str]]:
        for name, each in self.seen.filters.items():
            if each.read and each.named:
                yield name, f"{each.kept.total():,} rows; the paper has about {each.named.paper_rows:,}"

    def _sizes(self) -> Iterable[tuple[str, str]]:
        if self.sizes:
            yield f"of {len(self.sizes):,} images", "5 %, half, 95 %, most"
            widths, heights = zip(*self.sizes, strict=True)
            pixels = [width * height for width, height in self.sizes]
            for name, values in (("width", widths), ("height", heights), ("pixels", pixels)):
                yield name, _spread(values)

    def _tokens(self) -> Iterable[tuple[str, str]]:
        if self.tokens:
            yield f"tokens of {len(self.tokens):,} prompts", f"{_spread(self.tokens)} (5 %, half, 95 %, most)"

    def _unusable(self) -> str:
        lines = [f"## Unusable rows: {len(self.dropped):,}"]
        for reason, count in Counter(row.reason for row in self.dropped).most_common():
            lines.append(f"{reason}: {count:,}")
            rows = [row for row in self.dropped if row.reason == reason]
            lines += [f"  {row.qid}: {row.detail}" for row in rows[:LISTED]]
            lines += [f"  and {count - LISTED:,} more, in unusable.json"] * (count > LISTED)
        return "\n".join(lines)


_IMAGES = {0: "none (text only)", 1: "one", 2: "several"}


def make_card(config: RunConfig, *, images: int, tokens: bool) -> tuple[Card, list[Query]]:
    """The card of ``data.train`` as ``config`` reads it, and its usable queries. ``images``: how many are opened;
    ``tokens``: whether prompts are counted, by the processor of ``model.path``."""
    data = config.data
    path, split = data_source(data.train)
    seen = Seen(training_filter(data), {name: filter_of(each) for name, each in named_filters().items()})
    with Progress(transient=True) as progress:
        task = progress.add_task("reading gold answers", total=None)

        def read_golds(golds: Sequence[str]) -> list[str | None]:
            progress.advance(task, len(golds))
            return list(check_golds(golds))

        queries, dropped = load_queries(
            path, split, columns=data.columns_for("train"), read_images=False, check_golds=read_golds, keep=seen
        )
    sample = _sample([query for query in queries if query.images], images)
    faults = {query.qid: fault for query in sample if (fault := _fault(query))}
    dropped += [Dropped(qid, *fault) for qid, fault in faults.items()]
    queries = [query for query in queries if query.qid not in faults]
    sizes = [_size(path) for query in sample if query.qid not in faults for path in query.images]
    counted = _count_tokens(config, _sample(queries, images)) if tokens else []
    return Card(data.train, column_types(path, split), seen, queries, dropped, sizes, counted), queries


def _sample(queries: Sequence[Query], number: int) -> list[Query]:
    return random.Random(0).sample(queries, min(number, len(queries)))


def _fault(query: Query) -> tuple[str, str] | None:
    return next((fault for path in query.images if (fault := image_fault(Path(path)))), None)


def _size(path: str) -> tuple[int, int]:
    with opened(path) as file, Image.open(file) as image:
        return image.size


def _count_tokens(config: RunConfig, queries: Iterable[Query]) -> list[int]:
    from rethinker.policy.loading import load_outline  # takes seconds, and the card without tokens needs none of it

    policy = load_outline(config.model, prompt_suffix=config.data.prompt_suffix, prompt_hint=config.data.prompt_hint)
    return [len(policy.prompt(query).ids) for query in queries]


def _counts(title: str, counts: Counter[str]) -> str:
    whole = counts.total()
    rows = [(name, f"{count:>7,}  {count / whole:6.1%}") for name, count in counts.most_common(LISTED)]
    return _table(title, rows + [("and others", str(len(counts) - LISTED))] * (len(counts) > LISTED))


def _rates(name: str, rates: Sequence[float], rows: int) -> str:
    found = np.asarray(rates)
    between = np.histogram(found[(found > 0) & (found < 1)], bins=[0, 0.25, 0.5, 0.75, 1])[0]
    names = ("above 0", "0.25 and more", "0.5 and more", "0.75 and more, below 1")
    counts = {"0": int((found == 0).sum()), **dict(zip(names, map(int, between), strict=True))}
    counts |= {"1": int((found == 1).sum()), "no rate": rows - len(rates)}
    return _table(name, ((key, f"{count:>7,}  {count / rows:6.1%}") for key, count in counts.items()))


def _table(title: str, rows: Iterable[tuple[str, str]]) -> str:
    rows = list(rows)
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join([f"## {title}", *(f"{name:<{width}}  {text}" for name, text in rows)]) if rows else ""


def _spread(values: Sequence[int]) -> str:
    low, half, high, most = np.percentile(values, (5, 50, 95, 100))
    return f"{low:,.0f}, {half:,.0f}, {high:,.0f}, {most:,.0f}"
