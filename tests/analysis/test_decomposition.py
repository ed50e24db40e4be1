"""Scores of decompositions against sets and loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llava_pat.analysis.decomposition import DecompositionScores
from llava_pat.analysis.matching_pursuit import Decomposition, matching_pursuit


def test_by_hand():
    found = Decomposition(
        atoms=torch.tensor([[0, 1, 2], [3, -1, -1], [1, 0, -1], [2, 3, 0]]),
        coefficients=torch.tensor([[2.0, 1, -1], [1, 0, 0], [1, 0, 0], [1, 1, 1]]),
        explained=torch.tensor([[0.5, 0.6, 0.7], [0.9, 0.9, 0.9], [0.1, 0.2, 0.2], [0.5, 0.5, 0.6]]),
    )
    targets = torch.tensor(
        [
            [1, 0, 1, 0],  # 0 is right; 2 is, but with a minus: hit, recall 1/2, precision 1/2
            [1, 0, 0, 0],  # miss
            [1, 1, 0, 0],  # 1 is right; 0 ended at 0: hit, recall 1/2, precision 1
            [0, 0, 0, 0],  # unlabelled: energy only
        ]
    ).bool()
    whole = DecompositionScores(3)
    for part in (slice(0, 1), slice(1, 1), slice(1, 4)):
        some = Decomposition(found.atoms[part], found.coefficients[part], found.explained[part])
        whole.update(some, targets[part])
    assert whole.result() == {
        "omp_patches": 4,
        "omp_atoms": pytest.approx(9 / 4),
        "omp_explained_at_1": pytest.approx(0.5),
        "omp_explained_at_2": pytest.approx(0.55),
        "omp_explained_at_3": pytest.approx(0.6),
        "omp_labelled_patches": 3,
        "omp_several_patches": 2,
        "omp_hit": pytest.approx(2 / 3),
        "omp_recall": pytest.approx(1 / 3),
        "omp_precision": pytest.approx(0.5),
        "omp_recall_several": pytest.approx(0.5),
    }


@pytest.mark.parametrize("non_negative", [False, True])
def test_equals_sets(non_negative):
    torch.manual_seed(0)
    patches, words = torch.randn(50, 8), torch.randn(20, 8)
    found = matching_pursuit(patches, words, 4, stop_at=0.3, non_negative=non_negative)
    targets = torch.rand(50, 20) < 0.1
    hits, recall, precision, several = [], [], [], []
    for atoms, coefficients, row in zip(found.atoms, found.coefficients, targets, strict=True):
        shown = {int(a) for a, c in zip(atoms, coefficients, strict=True) if a >= 0 and c > 0}
        right = set(row.nonzero().squeeze(-1).tolist())
        if right:
            hits.append(bool(shown & right))
            recall.append(len(shown & right) / len(right))
            precision.append(len(shown & right) / len(shown) if shown else 0.0)
            several += [recall[-1]] if len(right) > 1 else []
    scores = DecompositionScores(4)
    scores.update(found, targets)
    result = scores.result()
    for name, values in {"hit": hits, "recall": recall, "precision": precision, "recall_several": several}.items():
        assert result[f"omp_{name}"] == pytest.approx(np.mean(values)), name
    assert result["omp_explained_at_4"] == pytest.approx(found.explained[:, -1].mean().item())
    assert result["omp_atoms"] == pytest.approx((found.atoms >= 0).sum().item() / 50)


def test_unlabelled_patches_alone_have_no_overlap():
    scores = DecompositionScores(1)
    scores.update(matching_pursuit(torch.eye(2), torch.eye(2), 1), torch.zeros(2, 2).bool())
    assert scores.result()["omp_labelled_patches"] == 0 and "omp_hit" not in scores.result()


def test_errors():
    found = matching_pursuit(torch.eye(2), torch.eye(2), 1)
    with pytest.raises(ValueError, match="nothing was added"):
        DecompositionScores(1).result()
    with pytest.raises(ValueError, match=r"atoms \(2, 1\) and targets \(2, 2\) do not fit \[P, 3\]"):
        DecompositionScores(3).update(found, torch.zeros(2, 2).bool())
    with pytest.raises(ValueError, match="atom 1 is outside the 1 words"):
        DecompositionScores(1).update(found, torch.zeros(2, 1).bool())
