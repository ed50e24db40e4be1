"""Images with captions -> lines of a regions file, by tagger, detector and segmenter. No files are written here.

An image that cannot be annotated gets no line, and a reason: LeftOut(unit "images"). What a stage left out of an image
that has a line is counted as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from llava_pat import __version__
from llava_pat.annotation.config import AnnotationConfig
from llava_pat.annotation.converters.base import LeftOut
from llava_pat.annotation.decoding import decode_image
from llava_pat.annotation.selection import finish_regions, select_boxes
from llava_pat.annotation.stages import Detection, Detections, Detector, Images, Segmenter, Tagger
from llava_pat.data.images import BROKEN, MISSING, TOO_LARGE
from llava_pat.data.records import LEAVES_FOLDER, resolve_image
from llava_pat.types import DataError, Record

REASONS = {
    LEAVES_FOLDER: "its name leads out of the image folder",
    MISSING: "no such image file",
    TOO_LARGE: "more than max_pixels pixels",
    BROKEN: "not an image that can be read",
}
"""By the kind of DataError."""
NO_LABEL = "the tagger gave no label"
NOT_FOUND = "the detector found none of its labels"
NO_REGION = "no region is left"
TOO_MANY_LABELS = "labels beyond max_labels"
NOT_ASKED = "detections of a label that was not asked for"


@dataclass(frozen=True)
class Item:
    """One image of the training data."""

    id: str
    image: str
    """As records spell it."""
    caption: str
    """Everything the records say about it, a line a turn."""
    where: str
    """File, record and id, for errors."""


@dataclass(frozen=True)
class Annotated:
    """What became of an image."""

    item: Item
    line: dict[str, Any] | None
    """For RegionsWriter.write; None: `left_out` says why."""
    reason: LeftOut | None = None
    """Why there is no line."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Reason -> how many labels, boxes or regions of this image."""


def find_items(records: Iterable[Record]) -> list[Item]:
    """Every image of the records once, in the order of their first mention, with all that its records answer."""
    items: dict[str, Item] = {}
    for record in records:
        said = "\n".join(turn.value for turn in record.turns if turn.role == "gpt")
        for name in dict.fromkeys(record.images):
            first = items.get(name)
            if first is None:
                items[name] = Item(record.id, name, said, record.where)
            else:
                items[name] = replace(first, caption=f"{first.caption}\n{said}")
    return list(items.values())


class Annotator:
    """The three stages with their rules; `annotate` may be called from anywhere, in any order of images."""

    def __init__(
        self,
        config: AnnotationConfig,
        image_folder: str | Path,
        tagger: Tagger | None = None,
        detector: Detector | None = None,
        segmenter: Segmenter | None = None,
    ) -> None:
        """Stages that are not given are built from the config: models are loaded here."""
        self.config, self.image_folder = config, Path(image_folder)
        self.rules = config.labels.build()
        self.tagger = config.build_tagger() if tagger is None else tagger
        self.detector = config.build_detector() if detector is None else detector
        self.segmenter = config.build_segmenter() if segmenter is None else segmenter
        self.tools = {
            "llava_pat": __version__,
            "transformers": version("transformers"),
            "torch": version("torch"),
            "tagger": self.tagger.version,
            "detector": self.detector.version,
            "segmenter": self.segmenter.version,
        }

    def annotate(self, items: Iterable[Item]) -> Iterator[Annotated]:
        """One answer an item, in their order, batch_size images at a time."""
        stream = iter(items)
        while batch := list(islice(stream, self.config.batch_size)):
            yield from self.annotate_batch(batch)

    def annotate_batch(self, items: Sequence[Item]) -> list[Annotated]:
        """One answer an item, in their order; all images are in memory at once."""
        opened = [self.open(item) for item in items]
        answers: list[Annotated | None] = [
            Annotated(item, None, image) if isinstance(image, LeftOut) else None
            for item, image in zip(items, opened, strict=True)
        ]
        places = [place for place, answer in enumerate(answers) if answer is None]
        done = self.annotate_images([items[place] for place in places], [opened[place] for place in places])
        for place, answer in zip(places, done, strict=True):
            answers[place] = answer
        return answers

    def open(self, item: Item) -> Image.Image | LeftOut:
        """Decoded as training sees it, or why not."""
        try:
            path = resolve_image(self.image_folder, item.image)
            return decode_image(path, item.where, self.config.max_pixels)
        except DataError as error:
            return LeftOut("images", REASONS[error.kind], str(error))

    def annotate_images(self, items: Sequence[Item], images: Images) -> list[Annotated]:
        """As annotate_batch, for images that are open: an engine may decode in other processes."""
        if not items:
            return []
        left: list[Counter[str]] = [Counter() for _ in items]
        labels = self._tag(items, images, left)
        found = self._detect(images, labels, left)
        chosen = []
        for image, one, counts in zip(images, found, left, strict=True):
            kept, dropped = select_boxes(one.found, image.height, image.width, self.config.selection)
            counts.update(dropped)
            chosen.append(kept)
        masked = self._segment(images, chosen)
        return [
            self._line(item, image, own_labels, own_found, kept, counts)
            for item, image, own_labels, own_found, kept, counts in zip(
                items, images, labels, found, masked, left, strict=True
            )
        ]

    def _tag(self, items: Sequence[Item], images: Images, left: list[Counter[str]]) -> list[list[str]]:
        tags = self.tagger.tag(images, [item.caption for item in items])
        most, labels = self.config.labels.max_labels, []
        for own, counts in zip(tags, left, strict=True):
            clean = self.rules.apply_all(own)
            if len(clean) > most:
                counts[TOO_MANY_LABELS] += len(clean) - most
            labels.append(clean[:most])
        return labels

    def _detect(self, images: Images, labels: list[list[str]], left: list[Counter[str]]) -> list[Detections]:
        found = self.detector.detect(images, labels)
        for one, own, counts in zip(found, labels, left, strict=True):
            counts.update(one.left_out)
            asked = [detection for detection in one.found if detection.label in own]
            if len(asked) < len(one.found):
                counts[NOT_ASKED] += len(one.found) - len(asked)
                one.found = asked
        return found

    def _segment(self, images: Images, chosen: list[list[Detection]]) -> list[list[Detection]]:
        """Masks for the boxes that have none."""
        bare = [[one for one in own if one.mask is None] for own in chosen]
        masks = self.segmenter.segment(images, [[one.box for one in own] for own in bare])
        results = []
        for own, its_masks in zip(chosen, masks, strict=True):
            waiting = iter(its_masks)
            results.append([replace(one, mask=next(waiting)) if one.mask is None else one for one in own])
        return results

    def _line(
        self,
        item: Item,
        image: Image.Image,
        labels: list[str],
        found: Detections,
        kept: list[Detection],
        counts: Counter[str],
    ) -> Annotated:
        regions, dropped = finish_regions(kept, image.height, image.width, self.config.selection)
        counts.update(dropped)
        if not regions:
            reason = NO_LABEL if not labels else NOT_FOUND if not found.found else NO_REGION
            where = f"{item.where} (labels: {', '.join(labels) or 'none'}; left out: {dict(counts) or 'none'})"
            return Annotated(item, None, LeftOut("images", reason, where), counts)
        line = {"id": item.id, "image": item.image, "width": image.width, "height": image.height, "regions": regions}
        return Annotated(item, line | {"source": "annotation", "tools": self.tools}, None, counts)
