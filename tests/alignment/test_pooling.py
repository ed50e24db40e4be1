"""Region and word vectors against plain loops, and the errors of regions that do not fit."""

from __future__ import annotations

import pytest
import torch

from llava_pat.alignment import pooling
from llava_pat.types import AlignmentInputs, PatchRegions


def regions(coverage: torch.Tensor, image: list[int], ids: list[list[int]], mask: list[list[int]]) -> PatchRegions:
    return PatchRegions(coverage, torch.tensor(image), torch.tensor(ids), torch.tensor(mask).bool())


def test_region_vectors_equal_a_loop_whatever_the_order_of_the_regions():
    torch.manual_seed(0)
    patch_embeds, coverage = torch.randn(3, 4, 5), torch.rand(6, 4)
    image = [2, 0, 2, 0, 0, 2]  # unsorted, and image 1 has none
    expected = torch.stack(
        [sum(coverage[r, p] * patch_embeds[image[r], p] for p in range(4)) / coverage[r].sum() for r in range(6)]
    )
    assert torch.allclose(pooling.region_vectors(patch_embeds, coverage, torch.tensor(image)), expected, atol=1e-6)


def test_region_vectors_stay_fp32_under_autocast():
    torch.manual_seed(0)
    patch_embeds, coverage, image = torch.randn(2, 4, 5), torch.rand(3, 4), torch.tensor([0, 1, 1])
    plain = pooling.region_vectors(patch_embeds, coverage, image)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(pooling.region_vectors(patch_embeds, coverage, image), plain)


def test_no_regions_give_no_vectors():
    image = torch.zeros(0, dtype=torch.int64)
    empty = pooling.region_vectors(torch.randn(2, 4, 5).bfloat16(), torch.zeros(0, 4), image)
    assert empty.shape == (0, 5) and empty.dtype == torch.float32


def test_a_region_without_patches_is_refused():
    with pytest.raises(ValueError, match="region 1 of 2 in the batch covers no patch"):
        pooling.region_vectors(torch.randn(1, 2, 3), torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 0]))


def test_a_region_of_an_absent_image_is_refused():
    with pytest.raises(ValueError, match="image 3 of the batch, which has 2 images"):
        pooling.rows_by_image(torch.tensor([0, 3]), 2)


def test_rows_by_image_lists_rows_in_order():
    assert [rows.tolist() for rows in pooling.rows_by_image(torch.tensor([2, 0, 2, 0]), 4)] == [[1, 3], [], [0, 2], []]
    assert pooling.rows_by_image(torch.zeros(0, dtype=torch.int64), 0) == []


def test_word_vectors_average_real_tokens_only():
    embeds = torch.tensor([[[1.0, 3.0], [float("nan"), 7.0]], [[1.0, 0.0], [3.0, 4.0]]])
    mask = torch.tensor([[True, False], [True, True]])
    assert torch.equal(pooling.word_vectors(embeds, mask), torch.tensor([[1.0, 3.0], [2.0, 2.0]]))


def test_a_label_without_tokens_is_refused():
    with pytest.raises(ValueError, match="label 1 of 2 in the batch has no tokens"):
        pooling.word_vectors(torch.ones(2, 1, 3), torch.tensor([[True], [False]]))


def test_label_vectors_carry_no_gradient():
    table = torch.nn.Embedding(4, 3)
    batch = regions(torch.ones(1, 2), [0], [[1, 2]], [[1, 1]])
    patch_embeds = torch.zeros(1, 2, 3)
    inputs = AlignmentInputs(patch_embeds, patch_embeds, table, batch.label_ids, batch.label_mask, batch)
    words = pooling.label_vectors(inputs)
    assert not words.requires_grad
    assert torch.allclose(words, (table.weight[1] + table.weight[2]).unsqueeze(0) / 2)


def test_regions_of_another_grid_or_dtype_are_refused():
    batch = regions(torch.ones(1, 9), [0], [[1]], [[1]])
    with pytest.raises(ValueError, match="laid on 9 patches, the tower gives 4"):
        pooling.check_regions(batch, torch.zeros(1, 4, 2))
    batch.coverage = batch.coverage.bfloat16()
    with pytest.raises(ValueError, match="coverage is torch.bfloat16"):
        pooling.check_regions(batch, torch.zeros(1, 9, 2))


def test_unit_of_a_zero_vector_is_zero_with_finite_gradient():
    zero = torch.zeros(1, 3, requires_grad=True)
    pooling.unit(zero).sum().backward()
    assert torch.isfinite(zero.grad).all()
