"""COCO's masks, read without trust: every number is looked at before a pixel is written.

pycocotools (2.0.11) gives whatever lay in memory for counts that cover too few pixels, and the process dies of polygons
with corners far away or of an outline too long for its buffers. So counts are decoded here, and polygons are bounded
before pycocotools draws them.

    uncompressed   [3, 2, ...]    runs of 0s and 1s in turn, 0s first, column by column
    compressed     "52..."        the same; from the fourth on, a run less the one two before it. Each number in groups
                                  of 5 bits, lowest first, as characters from "0" on; bit 5 of a group: more follow;
                                  bit 4 of the last: negative (cocoapi, common/maskApi.c, rleToString)

H, W: the image's height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from llava_pat.data.images import MOST_PIXELS

_FURTHEST = 10**8  # pixels; pycocotools has five times that in 32 bits
_LONGEST_OUTLINE = 2_000_000  # pixels; pycocotools takes 5 points a pixel, of 24 bytes
_GROUPS = 7  # of 5 bits take any run that an image can have
_FIRST, _MORE, _SIGN, _BITS = ord("0"), 32, 16, 31


def mask_of_counts(counts: Any, height: int, width: int) -> NDArray[np.uint8]:
    """Counts of either form -> [H, W], 1 inside. Raises ValueError for what is no mask of this size."""
    if isinstance(counts, str):
        runs = _decompress(counts)
    elif isinstance(counts, list) and all(type(count) is int and abs(count) <= MOST_PIXELS for count in counts):
        runs = np.array(counts, dtype=np.int64)
    else:
        raise ValueError("its counts must be a text, or a list of numbers of pixels")
    if (runs < 0).any():
        raise ValueError(f"its counts have a run of {runs.min()} pixels")
    if runs.sum() != height * width:
        raise ValueError(f"its counts add up to {runs.sum()}, not to {height * width} pixels")
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).view(np.uint8).reshape(width, height).T


def mask_of_polygons(polygons: Sequence[Sequence[float]], height: int, width: int) -> NDArray[np.uint8]:
    """The union of polygons [x0, y0, x1, y1, ...] -> [H, W], 1 inside. Errors as `draw_polygons`."""
    return coco.decode(draw_polygons(polygons, height, width))


def draw_polygons(polygons: Sequence[Sequence[float]], height: int, width: int) -> dict[str, Any]:
    """The union of polygons of at least three corners -> pycocotools' RLE, with edges as it draws them.

    Raises ValueError for a corner or an outline that is too long for pycocotools' integers and buffers.
    """
    for polygon in polygons:
        corners = np.array(polygon, dtype=np.float64).reshape(-1, 2)
        if np.abs(corners).max() > _FURTHEST:
            raise ValueError(f"it has a corner at {np.abs(corners).max():g}, far outside of any image")
        outline = np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum()
        if outline > _LONGEST_OUTLINE:
            raise ValueError(f"its outline is {outline:.0f} pixels long, more than {_LONGEST_OUTLINE}")
    return coco.merge(coco.frPyObjects([list(map(float, polygon)) for polygon in polygons], height, width))


def _decompress(text: str) -> NDArray[np.int64]:
    """Runs, not yet looked at. Raises ValueError for a text that is cut off or has other characters."""
    codes = np.frombuffer(text.encode("ascii"), dtype=np.uint8).astype(np.int64) - _FIRST
    if ((codes < 0) | (codes > _MORE + _BITS)).any():
        raise ValueError("its counts have characters that are none of run lengths")
    last = (codes & _MORE) == 0
    if not last[-1:].all():
        raise ValueError("its counts are cut off")
    ends = np.flatnonzero(last)
    if not len(ends):
        return np.zeros(0, dtype=np.int64)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _GROUPS:
        raise ValueError("its counts have a number without end")
    place = np.arange(len(codes)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((codes & _BITS) << 5 * place, starts)
    runs -= np.where(codes[ends] & _SIGN, 1 << 5 * lengths, 0)
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    return runs
