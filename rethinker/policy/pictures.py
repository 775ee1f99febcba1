"""Image files as RGB pictures: what the policy sees, and what reports, notebooks and W&B show of it.

Differs from the loader of Qwen's own examples (qwen-vl-utils), which puts RGBA on white and drops every other
transparency, leaves an EXIF orientation to whoever looks, and clips 16-bit grey. Orientation and transparency are
vLLM's rules; transformers' loader turns the picture and drops transparency.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from rethinker.policy.archive import present

UNSCALED = ("I", "F")  # modes of 32 bits, whose values say only by their range what white is


class ImageError(ValueError):
    """An image cannot be read; the message names the file and the query."""


def open_image(path: str | Path, qid: str = "") -> Image.Image:
    """The picture in the file at ``path`` as RGB, fully decoded, turned as its EXIF orientation says.

    - transparency of any mode (RGBA, LA, palettes, a transparent colour) is put on white;
    - 16-bit grey is scaled to 8 bits; grey of floats is taken as 0 to 1, or as 0 to 255 where a value is above 1;
    - of an animation or of several pages the first is taken, with a warning, once a file;
    - CMYK, YCbCr, LAB and others are converted by Pillow, without their colour profiles.

    Raises ImageError for a missing, unreadable or truncated file, for values outside these ranges, and for one beyond
    Pillow's decompression-bomb limit.
    """
    try:
        # A file, not its name: Pillow 13 maps uncompressed TIFFs that it opens by name, and misreads turned ones.
        with present(path).open("rb") as file, Image.open(file) as image:
            if animated(image):
                _say_first(str(path))
            image.load()
            with contextlib.suppress(Exception):  # a damaged EXIF block says nothing about the picture (vLLM does so)
                ImageOps.exif_transpose(image, in_place=True)
            return _rgb(image)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        where = f"query {qid!r}: " if qid else ""
        raise ImageError(f"{where}cannot read image {str(path)!r}: {error}; repair or drop the row") from error


def animated(image: Image.Image) -> bool:
    """Whether an opened file has more pictures than the first (a JPEG's extra ones are previews of it)."""
    return bool(getattr(image, "is_animated", False)) and image.format != "MPO"


@functools.cache
def _say_first(path: str) -> None:
    warnings.warn(f"image {path!r} has several frames or pages: the first one is used", stacklevel=3)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in UNSCALED or image.mode.startswith("I;16"):
        image = _eight_bit(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    layers = image.convert("RGBA")
    picture = Image.new("RGB", image.size, "white")
    picture.paste(layers, mask=layers.getchannel("A"))
    return picture


def _eight_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 bits or of floats with 8 bits (mode L), or LA where one value means transparent."""
    values = np.asarray(image, np.float64)
    tops = (1.0, 255.0) if image.mode == "F" else (65535.0,)
    top = next((top for top in tops if values.max() <= top), None)
    if top is None or values.min() < 0.0:
        raise ValueError(
            f"grey values from {values.min():g} to {values.max():g} (mode {image.mode}), expected 0 to {tops[-1]:g}"
        )
    grey = Image.fromarray(np.rint(values * (255.0 / top)).astype(np.uint8))
    if "transparency" in image.info:
        grey.putalpha(Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)))
    return grey
