"""The templates in ``templates/`` and what they need besides text, which the engine escapes: images inside the page."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from rethinker.policy.pictures import ImageError, open_image

EDGE = 512  # pixels: larger images are embedded smaller
SMALL = 128  # pixels: smaller ones are enlarged with sharp pixels


class Picture(NamedTuple):
    """An image for the ``src`` of an <img>."""

    source: str
    small: bool


def picture(path: str | Path) -> Picture | None:
    """A query's image, as the policy sees it, as a data URI; None if it cannot be read."""
    try:
        image = open_image(path)
    except ImageError:
        return None
    small = max(image.size) <= SMALL
    image.thumbnail((EDGE, EDGE))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return Picture(data_uri(buffer.getvalue(), "image/png"), small)


def data_uri(content: bytes, kind: str) -> str:
    """A file inside the page; ``kind`` is its media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def percent(value: float | None) -> str:
    """A share in per cent; a dash for none."""
    return "–" if value is None or pd.isna(value) else f"{100 * value:.1f}%"


environment = Environment(
    loader=PackageLoader("rethinker.lab.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
environment.globals["picture"] = picture
environment.filters.update(data_uri=data_uri, percent=percent)
