"""Modality distance: how far a projected patch is from the nearest word, in the plain distance of the space.

Source: SEA (arXiv 2408.11813, eq. 5): the mean over patches of min over words of |x - w|. It falls when patches shrink
towards the words' cloud, whatever they mean: projected patches are often ten times as long as words, and then the
distance is about the patch's length. So the two mean lengths are reported with it.
P patches, V words; other letters: see llava_pat/types.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llava_pat.analysis.tiles import best_words, row_slices
from llava_pat.analysis.vectors import check_vectors, working_dtype

CANDIDATES = 4
"""Words measured again by subtraction: the fast search takes differences of squares, where fp32 may swap two."""


@torch.no_grad()
def nearest_word_distances(patch_embeds: Tensor, word_vectors: Tensor, keep: Tensor | None = None) -> Tensor:
    """min over words of |x - w| for each patch, a tile of patches and words at a time.

    Args:
        patch_embeds: [P, D]; word_vectors: [V, D]; keep: [V] bool, the words that count (None: all).

    Returns:
        fp32 (fp64 for fp64 input) [P].

    Raises:
        ValueError: widths that differ, no word, NaN or infinite values.
    """
    check_vectors(patch_embeds, word_vectors)
    dtype = working_dtype(patch_embeds, word_vectors)
    choices = len(word_vectors) if keep is None else int(keep.sum())

    def nearness(rows: slice, columns: slice) -> Tensor:
        words = word_vectors[columns].to(dtype)
        return patch_embeds[rows].to(dtype) @ words.T - words.square().sum(-1) / 2  # (|x|^2 - |x - w|^2) / 2

    with torch.autocast(device_type=patch_embeds.device.type, enabled=False):
        count, width = patch_embeds.shape
        k = max(1, min(CANDIDATES, choices))
        _, near = best_words(nearness, count, len(word_vectors), width, k, keep)
        distances = patch_embeds.new_zeros(count, dtype=dtype)
        for rows in row_slices(count, k * width):
            apart = patch_embeds[rows].to(dtype).unsqueeze(1) - word_vectors[near[rows]].to(dtype)
            distances[rows] = apart.norm(dim=-1).amin(-1)
    return distances


class ModalityDistance:
    """Streaming mean over patches, for words [V, D] of which `keep` [V] bool count (None: all)."""

    def __init__(self, word_vectors: Tensor, keep: Tensor | None = None) -> None:
        self.word_vectors, self.keep = word_vectors.detach(), keep
        self.sums = torch.zeros(3, dtype=torch.float64)
        """Patches, distances, lengths of patches; on the CPU, plain sums: all-reduce them in place."""

    @torch.no_grad()
    def update(self, patch_embeds: Tensor) -> None:
        """Add patches [..., D]; errors as in `nearest_word_distances`."""
        patch_embeds = patch_embeds.reshape(-1, patch_embeds.shape[-1])
        distance = nearest_word_distances(patch_embeds, self.word_vectors, self.keep)
        length = patch_embeds.to(distance.dtype).norm(dim=-1)
        sums = [distance.new_tensor(len(distance)).double(), distance.double().sum(), length.double().sum()]
        self.sums += torch.stack(sums).cpu()

    def result(self) -> dict[str, float]:
        """modality_distance, and the mean lengths |x| and |w|: visual_norm, word_norm. ValueError without a patch."""
        patches, distance, length = self.sums.tolist()
        if not patches:
            raise ValueError("modality distance of no patches: nothing was added")
        words = self.word_vectors if self.keep is None else self.word_vectors[self.keep]
        return {
            "modality_distance": distance / patches,
            "visual_norm": length / patches,
            "word_norm": float(torch.linalg.vector_norm(words, dim=-1, dtype=torch.float32).double().mean()),
        }
