"""The training set: records, pixels and regions by index; nothing is decoded before it is asked for."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from llava_pat.data.check import CheckReport, check_dataset, compare_sizes
from llava_pat.data.check.findings import OnMissing
from llava_pat.data.feature_store import FeatureStore
from llava_pat.data.geometry import Geometry
from llava_pat.data.images import BROKEN, MISSING, TOO_LARGE, UNREADABLE, open_image, unreadable
from llava_pat.data.patch_words import PatchWordsFolder
from llava_pat.data.records import Records, resolve_image
from llava_pat.data.regions import build_patch_regions
from llava_pat.data.templates import Template
from llava_pat.data.tokenize import Encoded, encode
from llava_pat.data.worker_progress import WorkerProgress
from llava_pat.types import IGNORE_INDEX, DataError, ImageRegions, Record

logger = logging.getLogger(__name__)

_INSTEAD = {"skip": "nothing of the record is trained on", "blank": "an empty image is in its place"}
_PIECES = re.compile(r"[A-Za-z]{1,6}|[^A-Za-z\s]")  # up to six letters, or any one other character: about a token


class LlavaDataset(Dataset):
    """LLaVA records as samples. A record of LLaVA-Pretrain

        {"id": "004539375", "image": "00453/004539375.jpg", "conversations": [
            {"from": "human", "value": "Render a clear and concise summary of the photo.\\n<image>"},
            {"from": "gpt", "value": "select luxury furniture 3 - inch gel memory foam mattress topper"}]}

    becomes, with template `plain`, Vicuna's tokenizer and CenterCrop(336) (the ids stand for their pieces here):

        input_ids     [<s>, IMAGE_TOKEN_INDEX, _select, _lux, ury, ..., _to, pper, \\n]    the question is dropped
        labels        [-100, -100,             _select, _lux, ury, ..., _to, pper, \\n]
        pixel_values  [float32 [3, 336, 336]]           one per image; [] for a text-only record
        regions       [(coverage [R, 576], R lists of label ids)]   one per image, None in the place of an image
                      without annotations; None altogether when the data set has no regions file
        patch_words   [(words int64 [576, n], scores float32 [576, n])]   one per image: ids of the label folder's word
                      list, -1 where there is no candidate; None altogether when the data set has no label folder
        vision_features  float32 [1, 576, 1024], in the place of pixel_values where the data set has a feature cache
        id, index     "004539375", its place in the data set;     image_size   336, so that an empty batch has a shape
        lost_images   which of its images (0 is the first) went missing or broke since the check, with `missing` skip
                      or blank

    An image in `blank` is of the mean colour, without regions and without words of patches. Any other that is missing
    or broken is treated as `missing` says: "error" raises DataError, naming the record and the path; "blank" takes an
    empty one, "skip" as well and trains on nothing of the record.
    """

    def __init__(
        self,
        records: Sequence[Record],
        image_folder: str | Path,
        template: Template,
        tokenizer: PreTrainedTokenizerBase,
        geometry: Geometry,
        patch_size: int,
        regions: Mapping[str, ImageRegions] | None = None,
        model_max_length: int = 2048,
        patch_words: PatchWordsFolder | None = None,
    ) -> None:
        self.records = records
        self.image_folder = Path(image_folder)
        self.template = template
        self.tokenizer = tokenizer
        self.geometry = geometry
        self.patch_size = patch_size
        self.regions = regions
        self.model_max_length = model_max_length
        self.patch_words = patch_words
        self.blank: frozenset[str] = frozenset()  # images that are missing: an empty one takes their place
        self.missing: OnMissing = "error"  # what to do when another one turns out to be, in the middle of a run
        self.progress: WorkerProgress | None = None  # where the loader's processes say what they are at
        self.features: FeatureStore | None = None
        self.features_dtype = torch.float32

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        if self.progress is not None:
            self.progress.at(index)
        encoded = self.encode(record)
        sizes: list[tuple[int, int] | None] = [None] * len(record.images)
        lost: list[int] = []
        if self.features is None:
            images = [self._pixels_if_there(record, place, lost) for place in range(len(record.images))]
            sizes = [size for _, size in images]
            seen = {"pixel_values": [pixels for pixels, _ in images]}
        else:  # no image is opened
            seen = {"vision_features": self.features.features(record.images, self.features_dtype, record.where)}
        left_out = bool(lost) and self.missing == "skip"
        empty = self.blank.union(record.images if left_out else [record.images[place] for place in lost])
        return {
            "input_ids": encoded.input_ids,
            "labels": [IGNORE_INDEX] * len(encoded.labels) if left_out else encoded.labels,
            **seen,
            "regions": None
            if self.regions is None
            else [self._regions(record, name, size, empty) for name, size in zip(record.images, sizes, strict=True)],
            "patch_words": None
            if self.patch_words is None
            else [self._patch_words(record, name, empty) for name in record.images],
            "id": record.id,
            "index": index,
            "image_size": self.geometry.size,
            "lost_images": lost,
        }

    def encode(self, record: Record) -> Encoded:
        """Ids and labels of a record, before images are expanded. DataError names the record."""
        try:
            return encode(record.turns, self.template, self.tokenizer)
        except DataError as error:
            raise DataError(f"{record.where}: {error}") from error

    def image_path(self, record: Record, name: str) -> Path:
        """Where an image lies; DataError names the record if the name leads out of the image folder."""
        try:
            return resolve_image(self.image_folder, name)
        except DataError as error:
            raise DataError(f"{record.where}: {error}") from error

    def check(self, num_patches: int, **settings: Any) -> CheckReport:
        """Look at every record before training: `check_dataset`, which has the settings and the errors."""
        return check_dataset(self, num_patches, **settings)

    def without(self, indices: Collection[int], blank: Collection[str] = ()) -> LlavaDataset:
        """The data set less the records at these places, and with an empty image in the place of each in `blank`:
        what `check` found (CheckReport.left_out and .blank)."""
        gone = set(indices)
        kept = [record for index, record in enumerate(self.records) if index not in gone]
        dataset = copy.copy(self)
        dataset.blank = self.blank | frozenset(blank)
        dataset.records = (
            Records(kept, self.records.skipped, self.records.leading_answers)
            if isinstance(self.records, Records)
            else kept
        )
        return dataset

    def with_features(self, store: FeatureStore, dtype: torch.dtype) -> LlavaDataset:
        """The data set with a frozen tower's features, as `dtype`, in the place of pixels: no image is opened."""
        dataset = copy.copy(self)
        dataset.features, dataset.features_dtype = store, dtype
        return dataset

    def image_names(self) -> list[str]:
        """Different images that the records name, in their order."""
        return list(dict.fromkeys(name for record in self.records for name in record.images))

    def lengths(self, num_patches: int) -> list[int]:
        """About how many positions each record takes, for grouping by length. Cheap, so that every rank can ask.

        Images are exact; text counts its _PIECES. (LLaVA counts words: Chinese has few, boxes and code too.) With
        these, batches of 16 out of 128 pad 34 % of running text with code, with words 61 %, with exact lengths 31 %.
        """
        return [
            min(
                self.model_max_length,
                len(record.images) * num_patches + sum(len(_PIECES.findall(turn.value)) for turn in record.turns),
            )
            for record in self.records
        ]

    def _pixels(self, record: Record, name: str) -> tuple[Tensor, tuple[int, int] | None]:
        """[3, S, S] and the original (height, width), None for an empty image."""
        if name in self.blank:
            return self.geometry.blank(), None
        path = self.image_path(record, name)
        with open_image(path, record.where) as image:
            try:
                return self.geometry.pixels(image), (image.height, image.width)
            except UNREADABLE as error:
                raise unreadable(path, record.where, error) from error

    def _pixels_if_there(self, record: Record, place: int, lost: list[int]) -> tuple[Tensor, tuple[int, int] | None]:
        """As `_pixels`; with `missing` skip or blank an empty image for one that the check has still seen, whose place
        in the record then goes to `lost`."""
        try:
            return self._pixels(record, record.images[place])
        except DataError as error:
            if self.missing == "error" or error.kind not in (MISSING, BROKEN, TOO_LARGE):
                raise
            logger.warning("%s: %s (--missing %s)", error, _INSTEAD[self.missing], self.missing)
            lost.append(place)
            return self.geometry.blank(), None

    def _regions(
        self, record: Record, name: str, size: tuple[int, int] | None, empty: Collection[str]
    ) -> tuple[Tensor, list[list[int]]] | None:
        """size: of the image, (height, width); None where it was not opened: then `check` has compared it."""
        annotated = self.regions.get(name)
        if annotated is None or name in empty:
            return None
        if size is not None:
            compare_sizes(record, annotated, size)
        coverage, label_ids, _ = build_patch_regions(annotated, self.geometry, self.patch_size, self.tokenizer)
        return coverage, label_ids

    def _patch_words(self, record: Record, name: str, empty: Collection[str]) -> tuple[Tensor, Tensor]:
        return self.patch_words.no_words() if name in empty else self.patch_words.row(name, record.where)
