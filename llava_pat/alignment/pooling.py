"""From patches and label tokens to one vector per region, in fp32 and without an [R, N, D] tensor.

Letters of the shapes: see llava_pat/types.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from llava_pat.types import AlignmentInputs, PatchRegions

EPS = 1e-6  # below this length a vector has no direction; keeps the gradient of a zero vector finite


def full_precision(reference: Tensor) -> torch.autocast:
    """Context in which matmuls stay fp32 on the device of `reference`: HF Trainer's bf16 is autocast."""
    return torch.autocast(device_type=reference.device.type, enabled=False)


def unit(vectors: Tensor) -> Tensor:
    """[..., D] -> fp32 [..., D] of length 1 (shorter where the input is shorter than EPS)."""
    return F.normalize(vectors.float(), dim=-1, eps=EPS)


def rows_by_image(image: Tensor, images: int) -> list[Tensor]:
    """Which rows belong to each image: `image` [R] int64 -> `images` index tensors, in order, empty ones included.

    Raises:
        ValueError: a region names an image that the batch does not have.
    """
    counts = torch.bincount(image, minlength=images).tolist()
    if len(counts) > images:
        raise ValueError(f"a region belongs to image {len(counts) - 1} of the batch, which has {images} images")
    return list(torch.argsort(image, stable=True).split(counts)) if images else []


def check_regions(regions: PatchRegions, patch_embeds: Tensor) -> None:
    """Raises ValueError when regions and patches cannot belong together (dtype or patch grid)."""
    if regions.coverage.dtype != torch.float32:
        raise ValueError(
            f"region coverage is {regions.coverage.dtype}, the contract says torch.float32: a cast of the batch "
            f"(DeepSpeed's bf16 does one) moves coverage across min_coverage; keep it out of that cast"
        )
    if regions.coverage.shape[1] != patch_embeds.shape[1]:
        raise ValueError(
            f"regions were laid on {regions.coverage.shape[1]} patches, the tower gives {patch_embeds.shape[1]} per "
            f"image; build the data set with the tower's image size and patch size"
        )


def region_vectors(patch_embeds: Tensor, weights: Tensor, image: Tensor) -> Tensor:
    """Weighted mean of the patches of each region's image.

    Args:
        patch_embeds: [I, N, D], any float dtype.
        weights: [R, N] >= 0, for instance the coverage; each row must have a positive sum.
        image: [R] int64.

    Returns:
        fp32 [R, D], with gradient to `patch_embeds`.
    """
    if not len(image):
        return patch_embeds.new_zeros((0, patch_embeds.shape[-1]), dtype=torch.float32)
    with full_precision(patch_embeds):
        mass = weights.float().sum(-1, keepdim=True)
        if bool((mass <= 0).any()):
            row = int((mass.squeeze(-1) <= 0).nonzero()[0])
            raise ValueError(f"region {row} of {len(image)} in the batch covers no patch; drop and count such regions")
        weights = weights.float() / mass
        groups = rows_by_image(image, patch_embeds.shape[0])
        # one [R_i, N] x [N, D] product per image: gathering patches per region would need R * N * D numbers
        parts = [weights[rows] @ patch_embeds[i].float() for i, rows in enumerate(groups) if len(rows)]
        return torch.cat(parts)[torch.argsort(torch.cat(groups))]


def word_vectors(embeds: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens of each text: [R, L, D], bool [R, L] -> fp32 [R, D]."""
    tokens = mask.sum(-1, keepdim=True)
    if bool((tokens == 0).any()):
        row = int((tokens.squeeze(-1) == 0).nonzero()[0])
        raise ValueError(f"label {row} of {len(mask)} in the batch has no tokens; the data set must refuse such labels")
    return embeds.float().masked_fill(~mask.unsqueeze(-1), 0.0).sum(-2) / tokens


def embed_texts(inputs: AlignmentInputs, ids: Tensor, mask: Tensor) -> Tensor:
    """Word vector of each text: int64 [R, L], bool [R, L] -> fp32 [R, D] without gradient (the words are given).

    R may be 0. `embed_words` is called exactly once whatever there is: under ZeRO-3 the call gathers a sharded weight,
    and a rank that skipped it would leave the others waiting.
    """
    if not len(ids):
        inputs.embed_words(torch.zeros((1, 1), dtype=torch.int64, device=inputs.patch_embeds.device))
        return torch.zeros((0, inputs.patch_embeds.shape[-1]), device=inputs.patch_embeds.device)
    return word_vectors(inputs.embed_words(ids).detach(), mask)


def label_vectors(inputs: AlignmentInputs) -> Tensor:
    """Word vector of each region's label: fp32 [R, D], as `embed_texts`; R may be 0."""
    regions = inputs.regions
    if regions is None:
        nothing = torch.zeros((0, 1), dtype=torch.int64, device=inputs.patch_embeds.device)
        return embed_texts(inputs, nothing, nothing.bool())
    return embed_texts(inputs, regions.label_ids, regions.label_mask)
