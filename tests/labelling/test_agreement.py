from __future__ import annotations

import numpy as np
import pytest
import torch

from llava_pat.data.geometry import CenterCrop
from llava_pat.labelling.agreement import LabelStatistics, Truth, caption_words, region_truth
from llava_pat.types import ImageRegions, Region

WORDS = ("red", "circle", "blue", "above")
PLACES = {word: place for place, word in enumerate(WORDS)}


def test_by_hand():
    """Four patches: right best, right second, no label; the last is background."""
    ids = torch.tensor([[0, 3], [3, 1], [-1, -1], [2, -1]])
    scores = torch.tensor([[0.6, 0.2], [0.3, 0.1], [0.0, 0.0], [0.5, 0.0]])
    right = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    truth = Truth(torch.tensor([True, True, False, False]), right, torch.tensor([False, False, False, True]))
    statistics = LabelStatistics(WORDS)
    statistics.update(ids, scores, truth)
    found = statistics.result()
    assert found.pop("best_score_inside") == pytest.approx([0.0, 0.3, 0.6])
    assert found.pop("best_score_outside") == pytest.approx([0.5, 0.5, 0.5])
    assert found == pytest.approx(
        {
            "patches": 4, "with_label": 3 / 4, "labels_per_patch": 5 / 4, "best_words": 3, "top_share": 1 / 3,
            "caption_best": 1 / 3, "caption_chance": 1 / 2, "region_patches": 3, "right_best": 1 / 3,
            "right_any": 2 / 3, "right_drawn": (0.75 + 0.25) / 3, "right_chance": 1 / 2, "outside_with_label": 1.0,
        }, rel=1e-6,
    )  # fmt: skip
    histogram = statistics.histogram()
    assert list(histogram) == ["above", "red", "blue", "circle"]
    assert histogram["above"] == {"best": 1, "candidate": 2} and histogram["circle"] == {"best": 0, "candidate": 1}
    assert list(statistics.histogram(1)) == ["above"]


def test_against_numpy_over_images():
    rng = np.random.default_rng(0)
    statistics = LabelStatistics([f"w{number}" for number in range(9)])
    rows = []
    for _ in range(6):
        ids = np.stack([rng.permutation(9)[:4] for _ in range(10)])
        scores = -np.sort(-rng.random((10, 4)), axis=1)
        gone = np.arange(4) >= rng.integers(0, 5, (10, 1))
        ids, scores = np.where(gone, -1, ids), np.where(gone, 0, scores)
        right, outside = rng.random((10, 9)) < 0.15, rng.random(10) < 0.3
        caption = rng.random(9) < 0.5
        truth = Truth(*map(torch.from_numpy, (caption, right, outside)))
        statistics.update(torch.from_numpy(ids), torch.from_numpy(scores), truth)
        rows += [(i, s, r, o, caption) for i, s, r, o in zip(ids, scores, right, outside, strict=True)]
    drawn, best, any_, chance, labelled, said = [], [], [], [], [], []
    for ids, scores, right, _, caption in rows:
        if ids[0] >= 0:
            labelled.append(1)
            said.append(caption[ids[0]])
        if right.any():
            hit = [i >= 0 and right[i] for i in ids]
            best.append(hit[0])
            any_.append(any(hit))
            drawn.append(sum(s for s, h in zip(scores, hit, strict=True) if h) / scores.sum() if scores.sum() else 0)
            chance.append(right.mean())
    found = statistics.result()
    assert found["patches"] == 60 and found["region_patches"] == len(best)
    for name, values in (("best", best), ("any", any_), ("drawn", drawn), ("chance", chance)):
        assert found[f"right_{name}"] == pytest.approx(np.mean(values))
    assert found["caption_best"] == pytest.approx(np.mean(said)) and found["with_label"] == len(labelled) / 60
    outside = [ids[0] >= 0 for ids, _, _, is_outside, _ in rows if is_outside]
    assert found["outside_with_label"] == pytest.approx(np.mean(outside))


def test_nothing_labelled_and_nothing_known():
    statistics = LabelStatistics(WORDS)
    statistics.update(torch.full((3, 2), -1), torch.zeros(3, 2))
    expected = {"patches": 3, "with_label": 0.0, "labels_per_patch": 0.0, "best_words": 0, "top_share": 0.0}
    assert statistics.result() == expected and statistics.histogram() == {}


def test_right_words_of_regions():
    """32 pixels in patches of 16: one region over the left half, one that covers a sixteenth of the last patch."""
    geometry = CenterCrop(32, mean=(0.5,) * 3, std=(0.5,) * 3)
    regions = (
        Region("Red circles", None, (0.0, 0.0, 16.0, 32.0)),
        Region("blue thing", None, (28.0, 28.0, 4.0, 4.0)),
    )
    right, outside = region_truth(ImageRegions("0", "0.png", 32, 32, regions, "f", 1), geometry, 16, PLACES)
    left = [True, True, False, False]
    assert right.tolist() == [left, [False] * 4, left, [False] * 4]
    assert outside.tolist() == [False, True, False, False]


def test_words_of_captions():
    assert caption_words(["A red thing", "two circles above"], PLACES).tolist() == [True, True, False, True]
    assert not caption_words([], PLACES).any()
