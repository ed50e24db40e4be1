"""SEA's measures of one projector: TACS over captions, and the distance to the nearest word."""

from __future__ import annotations

import torch
from torch import Tensor

from llava_pat.analysis.modality_distance import ModalityDistance
from llava_pat.analysis.tacs import tacs
from llava_pat.evaluation.alignment.readings import Readings
from llava_pat.evaluation.alignment.views import View

BEST = 10  # patches of an image that count for TACS (SEA)


class WordsNear:
    """TACS: mean over images whose caption has words. Distance: over the patches that the view sampled."""

    def __init__(self, readings: Readings) -> None:
        self.readings = readings
        self.distance = ModalityDistance(readings.piece_vectors)
        self.total, self.images = 0.0, 0

    def update(self, view: View, patch_embeds: Tensor, caption_vectors: Tensor) -> None:
        """Add images: patch_embeds [I, N, D], caption_vectors [I, L, D] of the view's captions."""
        best = min(BEST, patch_embeds.shape[1])
        for patches, words, real in zip(patch_embeds, caption_vectors, view.caption_mask, strict=True):
            if bool(real.any()):
                self.total += float(tacs(patches, words[real], best))
                self.images += 1
        rows = torch.arange(len(patch_embeds), device=patch_embeds.device).unsqueeze(1)
        self.distance.update(patch_embeds[rows, view.sampled])

    def result(self) -> dict[str, float]:
        """tacs, modality_distance, visual_norm, word_norm."""
        return ({"tacs": self.total / self.images} if self.images else {}) | self.distance.result()
