"""PatchDis: can patches be told apart by class, with nothing but the class names' word vectors? Mean IoU of patches.

Each patch is read as the class whose word vector is nearest by cosine; the true class of a patch comes from masks
brought to the patch grid. After the metric of that name, which we know second hand: nearest class name per patch,
gathered per class, mIoU against masks scaled down to the grid. Its treatment of the background was not at hand: here it
is a switch. C classes, P patches; other letters: see llava_pat/types.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llava_pat.analysis.nearest_words import nearest_words

UNLABELLED = -1


def region_classes(region_targets: Tensor) -> Tensor:
    """The class of each region: bool [R, C] (Vocabulary.targets, perhaps one facet's columns) -> int64 [R].

    UNLABELLED where a region's label names no class, or more than one.
    """
    return torch.where(region_targets.sum(-1) == 1, region_targets.long().argmax(-1), UNLABELLED)


def patch_classes(
    coverage: Tensor, image: Tensor, region_class: Tensor, images: int, classes: int, min_coverage: float = 0.5
) -> Tensor:
    """The one class of each patch: the one that covers most of it.

    Regions of one class add up (at most to 1), so a patch between two cats is cat. Of classes that cover a patch
    equally, the lower number.

    Args:
        coverage: [R, N] in [0, 1]; image: [R] int64; region_class: [R] int64, UNLABELLED regions are passed over.
        images: I; classes: C.
        min_coverage: share of a patch that its class must cover at least (0: any share above 0).

    Returns:
        int64 [I, N], UNLABELLED where no class covers enough.
    """
    found = torch.full((images, coverage.shape[1]), UNLABELLED, dtype=torch.int64, device=coverage.device)
    numbers = torch.arange(classes, device=coverage.device).unsqueeze(-1)
    for row in range(images):  # one image at a time: [C, N] and not [I, C, N]
        mine = ((image == row) & (region_class != UNLABELLED)).nonzero().squeeze(-1)
        if not len(mine):
            continue
        share = torch.zeros(classes, coverage.shape[1], device=coverage.device)
        share.index_add_(0, region_class[mine], coverage[mine].float()).clamp_(max=1.0)
        most = share.amax(0)
        first = torch.where(share == most, numbers, classes).amin(0)
        found[row] = torch.where((most > 0) & (most >= min_coverage), first, UNLABELLED)
    return found


class PatchDis:
    """Streaming confusion matrix of patches.

    Args:
        class_vectors: [C, D].
        background: None: unlabelled patches are left out, and every patch is given a class. A cosine: unlabelled
            patches are the background, and a patch whose nearest class is below this cosine is read as background
            (-1: never, so that what is read into the background only lowers the classes' IoU).
    """

    def __init__(self, class_vectors: Tensor, background: float | None = None) -> None:
        self.class_vectors, self.background = class_vectors.detach(), background
        size = len(class_vectors) + 1
        self.confusion = torch.zeros(size, size, dtype=torch.float64)
        """[true, read] patches, the background last; on the CPU, plain sums: all-reduce it in place."""

    @torch.no_grad()
    def update(self, patch_embeds: Tensor, classes: Tensor) -> None:
        """Add patches [P, D] of true classes int64 [P], UNLABELLED or 0 ... C - 1."""
        last = len(self.class_vectors)
        if classes.shape != patch_embeds.shape[:1]:
            raise ValueError(f"patches {tuple(patch_embeds.shape)} need one class each, got {tuple(classes.shape)}")
        if len(classes) and not UNLABELLED <= int(classes.min()) <= int(classes.max()) < last:
            raise ValueError(f"classes run from {int(classes.min())} to {int(classes.max())}, there are {last}")
        if self.background is None:
            patch_embeds, classes = patch_embeds[classes != UNLABELLED], classes[classes != UNLABELLED]
        cosine, read = nearest_words(patch_embeds, self.class_vectors, k=1)
        read = read.squeeze(-1)
        if self.background is not None:
            read = torch.where(cosine.squeeze(-1) < self.background, last, read)
            classes = torch.where(classes == UNLABELLED, last, classes)
        pairs = torch.bincount(classes * (last + 1) + read, minlength=(last + 1) ** 2)
        self.confusion += pairs.view(last + 1, last + 1).double().cpu()

    def iou(self) -> Tensor:
        """IoU of each class, fp64 [C]; NaN for a class that no patch truly has."""
        return self._iou()[:-1]

    def result(self) -> dict[str, float]:
        """patchdis_miou: mean IoU over the classes that occur (never the background); patchdis_classes: how many;
        patchdis_accuracy: share of patches read rightly; patchdis_patches; with a background that occurs,
        patchdis_background_iou. ValueError when no patch of any class was added.
        """
        iou = self._iou()
        seen = iou[:-1][~iou[:-1].isnan()]
        if not len(seen):
            raise ValueError("PatchDis of no patches: none was added that has a class")
        result = {
            "patchdis_miou": float(seen.mean()),
            "patchdis_accuracy": float(self.confusion.diagonal().sum() / self.confusion.sum()),
            "patchdis_patches": float(self.confusion.sum()),
            "patchdis_classes": float(len(seen)),
        }
        if not bool(iou[-1].isnan()):
            result["patchdis_background_iou"] = float(iou[-1])
        return result

    def _iou(self) -> Tensor:
        hits, true, read = self.confusion.diagonal(), self.confusion.sum(1), self.confusion.sum(0)
        return torch.where(true > 0, hits / (true + read - hits), torch.nan)
