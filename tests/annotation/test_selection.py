"""Which detections become regions; coordinates by hand, NMS against torchvision's where it is installed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from llava_pat.annotation import selection
from llava_pat.annotation.selection import SelectionOptions, finish_regions, select_boxes, suppress
from llava_pat.annotation.stages import Detection
from llava_pat.data.regions import to_mask
from llava_pat.types import DataError, Region

H, W = 40, 60


def found(label: str, box: tuple[float, ...], score: float | None = 0.5, mask=None) -> Detection:
    return Detection(label, box, score, mask)


def test_nms_is_per_label_and_keeps_the_better() -> None:
    boxes = [found("cat", (0, 0, 10, 10), 0.3), found("cat", (1, 0, 11, 10), 0.9), found("dog", (0, 0, 10, 10), 0.2)]
    kept, left = select_boxes(boxes, H, W, SelectionOptions())
    assert [(one.label, one.score) for one in kept] == [("cat", 0.9), ("dog", 0.2)]
    assert left == Counter({selection.OVERLAP: 1})


def test_nms_at_its_threshold() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5]], dtype=float)  # IoU exactly one half
    scores = np.array([0.9, 0.8])
    assert suppress(boxes, scores, ["a", "a"], 0.5) == [0, 1], "only more than the threshold goes, as in torchvision"
    assert suppress(boxes, scores, ["a", "a"], 0.49) == [0]
    assert suppress(np.zeros((0, 4)), np.zeros(0), [], 0.5) == []


def test_nms_is_torchvisions() -> None:
    ops = pytest.importorskip("torchvision.ops")
    import torch

    rng = np.random.default_rng(0)
    for _ in range(20):
        corners = rng.uniform(0, 50, (60, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(1, 40, (60, 2))], axis=1)
        scores, labels = rng.permutation(60) / 60, rng.integers(0, 3, 60)
        theirs = ops.batched_nms(torch.tensor(boxes), torch.tensor(scores), torch.tensor(labels), 0.5)
        assert suppress(boxes, scores, list(map(str, labels)), 0.5) == theirs.tolist()


def test_scores_boxes_and_numbers() -> None:
    boxes = [
        found("low", (0, 0, 10, 10), 0.1),
        found("nan", (0, 0, 10, 10), float("nan")),
        found("beside", (70, 0, 90, 10)),
        found("turned", (10, 10, 5, 20)),
        found("broken", (float("nan"), 0, 5, 5)),
        found("no score", (0, 0, 10, 10), None),
        found("over the edge", (-5, 30, 20, 99)),
        found("third", (20, 0, 30, 10), 0.4),
    ]
    kept, left = select_boxes(boxes, H, W, SelectionOptions(min_score=0.2, max_regions=2))
    assert [one.label for one in kept] == ["no score", "over the edge"]
    assert kept[1].box == (0, 30, 20, 40), "clipped to the image"
    assert left == Counter({selection.LOW_SCORE: 2, selection.OUTSIDE: 3, selection.TOO_MANY: 1})


def test_masks_become_regions_to_the_pixel() -> None:
    mask = np.zeros((H, W), bool)
    mask[5:15, 20:33] = True
    regions, left = finish_regions([found("狗 «ü»", (0, 0, 50, 30), 0.123456, mask)], H, W, SelectionOptions())
    assert not left
    (region,) = regions
    assert region["label"] == "狗 «ü»" and region["score"] == 0.1235
    assert region["bbox"] == [20, 5, 13, 10] and region["area"] == 130, "the mask's box, not the detector's"
    assert (to_mask(Region("x", region["segmentation"], None), H, W) == mask).all()


def test_boxes_become_regions() -> None:
    (region,), _ = finish_regions([found("box", (10.25, 5, 20.5, 15), None)], H, W, SelectionOptions())
    assert region == {"label": "box", "bbox": [10.25, 5, 10.25, 10], "area": 110}
    assert to_mask(Region("x", None, tuple(region["bbox"])), H, W).sum() == region["area"], "as stage 1 counts"


def test_empty_and_full_masks() -> None:
    empty, full = np.zeros((H, W), bool), np.ones((H, W), bool)
    boxes = [found("empty", (0, 0, 20, 20), 0.5, empty), found("full", (30, 0, 50, 20), 0.5, full)]
    regions, left = finish_regions(boxes, H, W, SelectionOptions())
    assert regions == [] and left == Counter({selection.EMPTY: 1, selection.FULL: 1})
    regions, left = finish_regions(boxes, H, W, SelectionOptions(bad_mask="box"))
    assert [(one["label"], one["bbox"]) for one in regions] == [("empty", [0, 0, 20, 20]), ("full", [30, 0, 20, 20])]
    assert all("segmentation" not in one for one in regions) and not left
    everything = [found("image", (0, 0, W, H), 0.5, full), found("box", (0, 0, W, H))]
    regions, left = finish_regions(everything, H, W, SelectionOptions(bad_mask="box"))
    assert regions == [] and left == Counter({selection.FULL: 2}), "a box of everything is no better"


def test_small_regions_and_twins() -> None:
    mask = np.zeros((H, W), bool)
    mask[0:8, 0:8] = True
    small = np.zeros((H, W), bool)
    small[0:7, 0:9] = True  # 63
    boxes = [
        found("a", (0, 0, 9, 9), 0.9, mask),
        found("a", (0, 0, 8, 8), 0.5, mask),
        found("b", (0, 0, 9, 9), 0.9, mask),
    ]
    regions, left = finish_regions([*boxes, found("c", (0, 0, 9, 9), 0.9, small)], H, W, SelectionOptions())
    assert [(one["label"], one["score"]) for one in regions] == [("a", 0.9), ("b", 0.9)]
    assert left == Counter({selection.TWIN: 1, selection.SMALL: 1})


def test_a_mask_of_another_size_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"\(60, 40\).*\(40, 60\)"):
        finish_regions([found("a", (0, 0, 9, 9), 0.9, np.ones((W, H), bool))], H, W, SelectionOptions())


@pytest.mark.parametrize(
    "wrong",
    [{"min_score": 2}, {"nms_iou": 0}, {"max_share": 0}, {"max_regions": 0}, {"min_area": 0}, {"bad_mask": "x"}],
)
def test_wrong_settings(wrong: dict) -> None:
    with pytest.raises(DataError, match="selection"):
        SelectionOptions(**wrong)
