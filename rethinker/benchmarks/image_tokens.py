"""Texts that name their images by number (``<image 2>``, ``<image_2>``): MMMU, MMMU-Pro, EMMA.

Every token becomes an ``<image>`` of its own and the images follow in the order of the tokens, question before
options; an image that is named twice is shown twice. MMMU-Pro shuffles its options: the order is not 1, 2, 3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

TOKEN = re.compile(r"<image[ _](\d)>")


def in_order(texts: Sequence[str], images: Mapping[int, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """``texts`` with ``<image>`` for each token and the images in that order, behind those that no token names (they
    come first wherever images have no place in the text). A token without an image stays as it is."""
    order: list[int] = []

    def place(match: re.Match[str]) -> str:
        number = int(match[1])
        if number not in images:
            return match[0]
        order.append(number)
        return "<image>"

    placed = tuple(TOKEN.sub(place, text) for text in texts)
    unnamed = [number for number in sorted(images) if number not in order]
    return placed, tuple(images[number] for number in (*unnamed, *order))
