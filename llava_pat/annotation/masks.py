"""Region shapes: COCO's RLE and boxes, in original pixels. H, W: the image's height and width."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from pycocotools import mask as coco

from llava_pat.data.rle import draw_polygons, mask_of_counts
from llava_pat.types import DataError

Rle = dict[str, Any]
"""COCO's compressed run lengths as JSON takes them: {"size": [H, W], "counts": text}."""
Box = tuple[float, float, float, float]
"""x, y, width, height."""


def encode_mask(mask: np.ndarray) -> Rle:
    """[H, W], anything but 0 is inside -> RLE."""
    return _as_json(coco.encode(np.asfortranarray(mask != 0, dtype=np.uint8)))


def encode_segmentation(segmentation: Any, height: int, width: int) -> Rle:
    """COCO's `segmentation` (polygons, run lengths, compressed run lengths) -> RLE of the pixels that COCO means.

    Raises DataError for what pycocotools would misread (data/rle.py), polygons of two points, a mask of another size.
    """
    if isinstance(segmentation, Mapping):
        size, counts = segmentation.get("size"), segmentation.get("counts")
        if size != [height, width]:
            raise DataError(f"its mask is {size} (height, width), the image is {[height, width]}")
    elif not isinstance(segmentation, list) or not all(map(_is_polygon, segmentation)) or not segmentation:
        raise DataError("polygons are lists of at least 3 x, y pairs of finite numbers")
    try:
        if isinstance(segmentation, list):
            return _as_json(draw_polygons(segmentation, height, width))
        # decoded once: counts that are no run lengths of this size would otherwise end up in the regions file
        return encode_mask(mask_of_counts(counts, height, width))
    except ValueError as error:
        raise DataError(f"its segmentation cannot be read: {error}") from error


def box_of(rle: Rle) -> list[int]:
    """[x, y, width, height] of the pixels inside; [0, 0, 0, 0] for an empty mask."""
    return [int(value) for value in coco.toBbox(rle)]


def area_of(rle: Rle) -> int:
    """How many pixels are inside."""
    return int(coco.area(rle))


def clip_box(box: Box, height: int, width: int) -> list[float]:
    """The part of a box that lies in the image, in hundredths of a pixel; width and height are 0 if there is none."""
    x, y, w, h = box
    x0, x1 = (round(min(max(value, 0.0), width), 2) for value in (x, x + w))
    y0, y1 = (round(min(max(value, 0.0), height), 2) for value in (y, y + h))
    return [_whole(value) for value in (x0, y0, round(max(x1 - x0, 0.0), 2), round(max(y1 - y0, 0.0), 2))]


def pixels_of(box: list[float]) -> int:
    """How many pixels a clipped box touches: those that stage 1 takes for a region without a mask."""
    x, y, w, h = box
    if not w or not h:
        return 0
    return (math.ceil(x + w) - math.floor(x)) * (math.ceil(y + h) - math.floor(y))


def _is_polygon(part: Any) -> bool:
    return (
        isinstance(part, list)
        and len(part) >= 6
        and len(part) % 2 == 0
        and all(isinstance(value, (int, float)) and abs(value) <= sys.float_info.max for value in part)
    )


def _as_json(rle: Any) -> Rle:
    return {"size": [int(value) for value in rle["size"]], "counts": rle["counts"].decode("ascii")}


def _whole(value: float) -> float:
    return int(value) if value == int(value) else value
