"""Von Neumann entropy of a set of vectors: how many directions they use, in nats.

Source: the standard definition H(rho) = -tr(rho ln rho) = -sum_i l_i ln l_i of a density matrix with eigenvalues l_i.
Here rho = Y^T Y / tr(Y^T Y), the rows of Y being the vectors at length 1 (and, with `centred`, minus their mean).
Each row at length 1: CLIP has a few patches of very large norm, and they alone would decide the result otherwise.
The definition is this project's; the one behind the figures of arXiv 2505.17316 was not at hand.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llava_pat.analysis.vectors import unit_rows, working_dtype


@torch.no_grad()
def von_neumann_entropy(x: Tensor, centred: bool = False) -> Tensor:
    """Entropy of the N rows of each matrix.

    Args:
        x: [..., N, D], finite. fp64 is computed in fp64, anything else in fp32. Zero rows count for nothing.
        centred: subtract the mean of the unit rows first (the common direction of all patches then does not count).

    Returns:
        [...] nats, between 0 and ln min(N, D) (centred: ln min(N - 1, D)); 0 when the rows have no spread at all.
    """
    return spectrum_entropy(von_neumann_spectrum(x, centred))


@torch.no_grad()
def von_neumann_spectrum(x: Tensor, centred: bool = False) -> Tensor:
    """Eigenvalues of the density matrix whose entropy `von_neumann_entropy` gives.

    Args:
        x, centred: as there.

    Returns:
        [..., min(N, D)] shares >= 0, falling, of sum 1; all 0 when the rows have no spread at all.
    """
    _check(x)
    with torch.autocast(device_type=x.device.type, enabled=False):
        rows = unit_rows(x, working_dtype(x))
        if centred:
            rows = rows - rows.mean(-2, keepdim=True)
        # the two Gram matrices share their non-zero eigenvalues: take the smaller one
        gram = rows @ rows.mT if x.shape[-2] <= x.shape[-1] else rows.mT @ rows
        return _shares(gram, noise=x.shape[-2] * (64 * torch.finfo(gram.dtype).eps) ** 2)


def spectrum_entropy(shares: Tensor) -> Tensor:
    """-sum l ln l over the last axis: [..., K] eigenvalue shares -> [...] nats."""
    return torch.special.entr(shares).sum(-1).clamp_min(0.0)


class PooledEntropy:
    """The same entropy over the patches of many images, which never sit in memory together.

    Keeps sum y y^T [D, D] and sum y [D] in fp64 (134 MB at D = 4096) on `device`, and works there.
    """

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.rows = 0
        self.second = torch.zeros(width, width, dtype=torch.float64, device=device)
        self.first = torch.zeros(width, dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Add vectors [..., D]."""
        if x.shape[-1] != len(self.first):
            raise ValueError(f"vectors have width {x.shape[-1]}, the accumulator was made for {len(self.first)}")
        if not x.numel():
            return
        flat = x.reshape(-1, x.shape[-1])
        _check(flat)
        with torch.autocast(device_type=self.second.device.type, enabled=False):
            # fp64 throughout: the mean is subtracted only at the end, from sums over very many rows
            rows = unit_rows(flat.to(self.second.device), torch.float64)
            self.rows += len(rows)
            self.second += rows.mT @ rows
            self.first += rows.sum(0)

    def result(self, centred: bool = False) -> float:
        """Entropy in nats of all vectors so far; ValueError when there were none."""
        return float(spectrum_entropy(self.spectrum(centred)))

    @torch.no_grad()
    def spectrum(self, centred: bool = False) -> Tensor:
        """Eigenvalue shares of all vectors so far: [D] fp64, falling, of sum 1 (all 0 without any spread).

        The slow part at D = 4096: where both are wanted, take `spectrum_entropy` of it and not `result` beside it.
        ValueError when there were no vectors.
        """
        if not self.rows:
            raise ValueError("entropy of no vectors: nothing was added")
        gram = self.second - torch.outer(self.first, self.first) / self.rows if centred else self.second
        # a sum of N terms is off by up to N times the rounding of one, and so is each entry of the Gram matrix
        return _shares(gram, noise=self.rows * max(64, self.rows) * torch.finfo(gram.dtype).eps)


def _check(x: Tensor) -> None:
    if x.dim() < 2 or 0 in x.shape[-2:]:
        raise ValueError(f"entropy needs [..., N, D] with N and D >= 1, the tensor is {tuple(x.shape)}")
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"entropy of a tensor {tuple(x.shape)} with NaN or infinite values is not defined")


def _shares(gram: Tensor, noise: float) -> Tensor:
    """Eigenvalues of gram / tr(gram), falling; a trace up to `noise` is rounding, not spread."""
    values = torch.linalg.eigvalsh(gram).flip(-1).clamp_min(0.0)  # rounding leaves tiny negative ones
    trace = values.sum(-1, keepdim=True)
    return torch.where(trace <= noise, 0.0, values / trace.clamp_min(torch.finfo(gram.dtype).tiny))
