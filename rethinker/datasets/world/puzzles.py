"""The six kinds of visual-math puzzle: what is drawn, what is asked, and how a careful reader derives the answer.

A puzzle's image is needed for its answer: the question never names a quantity that is drawn. Level 1 is the easiest,
level 3 the hardest. All of a puzzle follows from the generator that it is given (and from Pillow's built-in font).
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image

from rethinker.datasets.world.drawing import COLORS, INK, SIZE, Shape, blank, jitter, shape, write

LEVELS = (1, 2, 3)


@dataclass(frozen=True, slots=True, eq=False)
class Puzzle:
    """One question about one image.

    ``question`` begins with ``<image>``; ``answer`` is a whole number in decimal digits, without ``\\boxed{}``;
    ``derivation`` is the careful way to it, ending in the boxed answer.
    """

    kind: str
    level: int
    question: str
    answer: str
    derivation: str
    image: Image.Image = field(repr=False)

    @property
    def bare_answer(self) -> str:
        """The answer as a fast thinker writes it."""
        return bare_answer(self.answer)

    @property
    def key(self) -> str:
        """A hash of the content (question and pixels): two puzzles are the same query exactly when their keys are."""
        digest = hashlib.sha256(self.question.encode())
        digest.update(self.image.tobytes())
        return digest.hexdigest()


def bare_answer(answer: str | int) -> str:
    """``The answer is \\boxed{...}.``"""
    return f"The answer is \\boxed{{{answer}}}."


def _puzzle(kind: str, level: int, image: Image.Image, question: str, steps: str, answer: int) -> Puzzle:
    derivation = f"{steps}\n\n{bare_answer(answer)}"
    return Puzzle(kind, level, f"<image>{question}", str(answer), derivation, image)


def _count(rng: random.Random, level: int) -> Puzzle:
    image, pen = blank(rng)
    low, high = {1: (2, 5), 2: (4, 9), 3: (7, 14)}[level]
    colors = list(COLORS)[: level + 1]
    shapes: list[Shape] = ["circle", "square", "triangle"]
    shapes = shapes[:level]
    color = rng.choice(colors)
    wanted = rng.choice(shapes) if level == 3 else None  # level 3 asks for a colour and a shape
    rows = [0, 0, 0, 0]
    for cell in rng.sample(range(16), rng.randint(low, high)):
        row, column = divmod(cell, 4)
        drawn, name = rng.choice([*colors, color]), rng.choice(shapes)
        x, y = column * 16 + 8 + jitter(rng), row * 16 + 8 + jitter(rng)
        shape(pen, name, x, y, rng.randint(4, 6), COLORS[drawn])
        rows[row] += drawn == color and wanted in (None, name)
    question = f"How many {color} {f'{wanted}s' if wanted else 'shapes'} are there?"
    total = sum(rows)
    return _puzzle("count", level, image, question, f"By rows: {'+'.join(map(str, rows))}={total}.", total)


def _sum(rng: random.Random, level: int) -> Puzzle:
    image, pen = blank(rng)
    first_range, second_range = {1: ((1, 9), (1, 9)), 2: ((10, 59), (1, 9)), 3: ((10, 59), (10, 39))}[level]
    a, b = rng.randint(*first_range), rng.randint(*second_range)
    sign = rng.choice("+-")
    if sign == "-" and b > a:
        a, b = b, a
    write(pen, 38 + jitter(rng), 16 + jitter(rng), str(a), 16)
    write(pen, 38 + jitter(rng), 44 + jitter(rng), str(b), 16)
    write(pen, 12 + jitter(rng), 30 + jitter(rng), sign, 16)
    result = a + b if sign == "+" else a - b
    return _puzzle("sum", level, image, "What is the result?", f"The image shows {a}{sign}{b}={result}.", result)


def _bars(rng: random.Random, level: int) -> Puzzle:
    image, pen = blank(rng)
    count, highest = {1: (2, 5), 2: (3, 7), 3: (4, 9)}[level]
    colors = rng.sample(list(COLORS), count)
    height = {color: rng.randint(1, highest) for color in colors}
    unit, floor, width = 6, 61, 15
    for line in range(1, 10):
        pen.line([(0, floor - unit * line), (63, floor - unit * line)], fill=(205, 205, 205))
    pen.line([(2, floor), (62, floor)], fill=INK)
    left = 2 + rng.randint(0, 3)
    for index, color in enumerate(colors):
        x = left + index * width
        pen.rectangle([x, floor - unit * height[color], x + 10, floor], fill=COLORS[color])
    one, other = rng.sample(colors, 2)
    if rng.random() < 0.5:
        sign, result = "+", height[one] + height[other]
        question = f"What is the total height of the {one} bar and the {other} bar?"
    else:
        if height[other] > height[one]:
            one, other = other, one
        sign, result = "-", height[one] - height[other]
        question = f"How much taller is the {one} bar than the {other} bar?"
    a, b = height[one], height[other]
    steps = f"The {one} bar is {a}, the {other} bar is {b}. {a}{sign}{b}={result}."
    return _puzzle("bars", level, image, question, steps, result)


def _table(rng: random.Random, level: int) -> Puzzle:
    image, pen = blank(rng)
    side, cell = level + 1, 16
    cells = [[rng.randint(1, 9) for _ in range(side)] for _ in range(side)]
    for line in range(side + 1):
        at, end = min(line * cell, SIZE - 1), min(side * cell, SIZE - 1)
        pen.line([(0, at), (end, at)], fill=(170, 170, 170))
        pen.line([(at, 0), (at, end)], fill=(170, 170, 170))
    for row in range(side):
        for column in range(side):
            x, y = column * cell + 8 + jitter(rng), row * cell + 8 + jitter(rng)
            write(pen, x, y, str(cells[row][column]))
    index = rng.randrange(side)
    line_name = rng.choice(["row", "column"])
    digits = cells[index] if line_name == "row" else [cells[row][index] for row in range(side)]
    steps = f"The {line_name} shows {'+'.join(map(str, digits))}={sum(digits)}."
    return _puzzle("table", level, image, f"What is the sum of {line_name} {index + 1}?", steps, sum(digits))


def _angle(rng: random.Random, level: int) -> Puzzle:
    image, pen = blank(rng)
    step = {1: 10, 2: 5, 3: 1}[level]  # degrees
    a = b = 90
    while a + b >= 165:  # leave the third angle at least 15 degrees or so
        a, b = rng.randrange(20, 91, step), rng.randrange(20, 91, step)
    corners = [
        (4 + jitter(rng), 58 + jitter(rng)),
        (60 + jitter(rng), 58 + jitter(rng)),
        (rng.randint(20, 44), 4 + jitter(rng)),
    ]
    pen.polygon(corners, outline=(60, 60, 60))
    write(pen, 19 + jitter(rng), 50 + jitter(rng), str(a))
    write(pen, 45 + jitter(rng), 50 + jitter(rng), str(b))
    third = 180 - a - b
    steps = f"The angles are {a} and {b}. {a}+{b}={a + b}. 180-{a + b}={third}."
    return _puzzle("angle", level, image, "What is the third angle of the triangle?", steps, third)


def _clock(rng: random.Random, level: int) -> Puzzle:
    image, pen = blank(rng)
    hour = rng.randint(1, 12)
    minute = 5 * rng.choice({1: [0], 2: [0, 3, 6, 9], 3: range(12)}[level])
    x, y = 32 + jitter(rng), 32 + jitter(rng)
    pen.ellipse([x - 29, y - 29, x + 29, y + 29], outline=INK, fill=(255, 255, 255))

    def hand(turn: float, inner: int, outer: int, color: tuple[int, int, int], width: int) -> None:
        """``turn`` is a share of the full circle, clockwise from 12."""
        dx, dy = math.sin(2 * math.pi * turn), -math.cos(2 * math.pi * turn)
        pen.line([x + inner * dx, y + inner * dy, x + outer * dx, y + outer * dy], fill=color, width=width)

    for tick in range(12):
        hand(tick / 12, 26, 29, INK, 1)
    hand(hour / 12 + minute / 720, 0, 15, COLORS["blue"], 4)
    hand(minute / 60, 0, 25, COLORS["red"], 2)
    hour %= 12
    total = 60 * hour + minute
    steps = f"The time is {hour} hours {minute} minutes. {hour}*60={60 * hour}. {60 * hour}+{minute}={total}."
    return _puzzle("clock", level, image, "How many minutes after 12:00 is it?", steps, total)


_MAKERS: dict[str, Callable[[random.Random, int], Puzzle]] = {
    "count": _count,
    "sum": _sum,
    "bars": _bars,
    "table": _table,
    "angle": _angle,
    "clock": _clock,
}
KINDS = tuple(_MAKERS)


def make_puzzle(kind: str, level: int, rng: random.Random) -> Puzzle:
    """Draw one puzzle of ``kind`` (a member of ``KINDS``) at ``level`` (1 to 3).

    Raises:
        ValueError: no such kind or level.
    """
    if kind not in _MAKERS:
        raise ValueError(f"no visual-math kind {kind!r}; the kinds are {', '.join(KINDS)}")
    if level not in LEVELS:
        raise ValueError(f"no visual-math level {level!r}; the levels are 1, 2 and 3")
    return _MAKERS[kind](rng, level)
