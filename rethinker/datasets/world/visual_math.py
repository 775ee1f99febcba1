"""The visual-math world: any number of distinct, rule-verifiable image questions from a seed, in ViRL39K's schema.

Six kinds (count, sum, bars, table, angle, clock) at three levels each, in equal shares unless said otherwise. Splits
share no query: a query is its question and its pixels, and no two in a data set are the same.
"""

from __future__ import annotations

import json
import random
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from rethinker.datasets.io import SCHEMA_COLUMNS, write_parquet
from rethinker.datasets.world.puzzles import KINDS, LEVELS, Puzzle, make_puzzle
from rethinker.rundir.atomic import atomic_write_text

SPLITS = ("test", "validation", "train")  # the order in which they are drawn: test does not depend on train's size
RECIPE = "recipe.json"
WORLD_VERSION = 1  # raise it when the same seed gives other queries
# Kinds in turn, by the name of the folder that a run's config asks for; others are drawn as visual_math is. In
# visual_math_quick every other question is a clock, which the tiny VLM reads right at its first look nearly always.
WORLDS = {"visual_math": KINDS, "visual_math_quick": (*KINDS, *["clock"] * 4)}
_TRIES = 1000  # draws before giving up on finding a query that is new


def draw_puzzles(split: str, count: int, seed: int, seen: set[str], kinds: Sequence[str] = KINDS) -> Iterator[Puzzle]:
    """``count`` puzzles whose keys are not in ``seen`` (which grows), ``kinds`` and levels in turn.

    Puzzle ``i`` has a generator of its own, so that a longer split begins with the shorter one.

    Raises:
        ValueError: no new puzzle of a kind and level was found (all are used up).
    """
    cells = [(kind, level) for level in LEVELS for kind in kinds]
    for index in range(count):
        kind, level = cells[index % len(cells)]
        rng = random.Random(f"{seed}/{split}/{index}")
        for _ in range(_TRIES):
            puzzle = make_puzzle(kind, level, rng)
            if puzzle.key not in seen:
                break
        else:
            raise ValueError(
                f"no new {kind} query of level {level} in {_TRIES} draws after {index} of {split}: ask for fewer"
            )
        seen.add(puzzle.key)
        yield puzzle


def make_data(
    out: str | Path,
    n_train: int = 4000,
    n_validation: int = 120,
    n_test: int = 360,
    seed: int = 0,
    kinds: Sequence[str] = KINDS,
) -> Path:
    """Write the splits to ``out``: ``<split>.parquet``, and ``images/*.png`` beside them.

    The columns are ViRL39K's and ``level`` (1 to 3). The pass rates are null: no reference model has answered these
    queries. ``recipe.json`` records what was asked for; a folder that has the same recipe is left as it is. The
    defaults are what the shipped configs train on. ``kinds`` come in turn: one named twice comes twice as often.

    Returns:
        ``out``.

    Raises:
        ValueError: a number is negative, ``out`` holds something else, or the world has not that many queries.
    """
    out = Path(out)
    counts = {"train": n_train, "validation": n_validation, "test": n_test}
    if min(counts.values()) < 0:
        raise ValueError(f"numbers of queries must not be negative, got {counts}")
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown or not kinds:
        raise ValueError(f"kinds of questions: at least one of {', '.join(KINDS)}, got {', '.join(kinds) or 'none'}")
    recipe = {"world": "visual-math", "version": WORLD_VERSION, "seed": seed, **counts}
    if tuple(kinds) != KINDS:
        recipe["kinds"] = list(kinds)
    if _is_made(out, recipe):
        return out
    # Made beside its place and moved there whole: of two runs started at the same time none sees, let alone removes,
    # what the other has half done. The second finds the first one's data, which are the same.
    place = out.resolve()
    drawn = place.with_name(f".{place.name}.{secrets.token_hex(4)}.tmp")
    (drawn / "images").mkdir(parents=True)
    try:
        seen: set[str] = set()
        for split in SPLITS:
            if counts[split]:
                rows = [
                    _write_row(drawn, f"visual-math-{seed}-{split}-{index:05d}", puzzle)
                    for index, puzzle in enumerate(draw_puzzles(split, counts[split], seed, seen, kinds))
                ]
                write_parquet(drawn / f"{split}.parquet", rows)
        atomic_write_text(drawn / RECIPE, json.dumps(recipe, indent=2) + "\n")
        try:
            drawn.rename(place)  # over an empty folder, but never over a full one
        except OSError:
            if not _is_made(out, recipe):  # else another process was faster
                raise
    finally:
        shutil.rmtree(drawn, ignore_errors=True)
    return out


def _is_made(out: Path, recipe: dict[str, Any]) -> bool:
    """Whether ``out`` holds what ``recipe`` asks for; False if it is empty. ValueError for something else."""
    if (out / RECIPE).is_file():
        found = json.loads((out / RECIPE).read_text(encoding="utf-8"))
        if found == recipe:
            return True
        raise ValueError(f"{out} holds other data ({found}); choose another folder, or delete it to make {recipe}")
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty and has no {RECIPE}; choose another folder, or delete it")
    return False


def _write_row(out: Path, qid: str, puzzle: Puzzle) -> dict[str, object]:
    image = f"images/{qid}.png"
    puzzle.image.save(out / image)
    values = (puzzle.question, f"\\boxed{{{puzzle.answer}}}", None, None, puzzle.kind, "visual-math", qid, [image])
    return {**dict(zip(SCHEMA_COLUMNS, values, strict=True)), "level": puzzle.level}


def contact_sheet(path: str | Path, seed: int = 0, scale: int = 3) -> Path:
    """Draw one puzzle of every kind (columns) and level (rows), enlarged, with its question and answer below it."""
    margin, label = 14, 64
    side = 64 * scale
    width, height = side + 2 * margin, side + margin + label
    sheet = Image.new("RGB", (width * len(KINDS) + margin, height * len(LEVELS) + 40), "white")
    pen = ImageDraw.Draw(sheet)
    title, body = ImageFont.load_default(size=16), ImageFont.load_default(size=14)
    for column, kind in enumerate(KINDS):
        x = margin + column * width
        pen.text((x + side / 2, 20), kind, fill="black", font=title, anchor="mm")
        for row, level in enumerate(LEVELS):
            puzzle = make_puzzle(kind, level, random.Random(f"{seed}/sheet/{kind}/{level}"))
            y = 40 + row * height
            sheet.paste(puzzle.image.resize((side, side), Image.Resampling.NEAREST), (x, y))
            pen.rectangle([x - 1, y - 1, x + side, y + side], outline=(150, 150, 150))
            question = _wrapped(puzzle.question.removeprefix("<image>"), side, body)
            text = "\n".join([*question, f"level {level}    answer: {puzzle.answer}"])
            pen.multiline_text((x, y + side + 6), text, fill=(40, 40, 40), font=body, spacing=3)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)
    return path


def _wrapped(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
