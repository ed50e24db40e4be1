"""Distances to the nearest word against SciPy's, also where fp32 squares would mislead."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llava_pat.analysis import tiles
from llava_pat.analysis.modality_distance import ModalityDistance, nearest_word_distances


@pytest.mark.parametrize("tile_words, tile_numbers", [(4096, 1 << 24), (7, 64), (3, 1)])
def test_equals_scipy_whatever_the_tiles(monkeypatch, tile_words, tile_numbers):
    distance = pytest.importorskip("scipy.spatial.distance")
    monkeypatch.setattr(tiles, "TILE_WORDS", tile_words)
    monkeypatch.setattr(tiles, "TILE_NUMBERS", tile_numbers)
    random = np.random.default_rng(0)
    patches, words = random.normal(size=(15, 6)) * 3, random.normal(size=(20, 6))
    keep = random.random(20) < 0.6
    for mask in (None, keep):
        expected = distance.cdist(patches, words if mask is None else words[mask]).min(-1)
        found = nearest_word_distances(
            torch.tensor(patches), torch.tensor(words), None if mask is None else torch.tensor(mask)
        )
        assert found.dtype == torch.float64 and np.allclose(found, expected, atol=1e-12)


def test_long_vectors_close_together_in_fp32():
    distance = pytest.importorskip("scipy.spatial.distance")
    torch.manual_seed(0)
    words = 50 + torch.randn(300, 64)
    patches = words[:100] + 0.01 * torch.randn(100, 64)
    words = torch.cat([words, words + 0.01 * torch.randn(300, 64)])  # squares of 160,000, which differ by 0.01
    expected = distance.cdist(patches.double(), words.double()).min(-1)
    assert np.allclose(nearest_word_distances(patches, words), expected, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert np.allclose(nearest_word_distances(patches, words), expected, rtol=1e-4)


def test_streamed_means_by_hand():
    measure = ModalityDistance(torch.tensor([[3.0, 4], [0, 1], [9, 9]]), torch.tensor([True, True, False]))
    measure.update(torch.tensor([[[3.0, 4], [0, 3]]]))  # distances 0, 2; lengths 5, 3
    measure.update(torch.tensor([[9.0, 12]]))  # 10; 15
    assert measure.result() == {
        "modality_distance": pytest.approx(4.0),
        "visual_norm": pytest.approx(23 / 3),
        "word_norm": pytest.approx(3.0),
    }


def test_edges():
    words = torch.eye(3)
    assert nearest_word_distances(torch.zeros(0, 3), words).shape == (0,)
    with pytest.raises(ValueError, match="nothing was added"):
        ModalityDistance(words).result()
    with pytest.raises(ValueError, match="of 0 that may be chosen"):
        nearest_word_distances(torch.ones(1, 3), words, torch.zeros(3).bool())
    with pytest.raises(ValueError, match="one width D"):
        ModalityDistance(words).update(torch.ones(1, 2))
