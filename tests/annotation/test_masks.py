"""Shapes against plain loops and against stage 1's own reading of them."""

from __future__ import annotations

import numpy as np
import pytest

from llava_pat.annotation.masks import area_of, box_of, clip_box, encode_mask, encode_segmentation, pixels_of
from llava_pat.data.regions import to_mask
from llava_pat.types import DataError, Region
from tests.annotation.samples import box_by_loop, disc, rle


def test_masks_keep_their_pixels() -> None:
    mask = disc((30, 40), 12.5, 9, 7.3)
    encoded = encode_mask(mask * 255)
    assert encoded == rle(mask) == encode_mask(mask.astype(bool))
    assert np.array_equal(to_mask(Region("x", encoded, None), 30, 40), mask)
    assert area_of(encoded) == mask.sum() and box_of(encoded) == box_by_loop(mask)
    empty = encode_mask(np.zeros((30, 40)))
    assert (area_of(empty), box_of(empty)) == (0, [0, 0, 0, 0])
    full = encode_mask(np.ones((30, 40)))
    assert (area_of(full), box_of(full)) == (1200, [0, 0, 40, 30])


def test_every_form_of_a_segmentation_gives_its_pixels() -> None:
    mask = np.zeros((30, 40), np.uint8)
    mask[10:17, 5:17] = 1
    runs = [5 * 30 + 10, *[7, 23] * 11, 7, 23 * 30 + 13]
    for segmentation in (
        rle(mask),
        {"size": [30, 40], "counts": runs},
        [[5, 10, 17, 10, 17, 17, 5, 17]],
        [[5, 10, 11, 10, 11, 17, 5, 17], [11, 10, 17, 10, 17, 17, 11, 17]],
    ):
        assert encode_segmentation(segmentation, 30, 40) == rle(mask)
    outside = encode_segmentation([[-50, -50, -10, -50, -10, -10, -50, -10]], 30, 40)
    assert area_of(outside) == 0
    across = encode_segmentation([[30, -5, 60, -5, 60, 10, 30, 10]], 30, 40)
    assert box_of(across) == [30, 0, 10, 10] and area_of(across) == 100


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [40, 30], "counts": "x"}, r"its mask is \[40, 30\] \(height, width\), the image is \[30, 40\]"),
        ({"counts": "x"}, "its mask is None"),
        ({"size": [30, 40], "counts": [5, 5]}, "add up to 10, not to 1200 pixels"),
        ({"size": [30, 40], "counts": "no run lengths"}, "cannot be read"),
        ({"size": [30, 40], "counts": None}, "cannot be read"),
        ([[1, 2, 3, 4]], "at least 3 x, y pairs"),
        ([[1, 2, 3, 4, 5, float("nan")]], "at least 3 x, y pairs"),
        ([[1, 2, 3, 4, 5, 6, 7]], "at least 3 x, y pairs"),
        ([], "at least 3 x, y pairs"),
        ("polygon", "at least 3 x, y pairs"),
    ],
)
def test_what_pycocotools_would_misread_is_refused(segmentation: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        encode_segmentation(segmentation, 30, 40)


def test_boxes_are_clipped_and_counted_as_stage_1_counts_them() -> None:
    rng = np.random.default_rng(0)
    for box in rng.uniform(-20, 50, (200, 4)).tolist():
        clipped = clip_box(tuple(box), 30, 40)
        if clipped[2] and clipped[3]:
            assert pixels_of(clipped) == to_mask(Region("x", None, tuple(clipped)), 30, 40).sum()
            assert 0 <= clipped[0] and clipped[0] + clipped[2] <= 40.001 and clipped[1] + clipped[3] <= 30.001
        else:
            assert pixels_of(clipped) == 0
    assert clip_box((0.195312 * 1024, 0, 10, 5), 30, 1024) == [200, 0, 10, 5]  # six digits of Open Images
    assert clip_box((50, 0, 10, 5), 30, 40)[2] == 0 and clip_box((0, 0, -3, 5), 30, 40)[2] == 0
