"""The rows that a checkpoint has to be better than: what each puts in the projector's place.

    random_projector     the same architecture with new weights
    mean_vector          every patch is one vector: the mean of the checkpoint's own patches
    mean_word            every patch is one vector: the mean of the labels' words
    linear_ridge         a linear map from features to words in closed form, by ridge regression
    linear_procrustes    the same by an orthogonal map (Procrustes)

The means and the maps are fitted on other images than those that are measured (--fit_data_path): labelled patches with
the mean of their labels' word vectors. Letters: see llava_pat/types.py.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llava_pat.analysis.baselines import LinearFit, constant_patches
from llava_pat.data.collate import patch_regions
from llava_pat.data.words import mean_vectors
from llava_pat.evaluation.alignment.measure import Project
from llava_pat.evaluation.alignment.models import Subject
from llava_pat.types import DataError, PatchRegions

RANDOM, MEAN_VECTOR, MEAN_WORD = "random_projector", "mean_vector", "mean_word"
RIDGE, PROCRUSTES = "linear_ridge", "linear_procrustes"
TITLES = {
    RANDOM: "random projector",
    MEAN_VECTOR: "mean patch",
    MEAN_WORD: "mean word",
    RIDGE: "linear map, ridge",
    PROCRUSTES: "linear map, Procrustes",
}
NOTES = {
    RANDOM: "the same architecture with new random weights",
    MEAN_VECTOR: "every patch is the mean of the checkpoint's patches",
    MEAN_WORD: "every patch is the mean of the labels' word vectors",
    RIDGE: "least squares with a ridge from features to word vectors, fitted on other images",
    PROCRUSTES: "orthogonal map between z-scored features and word vectors, fitted on other images",
}


@dataclass(frozen=True)
class Fitted:
    """What the fitting images gave."""

    mean_patch: Tensor  # [D]
    mean_word: Tensor | None  # [D]; None with fewer than two labelled patches
    linear: LinearFit | None
    images: int
    patches: int  # labelled ones


@torch.inference_mode()
def fit_controls(
    subject: Subject, batches: Iterable[Mapping[str, Tensor]], min_coverage: float, with_maps: bool
) -> Fitted:
    """One pass over the fitting images; sums only. with_maps: also what does not depend on the projector."""
    model = subject.model
    total = torch.zeros(model.hidden_size, dtype=torch.float64, device=subject.device)
    words = torch.zeros_like(total)
    linear = LinearFit(model.vision_width, model.hidden_size, subject.device) if with_maps else None
    rows = images = labelled = 0
    for batch in batches:
        features = model.encode_images(batch["pixel_values"].to(subject.device, subject.dtype))
        patches = model.project(features)
        total += patches.double().sum((0, 1))
        rows += patches.shape[0] * patches.shape[1]
        images += len(features)
        regions = patch_regions(batch)
        if linear is None or regions is None or not len(regions.image):
            continue
        image, patch, targets = label_targets(subject, regions, min_coverage)
        linear.update(features[image, patch], targets)
        words += targets.double().sum(0)
        labelled += len(targets)
    if not images:
        raise DataError("there is no image to fit the controls on")
    if not bool(torch.isfinite(total).all()):
        raise ValueError(
            f"its projector makes NaN or infinite patches in {subject.dtype}; if it did not diverge, say --dtype fp32"
        )
    if labelled < 2:  # a map needs a spread
        return Fitted((total / rows).float(), None, None, images, 0)
    return Fitted((total / rows).float(), (words / labelled).float(), linear, images, labelled)


def label_targets(subject: Subject, regions: PatchRegions, min_coverage: float) -> tuple[Tensor, Tensor, Tensor]:
    """Labelled patches and what a linear map should make of them: the mean of their labels' word vectors.

    Returns image numbers [P], patch numbers [P], vectors [P, D] fp32, on the model's device.
    """
    covers = ((regions.coverage > 0) & (regions.coverage >= min_coverage)).float().to(subject.device)  # [R, N]
    ids, mask = regions.label_ids.to(subject.device), regions.label_mask.to(subject.device)
    vectors = mean_vectors(subject.model.embed_words, ids, mask)  # [R, D]
    of_image = torch.nn.functional.one_hot(regions.image.to(subject.device)).float()  # [R, I]
    count = of_image.T @ covers  # [I, N]
    image, patch = (count > 0).nonzero(as_tuple=True)
    weights = of_image[:, image] * covers[:, patch]  # [R, P]
    return image, patch, (weights.T @ vectors) / count[image, patch].unsqueeze(-1)


def renew_projector(projector: nn.Module, seed: int) -> nn.Module:
    """A copy with new weights, drawn as torch draws them for a new layer (and as LLaVA leaves them)."""
    renewed = copy.deepcopy(projector)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in renewed.modules():
            if isinstance(layer, nn.Linear):
                fresh = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
                layer.load_state_dict(fresh.state_dict())
    return renewed


def control_rows(subject: Subject, fitted: Fitted, seed: int) -> dict[str, Project]:
    """Row name -> what stands in the projector's place; without labelled patches only the random projector."""
    model = subject.model
    random = renew_projector(model.projector, seed)
    dtype = next((parameter.dtype for parameter in random.parameters()), subject.dtype)
    rows: dict[str, Project] = {RANDOM: lambda features: random(features.to(dtype))}
    if fitted.mean_word is not None:
        rows[MEAN_WORD] = constant_patches(fitted.mean_word)
        rows[RIDGE] = fitted.linear.ridge()
        rows[PROCRUSTES] = fitted.linear.procrustes()
    return rows
