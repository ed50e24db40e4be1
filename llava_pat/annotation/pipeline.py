"""Images with captions -> lines of a regions file, by tagger, detector and segmenter. No files are written here.

    open_item  (items.py)   an image file -> pixels                     any processor
    Annotator.infer         pixels, captions -> boxes with masks        where the models are
    finish                  masks -> a line of the regions file         any processor

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
from llava_pat.annotation.items import Item, open_item
from llava_pat.annotation.selection import SelectionOptions, finish_regions, select_boxes
from llava_pat.annotation.stages import Detection, Detections, Detector, Images, Segmenter, Tagger
from llava_pat.types import DataError

NO_LABEL = "the tagger gave no label"
NOT_FOUND = "the detector found none of its labels"
NO_REGION = "no region is left"
FAILED = "a model failed on it"
TOO_MANY_LABELS = "labels beyond max_labels"
NOT_ASKED = "detections of a label that was not asked for"

_FAILURES = 16
"""Images in a row on which a model fails, before it is the model's fault and not theirs."""


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


@dataclass(frozen=True, eq=False)
class Masked:
    """An image that the models are done with."""

    item: Item
    height: int
    width: int
    labels: list[str]
    """That were asked for."""
    any_found: bool
    """Whether the detector found one of them, before selection."""
    detections: list[Detection]
    left_out: Counter[str]


class Annotator:
    """The three stages with their rules; images in any order."""

    def __init__(
        self,
        config: AnnotationConfig,
        tagger: Tagger | None = None,
        detector: Detector | None = None,
        segmenter: Segmenter | None = None,
    ) -> None:
        """Stages that are not given are built from the config: models are loaded here."""
        self.config = config
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
        self._failures = 0

    def annotate(self, items: Iterable[Item], image_folder: str | Path) -> Iterator[Annotated]:
        """One answer an item, in their order, batch_size images at a time; nothing runs beside the models."""
        stream, config = iter(items), self.config
        while batch := list(islice(stream, config.batch_size)):
            opened = [open_item(item, Path(image_folder), config.max_pixels) for item in batch]
            for one in self.infer(batch, opened):
                yield finish(one, config.selection, self.tools)

    def infer(self, items: Sequence[Item], opened: Sequence[Image.Image | LeftOut]) -> list[Masked | Annotated]:
        """One answer an item, in their order: Annotated for an image that has no pixels, or on which a model fails.

        A batch on which a model fails (out of memory, an image that it cannot take) is done again image by image.
        DataError when it fails on 16 images in a row.
        """
        answers: dict[int, Masked | Annotated] = {
            place: Annotated(item, None, image)
            for place, (item, image) in enumerate(zip(items, opened, strict=True))
            if isinstance(image, LeftOut)
        }
        places = [place for place in range(len(items)) if place not in answers]
        if places:
            done = self._infer([items[place] for place in places], [opened[place] for place in places])
            answers |= dict(zip(places, done, strict=True))
        return [answers[place] for place in range(len(items))]

    def _infer(self, items: Sequence[Item], images: Images) -> Sequence[Masked | Annotated]:
        try:
            done = self._run_stages(items, images)
        except Exception as error:  # any model's any fault: counted, listed, and in the end raised
            if len(items) > 1:
                return [self._infer([item], [image])[0] for item, image in zip(items, images, strict=True)]
            self._failures += 1
            (item,) = items
            said = f"{item.where}: {type(error).__name__}: {error}"
            if self._failures == _FAILURES:
                raise DataError(f"a model failed on {_FAILURES} images in a row; the last of them: {said}") from error
            return [Annotated(item, None, LeftOut("images", FAILED, said))]
        self._failures = 0
        return done

    def _run_stages(self, items: Sequence[Item], images: Images) -> list[Masked]:
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
            Masked(item, image.height, image.width, own_labels, bool(own_found.found), kept, counts)
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


def finish(one: Masked | Annotated, options: SelectionOptions, tools: dict[str, str]) -> Annotated:
    """The line of an image: masks become run-length codes. tools: the Annotator's."""
    if isinstance(one, Annotated):
        return one
    item, counts = one.item, one.left_out.copy()
    regions, dropped = finish_regions(one.detections, one.height, one.width, options)
    counts.update(dropped)
    if not regions:
        reason = NO_LABEL if not one.labels else NOT_FOUND if not one.any_found else NO_REGION
        where = f"{item.where} (labels: {', '.join(one.labels) or 'none'}; left out: {dict(counts) or 'none'})"
        return Annotated(item, None, LeftOut("images", reason, where), counts)
    line = {"id": item.id, "image": item.image, "width": one.width, "height": one.height, "regions": regions}
    return Annotated(item, line | {"source": "annotation", "tools": tools}, None, counts)
