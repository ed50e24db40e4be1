"""One pass over the images with one checkpoint: every measure of every row, streamed.

What is kept: [D, D] sums of the pooled entropies (134 MB a row at D = 4096, in fp64), a few sums a word, and two
numbers an image. No patch outlives its batch. Peak memory over 64 made-up images of 576 x 4096 patches, and what an
image adds, by

    python tests/bench/bench_alignment.py --images 64

Letters: see llava_pat/types.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llava_pat.evaluation.alignment.decompositions import Decompositions
from llava_pat.evaluation.alignment.entropies import Entropies
from llava_pat.evaluation.alignment.labelled import LabelMeasures
from llava_pat.evaluation.alignment.language import Language
from llava_pat.evaluation.alignment.models import Subject
from llava_pat.evaluation.alignment.readings import Readings
from llava_pat.evaluation.alignment.views import Sampling, View, view_of
from llava_pat.evaluation.alignment.words_near import WordsNear

Project = Callable[[Tensor], Tensor]
"""features [I, N, Dv] -> patches [I, N, D]"""


@dataclass(frozen=True)
class Measured:
    """What is known of a row."""

    metrics: dict[str, float]
    arrays: dict[str, np.ndarray]


class RowMeasures:
    """All measures of one row: a checkpoint's projector, or a control in its place."""

    def __init__(self, subject: Subject, readings: Readings, min_coverage: float, language_images: int) -> None:
        self.entropies = Entropies("patches", subject.model.hidden_size, subject.device)
        self.labelled = LabelMeasures(readings, min_coverage) if readings.words is not None else None
        self.near = WordsNear(readings)
        self.decompositions = Decompositions(readings)
        self.language = Language(subject, language_images)

    def update(self, view: View, patch_embeds: Tensor, caption_vectors: Tensor) -> None:
        """Add a batch: patch_embeds [I, N, D], caption_vectors [I, L, D]."""
        self.entropies.update(patch_embeds)
        if self.labelled is not None:
            self.labelled.update(view, patch_embeds)
        self.near.update(view, patch_embeds, caption_vectors)
        self.decompositions.update(view, patch_embeds)
        self.language.update(view, patch_embeds)

    def result(self) -> Measured:
        metrics, arrays = self.entropies.result()
        parts = [self.labelled.result()] if self.labelled is not None else []
        parts += [(self.near.result(), {}), self.decompositions.result(), self.language.result()]
        for more_metrics, more_arrays in parts:
            metrics |= more_metrics
            arrays |= more_arrays
        return Measured(metrics, arrays)


@torch.inference_mode()
def measure_rows(
    subject: Subject,
    readings: Readings,
    rows: Mapping[str, Project],
    batches: Iterable[Mapping[str, Tensor]],
    sampling: Sampling,
    language_images: int,
    watch: Sequence[Callable[[View, Tensor], None]] = (),
) -> dict[str, Measured]:
    """Measures every row over the batches of a collator.

    language_images: the language model runs over so many images; 0: not at all. watch: called with each view and the
    first row's patches. ValueError when there was no batch.
    """
    features = Entropies("features", subject.model.vision_width, subject.device)
    measures = {row: RowMeasures(subject, readings, sampling.min_coverage, language_images) for row in rows}
    images = 0
    for batch in batches:
        view = view_of(batch, subject, readings, sampling)
        images += len(view.places)
        features.update(view.features)
        captions = subject.model.embed_words(view.caption_ids)
        for number, (row, project) in enumerate(rows.items()):
            patch_embeds = project(view.features)
            measures[row].update(view, patch_embeds, captions)
            for look in watch if number == 0 else ():
                look(view, patch_embeds)
    if not images:
        raise ValueError("nothing to measure: there was no image")
    before_metrics, before_arrays = features.result()
    found = {}
    for row, measure in measures.items():
        after = measure.result()
        changes = {
            f"entropy_change{ending}": after.metrics[f"entropy_patches{ending}"]
            - before_metrics[f"entropy_features{ending}"]
            for ending in ("", "_centred")
        }
        metrics = {"images": float(images)} | before_metrics | changes | after.metrics
        found[row] = Measured(metrics, before_arrays | after.arrays)
    return found
