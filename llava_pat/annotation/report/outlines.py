"""A mask's outline as lines, small enough for a page.

Lines pass between the pixels inside and those outside, in pixels of the original image, edges not centres.
"""

from __future__ import annotations

import numpy as np
from contourpy import contour_generator
from numpy.typing import NDArray
from PIL import Image

Outline = list[NDArray[np.float64]]
"""Closed lines, [points, 2] as x, y."""

_FINE = 400  # pixels of the longer side: finer lines are not seen on a page
_TOLERANCE = 1 / 1500  # of the longer side: a fifth of a pixel on the page


def outline(mask: NDArray[np.uint8]) -> Outline:
    """[H, W] -> its outline; nothing for an empty mask."""
    height, width = mask.shape
    scale = min(1.0, _FINE / max(height, width))
    if scale < 1:
        small = round(width * scale) or 1, round(height * scale) or 1
        shares = np.asarray(Image.fromarray(mask.astype(np.float32)).resize(small, Image.Resampling.BOX))
        if (shares > 0.5).any():  # thinner things would be lost
            return _trace(shares, width / small[0], height / small[1])
    return _trace(mask.astype(np.float32), 1.0, 1.0)


def path(lines: Outline) -> str:
    """As the d of an SVG path."""
    return "".join("M" + "L".join(f"{x:.4g} {y:.4g}" for x, y in line[:-1].tolist()) + "Z" for line in lines)


def _trace(shares: NDArray[np.float32], across: float, down: float) -> Outline:
    """across, down: original pixels of one of these."""
    height, width = shares.shape
    x, y = np.arange(-0.5, width + 1) * across, np.arange(-0.5, height + 1) * down
    lines = contour_generator(x, y, np.pad(shares, 1).astype(np.float64)).lines(0.5)
    return [_simplify(line, _TOLERANCE * max(height * down, width * across)) for line in lines]


def _simplify(line: NDArray[np.float64], tolerance: float) -> NDArray[np.float64]:
    """Douglas and Peucker's algorithm (Cartographica 10, 1973): no point is farther from the new line than this."""
    kept = np.zeros(len(line), bool)
    kept[[0, -1]] = True
    waiting = [(0, len(line) - 1)]
    while waiting:
        start, end = waiting.pop()
        if end - start < 2:
            continue
        (along, up), between = line[end] - line[start], line[start + 1 : end] - line[start]
        length = np.hypot(along, up)  # 0 for a closed line as a whole
        away = np.abs(along * between[:, 1] - up * between[:, 0]) / length if length else np.hypot(*between.T)
        farthest = start + 1 + int(away.argmax())
        if away.max() > tolerance:
            kept[farthest] = True
            waiting += [(start, farthest), (farthest, end)]
    return line[kept]
