"""Hit rates and cosines by hand in the plane."""

from __future__ import annotations

import math

import pytest
import torch

from llava_pat.analysis.patch_alignment import LabelHits, PatchAlignment, label_hits, labelled_patches


def at(*degrees: float) -> torch.Tensor:
    return torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees])


def bools(*rows: str) -> torch.Tensor:
    return torch.tensor([[c == "1" for c in row] for row in rows])


WORDS = at(0, 10, 20, 30, 40, 50, 60) * torch.tensor([1.0, 5, 0.1, 1, 1, 1, 1]).unsqueeze(-1)


def test_ranks_by_angle_whatever_the_length():
    patches = at(0, 0, 0, 0) * torch.tensor([20.0, 1, 1, 1]).unsqueeze(-1)
    targets = bools("1000000", "0100000", "0000100", "0000010")  # nearest, 2nd, 5th, 6th
    hits = label_hits(patches, WORDS, targets)
    cosines = [math.cos(math.radians(d)) for d in (0, 10, 40, 50)]
    assert hits == LabelHits(4, pytest.approx(sum(cosines), abs=1e-6), 1.0, 3.0)


def test_several_right_labels_count_by_the_nearest():
    # right are the 2nd and the 6th nearest; and the 6th and 7th, where no right one hides a wrong one
    hits = label_hits(at(0, 0), WORDS, bools("0100010", "0000011"))
    assert (hits.hit_at_1, hits.hit_at_5) == (0.0, 1.0)
    assert hits.patch_cosine == pytest.approx(math.cos(math.radians(10)) + math.cos(math.radians(50)), abs=1e-6)


def test_collapsed_vectors_score_nothing():
    words = torch.ones(6, 3)
    assert label_hits(torch.ones(4, 3), words, torch.eye(6).bool()[:4]).hit_at_5 == 0.0


def test_no_patches_are_no_hits():
    assert label_hits(torch.zeros(0, 2), WORDS, torch.zeros(0, 7).bool()) == LabelHits(0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "patches, targets, message",
    [
        (at(0), bools("0000000"), "1 of 1 patches have no right entry"),
        (at(0, 1), bools("1000000"), r"need targets \(2, 7\) and one width; the targets are \(1, 7\)"),
        (torch.full((1, 2), float("nan")), bools("1000000"), "NaN"),
    ],
)
def test_input_that_cannot_be_scored_is_refused(patches, targets, message):
    with pytest.raises(ValueError, match=message):
        label_hits(patches, WORDS, targets)


def test_labelled_patches_join_the_labels_of_all_regions_over_a_patch():
    coverage = torch.tensor([[1.0, 0.5, 0.4], [0.0, 0.9, 0.0], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    image = torch.tensor([1, 1, 0, 1])
    words = bools("110", "001", "010", "000")  # the last label has no word of the vocabulary
    images, patches, targets = labelled_patches(coverage, image, words)
    assert list(zip(images.tolist(), patches.tolist(), strict=True)) == [(0, 2), (1, 0), (1, 1)]
    assert torch.equal(targets, bools("010", "110", "111"))
    assert len(labelled_patches(coverage, image, words, min_coverage=0.0)[0]) == 4
    assert len(labelled_patches(coverage, image, torch.zeros(4, 3).bool())[0]) == 0


def test_streamed_means_equal_one_pass_and_facets_by_hand():
    # entries 0-2 are kinds, 3-6 colours
    facets = {"kind": (0, 1, 2), "colour": (3, 4, 5, 6)}
    patches = at(1, 12, 41, 58)
    targets = bools(
        "1001000",  # kind 0 at 0: hit; colour 3 at 30 is the nearest colour: hit
        "1000001",  # kind 0, nearest kind is 1: miss; colour 6, nearest colour is 3: miss
        "1100100",  # two kinds: not counted; colour 4 at 40: hit
        "0010000",  # kind 2 at 20 is the nearest kind: hit; no colour
    )
    stream = PatchAlignment(WORDS, facets)
    for part in (slice(0, 1), slice(1, 1), slice(1, 4)):
        stream.update(patches[part], targets[part])
    result = stream.result()
    hits = label_hits(patches, WORDS, targets)
    assert result["patches"] == 4
    assert result["patch_cosine"] == pytest.approx(hits.patch_cosine / 4)
    assert (result["hit_at_1"], result["hit_at_5"]) == (hits.hit_at_1 / 4, hits.hit_at_5 / 4)
    assert (result["patches_kind"], result["hit_kind"]) == (3, pytest.approx(2 / 3))
    assert (result["patches_colour"], result["hit_colour"]) == (3, pytest.approx(2 / 3))


def test_sums_of_processes_add_up():
    patches, targets = at(1, 12, 41), bools("1000000", "1000000", "0000100")
    whole, first, second = (PatchAlignment(WORDS) for _ in range(3))
    whole.update(patches, targets)
    first.update(patches[:1], targets[:1])
    second.update(patches[1:], targets[1:])
    first.sums += second.sums  # what an all-reduce does
    assert first.result() == pytest.approx(whole.result())


def test_a_facet_without_patches_has_no_rate():
    stream = PatchAlignment(WORDS, {"kind": [0, 1], "size": [5, 6]})
    stream.update(at(0), bools("1000000"))
    result = stream.result()
    assert result["patches_size"] == 0 and "hit_size" not in result and result["hit_kind"] == 1.0


def test_no_patch_at_all_is_an_error_and_not_a_nan():
    with pytest.raises(ValueError, match="no region's label has a word of the vocabulary"):
        PatchAlignment(WORDS).result()


def test_low_precision_input_is_scored_in_fp32_under_autocast():
    patches, targets = at(1, 12).bfloat16(), bools("1000000", "0100000")
    plain, cast = PatchAlignment(WORDS), PatchAlignment(WORDS)
    plain.update(patches.float(), targets)
    with torch.autocast("cpu", torch.bfloat16):
        cast.update(patches, targets)
    assert torch.equal(plain.sums, cast.sums)
