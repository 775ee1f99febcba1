"""A contact sheet: queries of every category with their pictures, questions and gold answers."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from itertools import chain, zip_longest
from pathlib import Path

from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont, ImageOps

from rethinker.policy.pictures import ImageError, open_image
from rethinker.types import Query

COLUMNS, ROWS = 6, 4
SIDE, TEXT, MARGIN = 220, 108, 14  # pixels: of a picture, of the text below it, between cells
LINES = 4  # of a question


def contact_sheet(path: Path, queries: Sequence[Query]) -> Path:
    """Write a PNG of up to ``COLUMNS * ROWS`` queries, in turn from each category, the same ones every time."""
    chosen = _choose(queries, COLUMNS * ROWS)
    rows = -(-len(chosen) // COLUMNS)
    cell = SIDE + MARGIN
    sheet = Image.new("RGB", (cell * COLUMNS + MARGIN, (cell + TEXT) * rows + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    for index, query in enumerate(chosen):
        x = MARGIN + index % COLUMNS * cell
        y = MARGIN + index // COLUMNS * (cell + TEXT)
        sheet.paste(_pictures(query), (x, y))
        pen.rectangle([x - 1, y - 1, x + SIDE, y + SIDE], outline=(190, 190, 190))
        lines = _wrapped(query.question.replace("<image>", " "), LINES)
        pen.multiline_text((x, y + SIDE + 4), "\n".join(lines), fill="black", font=_font(12), spacing=2)
        low = y + SIDE + TEXT - 32
        pen.text((x, low), _cut(f"gold: {query.answer}"), fill=(0, 90, 160), font=_font(12))
        pen.text((x, low + 16), _cut(f"{query.qid}, {query.category}", 10), fill=(120, 120, 120), font=_font(10))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)
    return path


def _choose(queries: Sequence[Query], number: int) -> list[Query]:
    by_category: dict[str, list[Query]] = defaultdict(list)
    for query in queries:
        by_category[query.category].append(query)
    chosen = [random.Random(0).sample(group, min(number, len(group))) for _, group in sorted(by_category.items())]
    return [query for query in chain.from_iterable(zip_longest(*chosen)) if query][:number]


def _pictures(query: Query) -> Image.Image:
    """Up to four of a query's pictures in a square; what is wrong with one that cannot be read."""
    square = Image.new("RGB", (SIDE, SIDE), (246, 246, 246))
    pen = ImageDraw.Draw(square)
    if not query.images:
        pen.text((SIDE / 2, SIDE / 2), "text only", fill=(150, 150, 150), font=_font(14), anchor="mm")
    side = SIDE if len(query.images) == 1 else SIDE // 2
    for index, path in enumerate(query.images[:4]):
        corner = (index % 2 * side, index // 2 * side)
        try:
            picture = ImageOps.contain(open_image(path, query.qid), (side - 4, side - 4))
        except ImageError:
            pen.text(
                (corner[0] + side / 2, corner[1] + side / 2), "unreadable", fill="red", font=_font(12), anchor="mm"
            )
            continue
        square.paste(picture, (corner[0] + (side - picture.width) // 2, corner[1] + (side - picture.height) // 2))
    if len(query.images) > 4:
        pen.text((SIDE - 4, SIDE - 4), f"of {len(query.images)}", fill="red", font=_font(12), anchor="rs")
    return square


def _wrapped(text: str, most: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if _font(12).getlength(longer) <= SIDE:
            lines[-1] = longer
        else:
            lines.append(word)
    return [_cut(line) for line in lines if line][:most]


def _cut(text: str, size: int = 12) -> str:
    """What fits into a line."""
    text = " ".join(text.split())
    while _font(size).getlength(text) > SIDE:
        text = text[:-2].rstrip("…") + "…"
    return text


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(findfont("DejaVu Sans"), size)  # which matplotlib brings
