"""What is measured on: images with captions and, if there are any, regions and a vocabulary. Read before any model."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from llava_pat.analysis.vocabulary import Vocabulary, load_vocabulary, vocabulary_of
from llava_pat.data.collate import Collator
from llava_pat.data.dataset import LlavaDataset
from llava_pat.data.geometry import Geometry
from llava_pat.data.records import load_records
from llava_pat.data.regions import load_regions
from llava_pat.data.templates import Template
from llava_pat.models.vlm import VisionLanguageModel
from llava_pat.types import DataError, ImageRegions, Record

MAX_LENGTH = 2048


@dataclass(frozen=True)
class Material:
    """Records of one image each, every image once, in the order of their file."""

    records: tuple[Record, ...]
    image_folder: str
    regions: dict[str, ImageRegions] | None  # of these images only; None: without a regions file
    vocabulary: Vocabulary | None  # None where there are no regions and none was given
    left_out: int  # records without an image, with several, or with an image that was there already
    vocabulary_path: str = ""

    @property
    def labels(self) -> Vocabulary | None:
        """The distinct labels of the regions, as entries."""
        if self.regions is None:
            return None
        return vocabulary_of(region.label for entry in self.regions.values() for region in entry.regions)

    def path(self, record: Record) -> Path:
        """Of its image."""
        return Path(self.image_folder, record.images[0]).resolve()

    def dataset(
        self, model: VisionLanguageModel, template: Template, tokenizer: PreTrainedTokenizerBase, geometry: Geometry
    ) -> LlavaDataset:
        """The same images as a model takes them."""
        return LlavaDataset(
            self.records, self.image_folder, template, tokenizer, geometry, model.patch_size, self.regions, MAX_LENGTH
        )


def read_material(
    data_path: str | Path,
    image_folder: str | Path,
    regions_path: str | Path | None,
    vocabulary_path: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    without: Material | None = None,
) -> Material:
    """Reads the files; with a limit, a sample of the records drawn with `seed`. without: its images are not taken.

    Raises DataError: unreadable files; no record with one image; none of the images annotated; a vocabulary without a
    word that is in a label.
    """
    chosen: dict[str, Record] = {}
    records = load_records(data_path)
    for record in records:
        if len(record.images) == 1 and record.images[0] not in chosen:
            chosen[record.images[0]] = record
    if not chosen:
        raise DataError(f"{data_path}: none of its {len(records)} records has exactly one image; nothing to measure")
    if without is not None:
        taken = {without.path(record) for record in without.records}
        chosen = {name: record for name, record in chosen.items() if Path(image_folder, name).resolve() not in taken}
        if not chosen:
            raise DataError(
                f"{data_path}: all its images are measured, so none is left to fit the controls on; name others "
                "(--fit_data_path), or measure fewer (--limit)"
            )
    kept = _sample(list(chosen.values()), limit, seed)
    regions = None
    if regions_path is not None:
        annotated = load_regions(regions_path)
        regions = {record.images[0]: annotated[record.images[0]] for record in kept if record.images[0] in annotated}
        if not any(entry.regions for entry in regions.values()):
            raise DataError(
                f"{regions_path}: annotates {len(annotated)} images (such as {next(iter(annotated))!r}), and none of "
                f"the {len(kept)} of {data_path} (such as {kept[0].images[0]!r}); take the regions of these images"
            )
    vocabulary = load_vocabulary(vocabulary_path) if vocabulary_path is not None else None
    material = Material(
        tuple(kept), str(image_folder), regions, vocabulary, len(records) - len(chosen), str(vocabulary_path or "")
    )
    if regions is None:
        return material
    labels = material.labels.words
    if vocabulary is None:
        return Material(material.records, material.image_folder, regions, material.labels, material.left_out, "")
    if not bool(vocabulary.targets(labels).any()):
        raise DataError(
            f"{vocabulary_path}: none of its {len(vocabulary.words)} words (such as {vocabulary.words[0]!r}) is in a "
            f"label of {regions_path} (such as {labels[0]!r}); take the vocabulary of these labels, or leave it out"
        )
    return material


def load_batches(dataset: LlavaDataset, model: VisionLanguageModel, batch_size: int, workers: int) -> DataLoader:
    """Batches in the order of the records, on the CPU; `sample_index` is the place of each image."""
    collator = Collator(model.num_patches, dataset.tokenizer.pad_token_id, MAX_LENGTH)
    return DataLoader(dataset, batch_size, shuffle=False, num_workers=workers, collate_fn=collator)


def _sample(records: Sequence[Record], limit: int | None, seed: int) -> list[Record]:
    if limit is None or limit >= len(records):
        return list(records)
    places = random.Random(seed).sample(range(len(records)), limit)
    return [records[place] for place in sorted(places)]
