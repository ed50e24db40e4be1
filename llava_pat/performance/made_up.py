"""Made-up batches, by the project's own collator: random pixels and ids, as many as a shape says."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from llava_pat.data.collate import Collator
from llava_pat.data.patch_words import WordTokens
from llava_pat.models.vlm import VisionLanguageModel
from llava_pat.types import IGNORE_INDEX, IMAGE_TOKEN_INDEX

BOS, FIRST_WORD = 1, 3  # ids below 3 are Llama's <unk>, <s>, </s>
REGIONS = 8  # an image; COCO has 7.7 instances an image (arXiv 1405.0312)
CANDIDATES, WORDS = 10, 200  # labels of a patch (SEA's top_n), and words of the list that they are drawn from


def made_up_batch(
    model: VisionLanguageModel,
    sequences: int,
    text_tokens: int,
    needs: Collection[str] = (),
    *,
    uneven: bool = False,
    seed: int = 0,
) -> dict[str, Tensor]:
    """What the collator gives for `sequences` images with a caption of `text_tokens` supervised tokens each.

    needs: "regions" and "patch_words", as objectives name them. uneven: captions of 1 to text_tokens tokens, evenly
    spread, so that rows are padded. On the CPU. No id is the vocabulary's last, which others use for images.
    """
    (batch,) = made_up_micro_batches(model, sequences, sequences, text_tokens, needs, uneven=uneven, seed=seed)
    return batch


def made_up_micro_batches(
    model: VisionLanguageModel,
    sequences: int,
    size: int,
    text_tokens: int,
    needs: Collection[str] = (),
    *,
    uneven: bool = False,
    seed: int = 0,
) -> list[dict[str, Tensor]]:
    """The sequences of `made_up_batch` in micro-batches of `size`, in the same order."""
    generator = torch.Generator().manual_seed(seed)
    words = _integers(generator, model.vocab_size - 1, WORDS, 2, low=FIRST_WORD).tolist()
    tokens = WordTokens(tuple(tuple(row) for row in words), ()) if "patch_words" in needs else None
    collate = Collator(model.num_patches, 0, 1 + model.num_patches + text_tokens, tokens)
    samples = []
    for index in range(sequences):
        length = max(1, round(text_tokens * (index + 1) / sequences)) if uneven else text_tokens
        samples.append(_sample(generator, model, index, length, needs))
    return [collate(samples[first : first + size]) for first in range(0, sequences, size)]


def _sample(
    generator: torch.Generator, model: VisionLanguageModel, index: int, length: int, needs: Collection[str]
) -> dict:
    words, patches = model.vocab_size - 1, model.num_patches
    caption = _integers(generator, words, length, low=FIRST_WORD).tolist()
    regions = patch_words = None
    if "regions" in needs:
        coverage = (torch.rand(REGIONS, patches, generator=generator) < 1 / REGIONS).float()
        regions = [(coverage, _integers(generator, words, REGIONS, 2, low=FIRST_WORD).tolist())]
    if "patch_words" in needs:
        scores = torch.rand(patches, CANDIDATES, generator=generator).sort(dim=-1, descending=True).values
        patch_words = [(_integers(generator, WORDS, patches, CANDIDATES), scores)]
    return {
        "input_ids": [BOS, IMAGE_TOKEN_INDEX, *caption],
        "labels": [IGNORE_INDEX, IGNORE_INDEX, *caption],
        "pixel_values": [torch.randn(3, model.image_size, model.image_size, generator=generator)],
        "regions": regions,
        "patch_words": patch_words,
        "id": str(index),
        "index": index,
        "image_size": model.image_size,
    }


def _integers(generator: torch.Generator, high: int, *shape: int, low: int = 0) -> Tensor:
    return torch.randint(low, high, shape, generator=generator)
