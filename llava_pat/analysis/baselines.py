"""Rows that a projector has to be better than: one vector for every patch, and a linear map in closed form.

Sources: the maps are those of SITTA (arXiv 2307.05591): both sides z-scored per dimension, then ridge regression
(Hoerl, Kennard 1970) or orthogonal Procrustes (Schoenemann 1966; for two widths, a map with orthonormal rows or
columns), and the z-score of the words undone. SITTA pairs text features with words in CLIP's joint space; here labelled
patches are paired with the mean of their labels' words, so it works with the very features that the projector takes.
(The third control, a projector of the same architecture with random weights, needs the architecture, not this file.)
P patches; other letters: see llava_pat/types.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def constant_patches(vector: Tensor) -> Callable[[Tensor], Tensor]:
    """A "projector" that makes every patch `vector` [D] (the mean of all patches, or of all words).

    The control for cosines: whatever it reaches needs no look at the image. [..., Dv] -> [..., D] in fp32.
    """
    if vector.dim() != 1 or not bool(torch.isfinite(vector).all()):
        raise ValueError(f"expected one finite vector [D], got {tuple(vector.shape)}")
    return lambda features: vector.to(features.device, torch.float32).expand(*features.shape[:-1], -1)


@dataclass(frozen=True)
class LinearMap:
    """features @ weight + offset."""

    weight: Tensor  # [Dv, D] fp64
    offset: Tensor  # [D] fp64

    def __call__(self, features: Tensor) -> Tensor:
        """[..., Dv] -> fp32 [..., D] (fp64 for fp64)."""
        dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
        weight, offset = self.weight.to(features.device, dtype), self.offset.to(features.device, dtype)
        with torch.autocast(device_type=features.device.type, enabled=False):
            return features.to(dtype) @ weight + offset


class LinearFit:
    """Closed-form maps from features to words, from sums only: patches are added a batch at a time and not kept.

    Keeps [Dv, Dv] and [Dv, D] in fp64 on `device`: 42 MB for 1024 -> 4096. Two parts of the data may be fitted
    apart: the sums add up.
    """

    def __init__(self, vision_width: int, hidden_size: int, device: torch.device | str = "cpu") -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        self.rows = 0
        self.x, self.y, self.yy = zeros(vision_width), zeros(hidden_size), zeros(hidden_size)
        self.xx, self.xy = zeros(vision_width, vision_width), zeros(vision_width, hidden_size)

    @torch.no_grad()
    def update(self, features: Tensor, targets: Tensor) -> None:
        """Add patches [P, Dv] and where each should go [P, D]."""
        if features.dim() != 2 or features.shape[1] != len(self.x) or targets.shape != (len(features), len(self.y)):
            raise ValueError(
                f"expected features [P, {len(self.x)}] and targets [P, {len(self.y)}], "
                f"got {tuple(features.shape)} and {tuple(targets.shape)}"
            )
        if not bool(torch.isfinite(features).all()) or not bool(torch.isfinite(targets).all()):
            raise ValueError("features or targets hold NaN or infinite values")
        x, y = features.to(self.x.device, torch.float64), targets.to(self.x.device, torch.float64)
        with torch.autocast(device_type=x.device.type, enabled=False):
            self.rows += len(x)
            self.x += x.sum(0)
            self.y += y.sum(0)
            self.yy += y.square().sum(0)
            self.xx += x.T @ x
            self.xy += x.T @ y

    @torch.no_grad()
    def ridge(self, alpha: float = 1.0, standardise: bool = True) -> LinearMap:
        """argmin |Y - X W|^2 + alpha |W|^2 on centred (and, with `standardise`, z-scored) X and Y.

        alpha: SITTA's 1; 0 is ordinary least squares, the smallest W where features are linearly dependent.
        ValueError: alpha < 0, fewer than two patches.
        """
        if alpha < 0:
            raise ValueError(f"alpha is {alpha}; a ridge cannot be negative")
        xx, xy, scales = self._centred(standardise)
        if alpha:
            eye = torch.eye(len(xx), dtype=xx.dtype, device=xx.device)
            return self._map(torch.linalg.solve(xx + alpha * eye, xy), scales)
        return self._map(torch.linalg.pinv(xx, rtol=1e-10, hermitian=True) @ xy, scales)

    @torch.no_grad()
    def procrustes(self, standardise: bool = True) -> LinearMap:
        """The W with orthonormal columns (D <= Dv) or rows (Dv <= D) that makes tr(W^T X^T Y) greatest.

        For equal widths, the rotation that minimises |Y - X W|. X and Y as in `ridge`; ValueError for fewer than two
        patches.
        """
        _, xy, scales = self._centred(standardise)
        left, _, right = torch.linalg.svd(xy, full_matrices=False)
        return self._map(left @ right, scales)

    def _centred(self, standardise: bool) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        if self.rows < 2:
            raise ValueError(f"a linear map needs at least two labelled patches, there are {self.rows}")
        mean_x, mean_y = self.x / self.rows, self.y / self.rows
        xx = self.xx - self.rows * torch.outer(mean_x, mean_x)
        xy = self.xy - self.rows * torch.outer(mean_x, mean_y)
        if not standardise:
            return xx, xy, (torch.ones_like(mean_x), torch.ones_like(mean_y))
        scale_x = _deviation(self.xx.diagonal() / self.rows, mean_x)
        scale_y = _deviation(self.yy / self.rows, mean_y)
        return xx / torch.outer(scale_x, scale_x), xy / torch.outer(scale_x, scale_y), (scale_x, scale_y)

    def _map(self, weight: Tensor, scales: tuple[Tensor, Tensor]) -> LinearMap:
        scale_x, scale_y = scales
        weight = weight * scale_y / scale_x.unsqueeze(-1)
        return LinearMap(weight, (self.y - self.x @ weight) / self.rows)


def _deviation(mean_square: Tensor, mean: Tensor) -> Tensor:
    """Standard deviation per dimension (divided by the count); 1 where it is rounding, so that nothing is blown up."""
    variance = mean_square - mean.square()
    return torch.where(variance > 1e-12 * mean_square, variance, 1.0).sqrt()
