"""The IMA similarity against loops over sequences, streamed in parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llava_pat.analysis.ima import IMASimilarity


def test_equals_loops_and_adds_up():
    random = np.random.default_rng(0)
    layers = random.normal(size=(3, 5, 9, 4))
    kind = random.integers(0, 3, size=(5, 9))  # 0 padding, 1 visual, 2 text
    kind[1] = np.where(kind[1] == 1, 0, kind[1])  # no visual token
    kind[3] = np.where(kind[3] == 2, 1, kind[3])  # no text
    layers[:, kind == 0] = np.nan  # padding holds anything
    expected = []
    for hidden in layers:
        means = []
        for wanted in (1, 2):
            rows = [hidden[b][kind[b] == wanted].mean(0) for b in range(5) if (kind[b] == wanted).any()]
            means.append(np.mean(rows, axis=0))
        expected.append(means[0] @ means[1] / np.linalg.norm(means[0]) / np.linalg.norm(means[1]))
    similarity = IMASimilarity()
    for part in (slice(0, 2), slice(2, 5)):
        visual, text = (torch.tensor(kind[part] == wanted) for wanted in (1, 2))
        similarity.update([torch.tensor(hidden[part]) for hidden in layers], visual, text)
    assert similarity.counts.tolist() == [4, 4]
    assert np.allclose(similarity.result(), expected, atol=1e-12)


def test_by_hand():
    hidden = torch.tensor([[[2.0, 0], [0, 2], [5, 5], [0, 7]]])
    similarity = IMASimilarity()
    similarity.update([hidden], torch.tensor([[1, 1, 0, 0]]).bool(), torch.tensor([[0, 0, 0, 1]]).bool())
    assert similarity.result().tolist() == pytest.approx([0.5**0.5])  # (1, 1) against (0, 7)


def test_a_sequence_counts_once_however_long():
    # mean of means: (1, 0) from three tokens, (0, 1) from one
    hidden = torch.tensor([[[1.0, 0]] * 3 + [[1, 0]], [[0.0, 1]] + [[1, 0]] * 3])
    similarity = IMASimilarity()
    visual = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]]).bool()
    similarity.update([hidden.bfloat16()], visual, torch.tensor([[0, 0, 0, 1], [0, 0, 0, 0]]).bool())
    assert similarity.result().tolist() == pytest.approx([0.5**0.5])


def test_errors():
    ones, none = torch.ones(1, 2).bool(), torch.zeros(1, 2).bool()
    similarity = IMASimilarity()
    with pytest.raises(ValueError, match="sequences with each so far: 0 and 0"):
        similarity.result()
    similarity.update([torch.ones(1, 2, 3)], ones, none)
    with pytest.raises(ValueError, match="sequences with each so far: 1 and 0"):
        similarity.result()
    with pytest.raises(ValueError, match="layers and width are 2, 3; before they were 1, 3"):
        similarity.update([torch.ones(1, 2, 3)] * 2, ones, none)
    with pytest.raises(ValueError, match="2 positions are marked as visual and as text"):
        similarity.update([torch.ones(1, 2, 3)], ones, ones)
    with pytest.raises(ValueError, match=r"layer 0 is \(1, 4, 3\), the masks \(1, 2\)"):
        similarity.update([torch.ones(1, 4, 3)], ones, none)
    with pytest.raises(ValueError, match="NaN"):
        similarity.update([torch.full((1, 2, 3), float("nan"))], ones, none)
