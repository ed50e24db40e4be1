"""PAT's value, count and gradient by hand, for every switch."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from llava_pat.alignment import build_objective
from llava_pat.alignment.pat import PatchAlignedTraining
from llava_pat.types import AlignmentInputs, PatchRegions, PatchWords

TABLE = torch.tensor([[9.0, 9.0], [2.0, 0.0], [0.0, 5.0], [0.0, 1.0], [1.0, 0.0]])
"""Words in the plane: 1 points along x, 2 along y; the label [3, 4] has the mean (.5, .5)."""


def make(patch_embeds, coverage, image, labels) -> AlignmentInputs:
    length = max(map(len, labels))
    ids = torch.tensor([label + [0] * (length - len(label)) for label in labels])
    mask = torch.tensor([[1] * len(label) + [0] * (length - len(label)) for label in labels]).bool()
    regions = PatchRegions(torch.tensor(coverage), torch.tensor(image), ids, mask)
    embeds = torch.tensor(patch_embeds).requires_grad_()
    return AlignmentInputs(embeds.detach(), embeds, lambda ids: TABLE[ids], ids, mask, regions)


@pytest.fixture
def scene() -> AlignmentInputs:
    """One image of three patches: x along x, y along y, and (3, 4); region 0 is word 1, region 1 word 2."""
    return make(
        [[[2.0, 0.0], [0.0, 1.0], [3.0, 4.0]]],
        [[1.0, 0.0, 0.5], [0.0, 0.25, 1.0]],
        [0, 0],
        [[1], [2]],
    )


def run(inputs: AlignmentInputs, **switches):
    objective = build_objective("pat", **switches)
    loss = objective(inputs)
    assert loss.count == objective.count(inputs.regions, None)
    loss.total.backward()
    return loss.total.item(), loss.count.item(), {k: v.item() for k, v in loss.metrics.items()}


def test_region_value_by_hand(scene):
    total, count, metrics = run(scene)
    # region 0: (1*(2,0) + .5*(3,4)) / 1.5 ~ (3.5, 2); region 1: (.25*(0,1) + (3,4)) / 1.25 ~ (3, 4.25)
    cosines = [3.5 / math.hypot(3.5, 2), 4.25 / math.hypot(3, 4.25)]
    assert count == 2
    assert total == pytest.approx(2 - sum(cosines), abs=1e-6)
    assert metrics["region_cosine"] == pytest.approx(sum(cosines), abs=1e-6)
    # single patches: region 0: (1*1 + .5*.6) / 1.5, region 1: (.25*1 + 1*.8) / 1.25
    assert metrics["patch_cosine"] == pytest.approx(1.3 / 1.5 + 1.05 / 1.25, abs=1e-6)


def test_region_gradient_by_hand():
    # one region, weights 1/4 and 3/4, mean v = (.25*4, .75*4) = (1, 3), word along x:
    # d(1 - cos)/dv = -(w - cos * v/|v|) / |v| with cos = 1/sqrt(10); patches get it times 1/4 and 3/4
    inputs = make([[[4.0, 0.0], [0.0, 4.0]]], [[0.2, 0.6]], [0], [[1]])
    run(inputs)
    length = math.sqrt(10)
    slope = torch.tensor([-(1 - 0.1) / length, 0.3 / length])
    expected = torch.stack([slope / 4, slope * 3 / 4])
    assert torch.allclose(inputs.patch_embeds.grad[0], expected, atol=1e-6)


def test_label_of_two_tokens_is_their_mean():
    inputs = make([[[3.0, 0.0]]], [[1.0]], [0], [[3, 4]])
    assert run(inputs)[0] == pytest.approx(1 - math.sqrt(0.5), abs=1e-6)


def test_patch_pairs_by_hand(scene):
    total, count, metrics = run(scene, unit="patch")
    cosines = 1 + 0.6 + 1 + 0.8  # (0, patch 0), (0, patch 2), (1, patch 1), (1, patch 2)
    assert (count, total) == (4, pytest.approx(4 - cosines, abs=1e-6))
    assert metrics == {"patch_cosine": pytest.approx(cosines, abs=1e-6)}


def test_patch_gradient_by_hand(scene):
    run(scene, unit="patch")
    # patch 2 is (3, 4), length 5: -(w - cos * x/5) / 5 for w = (1, 0), cos .6 and w = (0, 1), cos .8
    slope = torch.tensor([-(1 - 0.36) + 0.8 * 0.6, 0.6 * 0.8 - (1 - 0.64)]) / 5
    assert torch.allclose(scene.patch_embeds.grad[0], torch.stack([torch.zeros(2), torch.zeros(2), slope]), atol=1e-6)


def test_patch_best_takes_the_nearest_label(scene):
    total, count, _ = run(scene, unit="patch", multi_label="best")
    assert (count, total) == (3, pytest.approx(3 - (1 + 1 + 0.8), abs=1e-6))


def test_patch_mean_mixes_unit_words_by_coverage(scene):
    total, count, _ = run(scene, unit="patch", multi_label="mean")
    # patch 2: .5 * (1, 0) + 1 * (0, 1), whatever the words' own lengths 2 and 5
    mixed = (0.5 * 0.6 + 1 * 0.8) / math.hypot(0.5, 1)
    assert (count, total) == (3, pytest.approx(3 - (1 + 1 + mixed), abs=1e-6))


def test_min_coverage_is_a_lower_bound_that_counts(scene):
    total, count, _ = run(scene, unit="patch", min_coverage=0.5)
    assert (count, total) == (3, pytest.approx(3 - (1 + 0.6 + 0.8), abs=1e-6))
    total, count, _ = run(scene, unit="patch", multi_label="best", min_coverage=0.5)
    assert (count, total) == (2, pytest.approx(2 - (1 + 0.8), abs=1e-6))


def test_min_coverage_drops_a_region_with_nothing_left():
    inputs = make([[[1.0, 0.0], [3.0, 4.0]]], [[1.0, 0.0], [0.1, 0.2]], [0, 0], [[1], [2]])
    assert run(inputs, min_coverage=0.3)[:2] == (pytest.approx(0.0, abs=1e-6), 1)
    assert run(inputs, min_coverage=1.0, unit="patch")[1] == 1


@pytest.mark.parametrize("switches", [{}, {"unit": "patch"}, {"unit": "patch", "multi_label": "mean"}])
def test_nothing_above_the_threshold_is_zero_with_zero_gradient(switches):
    inputs = make([[[1.0, 0.0]]], [[0.1]], [0], [[2]])
    assert run(inputs, min_coverage=0.5, **switches)[:2] == (0.0, 0)
    assert torch.equal(inputs.patch_embeds.grad, torch.zeros(1, 1, 2))


@pytest.mark.parametrize("multi_label", ["pairs", "mean", "best"])
def test_patch_units_keep_images_apart(multi_label):
    """The same patch number in two images is two patches."""
    inputs = make([[[1.0, 0.0]], [[0.0, 1.0]]], [[1.0], [1.0]], [1, 0], [[1], [2]])
    assert run(inputs, unit="patch", multi_label=multi_label)[:2] == (pytest.approx(2.0), 2)  # both labels wrong


def test_loss_does_not_depend_on_the_scale_of_patches_or_words(scene):
    scaled = make((scene.patch_embeds.detach() * 17).tolist(), scene.regions.coverage.tolist(), [0, 0], [[1], [2]])
    assert run(scaled)[0] == pytest.approx(run(scene)[0], abs=1e-6)


@pytest.mark.parametrize(
    "switches, message",
    [
        ({"unit": "pixel"}, "unit is 'pixel'; choose one of 'region', 'patch'"),
        ({"multi_label": "all"}, "multi_label is 'all'"),
        ({"distance": "l2"}, "distance is 'l2'"),
        ({"min_coverage": 50.0}, r"min_coverage is 50.0; a share of a patch lies in \[0, 1\]"),
    ],
)
def test_wrong_switches_are_refused(switches, message):
    with pytest.raises(ValueError, match=message):
        PatchAlignedTraining(**switches)


def test_patch_best_ignores_nearer_labels_of_other_patches():
    inputs = make([[[-1.0, 0.0], [0.0, 1.0]]], [[1.0, 0.0], [0.0, 1.0]], [0, 0], [[1], [2]])
    total, count, _ = run(inputs, unit="patch", multi_label="best")
    assert (count, total) == (2, pytest.approx(2.0, abs=1e-6))  # cos -1 to its own label; word 2 would be nearer


def test_patch_words_as_regions_by_hand(scene):
    """Shares of a patch's scores take the place of coverage: patch 0 word 1, patch 1 word 2, patch 2 a quarter and the
    rest. Regions in the batch are not looked at."""
    texts = torch.tensor([[1], [2]])
    words = PatchWords(
        torch.tensor([[[0, -1], [1, -1], [1, 0]]]),
        torch.tensor([[[0.3, 0.0], [2.0, 0.0], [0.6, 0.2]]]),
        texts,
        texts > 0,
    )
    inputs = replace(scene, patch_words=words)
    for keywords in ({}, {"unit": "patch"}, {"unit": "patch", "multi_label": "mean"}):
        objective = build_objective("pat", labels="clip", **keywords)
        given = PatchRegions(torch.tensor([[1.0, 0.0, 0.25], [0.0, 1.0, 0.75]]), torch.tensor([0, 0]), texts, texts > 0)
        expected = build_objective("pat", **keywords)(replace(scene, regions=given))
        found = objective(inputs)
        assert found.total.item() == pytest.approx(expected.total.item(), abs=1e-6)
        assert found.count == expected.count == objective.count(scene.regions, words)
    best = build_objective("pat", labels="clip", top_n=1, unit="patch")
    assert best.count(None, words) == 3 and build_objective("pat", labels="clip", unit="patch").count(None, words) == 4
    assert best.requires == {"patch_words"} and build_objective("pat").requires == {"regions"}
    assert best.count(scene.regions, None) is None
