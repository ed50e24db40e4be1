"""The words nearest to a patch: read a projected patch with the language model's input embeddings.

Source: the read-out of SEA (arXiv 2408.11813, eq. 4: the word of the highest cosine), for any number of words.
P patches, V words; other letters: see llava_pat/types.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llava_pat.analysis.tiles import best_words
from llava_pat.analysis.vectors import check_vectors, unit_rows, working_dtype


@torch.no_grad()
def nearest_words(
    patch_embeds: Tensor, word_vectors: Tensor, k: int = 5, keep: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The k words of the highest cosine to each patch, a tile of patches and words at a time.

    Args:
        patch_embeds: [..., D]; word_vectors: [V, D]. fp64 is computed in fp64, anything else in fp32.
        k: words per patch, at most V.
        keep: [V] bool, the words that may be named (word_pieces.py makes one for a tokenizer's vocabulary).

    Returns:
        cosines [..., k] falling, word numbers [..., k] int64. A zero vector has cosine 0 to everything.

    Raises:
        ValueError: widths that differ, NaN or infinite values, k out of range.
    """
    patches = patch_embeds.reshape(-1, patch_embeds.shape[-1])
    check_vectors(patches, word_vectors)
    dtype = working_dtype(patches, word_vectors)

    def cosines(rows: slice, columns: slice) -> Tensor:
        return unit_rows(patches[rows], dtype) @ unit_rows(word_vectors[columns], dtype).T

    with torch.autocast(device_type=patches.device.type, enabled=False):
        values, words = best_words(cosines, len(patches), len(word_vectors), patches.shape[1], k, keep)
    shape = (*patch_embeds.shape[:-1], k)
    return values.reshape(shape), words.reshape(shape)
