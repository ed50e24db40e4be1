"""Causal attention on a CPU in half precision, by blocks of matrix products: about half the time of torch's kernel.

torch's fused kernel for the CPU multiplies bf16 at a fraction of what its matrix products reach, above all backward
(docs/performance.md has the figures). Here a block of queries meets all keys up to its last one as one product, so that
of the masked half of the scores little is computed; the weights are kept for the backward pass. They take H T^2 / 2
numbers a sequence, which a CPU has room for and a GPU has not.

B: sequences, H: heads, T: positions, d: width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_BLOCK = 128  # queries: smaller ones save more of the masked half, larger ones multiply faster
_HALF = (torch.bfloat16, torch.float16)


def is_faster(query: Tensor, key: Tensor) -> bool:
    """Whether `causal_attention` is the better choice for these: in training, on a CPU, in half precision."""
    needs_gradient = torch.is_grad_enabled() and query.requires_grad
    return (
        query.device.type == "cpu"
        and _computed_in(query) in _HALF
        and needs_gradient
        and query.shape[2] == key.shape[2]
    )


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """query [B, H, T, d], key and value [B, H or a divisor of it, T, d] -> [B, H, T, d], in their dtype, or autocast's.

    Scores and weights are rounded to that dtype, as in transformers' eager attention.
    """
    query, key, value = (states.to(_computed_in(states)) for states in (query, key, value))
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    return _CausalBlocks.apply(query, key, value, scale)


def _computed_in(states: Tensor) -> torch.dtype:
    """As torch's attention decides: rotary positions leave fp32 behind where the weights that train are fp32."""
    kind = states.device.type
    autocast = torch.is_autocast_enabled(kind) and states.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if autocast else states.dtype


class _CausalBlocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        later = torch.ones(_BLOCK, _BLOCK, dtype=torch.bool, device=query.device).triu(1)
        outputs, kept = [], []
        for first, end in _blocks(query.shape[2]):
            scores = (query[:, :, first:end] * scale) @ key[:, :, :end].transpose(-1, -2)
            scores[..., first:].masked_fill_(later[: end - first, : end - first], float("-inf"))
            weights = scores.softmax(-1)
            kept.append(weights)
            outputs.append(weights @ value[:, :, :end])
        ctx.save_for_backward(query, key, value, *kept)
        ctx.scale = scale
        return torch.cat(outputs, dim=2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        to_query, to_key, to_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for (first, end), weights in zip(_blocks(query.shape[2]), kept, strict=True):
            part = gradient[:, :, first:end]
            to_value[:, :, :end] += weights.transpose(-1, -2) @ part
            to_weights = part @ value[:, :, :end].transpose(-1, -2)
            to_scores = torch._softmax_backward_data(to_weights, weights, -1, weights.dtype)
            to_query[:, :, first:end] = to_scores @ key[:, :, :end]
            to_key[:, :, :end] += to_scores.transpose(-1, -2) @ query[:, :, first:end]
        return to_query.mul_(ctx.scale), to_key.mul_(ctx.scale), to_value, None


def _blocks(positions: int) -> list[tuple[int, int]]:
    """(first, end) of each block of queries."""
    return [(first, min(first + _BLOCK, positions)) for first in range(0, positions, _BLOCK)]
