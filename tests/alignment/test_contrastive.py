"""The contrastive core in one process: by hand, and against plain loops in NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llava_pat.alignment.contrastive import SDM_EPS, contrast, gather_rows, gather_sizes, number_texts, one_of_each


def run(patches, words, ids, scale=1.0, loss="infonce"):
    return contrast(patches, words, torch.as_tensor(ids), torch.as_tensor(scale, dtype=patches.dtype), [len(ids)], loss)


def make(ids, width=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    patches = F.normalize(torch.randn(len(ids), width, generator=generator, dtype=torch.float64), dim=-1)
    table = F.normalize(torch.randn(max(ids) + 1, width, generator=generator, dtype=torch.float64), dim=-1)
    return patches, table[torch.tensor(ids)]


def loops(patches, words, ids, scale, loss) -> tuple[float, int]:
    """The definition, pair by pair."""
    scores = scale * patches.numpy() @ words.numpy().T
    total, right = 0.0, 0
    for i in range(len(ids)):
        for row in (scores[i, :], scores[:, i]):
            if loss == "infonce":
                rivals = [j for j in range(len(ids)) if j == i or ids[j] != ids[i]]
                total += (math.log(sum(math.exp(row[j]) for j in rivals)) - row[i]) / 2
            else:
                p = np.exp(row) / np.exp(row).sum()
                same = np.array([ids[j] == ids[i] for j in range(len(ids))])
                q = same / same.sum()
                total += float((p * (np.log(p) - np.log(q + SDM_EPS))).sum())
        right += all(scores[i, i] > scores[i, j] for j in range(len(ids)) if ids[j] != ids[i])
    return total, right


def test_two_pairs_by_hand():
    """Two axes: each cross entropy is ln(1 + e^-s), both ways, two pairs."""
    axes = torch.eye(2)
    found = run(axes, axes, [0, 1], 3.0)
    assert found.total.item() == pytest.approx(2 * math.log(1 + math.exp(-3)), abs=1e-6)
    assert found.right == 2
    crossed = run(axes, axes.flip(0), [0, 1], 3.0)
    assert crossed.total.item() == pytest.approx(2 * math.log(1 + math.exp(3)), abs=1e-6)
    assert crossed.right == 0


def test_sdm_by_hand():
    """One word twice: the softmax and the target are both halves, the divergence is 0 (but for eps)."""
    same = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    assert run(same, same, [4, 4], 2.0, "sdm").total.item() == pytest.approx(0.0, abs=1e-6)
    # two words at equal scores: p = (1/2, 1/2), q = (1, 0): ln(1/2) - (ln(1 + eps) + ln(eps)) / 2, four times
    apart = torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    expected = 4 * (math.log(0.5) - (math.log(1 + SDM_EPS) + math.log(SDM_EPS)) / 2)
    assert run(same, apart, [0, 1], 2.0, "sdm").total.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("loss", ["infonce", "sdm"])
@pytest.mark.parametrize("ids", [[0, 1, 2, 3, 4], [0, 1, 0, 2, 0, 1], [0, 0, 1]])
@pytest.mark.parametrize("scale", [1.0, 14.3])
def test_against_loops(loss, ids, scale):
    patches, words = make(ids)
    found = run(patches, words, ids, scale, loss)
    total, right = loops(patches, words, ids, scale, loss)
    assert found.total.item() == pytest.approx(total, rel=1e-11)
    assert found.right == right


def test_without_repeated_words_it_is_clips_loss():
    patches, words = make(list(range(6)))
    logits = 10.0 * patches @ words.T
    target = torch.arange(6)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    assert run(patches, words, list(range(6)), 10.0).total.item() == pytest.approx(6 * expected.item(), rel=1e-12)


@pytest.mark.parametrize("loss", ["infonce", "sdm"])
def test_gradients_are_the_derivatives(loss):
    patches, words = make([0, 1, 0, 2])
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    function = lambda x, t, s: run(x, t, [0, 1, 0, 2], s, loss).total  # noqa: E731
    assert torch.autograd.gradcheck(function, (patches.requires_grad_(), words.requires_grad_(), scale))


def test_large_scales_stay_finite():
    patches, words = make([0, 1, 2, 0])
    for loss in ("infonce", "sdm"):
        assert torch.isfinite(run(patches.float(), words.float(), [0, 1, 2, 0], 100.0, loss).total)


def test_a_tie_is_not_right():
    same = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert run(same, same, [0, 1]).right == 0


def test_one_of_each_keeps_the_largest_draw():
    ids, draws = torch.tensor([3, 1, 3, 1, 0, 3]), torch.tensor([5, 9, 8, 9, 0, 2])
    assert one_of_each(ids, draws).tolist() == [False, True, True, False, True, False]
    nothing = torch.zeros(0, dtype=torch.int64)
    assert one_of_each(nothing, nothing).tolist() == []


def test_texts_are_numbered_by_their_tokens():
    texts = torch.tensor([[5, 6, -1], [5, -1, -1], [5, 6, -1], [5, 6, 7]])
    numbers = number_texts(texts)
    assert numbers[0] == numbers[2] and len(set(numbers.tolist())) == 3
    assert number_texts(texts[:0]).shape == (0,)


def test_one_process_gathers_itself():
    rows = torch.rand(3, 2)
    assert gather_sizes(3, rows.device) == [3] and gather_rows(rows, [3]) is rows
