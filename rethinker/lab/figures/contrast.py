"""How well colours stand out from each other: WCAG 2.2's contrast ratio (w3.org/TR/WCAG22, "contrast ratio")."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.colors import to_rgb

from rethinker.lab.figures.style import Theme


def contrast(first: Any, second: Any) -> float:
    """WCAG 2.2's contrast ratio of two colours (matplotlib's notations), 1 to 21."""
    low, high = sorted(_luminance(color) for color in (first, second))
    return (high + 0.05) / (low + 0.05)


def _luminance(color: Any) -> float:
    parts = np.array(to_rgb(color))
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def readable(background: Any, theme: Theme) -> str:
    """The theme's colour of text that stands out most on ``background``: ink or paper."""
    return max((theme.ink, theme.paper), key=lambda color: contrast(color, background))
