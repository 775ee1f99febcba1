"""MEGA-Bench's metrics on boxes and points, all in coordinates from 0 to 1; a box is (left, top, right, bottom)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rethinker.benchmarks.rules.mega.convert import tagged, to_boxes, to_points
from rethinker.benchmarks.rules.mega.reading import literal

KEYPOINT_DECAY = 10.0  # official


def boxes(answer: Any, gold: Any) -> float:
    """Mean over the answer's boxes of the best overlap with a gold box."""
    return _mean_best(to_boxes(answer), to_boxes(gold))


def box(answer: Any, gold: Any) -> float:
    """Overlap of one box, given as a string."""
    return _overlap(literal(answer), literal(gold))


def box_sequence(answer: Any, gold: Any) -> float:
    """Mean overlap of the boxes in their order; 0 where their number differs."""
    found = list(answer) if isinstance(answer, (tuple, list)) else to_boxes(str(answer))
    wanted = to_boxes(gold)
    if not wanted or len(found) != len(wanted):
        return 0.0
    return sum(_overlap(a, b) for a, b in zip(found, wanted, strict=True)) / len(wanted)


def box_in_tags(answer: Any, gold: Any) -> float:
    """As `boxes`, from ``<box>left, top, right, bottom</box>``."""
    if isinstance(answer, (tuple, list)):
        found = [answer] if len(answer) == 4 and isinstance(answer[0], (int, float)) else list(answer)
    else:
        found = [box for box in tagged(answer, "box") if len(box) == 4]
    wanted = list(gold) if isinstance(gold, (tuple, list)) else [box for box in tagged(gold, "box") if len(box) == 4]
    return _mean_best(found, wanted)


def point_in_box(answer: Any, accepted: list[str]) -> float:
    """Whether ``<point>x, y</point>`` (exactly one) lies in one of the ``accepted`` boxes."""
    point = _point(answer)
    if point is None:
        return 0.0
    x, y = point
    regions = [to_boxes(region)[0] for region in accepted]
    return float(any(left <= x <= right and top <= y <= bottom for left, top, right, bottom in regions))


def point_distance(answer: Any, gold: Any) -> float:
    """1 minus the distance of two points, not below 0; a point outside the image gives 0."""
    found, wanted = _point(answer), _point(gold)
    if found is None or wanted is None or not all(0 <= part <= 1 for part in (*found, *wanted)):
        return 0.0
    return max(0.0, 1 - math.dist(found, wanted))


def keypoints(answer: Any, gold: Any) -> float:
    """Mean over the points of exp(-10 d / sqrt 2) with their distance d; 0 where their number differs."""
    found, wanted = (np.array(to_points(points), dtype=float) for points in (answer, gold))
    if found.shape != wanted.shape or found.ndim != 2:
        return 0.0
    distances = np.linalg.norm(found - wanted, axis=1)
    return float(np.mean(np.exp(-KEYPOINT_DECAY * distances / math.sqrt(2))))


def _point(value: Any) -> tuple[float, float] | None:
    found = [tuple(value)] if isinstance(value, (tuple, list)) else tagged(value, "point")
    if len(found) != 1 or len(found[0]) != 2:
        return None
    return found[0][0], found[0][1]


def _mean_best(found: list[Any], wanted: list[Any]) -> float:
    if not found:
        return 0.0
    return sum(max((_overlap(a, b) for b in wanted), default=0.0) for a in found) / len(found)


def _overlap(first: Any, second: Any) -> float:
    """Intersection over union; 0 where the union is empty."""
    width = max(0, min(first[2], second[2]) - max(first[0], second[0]))
    height = max(0, min(first[3], second[3]) - max(first[1], second[1]))
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (first, second)]
    union = sum(areas) - width * height
    return width * height / union if union > 0 else 0.0
