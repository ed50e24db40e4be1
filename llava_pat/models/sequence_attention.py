"""Attention for sequences that lie end to end in one row: each by itself, in transformers' AttentionInterface.

S: positions of the row; T: of a sequence in it; H: heads, d: width of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from llava_pat.models.causal_attention import causal_attention, is_faster
from llava_pat.types import DataError

BY_SEQUENCE = "sdpa_by_sequence"
"""Name of `attend_by_sequence` among transformers' attention implementations."""

WAY_OUT = "train it with --padding_free False"


def attend_by_sequence(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    sequence_lengths: Sequence[int] | None = None,
    sliding_window: int | None = None,
    **keywords: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query [1, H, S, d], key and value [1, H or fewer, S, d] -> [1, S, H, d].

    As transformers' sdpa on each sequence by itself, or causal_attention.py where that is faster. transformers builds
    no mask for an implementation of ours. DataError when the boundaries did not come through the model's layers, or a
    mask came.
    """
    if attention_mask is not None:
        raise DataError(
            f"{type(module).__name__} builds an attention mask of its own, which may be more than causal; {WAY_OUT}"
        )
    if sequence_lengths is None:
        raise DataError(
            f"{type(module).__name__} was not told where sequences end: this language model does not hand keywords of "
            f"its forward to its attention; {WAY_OUT}"
        )
    # Split and not sliced: a slice's gradient is as long as the row.
    sequences = zip(*(states.split(sequence_lengths, dim=2) for states in (query, key, value)), strict=True)
    outputs = [_attend(module, *states, _window(states[0], sliding_window), keywords) for states in sequences]
    return torch.cat(outputs, dim=1), None


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, window: Tensor | None, keywords: dict[str, Any]
) -> Tensor:
    """One sequence -> [1, T, H, d]."""
    if window is None and _is_plain(module, keywords) and is_faster(query, key):
        scaling = keywords.get("scaling")
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return causal_attention(query, key, value, scale).transpose(1, 2)
    return sdpa_attention_forward(module, query, key, value, window, **keywords)[0]


def _is_plain(module: nn.Module, keywords: dict[str, Any]) -> bool:
    """Whether transformers' sdpa would be causal attention and nothing besides."""
    causal = keywords.get("is_causal")
    if causal is None:
        causal = module.is_causal if hasattr(module, "is_causal") else True
    return (
        causal
        and not any(keywords.get(name) for name in ("dropout", "softcap", "cache"))
        and (keywords.get("position_bias") is None)
    )


def _window(query: Tensor, sliding_window: int | None) -> Tensor | None:
    """bool [T, T], what each position sees under a sliding window; None where that is all before it."""
    length = query.shape[2]
    if sliding_window is None or length <= sliding_window:
        return None
    place = torch.arange(length, device=query.device)
    back = place.unsqueeze(1) - place
    return (back >= 0) & (back < sliding_window)


AttentionInterface.register(BY_SEQUENCE, attend_by_sequence)
