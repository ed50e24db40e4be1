"""Projectors from the vision tower's width to the language model's, named and initialised as LLaVA's.

Source: llava/model/multimodal_projector/builder.py (haotian-liu/LLaVA at c121f04): plain `nn.Linear` modules, so
torch's own default initialisation (uniform in +-1/sqrt(fan_in), biases too), not Hugging Face's N(0, 0.02) with zero
biases.
"""

from __future__ import annotations

import re

from torch import nn

_MLP = re.compile(r"mlp([1-9][0-9]*)x_gelu")


def build_projector(kind: str, vision_width: int, hidden_size: int) -> nn.Module:
    """A module [..., Dv] -> [..., D].

    kind: `linear`; `mlp{N}x_gelu` with N >= 1 Linear layers (at places 0, 2, 4 ... of a Sequential, GELU between, which
    gives LLaVA's key names); `identity`, without parameters, for equal widths only.
    Raises ValueError for another kind, or for `identity` between two widths.
    """
    if vision_width < 1 or hidden_size < 1:
        raise ValueError(
            f"a projector needs positive widths, got vision_width {vision_width} and hidden_size {hidden_size}"
        )
    if kind == "linear":
        return nn.Linear(vision_width, hidden_size)
    if kind == "identity":
        if vision_width != hidden_size:
            raise ValueError(
                f"projector 'identity' cannot change the width: the vision tower gives {vision_width}, the language "
                f"model takes {hidden_size}. Use 'linear' or 'mlp2x_gelu'."
            )
        return nn.Identity()
    match = _MLP.fullmatch(kind)
    if match is None:
        raise ValueError(
            f"unknown projector {kind!r}. Known: 'linear', 'mlp{{N}}x_gelu' (such as 'mlp2x_gelu'), 'identity'."
        )
    layers: list[nn.Module] = [nn.Linear(vision_width, hidden_size)]
    for _ in range(int(match.group(1)) - 1):
        layers += [nn.GELU(), nn.Linear(hidden_size, hidden_size)]
    return nn.Sequential(*layers)
