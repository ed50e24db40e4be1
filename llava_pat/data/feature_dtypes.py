"""Features of a frozen tower in fewer bytes, and how far they are then from what the tower gave.

    float32, bfloat16, float16   rounded to the nearest
    int8                         round(x / scale), a scale per position: its largest value / 127

The error of a position is |stored - given| / |given|, lengths of vectors of Dv values. Letters as in types.py; N counts
the class token where it is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

FEATURES, SCALES = "features", "scales"
_DTYPES = {
    "bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "int8": torch.int8,
}  # fmt: skip
_LEVELS = 127


def bytes_of_image(positions: int, width: int, dtype: str) -> int:
    """What the features [N, Dv] of one image take."""
    scales = torch.float32.itemsize * positions if dtype == "int8" else 0
    return positions * width * _DTYPES[dtype].itemsize + scales


def pack(features: Tensor, dtype: str) -> dict[str, Tensor]:
    """features [I, N, Dv] -> tensors of the stored kind: `features`, and for int8 `scales` float32 [I, N].

    ValueError for values that are not finite, or that float16 cannot hold.
    """
    if not bool(torch.isfinite(features).all()):
        raise ValueError("the vision tower gives features that are NaN or infinite")
    if dtype == "int8":
        values = features.float()
        scales = values.abs().amax(-1) / _LEVELS
        steps = values / scales.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(-1)
        return {FEATURES: steps.round().clamp(-_LEVELS, _LEVELS).to(torch.int8), SCALES: scales}
    packed = features.to(_DTYPES[dtype])
    if not bool(torch.isfinite(packed).all()):
        raise ValueError(f"features reach {float(features.abs().max()):.3g}, which {dtype} cannot hold; take bfloat16")
    return {FEATURES: packed}


def unpack(packed: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
    """What `pack` gave, of any leading dimensions, as features of `dtype`."""
    if SCALES in packed:
        return (packed[FEATURES].float() * packed[SCALES].unsqueeze(-1)).to(dtype)
    return packed[FEATURES].to(dtype)


def relative_errors(features: Tensor, packed: dict[str, Tensor]) -> Tensor:
    """Of every position, float32 [I, N]; 0 where the tower gave 0."""
    given = features.float()
    lost = (unpack(packed, torch.float32) - given).norm(dim=-1)
    return lost / given.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
