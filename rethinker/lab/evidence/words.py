"""Effects as text, and the Markdown of the page's tables and figures."""

from __future__ import annotations

import math
import re
from typing import Any

from rethinker.lab.evidence.effects import MATCH, REACH
from rethinker.lab.evidence.measures import DIFFERENCES, NO_SHARE
from rethinker.lab.figures.evidence import short_number

SIZE = re.compile("tokens|length|updates")
NOT_A_SHARE = re.compile(rf"(?:^|/)(?:{'|'.join(NO_SHARE)})(?:$|/|@)")
DIFFERENCE = re.compile(rf"(?:^|/)(?:{'|'.join(DIFFERENCES)})(?:$|@)")


def measured_words(row: dict[str, Any]) -> str:
    """Which number it is: "`validation/end`, bare: ssr − grpo"."""
    sign = "/" if _is_ratio(row) else "−"
    words = f"`{row['measure']}`, {row['grid']}: {row['of']}"
    if not row["against"]:
        return words
    if row.get("beyond"):
        return f"`{row['measure']}`, {row['grid']}: ({row['of']} − {row['against']}) − ({' − '.join(row['beyond'])})"
    return f"{words} {sign} {row['against']}{', `' + row['minus'] + '`' if row['minus'] else ''}"


def in_words(row: dict[str, Any]) -> str:
    """An effect as text: shares in percent, differences of shares in points with their sign."""
    value, low, high = row["value"], row["low"], row["high"]
    if value is None or math.isnan(value):
        return "–"
    signed = bool(row.get("against") or DIFFERENCE.search(row["measure"]))
    ratio = _is_ratio(row)
    tokens = row["measure"].startswith(REACH + "/") and not signed
    if not (signed or ratio or tokens or NOT_A_SHARE.search(row["measure"])):
        low, high = max(low, 0.0), min(high, 1.0)  # a share's; NaN stays NaN

    def text(number: float) -> str:
        if math.isinf(number):
            return "not reached"
        if tokens:
            return short_number(number)
        digits = 1
        if not ratio and not NOT_A_SHARE.search(row["measure"]):
            number = 100 * number
        elif ratio or not (size := SIZE.search(row["measure"])):
            digits = 2
        elif size[0] == "updates":
            digits = 0
        if digits == 1 and 0 < abs(number) < 0.05:
            digits = 2  # "-0.0" would not say on which side of 0 it lies
        return f"{number + 0.0:{'+' * (signed and not ratio)}.{digits}f}"

    return text(value) if math.isnan(low) or low == math.inf else f"{text(value)} [{text(low)}, {text(high)}]"


def _is_ratio(row: dict[str, Any]) -> bool:
    """Whether two are divided, as tokens are, not subtracted."""
    tokens = row["measure"] == MATCH or (bool(row.get("against")) and row["measure"].startswith(REACH + "/"))
    return bool(row.get("relative")) or tokens


def bound_words(row: dict[str, Any]) -> str:
    """ "above 0" as the table's units say it."""
    side, number = row["side"].replace("_", " "), row["bound"]
    shares = not (_is_ratio(row) or row["measure"].startswith(REACH + "/") or NOT_A_SHARE.search(row["measure"]))
    return f"{side} {100 * number:g}" if shares else f"{side} {number:g}"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def measured(head: list[str], rows: list[list[str]]) -> str:
    """A table without the columns that nobody has measured, or reached."""
    kept = [at for at in range(len(head)) if any(row[at] not in ("–", "not reached") for row in rows)]
    return markdown([head[at] for at in kept], [[row[at] for at in kept] for row in rows])


def anchor(title: str) -> str:
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def picture(name: str, alt: str, folder: str) -> str:
    """A figure that follows the reader's theme."""
    return (
        f'<picture>\n  <source media="(prefers-color-scheme: dark)" srcset="{folder}/{name}-dark.svg">\n'
        f'  <img alt="{alt.replace(chr(34), chr(39))}" src="{folder}/{name}-light.svg">\n</picture>'
    )
