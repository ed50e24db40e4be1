"""COCO's masks without pycocotools' blind spots; where that is right, it is what ours are held against."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools import mask as coco

from llava_pat.data.regions import load_regions, to_mask
from llava_pat.data.rle import mask_of_counts, mask_of_polygons
from llava_pat.types import DataError, Region


def test_counts_by_hand():
    """3 x 2 pixels, column by column: one 0, two 1s | one 1, two 0s."""
    expected = [[0, 1], [1, 0], [1, 0]]
    assert mask_of_counts([1, 3, 2], 3, 2).tolist() == expected
    assert mask_of_counts("132", 3, 2).tolist() == expected
    assert mask_of_counts([0, 6], 3, 2).tolist() == [[1, 1]] * 3
    # 33 = 1 + 32: the low 5 bits with "more" set, then 1. The fourth number is the difference from the second.
    assert mask_of_counts("Q11", 34, 1)[:, 0].tolist() == [0] * 33 + [1]
    assert mask_of_counts("1202", 7, 1)[:, 0].tolist() == [0, 1, 1, 1, 1, 1, 1]  # runs 1, 2, 0, 2 + 2


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (33, 65), (480, 640)])
def test_masks_are_pycocotools_own(shape):
    rng = np.random.default_rng(0)
    for share in (0.0, 0.01, 0.5, 1.0):
        mask = (rng.random(shape) < share).astype(np.uint8)
        counts = coco.encode(np.asfortranarray(mask))["counts"].decode()
        found = mask_of_counts(counts, *shape)
        assert found.dtype == np.uint8 and np.array_equal(found, mask)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ("", "add up to 0, not to 1200"),  # pycocotools: 1200 pixels of whatever lay in memory
        ("1", "add up to 1, not to 1200"),
        ("0" * 100, "add up to 0"),
        ("PPPP", "are cut off"),
        ("P" * 20 + "1", "a number without end"),
        ("\0\0", "characters that are none"),
        ("~~", "characters that are none"),
        ("é", "ascii"),
        ("5M5", "a run of -"),
        ([], "add up to 0"),
        ([-5, 1205], "a run of -5"),
        ([2**31, 1200 - 2**31], "list of numbers"),
        ([0.5, 1199.5], "list of numbers"),
        ([True, 1199], "list of numbers"),
        (["1", 1199], "list of numbers"),
        ([10**400], "list of numbers"),
        (None, "list of numbers"),
    ],
)
def test_counts_that_are_no_mask(counts, message):
    with pytest.raises(ValueError, match=message):
        mask_of_counts(counts, 30, 40)
    with pytest.raises(DataError, match=f"region 'x': its segmentation cannot be read: .*{message}"):
        to_mask(Region("x", {"size": [30, 40], "counts": counts}, None), 30, 40)


@pytest.mark.parametrize(
    ("polygon", "message"),
    [
        ([0, 0, 1e9, 0, 1e9, 1e9], "a corner at 1e\\+09"),  # pycocotools: the process dies
        ([0, 0, 1e300, 0, 5, 5], "a corner at 1e\\+300"),
        ([0, 0, 3e6, 0, 3e6, 5], "pixels long"),
        ([0, 0, 40000, 0] * 100, "pixels long"),
    ],
)
def test_polygons_without_end(polygon, message):
    with pytest.raises(ValueError, match=message):
        mask_of_polygons([[5, 5, 9, 5, 9, 9], polygon], 30, 40)


def test_polygons_outside_of_the_image_are_no_error():
    assert not mask_of_polygons([[-500, -500, -10, -500, -10, -10]], 30, 40).any()
    assert mask_of_polygons([[-5000, -5000, 9000, -5000, 9000, 9000, -5000, 9000]], 30, 40).all()


def region(tmp_path, size=(40, 30), **changes):
    content = {"id": 1, "image": "a.png", "width": size[0], "height": size[1]}
    file = tmp_path / "r.jsonl"
    file.write_text(json.dumps(content | {"regions": [{"label": "x"} | changes]}))
    return load_regions(file)["a.png"].regions[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segmentation": {"size": 5, "counts": "a"}}, "needs 'size' and 'counts'"),
        ({"segmentation": {"size": None, "counts": "a"}}, "needs 'size' and 'counts'"),
        ({"segmentation": [[0, 0, 9, 0, 9, 10**400]]}, "finite numbers"),
        ({"bbox": [0, 0, 10**400, 1]}, "'bbox' is"),
        ({"bbox": [0, 0, 1, 1], "label": "y" * 10_001}, "a label of 10001 characters"),
        ({"bbox": [0, 0, 1, 1], "size": (10**9, 10**9)}, "1000000000 x 1000000000 pixels are more"),
        ({"bbox": [0, 0, 1, 1], "size": (10**30, 1)}, "pixels are more"),
    ],
)
def test_lines_that_would_end_the_process(tmp_path, changes, message):
    with pytest.raises(DataError, match=message) as caught:
        region(tmp_path, **changes)
    assert str(caught.value).startswith(f"{tmp_path / 'r.jsonl'}:1") and len(str(caught.value)) < 2000


def test_boxes_of_any_size(tmp_path):
    for box, pixels in (([1e308, 0, 1e308, 1], 0), ([-1e308, -1, 1e300, 99], 0), ([-1e30, 0, 1e300, 2], 80)):
        assert to_mask(region(tmp_path, bbox=box), 30, 40).sum() == pixels
