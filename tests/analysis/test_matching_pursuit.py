"""Matching pursuit against scikit-learn, non-negative fits against SciPy, and small cases by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from llava_pat.analysis import matching_pursuit as matching_pursuit_module
from llava_pat.analysis import tiles
from llava_pat.analysis.matching_pursuit import matching_pursuit, non_negative_fit


def rows(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def unit(words: torch.Tensor) -> torch.Tensor:
    return words / words.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("tile_words", [4096, 17])
@pytest.mark.parametrize("atoms", [1, 3, 6])
def test_equals_scikit_learn(monkeypatch, atoms, tile_words):
    linear_model = pytest.importorskip("sklearn.linear_model")
    monkeypatch.setattr(tiles, "TILE_WORDS", tile_words)
    torch.manual_seed(atoms)
    patches, words = torch.randn(20, 24, dtype=torch.float64) * 15, torch.randn(60, 24, dtype=torch.float64)
    found = matching_pursuit(patches, words, atoms, stop_at=0.0)
    dictionary = unit(words).numpy().T
    for row, patch in enumerate(patches.numpy()):
        model = linear_model.OrthogonalMatchingPursuit(n_nonzero_coefs=atoms, fit_intercept=False)
        expected = model.fit(dictionary, patch).coef_
        mine = np.zeros(60)
        mine[found.atoms[row]] = found.coefficients[row]
        assert np.allclose(mine, expected, atol=1e-8)
        left = np.square(patch - dictionary @ expected).sum() / np.square(patch).sum()
        assert found.explained[row, -1].item() == pytest.approx(1 - left, abs=1e-10)


def test_non_negative_pursuit_equals_a_plain_loop_with_scipy():
    optimize = pytest.importorskip("scipy.optimize")
    torch.manual_seed(0)
    patches, words = torch.rand(40, 6, dtype=torch.float64), torch.rand(50, 6, dtype=torch.float64)
    found = matching_pursuit(patches, words, 5, stop_at=1e-4, non_negative=True)
    dictionary = unit(words).numpy()
    zeros = 0
    for row, patch in enumerate(patches.numpy()):
        taken, explained, fit, left = [], [], np.zeros(0), patch
        for _ in range(5):
            products = dictionary @ left
            products[taken] = -np.inf
            if np.square(left).sum() > 1e-4 * np.square(patch).sum() and products.max() > 1e-6 * np.linalg.norm(patch):
                taken.append(int(products.argmax()))
                fit, _ = optimize.nnls(dictionary[taken].T, patch)
                left = patch - fit @ dictionary[taken]
            explained.append(1 - np.square(left).sum() / np.square(patch).sum())
        count = len(taken)
        assert found.atoms[row].tolist() == taken + [-1] * (5 - count)
        assert np.allclose(found.coefficients[row, :count], fit, atol=1e-10)
        assert np.allclose(found.explained[row], explained, atol=1e-10)
        zeros += int((fit == 0).sum())
    assert (found.coefficients >= 0).all() and zeros, "the case where a word ends at 0 must occur"


@pytest.mark.parametrize("k", [1, 2, 5, 9])
def test_non_negative_fits_equal_scipy(k):
    optimize = pytest.importorskip("scipy.optimize")
    random = np.random.default_rng(k)
    matrices, targets = random.normal(size=(60, 11, k)) + 0.7, random.normal(size=(60, 11))
    matrices[::3, :, -1] = matrices[::3, :, 0] + 0.01 * matrices[::3, :, -1]  # nearly dependent
    gram = torch.tensor(matrices.transpose(0, 2, 1) @ matrices)
    right = torch.tensor((matrices.transpose(0, 2, 1) @ targets[..., None])[..., 0])
    found = non_negative_fit(gram, right).numpy()
    assert (found >= 0).all()
    for mine, matrix, target in zip(found, matrices, targets, strict=True):
        assert np.allclose(mine, optimize.nnls(matrix, target)[0], atol=1e-7)


def test_non_negative_fit_is_the_best_of_all_supports():
    random = np.random.default_rng(0)
    matrix, target = random.normal(size=(6, 4)), random.normal(size=6)
    best, best_error = np.zeros(4), np.square(target).sum()
    for size in range(1, 5):
        for support in itertools.combinations(range(4), size):
            fit = np.linalg.lstsq(matrix[:, support], target, rcond=None)[0]
            error = np.square(target - matrix[:, support] @ fit).sum()
            if (fit >= 0).all() and error < best_error:
                best, best_error = np.zeros(4), error
                best[list(support)] = fit
    mine = non_negative_fit(torch.tensor(matrix.T @ matrix)[None], torch.tensor(matrix.T @ target)[None])
    assert np.allclose(mine[0], best, atol=1e-10)


def test_by_hand():
    words = rows([2, 0, 0], [0, 0.1, 0], [0, 0, 3], [1, 1, 0])
    found = matching_pursuit(rows([3, 0, -4], [1, 1, 0], [0, 0, 0]), words, 3, stop_at=0.0)
    assert found.atoms.tolist() == [[2, 0, -1], [3, -1, -1], [-1, -1, -1]]
    assert torch.allclose(found.coefficients, rows([-4, 3, 0], [2**0.5, 0, 0], [0, 0, 0]))
    assert torch.allclose(found.explained, rows([0.64, 1, 1], [1, 1, 1], [0, 0, 0]))
    # words only as parts: -4 along the third axis has none
    parts = matching_pursuit(rows([3, 0, -4]), words, 3, stop_at=0.0, non_negative=True)
    assert parts.atoms.tolist() == [[0, -1, -1]] and parts.explained[0, -1].item() == pytest.approx(0.36)


def test_stops_when_little_is_left():
    patch, words = rows([10, 2, 1]), torch.eye(3, dtype=torch.float64)  # left: 5/105, then 1/105
    assert matching_pursuit(patch, words, 3, stop_at=0.05).atoms.tolist() == [[0, -1, -1]]
    found = matching_pursuit(patch, words, 3, stop_at=0.04)
    assert found.atoms.tolist() == [[0, 1, -1]]
    assert torch.allclose(found.explained, rows([100 / 105, 104 / 105, 104 / 105]))


def test_kept_words_equal_words_and_too_few_words():
    words = rows([1, 0, 0], [1, 0, 0], [0, 1, 0])
    patch = rows([2, 1, 5])
    assert matching_pursuit(patch, words, 3, 0.0, keep=torch.tensor([False, True, True])).atoms.tolist() == [[1, 2, -1]]
    twice = matching_pursuit(patch, words, 3, 0.0)
    assert set(twice.atoms[0].tolist()) in ({0, 2, -1}, {1, 2, -1})


def test_no_word_is_taken_twice_however_coarse_the_products(monkeypatch):
    # as under TF32, where what is left keeps a product with the words already taken
    monkeypatch.setattr(matching_pursuit_module, "NO_GAIN", -1.0)
    found = matching_pursuit(rows([3, 4, 5]), rows([1, 0, 0], [0, 1, 0]), 4, stop_at=0.0)
    assert found.atoms.tolist() == [[1, 0, -1, -1]] and found.explained[0].tolist() == pytest.approx(
        [0.32, 0.5, 0.5, 0.5]
    )


def test_chunks_change_nothing(monkeypatch):
    torch.manual_seed(0)
    patches, words = torch.randn(9, 6), torch.randn(11, 6)
    whole = matching_pursuit(patches, words, 3)
    monkeypatch.setattr(tiles, "TILE_NUMBERS", 40)
    parts = matching_pursuit(patches, words, 3)
    assert whole.coefficients.dtype == torch.float32 and torch.equal(whole.atoms, parts.atoms)
    assert torch.allclose(whole.coefficients, parts.coefficients, atol=1e-5)
    assert (whole.explained.diff(dim=-1) >= -1e-6).all()


def test_low_precision_under_autocast_and_no_patches():
    torch.manual_seed(0)
    patches, words = torch.randn(4, 16).bfloat16(), torch.randn(30, 16).bfloat16()
    plain = matching_pursuit(patches, words, 4)
    with torch.autocast("cpu", torch.bfloat16):
        cast = matching_pursuit(patches, words, 4)
    assert torch.equal(plain.atoms, cast.atoms) and torch.equal(plain.coefficients, cast.coefficients)
    assert torch.equal(plain.atoms, matching_pursuit(patches.double(), words.double(), 4).atoms)
    assert matching_pursuit(patches[:0], words, 4).atoms.shape == (0, 4)


def test_errors():
    with pytest.raises(ValueError, match="stop_at, a share of the squared length, in"):
        matching_pursuit(rows([1, 2]), rows([1, 0]), 1, stop_at=1.0)
    with pytest.raises(ValueError, match="one width D"):
        matching_pursuit(rows([1, 2]), rows([1, 0, 0]), 1)
    with pytest.raises(ValueError, match="NaN"):
        matching_pursuit(rows([1, float("nan")]), rows([1, 0]), 1)
