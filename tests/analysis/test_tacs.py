"""TACS against loops, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llava_pat.analysis.tacs import tacs


@pytest.mark.parametrize("k", [1, 4, 12])
def test_equals_loops(k):
    random = np.random.default_rng(k)
    patches, words = random.normal(size=(12, 5)), random.normal(size=(7, 5)) * 9
    nearest = []
    for patch in patches:
        nearest.append(max(patch @ word / np.linalg.norm(patch) / np.linalg.norm(word) for word in words))
    expected = np.mean(sorted(nearest)[-k:])
    assert tacs(torch.tensor(patches), torch.tensor(words), k).item() == pytest.approx(expected, abs=1e-12)


def test_by_hand():
    patches = torch.tensor([[1.0, 0], [3, 4], [0, -2]])
    words = torch.tensor([[2.0, 0], [0, 1]])
    # best cosines: 1, 0.8, 0
    assert [tacs(patches, words, k).item() for k in (1, 2, 3)] == pytest.approx([1.0, 0.9, 0.6])
    assert tacs(patches.bfloat16(), words.bfloat16(), 2).dtype == torch.float32


def test_autocast_changes_nothing():
    torch.manual_seed(0)
    patches, words = torch.randn(10, 64), torch.randn(4, 64)
    plain = tacs(patches, words)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tacs(patches, words), plain)


def test_errors():
    with pytest.raises(ValueError, match="best 10 patches, but the image has 3"):
        tacs(torch.ones(3, 2), torch.ones(1, 2))
    with pytest.raises(ValueError, match="V >= 1"):
        tacs(torch.ones(3, 2), torch.ones(0, 2), k=1)
    with pytest.raises(ValueError, match="NaN"):
        tacs(torch.full((3, 2), float("nan")), torch.ones(1, 2), k=1)
