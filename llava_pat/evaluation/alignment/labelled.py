"""The measures over labelled patches of one row: cosine, hits and ranks, histograms, PatchDis, the table of labels."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llava_pat.analysis.patch_alignment import PatchAlignment
from llava_pat.analysis.patchdis import PatchDis, patch_classes, region_classes
from llava_pat.evaluation.alignment.histogram import CosineHistogram
from llava_pat.evaluation.alignment.readings import Readings
from llava_pat.evaluation.alignment.views import Labelled, View

_TILE = 1024  # patches whose cosines with the vocabulary exist at a time


class LabelMeasures:
    """PatchDis is taken facet by facet (kind, colour, ...; the whole vocabulary where there are none): a region is of
    the class that its label names in the facet, if it names one. The mean IoU is over the classes of all facets that
    occur, once over patches that have a class, once ("_background") over all patches, none being read as background.
    """

    def __init__(self, readings: Readings, min_coverage: float) -> None:
        self.min_coverage, self.readings = min_coverage, readings
        self.vocabulary = readings.words.vocabulary
        self.units = F.normalize(readings.word_vectors, dim=-1)
        self.entries = PatchAlignment(readings.word_vectors, self.vocabulary.facets)
        self.labels = PatchAlignment(readings.label_vectors)
        self.histogram = CosineHistogram()
        self.facets = [list(columns) for columns in self.vocabulary.facets.values()]
        self.facets = self.facets or [list(range(len(self.vocabulary.words)))]
        self.classes = [PatchDis(readings.word_vectors[columns]) for columns in self.facets]
        self.scenes = [PatchDis(readings.word_vectors[columns], background=-1.0) for columns in self.facets]

    def update(self, view: View, patch_embeds: Tensor) -> None:
        """Add a batch's labelled patches, of patch_embeds [I, N, D]."""
        if view.regions is None:
            return
        self._classify(view, patch_embeds)
        if len(view.labels.image):
            self.labels.update(_chosen(view.labels, patch_embeds), view.labels.targets)
        if not len(view.entries.image):
            return
        patches, targets = _chosen(view.entries, patch_embeds), view.entries.targets
        self.entries.update(patches, targets)
        for some, right in zip(patches.split(_TILE), targets.split(_TILE), strict=True):
            self.histogram.update(F.normalize(some.float(), dim=-1) @ self.units.T, right)

    def result(self) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Nothing when no patch was labelled. patch_cosine and hit_label_at_1 are about the labels as they stand,
        the other hits and ranks about the vocabulary's entries."""
        if not self.entries.sums[0]:
            return {}, {}
        found = self.entries.result()
        labels = self.labels.result()
        metrics = {"labelled_patches": found.pop("patches")} | {k: v for k, v in found.items() if k != "mean_rank"}
        metrics["patch_cosine"], metrics["hit_label_at_1"] = labels["patch_cosine"], labels["hit_at_1"]
        gap = self.histogram.gap()
        if gap is not None:
            metrics["cosine_gap"] = gap
        for facets, ending in ((self.classes, ""), (self.scenes, "_background")):
            seen = torch.cat([classes.iou() for classes in facets])
            if bool((~seen.isnan()).any()):
                metrics[f"patchdis_miou{ending}"] = float(seen.nanmean())
        table = {name: column.numpy() for name, column in self.entries.labels().items()}
        arrays = self.histogram.arrays() | {
            "rank_counts": self.entries.ranks().numpy(),
            "label_words": np.array(self.vocabulary.words),
            "label_patches": table["patches"].astype(np.int64),
            "label_cosine": table["patch_cosine"],
            "label_hit_at_1": table["hit_at_1"],
            "label_iou": self._iou(),
        }
        return metrics, arrays

    def _classify(self, view: View, patch_embeds: Tensor) -> None:
        """PatchDis of a batch, facet by facet. Images without annotations have no background either."""
        regions, images = view.regions, len(patch_embeds)
        targets = self.readings.words.region_targets(regions)
        annotated = torch.zeros(images, dtype=torch.bool)
        annotated[regions.image.cpu()] = True
        patches = patch_embeds[annotated.to(patch_embeds.device)].float().flatten(0, 1)
        for columns, classes, scenes in zip(self.facets, self.classes, self.scenes, strict=True):
            of_regions = region_classes(targets[:, columns])
            found = patch_classes(
                regions.coverage.cpu(), regions.image.cpu(), of_regions, images, len(columns), self.min_coverage
            )
            found = found[annotated].flatten().to(patches.device)
            classes.update(patches, found)
            scenes.update(patches, found)

    def _iou(self) -> np.ndarray:
        """[V], NaN where no patch is of the class; an entry of two facets has its first one's."""
        iou = np.full(len(self.vocabulary.words), np.nan)
        for columns, classes in zip(reversed(self.facets), reversed(self.classes), strict=True):
            iou[columns] = classes.iou().numpy()
        return iou


def _chosen(labelled: Labelled, patch_embeds: Tensor) -> Tensor:
    return patch_embeds[labelled.image, labelled.patch].float()
