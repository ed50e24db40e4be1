"""Which detections become regions: the best of each label, not too many, not empty, not the whole image.

Before the masks: score, extent in the image, one of boxes of the same label that overlap (NMS), at most max_regions.
After them: empty masks, masks of nearly the whole image, small regions. What goes is counted by reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from llava_pat.annotation.masks import area_of, box_of, clip_box, encode_mask, pixels_of
from llava_pat.annotation.regions_file import region_entry
from llava_pat.annotation.stages import Corners, Detection
from llava_pat.types import DataError

LOW_SCORE = "a score below min_score"
OUTSIDE = "a box without extent in the image"
OVERLAP = "a box over a better one of the same label"
TOO_MANY = "beyond the max_regions best of its image"
EMPTY = "an empty mask"
FULL = "nearly the whole image"
SMALL = "smaller than min_area"
TWIN = "the same label and pixels as another"


@dataclass(frozen=True)
class SelectionOptions:
    """Ours where no source is named."""

    min_score: float = 0.0
    """On top of the detector's own threshold; boxes without a score pass."""
    nms_iou: float = 0.5
    """Of two boxes of one label that overlap more, the better stays (iou_threshold of Grounded-Segment-Anything's
    automatic_label_ram_demo.py). Boxes of different labels may overlap: a patch may mean several things."""
    max_regions: int = 30
    """An image's best."""
    min_area: int = 64
    """Pixels of the image."""
    max_share: float = 0.95
    """Of the image; a region of more says nothing about where. Boxes of Grounding DINO tend to be such for labels that
    are not there."""
    bad_mask: Literal["drop", "box"] = "drop"
    """What becomes of an empty mask, and of one of more than max_share in a smaller box: nothing, or the box."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_score <= 1 or not 0 < self.nms_iou <= 1 or not 0 < self.max_share <= 1:
            raise DataError(
                f"selection: min_score {self.min_score} (0 to 1), nms_iou {self.nms_iou} and max_share "
                f"{self.max_share} (above 0, to 1)"
            )
        if self.max_regions < 1 or self.min_area < 1:
            raise DataError(f"selection: max_regions {self.max_regions}, min_area {self.min_area}: both are at least 1")
        if self.bad_mask not in ("drop", "box"):
            raise DataError(f"selection: bad_mask is {self.bad_mask!r}, expected drop or box")


def select_boxes(
    found: Sequence[Detection], height: int, width: int, options: SelectionOptions
) -> tuple[list[Detection], Counter[str]]:
    """(detections to segment, best first; what was left out). Boxes are clipped to the image."""
    left: Counter[str] = Counter()
    inside: list[Detection] = []
    for one in found:
        box = clip_corners(one.box, height, width)
        if one.score is not None and not one.score >= options.min_score:  # nan as well
            left[LOW_SCORE] += 1
        elif box is None:
            left[OUTSIDE] += 1
        else:
            inside.append(Detection(one.label, box, one.score, one.mask))
    scores = np.array([1.0 if one.score is None else one.score for one in inside])
    boxes = np.array([one.box for one in inside], dtype=np.float64).reshape(-1, 4)
    kept = suppress(boxes, scores, [one.label for one in inside], options.nms_iou)
    left.update({OVERLAP: len(inside) - len(kept)})
    left.update({TOO_MANY: max(0, len(kept) - options.max_regions)})
    return [inside[i] for i in kept[: options.max_regions]], +left


def suppress(boxes: np.ndarray, scores: np.ndarray, labels: Sequence[str], iou: float) -> list[int]:
    """Non-maximum suppression per label: places of what stays, best score first, equal scores in their order.

    boxes: float [n, 4], x0, y0, x1, y1. As torchvision.ops.batched_nms, which is not installed everywhere.
    """
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept: list[int] = []
    by_label: dict[str, list[int]] = {}
    for i in np.argsort(-scores, kind="stable").tolist():
        better = by_label.setdefault(labels[i], [])
        if better:
            others = boxes[better]
            sides = np.minimum(others[:, 2:], boxes[i, 2:]) - np.maximum(others[:, :2], boxes[i, :2])
            shared = sides.clip(min=0).prod(-1)
            if (shared > iou * (areas[better] + areas[i] - shared)).any():
                continue
        better.append(i)
        kept.append(i)
    return kept


def finish_regions(
    found: Sequence[Detection], height: int, width: int, options: SelectionOptions
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """(regions as the file has them, what was left out). found: boxes in the image, masks where there are some."""
    left: Counter[str] = Counter()
    regions: dict[tuple[str, str], dict[str, Any]] = {}
    for one in found:
        region = _region(one, height, width, options)
        if isinstance(region, str):
            left[region] += 1
            continue
        key = (region["label"], str(region.get("segmentation", region["bbox"])))
        if key in regions:
            left[TWIN] += 1
        else:
            regions[key] = region
    return list(regions.values()), left


def clip_corners(box: Corners, height: int, width: int) -> Corners | None:
    """The part of a box that lies in the image; None for none, and for one that is no box (nan, sides swapped)."""
    x0, y0, x1, y1 = box
    clipped = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    return clipped if clipped[2] > clipped[0] and clipped[3] > clipped[1] and not any(map(np.isnan, box)) else None


def _region(one: Detection, height: int, width: int, options: SelectionOptions) -> dict[str, Any] | str:
    """A region, or the reason against it."""
    x0, y0, x1, y1 = one.box
    most = options.max_share * height * width
    segmentation, box = None, clip_box((x0, y0, x1 - x0, y1 - y0), height, width)
    area = pixels_of(box)
    if one.mask is not None:
        if one.mask.shape != (height, width):
            raise ValueError(f"a mask of {one.mask.shape} for an image of {(height, width)} (height, width)")
        inside = int(np.count_nonzero(one.mask))
        reason = EMPTY if not inside else FULL if inside > most else None
        if reason is not None and options.bad_mask == "drop":
            return reason
        if reason is None:
            segmentation = encode_mask(one.mask)
            box, area = box_of(segmentation), area_of(segmentation)
    if not area:
        return OUTSIDE
    if area > most:
        return FULL
    if area < options.min_area:
        return SMALL
    return region_entry(one.label, segmentation, box, area, None if one.score is None else round(one.score, 4))
