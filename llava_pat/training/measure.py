"""What a projector is worth, on held-out data: caption loss, patch alignment, entropy. Runs before, during and after.

Definitions (docs/recipe.md has them in words): a patch is labelled when a region covers at least LABELLED_COVERAGE of
it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from llava_pat.analysis.entropy import PooledEntropy
from llava_pat.analysis.patch_alignment import PatchAlignment, labelled_patches
from llava_pat.analysis.vocabulary import Vocabulary, vocabulary_of
from llava_pat.data.collate import patch_regions
from llava_pat.data.words import Words, words_for
from llava_pat.models.vlm import VisionLanguageModel
from llava_pat.training.task import vision_features
from llava_pat.types import ImageRegions

LABELLED_COVERAGE = 0.25


class Probe:
    """Measures a model over held-out batches.

    words: the object vocabulary (hit@k, facets); labels: the held-out labels themselves (patch_cosine). Both None
    without held-out regions.
    """

    def __init__(self, words: Words | None, labels: Words | None) -> None:
        self.words, self.labels = words, labels

    @classmethod
    def build(cls, regions: Mapping[str, ImageRegions] | None, vocabulary: Vocabulary | None, tokenizer) -> Probe:
        """vocabulary: None takes the held-out labels as the object vocabulary. ValueError if no label has its words."""
        if regions is None:
            return cls(None, None)
        labels = vocabulary_of(region.label for entry in regions.values() for region in entry.regions)
        label_words = words_for(labels, regions.values(), tokenizer)
        if vocabulary is None:
            return cls(label_words, label_words)
        words = words_for(vocabulary, regions.values(), tokenizer)
        if not any(bool(row.any()) for row in words.targets.values()):
            raise ValueError(
                f"none of its {len(vocabulary.words)} words (such as {vocabulary.words[0]!r}) is in a label of the "
                f"held-out regions (such as {labels.words[0]!r}); take the vocabulary of these labels, or leave it out"
            )
        return cls(words, label_words)

    @torch.no_grad()
    def measure(
        self,
        model: VisionLanguageModel,
        batches: Iterable[Mapping[str, Tensor]],
        all_reduce: Callable[[Tensor], None] | None = None,
        ask: Callable[[Callable[[VisionLanguageModel], Any]], Any] | None = None,
        idle: Iterable[Mapping[str, Tensor]] = (),
    ) -> dict[str, float]:
        """caption_loss (nats per token) and, with regions, patch_cosine, hit_at_1, hit_at_5, hit_<facet>; entropies.

        What nothing was seen for is left out: alignment without a labelled patch, entropies without an image.

        all_reduce: sums a tensor over ranks in place; every rank gives its share of the batches.
        ask: calls a function of the model, where the plain call is not enough (ZeRO-3: inside the engine's forward).
        idle: further batches that are looked at and not counted, which keep this rank in step with the others.
        """
        ask = (lambda question: question(model)) if ask is None else ask
        was_training = model.training
        model.eval()
        caption = torch.zeros(2, dtype=torch.float64)
        alignment = labels = None
        device = next(model.parameters()).device
        if self.words is not None:
            facets = self.words.vocabulary.facets
            alignment = PatchAlignment(ask(lambda asked: self.words.vectors(asked.embed_words, device)), facets)
            labels = PatchAlignment(ask(lambda asked: self.labels.vectors(asked.embed_words, device)))
        features_entropy = PooledEntropy(model.vision_width, device)
        patches_entropy = PooledEntropy(model.hidden_size, device)
        for batch in batches:
            features, patches, total, count = ask(functools.partial(_look, batch=batch))
            caption += torch.stack([total.double(), count.double()]).cpu()
            features_entropy.update(features.float())
            patches_entropy.update(patches.float())
            regions = patch_regions(batch)
            if alignment is not None and regions is not None:
                for measured, words in ((alignment, self.words), (labels, self.labels)):
                    targets = words.region_targets(regions).to(regions.coverage.device)
                    image, patch, right = labelled_patches(regions.coverage, regions.image, targets, LABELLED_COVERAGE)
                    measured.update(patches[image, patch], right)
        for batch in idle:
            ask(functools.partial(_look, batch=batch))
        model.train(was_training)
        if all_reduce is not None:
            _reduce_all(all_reduce, caption, alignment, labels, features_entropy, patches_entropy)
        measured = {"caption_loss": float(caption[0] / caption[1])}
        if alignment is not None:
            measured["labelled_patches"] = float(alignment.sums[0])
        if alignment is not None and alignment.sums[0]:
            label_result, word_result = labels.result(), alignment.result()
            measured["patch_cosine"] = label_result["patch_cosine"]
            measured |= {name: value for name, value in word_result.items() if name.startswith("hit_")}
            measured["hit_label_at_1"] = label_result["hit_at_1"]
        for name, entropy in (("features", features_entropy), ("patches", patches_entropy)):
            if not entropy.rows:
                continue
            measured[f"entropy_{name}"] = entropy.result()
            measured[f"entropy_{name}_centred"] = entropy.result(centred=True)
        return measured


def _look(model: VisionLanguageModel, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """features [I, N, Dv], patches [I, N, D], and the caption loss as (sum, count)."""
    features = vision_features(model, batch)
    patches = model.project(features)
    hidden = model.forward_hidden(batch["input_ids"], batch["attention_mask"], patches)
    return features, patches, *model.caption_loss_sum(hidden, batch["labels"])


def _reduce_all(all_reduce, caption, alignment, labels, *entropies: PooledEntropy) -> None:
    all_reduce(caption)
    for accumulator in (alignment, labels):
        if accumulator is not None:
            all_reduce(accumulator.sums)
    for entropy in entropies:
        rows = torch.tensor([float(entropy.rows)], dtype=torch.float64)
        for tensor in (rows, entropy.first, entropy.second):
            all_reduce(tensor)
        entropy.rows = math.floor(rows.item())
