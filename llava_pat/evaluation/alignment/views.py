"""One batch of the measuring run, as every row sees it: what does not depend on the projector, worked out once.

P labelled patches of the batch, V entries, U labels; other letters: see llava_pat/types.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from llava_pat.analysis.patch_alignment import labelled_patches
from llava_pat.data.collate import patch_regions
from llava_pat.evaluation.alignment.models import Subject
from llava_pat.evaluation.alignment.readings import Readings
from llava_pat.types import IGNORE_INDEX, PatchRegions


@dataclass(frozen=True)
class Labelled:
    """The batch's patches that carry an entry of a word list."""

    image: Tensor  # [P] int64: which of the batch's I images
    patch: Tensor  # [P] int64
    targets: Tensor  # [P, V] bool


@dataclass(frozen=True)
class View:
    """A batch on the model's device."""

    places: list[int]  # of its I images in the material
    features: Tensor  # [I, N, Dv]
    regions: PatchRegions | None
    entries: Labelled | None  # by the object vocabulary
    labels: Labelled | None  # by the labels themselves
    caption_ids: Tensor  # [I, L] int64, padded with 0: the caption's tokens that are words
    caption_mask: Tensor  # [I, L] bool; a row may be all False
    sampled: Tensor  # [I, q] int64: patches for the measures that read with all words
    decomposed: list[tuple[int, int, frozenset[int]]]  # (image, patch, ids of its labels' tokens) for the pursuit
    batch: Mapping[str, Tensor]


@dataclass(frozen=True)
class Sampling:
    """Which patches the costly measures look at: the same ones in every row and every checkpoint."""

    seed: int
    min_coverage: float
    per_image: int  # patches of an image
    decomposed_per_image: int  # labelled patches of an image

    def order(self, place: int, patches: int) -> Tensor:
        """A random order of an image's patches."""
        return torch.randperm(patches, generator=torch.Generator().manual_seed((self.seed << 32) + place))


@torch.inference_mode()
def view_of(batch: Mapping[str, Tensor], subject: Subject, readings: Readings, sampling: Sampling) -> View:
    """Encodes a batch of the collator and finds its labelled patches."""
    places = batch["sample_index"].tolist()
    features = subject.model.encode_images(batch["pixel_values"].to(subject.device, subject.dtype))
    patches = features.shape[1]
    orders = torch.stack([sampling.order(place, patches) for place in places])
    caption_ids, caption_mask = _captions(batch["labels"], readings.silent_ids)
    regions, entries, labels, decomposed = patch_regions(batch), None, None, []
    if regions is not None and readings.words is not None:
        entries = _labelled(regions, readings.words.region_targets(regions), sampling, subject.device)
        labels = _labelled(regions, readings.labels.region_targets(regions), sampling, subject.device)
        decomposed = _decomposed(regions, labels, orders, sampling)
    return View(
        places, features, regions, entries, labels, caption_ids.to(subject.device), caption_mask.to(subject.device),
        orders[:, : sampling.per_image].to(subject.device), decomposed, batch,
    )  # fmt: skip


def _captions(labels: Tensor, silent_ids: frozenset[int]) -> tuple[Tensor, Tensor]:
    """labels [I, T] -> the supervised ids that are words [I, L], and which of them are real."""
    rows = [[i for i in row.tolist() if i != IGNORE_INDEX and i not in silent_ids] for row in labels]
    ids = torch.zeros(len(rows), max(1, *map(len, rows)), dtype=torch.int64)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for row, words in enumerate(rows):
        ids[row, : len(words)], mask[row, : len(words)] = torch.tensor(words, dtype=torch.int64), True
    return ids, mask


def _labelled(regions: PatchRegions, targets: Tensor, sampling: Sampling, device: torch.device) -> Labelled:
    image, patch, right = labelled_patches(regions.coverage, regions.image, targets, sampling.min_coverage)
    return Labelled(image.to(device), patch.to(device), right.to(device))


def _decomposed(
    regions: PatchRegions, labels: Labelled, orders: Tensor, sampling: Sampling
) -> list[tuple[int, int, frozenset[int]]]:
    """The first labelled patches in each image's random order, with the tokens of all labels on them."""
    found = []
    image, patch = labels.image.cpu(), labels.patch.cpu()
    for row, order in enumerate(orders):
        carries = torch.zeros(orders.shape[1], dtype=torch.bool)
        carries[patch[image == row]] = True
        for place in order[carries[order]][: sampling.decomposed_per_image].tolist():
            share = regions.coverage[:, place]
            over = (regions.image == row) & (share > 0) & (share >= sampling.min_coverage)
            tokens = regions.label_ids[over][regions.label_mask[over]].tolist()
            found.append((row, place, frozenset(tokens)))
    return found
