"""TACS: how near the best patches of an image are to the words of its caption.

Source: SEA (arXiv 2408.11813), Token Alignment Cosine Score: the mean over the K patches that score highest of the
cosine to the nearest token of the caption, K = 10. There with hand-corrected captions of 100 COCO images; a number
depends on the captions, so compare checkpoints on one set only. Letters: see llava_pat/types.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llava_pat.analysis.vectors import check_vectors, unit_rows, working_dtype


@torch.no_grad()
def tacs(patch_embeds: Tensor, text_embeds: Tensor, k: int = 10) -> Tensor:
    """The score of one image; the metric is the mean over images.

    Args:
        patch_embeds: [N, D], the projector's output.
        text_embeds: [L, D], the language model's input embeddings of the caption's tokens, at least one.
        k: how many patches count, at most N.

    Returns:
        fp32 scalar (fp64 for fp64 input) in [-1, 1].

    Raises:
        ValueError: shapes that do not fit, k out of range, a caption without tokens, NaN or infinite vectors.
    """
    check_vectors(patch_embeds, text_embeds)
    if not 1 <= k <= len(patch_embeds):
        raise ValueError(f"TACS of the best {k} patches, but the image has {len(patch_embeds)}")
    dtype = working_dtype(patch_embeds, text_embeds)
    with torch.autocast(device_type=patch_embeds.device.type, enabled=False):
        cosine = unit_rows(patch_embeds, dtype) @ unit_rows(text_embeds, dtype).T
        return cosine.amax(-1).topk(k).values.mean()
