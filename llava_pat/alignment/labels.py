"""Labels of one kind as labels of the other: masks as candidate words of patches, and candidate words as masks.

So an objective made for regions can learn from words that a CLIP model saw in a patch, and the other way round. Letters
of the shapes: llava_pat/types.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llava_pat.types import PatchRegions, PatchWords

LABELS = ("regions", "clip")
REQUIRED = {"regions": "regions", "clip": "patch_words"}
"""What data each kind of label comes from, in the words of AlignmentObjective.requires."""


def words_of_regions(regions: PatchRegions, images: int, min_coverage: float) -> PatchWords:
    """The labels of the regions over a patch as its candidate words; their score is the coverage.

    Regions of one label on one image are one word, whose score is the largest of their coverages. Coverages below
    `min_coverage`, and of 0, do not count. n is the largest number of labels that a patch has, at least 1.

    Args:
        regions: of the batch; R may be 0.
        images: how many images the batch has.
    """
    patches, device = regions.coverage.shape[1], regions.coverage.device
    if not len(regions.image):
        words = torch.full((images, patches, 1), -1, dtype=torch.int64, device=device)
        return PatchWords(words, torch.zeros(words.shape, device=device), regions.label_ids, regions.label_mask)
    masked = torch.where(regions.label_mask, regions.label_ids, -1)
    texts, word = torch.unique(masked, dim=0, return_inverse=True)
    kept = regions.coverage * (regions.coverage >= min_coverage)
    # One row for each word of each image, the largest coverage of its regions.
    pair, row = torch.unique(regions.image * len(texts) + word, return_inverse=True)
    scores = torch.zeros((len(pair), patches), device=device)
    scores.scatter_reduce_(0, row.unsqueeze(1).expand_as(kept), kept, "amax")
    image, word = pair // len(texts), pair % len(texts)
    most = int(_by_image(scores > 0, image, images).amax()) if patches else 0
    found_words = torch.full((images, patches, max(most, 1)), -1, dtype=torch.int64, device=device)
    found_scores = torch.zeros(found_words.shape, device=device)
    for index in image.unique().tolist():
        own = image == index
        best, place = scores[own].T.sort(dim=1, descending=True, stable=True)  # [N, words of the image]
        best, place = best[:, :most], place[:, :most]
        found_scores[index, :, : best.shape[1]] = best
        found_words[index, :, : best.shape[1]] = torch.where(best > 0, word[own][place], -1)
    return PatchWords(found_words, found_scores, texts.clamp_min(0), texts >= 0)


def regions_of_words(words: PatchWords, top_n: int) -> PatchRegions:
    """The candidate words of an image's patches as regions, one for each word of each image.

    A region's coverage of a patch is the word's share of the patch's scores, among its first `top_n` candidates: those
    of a patch add up to 1. R is the number of different (image, word).
    """
    device, patches = words.words.device, words.words.shape[1]
    scores = words.scores[..., :top_n]
    candidates = words.words[..., :top_n]
    shares = scores / scores.sum(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)
    image, patch, place = ((candidates >= 0) & (scores > 0)).nonzero(as_tuple=True)
    word = candidates[image, patch, place]
    pair, row = torch.unique(image * len(words.word_ids) + word, return_inverse=True)
    coverage = torch.zeros((len(pair), patches), device=device)
    coverage.index_put_((row, patch), shares[image, patch, place], accumulate=True)
    chosen = pair % max(len(words.word_ids), 1)
    return PatchRegions(
        coverage=coverage,
        image=pair // max(len(words.word_ids), 1),
        label_ids=words.word_ids[chosen],
        label_mask=words.word_mask[chosen],
    )


def check_patch_words(words: PatchWords, patch_embeds: Tensor) -> None:
    """Raises ValueError when candidate words and patches cannot belong together (dtype, images or patch grid)."""
    if words.scores.dtype != torch.float32:
        raise ValueError(
            f"scores of the patches' words are {words.scores.dtype}, the contract says torch.float32: a cast of the "
            "batch (DeepSpeed's bf16 does one) rounds them; keep them out of that cast"
        )
    if words.words.shape[:2] != patch_embeds.shape[:2]:
        there, here = (" x ".join(map(str, shape[:2])) for shape in (words.words.shape, patch_embeds.shape))
        raise ValueError(
            f"the batch has words for {there} patches (images x patches), the tower gives {here}; make the label file "
            "with this tower's image size and patch size"
        )


def _by_image(kept: Tensor, image: Tensor, images: int) -> Tensor:
    """bool [rows, N], [rows] -> int64 [images, N]: how many rows of each image hold at each patch."""
    counts = torch.zeros((images, kept.shape[1]), dtype=torch.int64, device=kept.device)
    return counts.index_add_(0, image, kept.long())
