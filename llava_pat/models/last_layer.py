"""The last layer's feed-forward network at the positions whose hidden states are read, and at no others.

In training only what predicts a supervised token is read behind the last layer: of stage 1's 617 positions some 40. The
network looks at each position by itself, so the others can be left out. Attention cannot: it needs all keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

_NAME = "mlp"  # of a layer's feed-forward network, in nearly every decoder of transformers
_EXPERTS = {"experts", "router"}


class LastLayer:
    """Hooks on the last layer's feed-forward network. They do nothing but inside `only`."""

    def __init__(self, network: nn.Module) -> None:
        self._read: Tensor | None = None
        network.register_forward_pre_hook(self._leave_out)
        network.register_forward_hook(self._put_back)

    @classmethod
    def of(cls, llm: PreTrainedModel) -> LastLayer | None:
        """None where the last layer has no part of that name, or one that chooses among experts and says which."""
        layers = [module for module in llm.modules() if isinstance(module, GradientCheckpointingLayer)]
        networks = dict(layers[-1].named_children()) if layers else {}
        if _NAME not in networks or _EXPERTS & dict(networks[_NAME].named_children()).keys():
            return None
        return cls(networks[_NAME])

    @contextmanager
    def only(self, read: Tensor) -> Iterator[None]:
        """read bool [B, T]: elsewhere the network adds 0 to the hidden states. Not for a layer that is recomputed."""
        self._read = read
        try:
            yield
        finally:
            self._read = None

    def _leave_out(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._read is None:
            return None
        hidden, *rest = inputs
        return hidden[self._read].unsqueeze(0), *rest  # [1, K, D]

    def _put_back(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if self._read is None:
            return None
        whole = output.new_zeros(*self._read.shape, output.shape[-1])
        return whole.masked_scatter(self._read.unsqueeze(-1), output)
