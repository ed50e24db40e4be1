"""Similarity of visual and text tokens inside the language model, layer by layer.

Source: the implicit multimodal alignment (IMA) score as its published code computes it: per layer, the hidden states of
a sequence's visual tokens are averaged, then these over the sequences; the same for text tokens; the score is the
cosine of the two means. Images and texts need not belong together.
B sequences, T tokens, S layers; other letters: see llava_pat/types.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class IMASimilarity:
    """Streaming: add the hidden states of a batch at a time, read the result at the end."""

    def __init__(self) -> None:
        self.counts = torch.zeros(2, dtype=torch.float64)
        """Sequences with visual tokens, and with text tokens."""
        self.sums: Tensor | None = None
        """fp64 [S, 2, D] on the CPU: per layer the sum over sequences of their visual and of their text mean."""

    @torch.no_grad()
    def update(self, hidden_states: Sequence[Tensor], visual: Tensor, text: Tensor) -> None:
        """Add sequences.

        Args:
            hidden_states: S tensors [B, T, D], the language model's (the first: its input embeddings).
            visual: [B, T] bool, the image's positions; text: [B, T] bool, the text's. Padding is in neither. A
                sequence without the one or the other counts for the other only.

        Raises:
            ValueError: shapes that do not fit or differ from before, a position in both, NaN or infinite values.
        """
        if bool((visual & text).any()):
            raise ValueError(f"{int((visual & text).sum())} positions are marked as visual and as text")
        masks = torch.stack([visual, text])  # [2, B, T]
        tokens = masks.sum(-1, keepdim=True).clamp_min(1)
        sums = []
        for number, hidden in enumerate(hidden_states):
            if hidden.shape[:2] != visual.shape:
                raise ValueError(f"layer {number} is {tuple(hidden.shape)}, the masks {tuple(visual.shape)}")
            with torch.autocast(device_type=hidden.device.type, enabled=False):
                # padding may hold anything, NaN included: filled, not multiplied by 0
                parts = [hidden.double().masked_fill(~mask.unsqueeze(-1), 0.0).sum(1) for mask in masks]
                sums.append((torch.stack(parts) / tokens).sum(1))
        batch = torch.stack(sums).cpu()
        if not bool(torch.isfinite(batch).all()):
            raise ValueError("hidden states hold NaN or infinite values")
        if self.sums is not None and self.sums.shape != batch.shape:
            raise ValueError(
                f"layers and width are {batch.shape[0]}, {batch.shape[2]}; before they were {self.sums.shape[0]}, "
                f"{self.sums.shape[2]}"
            )
        self.sums = batch if self.sums is None else self.sums + batch
        self.counts += masks.any(-1).sum(-1).double().cpu()

    def result(self) -> Tensor:
        """Cosine of the two means of each layer, fp64 [S] in [-1, 1]; the score in one number is their mean.

        ValueError without a visual or without a text token.
        """
        if self.sums is None or not bool((self.counts > 0).all()):
            seen = self.counts.int().tolist()
            raise ValueError(f"IMA needs visual and text tokens; sequences with each so far: {seen[0]} and {seen[1]}")
        means = self.sums / self.counts.unsqueeze(-1)
        return F.cosine_similarity(means[:, 0], means[:, 1], dim=-1)
