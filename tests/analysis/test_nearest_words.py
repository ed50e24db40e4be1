"""Nearest words against NumPy, over tile borders."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llava_pat.analysis import tiles
from llava_pat.analysis.nearest_words import nearest_words


@pytest.mark.parametrize("tile_numbers, tile_words", [(1 << 24, 4096), (64, 7), (1, 1), (64, 3)])
def test_equals_numpy_whatever_the_tiles(monkeypatch, tile_numbers, tile_words):
    monkeypatch.setattr(tiles, "TILE_NUMBERS", tile_numbers)
    monkeypatch.setattr(tiles, "TILE_WORDS", tile_words)
    random = np.random.default_rng(0)
    patches, words = random.normal(size=(3, 5, 8)), random.normal(size=(23, 8)) * random.uniform(0.01, 9, (23, 1))
    cosine = (patches @ words.T) / np.linalg.norm(patches, axis=-1)[..., None] / np.linalg.norm(words, axis=-1)
    order = np.argsort(-cosine, axis=-1)[..., :4]
    values, numbers = nearest_words(torch.tensor(patches), torch.tensor(words), k=4)
    assert values.dtype == torch.float64 and np.array_equal(numbers.numpy(), order)
    assert np.allclose(values.numpy(), np.take_along_axis(cosine, order, -1), atol=1e-12)


def test_tiles_stay_within_their_bound(monkeypatch):
    monkeypatch.setattr(tiles, "TILE_WORDS", 50)
    monkeypatch.setattr(tiles, "TILE_NUMBERS", 1000)
    sizes = []

    def score(rows: slice, columns: slice) -> torch.Tensor:
        sizes.append((rows.stop - rows.start, columns.stop - columns.start))
        return torch.zeros(sizes[-1])

    tiles.best_words(score, 90, 333, 10, 5)
    assert max(p * v for p, v in sizes) == 1000 and sum(p * v for p, v in sizes) == 90 * 333


def test_only_kept_words_are_named():
    words = torch.eye(4)
    keep = torch.tensor([False, True, True, False])
    values, numbers = nearest_words(torch.tensor([[9.0, 2, 1, 0]]), words, k=2, keep=keep)
    assert numbers.tolist() == [[1, 2]] and values[0, 0] > values[0, 1]
    with pytest.raises(ValueError, match="3 words per patch asked for, of 2 that may be chosen"):
        nearest_words(torch.ones(1, 4), words, k=3, keep=keep)
    with pytest.raises(ValueError, match=r"`keep` must be bool \(4,\)"):
        nearest_words(torch.ones(1, 4), words, k=1, keep=keep[:3])


def test_low_precision_is_computed_in_fp32_under_autocast():
    torch.manual_seed(0)
    patches, words = torch.randn(6, 16).bfloat16(), torch.randn(9, 16).bfloat16()
    values, numbers = nearest_words(patches, words, k=3)
    with torch.autocast("cpu", torch.bfloat16):
        cast = nearest_words(patches, words, k=3)
    assert values.dtype == torch.float32 and torch.equal(cast[0], values) and torch.equal(cast[1], numbers)
    assert torch.allclose(values, nearest_words(patches.double(), words.double(), k=3)[0].float(), atol=1e-6)


def test_edges():
    values, numbers = nearest_words(torch.zeros(2, 0, 4), torch.eye(4), k=2)
    assert values.shape == numbers.shape == (2, 0, 2)
    assert nearest_words(torch.zeros(1, 4), torch.eye(4), k=1)[0].item() == 0.0
    with pytest.raises(ValueError, match=r"one width D and V >= 1, got \(1, 3\) and \(4, 4\)"):
        nearest_words(torch.ones(1, 3), torch.eye(4))
    with pytest.raises(ValueError, match=r"words \(2, 4\) hold NaN"):
        nearest_words(torch.ones(1, 4), torch.full((2, 4), float("nan")))
