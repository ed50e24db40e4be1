"""How fast this machine multiplies matrices: what a step's floating-point work is held against."""

from __future__ import annotations

import time

import torch

_SIDE = {"cpu": 2048, "cuda": 8192}  # large enough that the rate does not grow any more
_REPEATS = 7


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs a second of a product of two square matrices: the best of several, so a lower bound of what is possible."""
    side = _SIDE[device.type]
    left = torch.randn(side, side, device=device).to(dtype)
    right = torch.randn(side, side, device=device).to(dtype)
    left @ right  # kernels are chosen and loaded in the first one
    best = min(_seconds(left, right, device) for _ in range(_REPEATS))
    return 2 * side**3 / best


def _seconds(left: torch.Tensor, right: torch.Tensor, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    left @ right
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started
