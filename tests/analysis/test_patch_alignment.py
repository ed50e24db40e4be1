"""Hit rates and cosines by hand in the plane."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from llava_pat.analysis import tiles
from llava_pat.analysis.patch_alignment import PatchAlignment, label_ranks, labelled_patches


def at(*degrees: float) -> torch.Tensor:
    return torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees])


def bools(*rows: str) -> torch.Tensor:
    return torch.tensor([[c == "1" for c in row] for row in rows])


WORDS = at(0, 10, 20, 30, 40, 50, 60) * torch.tensor([1.0, 5, 0.1, 1, 1, 1, 1]).unsqueeze(-1)


def hits(ranks: torch.Tensor, k: int) -> float:
    return float((ranks <= k).sum())


def by_loops(patches: np.ndarray, words: np.ndarray, targets: np.ndarray) -> list[tuple[int, int, float, int]]:
    """(patch, right entry, its cosine, its rank among itself and the patch's wrong entries)."""
    found = []
    for row, patch in enumerate(patches):
        cosines = [patch @ word / np.linalg.norm(patch) / np.linalg.norm(word) for word in words]
        for column in np.flatnonzero(targets[row]):
            wrong = [cosine for other, cosine in enumerate(cosines) if not targets[row, other]]
            rank = 1 + sum(cosine > cosines[column] for cosine in wrong)
            found.append((row, int(column), cosines[column], rank))
    return found


def test_ranks_by_angle_whatever_the_length():
    patches = at(0, 0, 0, 0) * torch.tensor([20.0, 1, 1, 1]).unsqueeze(-1)
    targets = bools("1000000", "0100000", "0000100", "0000010")  # nearest, 2nd, 5th, 6th
    cosines, ranks = label_ranks(patches, WORDS, targets)
    assert ranks.tolist() == [1, 2, 5, 6]
    assert cosines.tolist() == pytest.approx([math.cos(math.radians(d)) for d in (0, 10, 40, 50)], abs=1e-6)


def test_several_right_labels_count_by_the_nearest():
    # right are the 2nd and the 6th nearest; and the 6th and 7th, where no right one hides a wrong one
    cosines, ranks = label_ranks(at(0, 0), WORDS, bools("0100010", "0000011"))
    assert ranks.tolist() == [2, 6]
    assert cosines.tolist() == pytest.approx([math.cos(math.radians(d)) for d in (10, 50)], abs=1e-6)


@pytest.mark.parametrize("words", [3, 6, 20, 37])
@pytest.mark.parametrize("width", [3, 64, 257])
def test_collapsed_vectors_score_nothing(words, width):
    # rounding makes the cosines of equal words differ at some of these shapes
    torch.manual_seed(words * width)
    vectors = torch.randn(width).expand(words, width)
    _, ranks = label_ranks(torch.randn(3, width), vectors, torch.eye(words).bool()[:3])
    assert ranks.tolist() == [words] * 3


def test_no_patches_are_no_ranks():
    cosines, ranks = label_ranks(torch.zeros(0, 2), WORDS, torch.zeros(0, 7).bool())
    assert cosines.shape == ranks.shape == (0,)


@pytest.mark.parametrize("tile", [1 << 24, 100, 1])
def test_everything_equals_loops_whatever_the_tiles(monkeypatch, tile):
    monkeypatch.setattr(tiles, "TILE_NUMBERS", tile)
    random = np.random.default_rng(0)
    patches, words = random.normal(size=(60, 7)), random.normal(size=(30, 7))
    targets = random.random((60, 30)) < 0.08
    targets[np.arange(60), random.integers(0, 29, 60)] = True
    targets[:, 29] = False  # an entry that no patch carries
    pairs = by_loops(patches, words, targets)
    best = [max((p for p in pairs if p[0] == row), key=lambda p: p[2]) for row in range(60)]
    inputs = [torch.tensor(array, dtype=torch.float32) for array in (patches, words)]
    cosines, ranks = label_ranks(*inputs, torch.tensor(targets))
    assert ranks.tolist() == [p[3] for p in best] and np.allclose(cosines, [p[2] for p in best], atol=1e-6)

    stream = PatchAlignment(inputs[1])
    for part in (slice(0, 25), slice(25, 60)):
        stream.update(inputs[0][part], torch.tensor(targets[part]))
    expected = np.array([p[3] for p in best])
    result = stream.result()
    assert result == {
        "patches": 60,
        "patch_cosine": pytest.approx(np.mean([p[2] for p in best]), abs=1e-6),
        **{f"hit_at_{k}": pytest.approx((expected <= k).mean()) for k in (1, 5, 10)},
        "mean_reciprocal_rank": pytest.approx((1 / expected).mean()),
        "mean_rank": pytest.approx(expected.mean()),
        "median_rank": np.median(expected),
    }
    assert stream.ranks().tolist() == np.bincount(expected - 1, minlength=30).tolist()
    table = stream.labels()
    for column in range(30):
        own = [(cosine, rank) for _, label, cosine, rank in pairs if label == column]
        assert table["patches"][column] == len(own)
        if not own:
            assert column == 29 and table["hit_at_1"][column].isnan() and table["patch_cosine"][column].isnan()
            continue
        value, rank = np.array(own).T
        assert table["patch_cosine"][column].item() == pytest.approx(value.mean(), abs=1e-6)
        assert table["mean_reciprocal_rank"][column].item() == pytest.approx((1 / rank).mean())
        assert table["hit_at_1"][column].item() == pytest.approx((rank <= 1).mean())
        assert table["hit_at_5"][column].item() == pytest.approx((rank <= 5).mean())


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 10])
def test_median_rank_equals_numpys(count):
    expected = np.random.default_rng(count).integers(0, 7, count)
    stream = PatchAlignment(WORDS)
    stream.update(at(0).expand(count, 2), torch.eye(7).bool()[torch.tensor(expected)])
    assert stream.result()["median_rank"] == np.median(expected + 1)


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
        label_ranks(patches, WORDS, targets)


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
    cosines, ranks = label_ranks(patches, WORDS, targets)
    assert result["patches"] == 4
    assert result["patch_cosine"] == pytest.approx(cosines.mean().item())
    assert (result["hit_at_1"], result["hit_at_5"]) == (hits(ranks, 1) / 4, hits(ranks, 5) / 4)
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
