"""Patch-aligned training: pull what a region's patches project to towards the words of its label.

After the idea of arXiv 2505.17316 (patch-aligned training). Only its abstract was at hand, so the formula below is
this project's definition, with switches for the readings that the abstract leaves open; no number here is the paper's.
Letters of the shapes: see llava_pat/types.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from llava_pat.alignment.base import AlignmentObjective, require_choice
from llava_pat.alignment.labels import LABELS, REQUIRED, check_patch_words, regions_of_words
from llava_pat.alignment.pooling import (
    EPS,
    check_regions,
    full_precision,
    label_vectors,
    region_vectors,
    rows_by_image,
    unit,
)
from llava_pat.types import AlignmentInputs, AlignmentLoss, PatchRegions, PatchWords

UNITS = ("region", "patch")
MULTI_LABEL = ("pairs", "mean", "best")
DISTANCES = ("cosine",)


class PatchAlignedTraining(AlignmentObjective):
    """Sum of 1 - cos(vision vector, word vector) over items.

    With x[p] a projected patch, c[r, p] the coverage of patch p by region r (0 where it is below `min_coverage`), and
    e[r] the mean of the language model's input embeddings over the tokens of r's label:

    - unit "region": an item is a region; its vision vector is sum_p c[r, p] x[p] / sum_p c[r, p].
    - unit "patch", multi_label "pairs": an item is a pair of a patch and a region that covers it.
    - unit "patch", multi_label "mean": an item is a labelled patch; its word vector is
      sum_r c[r, p] e[r] / |e[r]| over the regions that cover it.
    - unit "patch", multi_label "best": an item is a labelled patch; its word vector is the nearest of its labels'.

    Regions (or patches) with no coverage left are no items. Everything is fp32 inside.

    Metrics (sums over the same items): `patch_cosine`, and with unit "region" also `region_cosine`. For a region,
    patch_cosine is the coverage-weighted mean of its single patches' cosines: the mean vector can be near a word
    while the patches are not.

    Args:
        unit: what an item is.
        multi_label: what happens to a patch under several regions; read only with unit "patch".
        min_coverage: share of a patch, in [0, 1], that a region must cover to count there; 0 keeps every touched patch.
        distance: "cosine", so far the only one.
        labels: "regions", labels with masks; "clip", the patch words that SEA learns from: each word of an image is a
            region, and c[r, p] its share of the scores of patch p's candidates (labels.py).
        top_n: candidates used of a patch, 1 or more; read with labels "clip".
        schedule: see AlignmentObjective.
    """

    requires = frozenset({"regions"})

    def __init__(
        self,
        *,
        unit: Literal["region", "patch"] = "region",
        multi_label: Literal["pairs", "mean", "best"] = "pairs",
        min_coverage: float = 0.0,
        distance: Literal["cosine"] = "cosine",
        labels: Literal["regions", "clip"] = "regions",
        top_n: int = 10,
        schedule: Literal["linear", "constant"] = "linear",
    ) -> None:
        super().__init__(schedule=schedule)
        if not 0.0 <= min_coverage <= 1.0:
            raise ValueError(f"min_coverage is {min_coverage}; a share of a patch lies in [0, 1]")
        if top_n < 1:
            raise ValueError(f"top_n is {top_n}; a patch needs at least 1 candidate")
        self.requires = self.requires_with({"labels": labels})
        self.labels = labels
        self.top_n = top_n
        self.unit = require_choice("unit", unit, UNITS)
        self.multi_label = require_choice("multi_label", multi_label, MULTI_LABEL)
        self.min_coverage = min_coverage
        self.distance = require_choice("distance", distance, DISTANCES)

    @classmethod
    def requires_with(cls, keywords: Mapping[str, Any]) -> frozenset[str]:
        return frozenset({REQUIRED[require_choice("labels", keywords.get("labels", "regions"), LABELS)]})

    def forward(self, inputs: AlignmentInputs) -> AlignmentLoss:
        with full_precision(inputs.patch_embeds):
            if self.labels == "clip" and inputs.patch_words is not None:
                check_patch_words(inputs.patch_words, inputs.patch_embeds)
            regions = self._regions(inputs.regions, inputs.patch_words)
            words = label_vectors(replace(inputs, regions=regions))
            zero = self.anchor(inputs)
            if regions is None or not len(regions.image):
                names = ("region_cosine", "patch_cosine") if self.unit == "region" else ("patch_cosine",)
                return AlignmentLoss(zero, zero.detach().clone(), {name: zero.detach().clone() for name in names})
            check_regions(regions, inputs.patch_embeds)
            coverage = self._effective(regions)
            sums = self._region_sums if self.unit == "region" else self._patch_sums
            total, metrics = sums(inputs.patch_embeds, words, coverage, regions.image)
            return AlignmentLoss(total + zero, self._count(regions), metrics)

    def count(self, regions: PatchRegions | None, patch_words: PatchWords | None) -> Tensor | None:
        if self.labels == "clip" and patch_words is None:
            return None  # words that are computed in the step itself
        return self._count(self._regions(regions, patch_words))

    def _regions(self, regions: PatchRegions | None, patch_words: PatchWords | None) -> PatchRegions | None:
        """The regions to learn from."""
        if self.labels == "regions":
            return regions
        return None if patch_words is None else regions_of_words(patch_words, self.top_n)

    def _count(self, regions: PatchRegions | None) -> Tensor:
        if regions is None:
            return torch.zeros(())
        kept = self._effective(regions) > 0
        if self.unit == "region":
            return kept.any(-1).sum().float()
        if self.multi_label == "pairs":
            return kept.sum().float()
        region, patch = kept.nonzero(as_tuple=True)
        distinct = torch.unique(regions.image[region] * kept.shape[1] + patch)
        return torch.tensor(float(len(distinct)), device=kept.device)

    def _effective(self, regions: PatchRegions) -> Tensor:
        """Coverage [R, N] with what lies below the threshold set to 0."""
        return regions.coverage * (regions.coverage >= self.min_coverage)

    def _region_sums(
        self, patch_embeds: Tensor, words: Tensor, coverage: Tensor, image: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        kept = (coverage > 0).any(-1)
        words, coverage, image = words[kept], coverage[kept], image[kept]
        cosine = (unit(region_vectors(patch_embeds, coverage, image)) * unit(words)).sum(-1)
        with torch.no_grad():
            # the same pooling of patches at length 1, the length put into the weights: no second [I, N, D]
            length = torch.linalg.vector_norm(patch_embeds, dim=-1, dtype=torch.float32).clamp_min(EPS)  # [I, N]
            scaled = coverage / length[image]
            mean_unit = region_vectors(patch_embeds, scaled, image) * (scaled.sum(-1) / coverage.sum(-1)).unsqueeze(-1)
            patch_cosine = (mean_unit * unit(words)).sum(-1)
        metrics = {"region_cosine": cosine.detach().sum(), "patch_cosine": patch_cosine.sum()}
        return (1.0 - cosine).sum(), metrics

    def _patch_sums(
        self, patch_embeds: Tensor, words: Tensor, coverage: Tensor, image: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        totals, cosines = [], []
        for index, rows in enumerate(rows_by_image(image, patch_embeds.shape[0])):
            if not len(rows):
                continue
            weights = coverage[rows]  # [r, N]
            patches, labels = unit(patch_embeds[index]), unit(words[rows])  # [N, D], [r, D]
            kept = weights > 0
            if self.multi_label == "pairs":
                cosine = labels @ patches.T  # [r, N]
            elif self.multi_label == "best":
                cosine = (labels @ patches.T).masked_fill(~kept, -2.0).amax(0)  # [N]; -2 is below any cosine
            else:
                cosine = (unit(weights.T @ labels) * patches).sum(-1)  # [N]
            chosen = kept if self.multi_label == "pairs" else kept.any(0)
            totals.append(torch.where(chosen, 1.0 - cosine, 0.0).sum())
            cosines.append(torch.where(chosen, cosine.detach(), 0.0).sum())
        return torch.stack(totals).sum(), {"patch_cosine": torch.stack(cosines).sum()}
