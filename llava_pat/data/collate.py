"""Samples -> one batch of tensors, images already expanded to their patches (letters as in types.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from llava_pat.data.patch_words import WordTokens
from llava_pat.types import IGNORE_INDEX, IMAGE_TOKEN_INDEX, DataError, PatchRegions, PatchWords


def expand_images(
    input_ids: Sequence[int], labels: Sequence[int], num_patches: int, model_max_length: int, where: str
) -> tuple[list[int], list[int], bool]:
    """Ids and labels with every image as `num_patches` positions, cut to `model_max_length` afterwards, as LLaVA does.

    Returns (ids, labels, was it cut). Raises DataError if the cut would take away an image or a part of one: LLaVA
    trains on the rest of an image without a word.
    """
    ids: list[int] = []
    targets: list[int] = []
    for token, label in zip(input_ids, labels, strict=True):
        if token != IMAGE_TOKEN_INDEX:
            ids.append(token)
            targets.append(label)
            continue
        if len(ids) + num_patches > model_max_length:
            raise DataError(
                f"{where}: an image takes positions {len(ids)} to {len(ids) + num_patches - 1}, but model_max_length "
                f"is {model_max_length}; shorten the text before it or raise model_max_length"
            )
        ids += [IMAGE_TOKEN_INDEX] * num_patches
        targets += [IGNORE_INDEX] * num_patches
    return ids[:model_max_length], targets[:model_max_length], len(ids) > model_max_length


class Collator:
    """Callable for a DataLoader. `truncated` counts the sequences this copy has cut (LlavaDataset.check counts all).

    Gives: input_ids int64 [B, T] (IMAGE_TOKEN_INDEX at every image patch, `pad_token_id` behind the text), labels
    int64 [B, T] (IGNORE_INDEX on images and padding), attention_mask bool [B, T], pixel_values float32 [I, 3, S, S]
    (I may be 0), image_sequence int64 [I] (which of the B), sample_index int64 [B] (place in the data set).
    When the data set has a feature cache, vision_features [I, N, Dv] in the place of pixel_values.
    When images were lost in the middle of a run (LlavaDataset.missing), also lost_images int64 [n, 2]: place in
    the data set, and which of that record's images.
    When the data set has regions, also region_coverage float32 [R, N], region_image int64 [R] (which of the I),
    region_label_ids int64 [R, L] (padded with 0) and region_label_mask bool [R, L]; R may be 0, L is at least 1.
    When the data set has patch words, also what WordTokens.batch gives; `word_tokens` are those of their list.
    """

    def __init__(
        self, num_patches: int, pad_token_id: int, model_max_length: int, word_tokens: WordTokens | None = None
    ) -> None:
        self.num_patches = num_patches
        self.pad_token_id = pad_token_id
        self.model_max_length = model_max_length
        self.word_tokens = word_tokens
        self.truncated = 0

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        sequences = []
        for sample in samples:
            where = f"record {sample['index']} (id {sample['id']!r})"
            ids, labels, cut = expand_images(
                sample["input_ids"], sample["labels"], self.num_patches, self.model_max_length, where
            )
            self.truncated += cut
            sequences.append((ids, labels))
        shape = (len(samples), max(len(ids) for ids, _ in sequences))
        input_ids = torch.full(shape, self.pad_token_id, dtype=torch.int64)
        labels = torch.full(shape, IGNORE_INDEX, dtype=torch.int64)
        attention_mask = torch.zeros(shape, dtype=torch.bool)
        for row, (ids, targets) in enumerate(sequences):
            input_ids[row, : len(ids)] = torch.tensor(ids)
            labels[row, : len(ids)] = torch.tensor(targets)
            attention_mask[row, : len(ids)] = True
        batch = {
            "input_ids": input_ids,
            "labels": labels,
            "attention_mask": attention_mask,
            **self._images(samples),
            "image_sequence": torch.tensor(
                [row for row, sample in enumerate(samples) for _ in _images_of(sample)], dtype=torch.int64
            ),
            "sample_index": torch.tensor([sample["index"] for sample in samples], dtype=torch.int64),
        }
        if lost := [(sample["index"], place) for sample in samples for place in sample.get("lost_images", ())]:
            batch["lost_images"] = torch.tensor(lost)
        if any(sample["regions"] is not None for sample in samples):
            batch |= self._regions(samples)
        if any(sample["patch_words"] is not None for sample in samples):
            batch |= self._patch_words(samples)
        return batch

    def _images(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        if "vision_features" in samples[0]:
            return {"vision_features": torch.cat([sample["vision_features"] for sample in samples])}
        pixels = [image for sample in samples for image in sample["pixel_values"]]
        size = samples[0]["image_size"]
        return {"pixel_values": torch.stack(pixels) if pixels else torch.zeros(0, 3, size, size)}

    def _regions(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        coverage: list[Tensor] = [torch.zeros(0, self.num_patches)]
        images: list[int] = []
        labels: list[list[int]] = []
        image = 0
        for sample in samples:
            regions = sample["regions"] if sample["regions"] is not None else [None] * len(_images_of(sample))
            for entry in regions:
                if entry is not None:
                    rows, label_ids = entry
                    if rows.shape[1] != self.num_patches:
                        raise DataError(
                            f"record {sample['index']} (id {sample['id']!r}): its regions lie on {rows.shape[1]} "
                            f"patches but the vision tower has {self.num_patches}; patch_size or image size differ"
                        )
                    coverage.append(rows)
                    images += [image] * len(label_ids)
                    labels += label_ids
                image += 1
        longest = max((len(ids) for ids in labels), default=1)
        label_ids = torch.zeros(len(labels), longest, dtype=torch.int64)
        label_mask = torch.zeros(len(labels), longest, dtype=torch.bool)
        for row, ids in enumerate(labels):
            label_ids[row, : len(ids)] = torch.tensor(ids)
            label_mask[row, : len(ids)] = True
        return {
            "region_coverage": torch.cat(coverage),
            "region_image": torch.tensor(images, dtype=torch.int64),
            "region_label_ids": label_ids,
            "region_label_mask": label_mask,
        }

    def _patch_words(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        images = [entry for sample in samples for entry in sample["patch_words"]]
        for words, _ in images:
            if len(words) != self.num_patches:
                raise DataError(
                    f"the labels are of {len(words)} patches but the vision tower has {self.num_patches}; label the "
                    "images for this tower"
                )
        if not images:
            return self.word_tokens.batch(
                torch.zeros(0, self.num_patches, 1, dtype=torch.int64), torch.zeros(0, self.num_patches, 1)
            )
        return self.word_tokens.batch(*(torch.stack(tensors) for tensors in zip(*images, strict=True)))


def _images_of(sample: Mapping[str, Any]) -> Sequence[Tensor]:
    return sample["vision_features" if "vision_features" in sample else "pixel_values"]


def patch_regions(batch: Mapping[str, Tensor]) -> PatchRegions | None:
    """The batch's regions as the objectives take them; None when the data set has no regions file."""
    if "region_coverage" not in batch:
        return None
    return PatchRegions(
        coverage=batch["region_coverage"],
        image=batch["region_image"],
        label_ids=batch["region_label_ids"],
        label_mask=batch["region_label_mask"],
    )


def images_without_words(batch: Mapping[str, Tensor]) -> Tensor | None:
    """bool [I]: images of the records that lost one, of which nothing is to be learned; None when there are none."""
    if "lost_images" not in batch:
        return None
    return torch.isin(batch["sample_index"][batch["image_sequence"]], batch["lost_images"][:, 0])


def patch_words(batch: Mapping[str, Tensor]) -> PatchWords | None:
    """The batch's candidate words as the objectives take them; None when the run has no labels of patches."""
    if "patch_words" not in batch:
        return None
    return PatchWords(
        words=batch["patch_words"],
        scores=batch["patch_word_scores"],
        word_ids=batch["patch_word_ids"],
        word_mask=batch["patch_word_mask"],
    )
