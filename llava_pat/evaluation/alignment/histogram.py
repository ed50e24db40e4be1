"""Cosines of labelled patches with right and with wrong words, as two histograms that stream."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

BINS = 200


class CosineHistogram:
    """Counts over (labelled patch, entry) pairs; V entries, P labelled patches.

    Edges are `BINS` + 1 equal steps from -1 to 1; a cosine on an edge counts above it, 1 in the last bin.
    """

    def __init__(self) -> None:
        self.right = torch.zeros(BINS, dtype=torch.int64)
        self.wrong = torch.zeros(BINS, dtype=torch.int64)
        self.sums = torch.zeros(2, dtype=torch.float64)

    def update(self, cosine: Tensor, targets: Tensor) -> None:
        """Add cosines [P, V] with targets [P, V] bool."""
        bins = ((cosine.double() + 1) * (BINS / 2)).floor().long().clamp_(0, BINS - 1)
        for counts, chosen, place in ((self.right, targets, 0), (self.wrong, ~targets, 1)):
            counts += torch.bincount(bins[chosen], minlength=BINS).cpu()
            self.sums[place] += cosine[chosen].double().sum().cpu()

    def gap(self) -> float | None:
        """Mean cosine of right pairs less that of wrong pairs; None when one of the two was never seen."""
        right, wrong = int(self.right.sum()), int(self.wrong.sum())
        return float(self.sums[0] / right - self.sums[1] / wrong) if right and wrong else None

    def arrays(self) -> dict[str, np.ndarray]:
        """cosine_edges [BINS + 1], cosine_right and cosine_wrong [BINS]."""
        edges = np.linspace(-1.0, 1.0, BINS + 1)
        return {"cosine_edges": edges, "cosine_right": self.right.numpy(), "cosine_wrong": self.wrong.numpy()}
