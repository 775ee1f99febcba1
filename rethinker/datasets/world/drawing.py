"""Small pictures: the canvas, colours and text that the visual-math puzzles share."""

from __future__ import annotations

import random
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

SIZE = 64  # pixels, each side
INK = (0, 0, 0)
RGB = tuple[int, int, int]
COLORS: dict[str, RGB] = {
    "red": (220, 40, 40),
    "green": (30, 160, 60),
    "blue": (40, 70, 220),
    "yellow": (235, 190, 20),
}
Shape = Literal["circle", "square", "triangle"]

# Pillow carries this font in its wheels, so that a picture needs no font of the machine.
_FONTS = {size: ImageFont.load_default(size=size) for size in (13, 16)}


def blank(rng: random.Random) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A nearly white 64x64 RGB canvas (its tint is drawn from ``rng``) and its pen."""
    tint = (rng.randint(236, 255), rng.randint(236, 255), rng.randint(236, 255))
    image = Image.new("RGB", (SIZE, SIZE), tint)
    return image, ImageDraw.Draw(image)


def jitter(rng: random.Random) -> int:
    """-1, 0 or 1 pixel."""
    return rng.randint(-1, 1)


def write(pen: ImageDraw.ImageDraw, x: int, y: int, text: str, size: int = 13) -> None:
    """Write ``text`` centred at (x, y) in pixels; ``size`` is 13 or 16."""
    pen.text((x, y), text, fill=INK, font=_FONTS[size], anchor="mm")


def shape(pen: ImageDraw.ImageDraw, name: Shape, x: int, y: int, radius: int, color: RGB) -> None:
    """Fill one shape centred at (x, y)."""
    if name == "circle":
        pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=color)
    elif name == "square":
        pen.rectangle([x - radius, y - radius, x + radius, y + radius], fill=color)
    else:
        pen.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=color)
