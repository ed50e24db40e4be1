"""Referring-expression comprehension: a box out of a free answer, in pixels of the image, against the true one.

LLaVA's data (mix665K) writes boxes `[x0, y0, x1, y1]` as shares of the PADDED SQUARE: the image centred on a square of
its longer side. They are that for every checkpoint trained on it, whatever its tower sees (`image_aspect_ratio square`
cuts the pixels, not the numbers in the text), so the square is undone here for all of them.

Reading and IoU agree with `lmms_eval/tasks/refcoco/utils_rec.py` (lmms-eval at 60e0ba9): the first
`[number, number, number, number]` counts, nothing is clipped, sorted or rescaled. So an answer with swapped corners is
a miss, and so, as a rule, is one in percent or pixels; both are counted apart, since they say what is wrong with it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from llava_pat.data.geometry import Affine, Box, Pad

THRESHOLDS = (0.3, 0.5, 0.7)
_NUMBER = r"(-?\d+(?:\.\d+)?)"
_BOX = re.compile(rf"\[\s*{_NUMBER},\s*{_NUMBER},\s*{_NUMBER},\s*{_NUMBER}\s*\]")
_SQUARE = Pad(1, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # of side 1: only its affine is used here


@dataclass(frozen=True)
class RecScores:
    """Figures over all answers; shares are 0 to 1."""

    accuracy: dict[float, float]
    """IoU threshold -> share of answers at or above it."""
    mean_iou: float
    unparsable: int
    """Answers without a box."""
    swapped: int
    """Boxes whose second corner is not right of and below the first."""
    out_of_range: int
    """Boxes with a number below 0 or above 1."""


def parse_box(text: str) -> Box | None:
    """The first box in an answer, in the answer's own numbers; None if there is none."""
    found = _BOX.search(text)
    if found is None:
        return None
    box = tuple(float(number) for number in found.groups())
    return box if all(math.isfinite(value) for value in box) else None


def square_affine(width: int, height: int) -> Affine:
    """From pixels of an image to shares of its padded square."""
    return _SQUARE.affine(height, width)


def square_to_pixels(box: Box, width: int, height: int) -> Box:
    """Shares of the padded square -> pixels of the image, x0, y0, x1, y1; not clipped to it."""
    a = square_affine(width, height)
    x0, y0, x1, y1 = box
    return ((x0 - a.dx) / a.sx, (y0 - a.dy) / a.sy, (x1 - a.dx) / a.sx, (y1 - a.dy) / a.sy)


def pixels_to_square(box: Box, width: int, height: int) -> Box:
    """Pixels of the image -> shares of the padded square, clipped to it."""
    return _SQUARE.normalized_box(box, height, width)


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes x0, y0, x1, y1; 0 where one of them is empty or has swapped corners."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if wide <= 0 or high <= 0:
        return 0.0
    both = wide * high
    return both / (_area(a) + _area(b) - both)


def rec_scores(answers: Sequence[str], boxes: Sequence[Box], sizes: Sequence[tuple[int, int]]) -> RecScores:
    """Score answers against true boxes in pixels (x0, y0, x1, y1) of images of (width, height).

    Raises:
        ValueError: the three differ in length, or are empty.
    """
    if not len(answers) == len(boxes) == len(sizes) or not answers:
        raise ValueError(f"{len(answers)} answers, {len(boxes)} boxes, {len(sizes)} image sizes; one each is needed")
    found = [parse_box(answer) for answer in answers]
    overlaps = [
        0.0 if box is None else iou(square_to_pixels(box, *size), true)
        for box, true, size in zip(found, boxes, sizes, strict=True)
    ]
    parsed = [box for box in found if box is not None]
    return RecScores(
        accuracy={t: sum(overlap >= t for overlap in overlaps) / len(overlaps) for t in THRESHOLDS},
        mean_iou=sum(overlaps) / len(overlaps),
        unparsable=len(found) - len(parsed),
        swapped=sum(x1 <= x0 or y1 <= y0 for x0, y0, x1, y1 in parsed),
        out_of_range=sum(min(box) < 0 or max(box) > 1 for box in parsed),
    )


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
