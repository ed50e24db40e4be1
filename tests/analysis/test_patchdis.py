"""PatchDis against scikit-learn's Jaccard scores, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llava_pat.analysis.patchdis import UNLABELLED, PatchDis, patch_classes, region_classes


@pytest.mark.parametrize("background", [None, 0.3, -1.0])
def test_equals_scikit_learn(background):
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    patches, classes = random.normal(size=(200, 6)), random.normal(size=(9, 6))
    true = random.integers(-1, 7, 200)  # classes 7 and 8 never occur, but are read
    cosine = (patches @ classes.T) / np.linalg.norm(patches, axis=1)[:, None] / np.linalg.norm(classes, axis=1)
    read = cosine.argmax(1)
    if background is None:
        read, labels = read[true >= 0], true[true >= 0]
    else:
        read, labels = np.where(cosine.max(1) < background, 9, read), np.where(true < 0, 9, true)
    measure = PatchDis(torch.tensor(classes), background)
    for part in (slice(0, 70), slice(70, 70), slice(70, 200)):
        measure.update(torch.tensor(patches[part]), torch.tensor(true[part]))
    result, iou = measure.result(), measure.iou()
    expected = metrics.jaccard_score(labels, read, labels=range(7), average=None)
    assert np.allclose(iou[:7], expected) and iou[7:].isnan().all()
    assert result["patchdis_miou"] == pytest.approx(expected.mean())
    assert result["patchdis_accuracy"] == pytest.approx(metrics.accuracy_score(labels, read))
    assert (result["patchdis_patches"], result["patchdis_classes"]) == (len(labels), 7)
    assert np.array_equal(measure.confusion, metrics.confusion_matrix(labels, read, labels=range(10)))
    if background is None:
        assert "patchdis_background_iou" not in result
    else:
        own = metrics.jaccard_score(labels, read, labels=[9], average=None, zero_division=0)[0]
        assert result["patchdis_background_iou"] == pytest.approx(own)


def test_by_hand():
    measure = PatchDis(torch.eye(3))
    # true 0 read 0, true 0 read 1, true 1 read 1, true -1 left out
    measure.update(torch.tensor([[5.0, 1, 0], [1, 2, 0], [0, 1, 0], [0, 0, 1]]), torch.tensor([0, 0, 1, UNLABELLED]))
    assert measure.iou()[:2].tolist() == [0.5, 0.5] and measure.iou()[2].isnan()
    assert measure.result() == {
        "patchdis_miou": 0.5, "patchdis_accuracy": pytest.approx(2 / 3), "patchdis_patches": 3, "patchdis_classes": 2
    }  # fmt: skip


def test_class_of_a_patch_is_what_covers_most_of_it():
    coverage = torch.tensor([
        [0.6, 0.3, 0.0, 0.9, 0.2],  # class 1
        [0.4, 0.3, 0.0, 0.0, 0.2],  # class 0
        [0.0, 0.3, 0.0, 0.0, 0.0],  # class 0 again: the second patch is half class 0
        [1.0, 1.0, 1.0, 1.0, 1.0],  # no class
        [0.0, 0.0, 0.7, 0.0, 0.0],  # class 1, the other image
        [0.0, 0.0, 0.7, 0.0, 0.5],  # class 0 of the other image: a tie goes to the lower number
    ])  # fmt: skip
    image, region_class = torch.tensor([0, 0, 0, 0, 2, 2]), torch.tensor([1, 0, 0, UNLABELLED, 1, 0])
    found = patch_classes(coverage, image, region_class, images=3, classes=2)
    assert found.tolist() == [[1, 0, -1, 1, -1], [-1] * 5, [-1, -1, 0, -1, 0]]
    low = patch_classes(coverage, image, region_class, images=3, classes=2, min_coverage=0.0)
    assert low.tolist() == [[1, 0, -1, 1, 0], [-1] * 5, [-1, -1, 0, -1, 0]]


def test_overlapping_regions_of_one_class_cover_no_more_than_the_patch():
    coverage = torch.tensor([[0.8], [0.8], [1.0]])
    found = patch_classes(coverage, torch.zeros(3).long(), torch.tensor([1, 1, 0]), images=1, classes=2)
    assert found.tolist() == [[0]]  # 1 against 1, not 1 against 1.6


def test_class_of_a_region_is_its_only_word():
    targets = torch.tensor([[0, 1, 0], [0, 0, 0], [1, 0, 1], [0, 0, 1]]).bool()
    assert region_classes(targets).tolist() == [1, UNLABELLED, UNLABELLED, 2]
    assert region_classes(targets[:0]).shape == (0,)


def test_sums_of_processes_add_up():
    torch.manual_seed(0)
    patches, true, classes = torch.randn(30, 4), torch.randint(-1, 3, (30,)), torch.randn(3, 4)
    whole, first, second = (PatchDis(classes, 0.1) for _ in range(3))
    whole.update(patches, true)
    first.update(patches[:11], true[:11])
    second.update(patches[11:], true[11:])
    first.confusion += second.confusion
    assert first.result() == whole.result()


def test_errors():
    with pytest.raises(ValueError, match="none was added that has a class"):
        PatchDis(torch.eye(2)).result()
    with pytest.raises(ValueError, match="classes run from 0 to 2, there are 2"):
        PatchDis(torch.eye(2)).update(torch.ones(2, 2), torch.tensor([0, 2]))
    with pytest.raises(ValueError, match=r"need one class each, got \(3,\)"):
        PatchDis(torch.eye(2)).update(torch.ones(2, 2), torch.tensor([0, 1, 1]))
