"""Keys and values of a decoder, with room for tokens to come."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

_LEAST_ROOM = 32  # positions


class RoomyLayer(DynamicLayer):
    """A DynamicLayer that allocates ahead, so that a new token is written and not everything copied for it.

    keys and values are views, [B, H, T, d], of buffers that have room for a fifth more positions.
    """

    def __init__(self) -> None:
        super().__init__()
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """New states [B, H, t, d] -> all of them so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held = self.get_seq_length()
        length = held + key_states.shape[-2]
        if self._buffers is None or self._buffers[0].shape[-2] < length:
            self._make_room(held, length, key_states, value_states)
        self._buffers[0][..., held:length, :] = key_states
        self._buffers[1][..., held:length, :] = value_states
        self._show(length)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only these rows of the batch, in this order, each as often as it is named."""
        if self._buffers is not None:
            length = self.get_seq_length()
            self._buffers = (self._buffers[0][indices], self._buffers[1][indices])
            self._show(length)

    def _make_room(self, held: int, length: int, key_states: Tensor, value_states: Tensor) -> None:
        room = length + max(_LEAST_ROOM, length // 5)
        buffers = []
        for old, new in ((self.keys, key_states), (self.values, value_states)):
            buffer = new.new_zeros(*new.shape[:-2], room, new.shape[-1])
            if held:
                buffer[..., :held, :] = old
            buffers.append(buffer)
        self._buffers = (buffers[0], buffers[1])

    def _show(self, length: int) -> None:
        self.keys, self.values = (buffer[..., :length, :] for buffer in self._buffers)


def roomy_cache(config: PretrainedConfig) -> tuple[DynamicCache, bool]:
    """(an empty cache for a decoder with this config, whether all its layers look at all positions).

    Layers that look back a window only, or that have no keys at all, stay transformers' own.
    """
    cache = DynamicCache(config=config)
    plain = [type(layer) is DynamicLayer for layer in cache.layers]
    cache.layers = [RoomyLayer() if is_plain else layer for layer, is_plain in zip(cache.layers, plain, strict=True)]
    return cache, bool(plain) and all(plain)


def keep_rows(cache: DynamicCache, rows: list[int], device: torch.device) -> None:
    """The cache's batch becomes these of its rows."""
    cache.batch_select_indices(torch.tensor(rows, device=device))
