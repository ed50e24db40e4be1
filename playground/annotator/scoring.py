"""Predicted regions against exact ones, as COCO's evaluation matches them at one IoU, and the patches stage 1 reads.

Regions match within an image and a label: best score first, each takes the region of its label that it overlaps most
and that nobody has, at an IoU of at least the threshold (pycocotools' COCOeval; a test compares).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from pycocotools import mask as coco

from llava_pat.data.geometry import Geometry
from llava_pat.data.regions import placed_regions, to_mask
from llava_pat.types import ImageRegions

LABELLED = 0.25
"""Share of a patch that a region covers, for the patch to have its label: the alignment report's."""


@dataclass
class Tally:
    """Sums over regions, or over patches."""

    exact: int = 0
    predicted: int = 0
    right: int = 0
    """Regions that match; patches with the same label in both."""
    overlap: float = 0.0
    """Sum of the IoU of regions that match."""

    def __iadd__(self, other: Tally) -> Tally:
        self.exact += other.exact
        self.predicted += other.predicted
        self.right += other.right
        self.overlap += other.overlap
        return self

    @property
    def recall(self) -> float:
        """Of what there is, how much is found; nan where there is nothing."""
        return self.right / self.exact if self.exact else float("nan")

    @property
    def precision(self) -> float:
        """Of what is found, how much is there; nan where nothing is found."""
        return self.right / self.predicted if self.predicted else float("nan")

    @property
    def mean_overlap(self) -> float:
        """IoU of a region that matches; nan where none does."""
        return self.overlap / self.right if self.right else float("nan")


@dataclass
class Score:
    """By label; and the patches of all."""

    regions: defaultdict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    patches: Tally = field(default_factory=Tally)

    def over(self, labels: Sequence[str]) -> Tally:
        """These labels together."""
        total = Tally()
        for label in labels:
            total += self.regions[label]
        return total


def match(overlaps: np.ndarray, threshold: float) -> list[float]:
    """IoU [predicted, exact], best score first -> the IoU of every match."""
    free = np.ones(overlaps.shape[1], bool)
    found = []
    for row in overlaps:
        best = int(np.where(free, row, -1.0).argmax()) if len(row) else -1
        if best >= 0 and free[best] and row[best] >= threshold:
            free[best] = False
            found.append(float(row[best]))
    return found


def score_image(exact: ImageRegions, predicted: ImageRegions | None, threshold: float, score: Score) -> None:
    """Adds one image's regions. predicted: best first, as annotation writes them; None: none were found."""
    by_label: defaultdict[str, tuple[list, list]] = defaultdict(lambda: ([], []))
    for side, regions in enumerate((exact, predicted)):
        for region in () if regions is None else regions.regions:
            mask = to_mask(region, exact.height, exact.width)
            by_label[region.label][side].append(coco.encode(np.asfortranarray(mask)))
    for label, (there, found) in by_label.items():
        overlaps = np.zeros((len(found), len(there)))
        if found and there:
            overlaps[:] = coco.iou(found, there, [0] * len(there))
        matches = match(overlaps, threshold)
        score.regions[label] += Tally(len(there), len(found), len(matches), sum(matches))


def score_patches(
    exact: ImageRegions, predicted: ImageRegions | None, geometry: Geometry, patch_size: int, score: Score
) -> None:
    """Adds one image's patches, after the geometry of its pixels."""
    there, found = (patch_labels(regions, geometry, patch_size) for regions in (exact, predicted))
    right = sum(1 for a, b in zip(there, found, strict=True) if a is not None and a == b)
    score.patches += Tally(sum(label is not None for label in there), sum(label is not None for label in found), right)


def patch_labels(regions: ImageRegions | None, geometry: Geometry, patch_size: int) -> list[str | None]:
    """By patch, row by row: of the region that covers most of it; None where none covers LABELLED of it."""
    labels: list[str | None] = [None] * (geometry.size // patch_size) ** 2
    best = np.full(len(labels), LABELLED)
    for region, _, row in () if regions is None else placed_regions(regions, geometry, patch_size):
        coverage = row.numpy()
        for place in np.flatnonzero(coverage >= best):
            labels[place] = region.label
        best = np.maximum(best, np.nextafter(coverage, 2.0))  # of two that cover as much, the first stays
    return labels
