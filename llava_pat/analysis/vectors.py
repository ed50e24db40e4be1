"""What the measures do with vectors before they measure: precision, length 1, checks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """fp64 if one of them is fp64, else fp32: half precision is never computed in."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def unit_rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[..., D] in `dtype`, each row at length 1; a zero row stays zero."""
    return F.normalize(x.to(dtype), dim=-1, eps=torch.finfo(dtype).tiny)


def check_vectors(patches: Tensor, words: Tensor) -> None:
    """ValueError unless [P, D] and [V, D] share D, V >= 1 and all numbers are finite."""
    if patches.dim() != 2 or words.dim() != 2 or patches.shape[1] != words.shape[1] or not len(words):
        raise ValueError(
            f"expected patches [P, D] and words [V, D] of one width D and V >= 1, "
            f"got {tuple(patches.shape)} and {tuple(words.shape)}"
        )
    for name, tensor in (("patches", patches), ("words", words)):
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} {tuple(tensor.shape)} hold NaN or infinite values")
