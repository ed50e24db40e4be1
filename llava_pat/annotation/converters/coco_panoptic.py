"""COCO panoptic (https://cocodataset.org/#format-data): a PNG per image, in which a colour is a segment.

    annotations: {"image_id": 9, "file_name": "000000000009.png", "segments_info": [
                     {"id": 3937500, "category_id": 51, "area": 115462, "bbox": [...], "iscrowd": 0}]}
    categories:  {"id": 51, "name": "bowl", "isthing": 1}, {"id": 199, "name": "wall-other-merged", "isthing": 0}

A pixel's segment is R + 256 G + 256^2 B; 0 is no segment.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llava_pat.annotation.converters.base import Converter, Found, LeftOut, SourceImage
from llava_pat.annotation.converters.coco_files import by_id, group_by_image, image_name, image_size, read_lists
from llava_pat.annotation.converters.coco_instances import CROWDS
from llava_pat.annotation.masks import encode_mask
from llava_pat.data.images import UNREADABLE, open_image, unreadable
from llava_pat.data.json_files import field
from llava_pat.types import DataError

KINDS = ("all", "things", "stuff")
_PARTS_THAT_SAY_NOTHING = ("merged", "other", "stuff")  # wall-other-merged, mirror-stuff
_MATERIALS = ("brick", "stone", "tile", "wood")  # wall-brick, floor-wood


class CocoPanoptic(Converter):
    """Every pixel of COCO's images: things and stuff."""

    name = "coco_panoptic"
    title = "COCO panoptic"
    about = (
        "The pixels of every segment, labelled with its category. Stuff is named as people say it: "
        "wall-other-merged is 'wall', wall-brick 'brick wall'."
    )
    annotations_help = "panoptic_train2017.json"
    prefix = "coco"

    def __init__(self, annotations: Path, masks: Path | None = None, kind: str = "all", crowds: str = "drop") -> None:
        super().__init__(annotations)
        self.masks = annotations.with_suffix("") if masks is None else masks
        self.kind = kind
        self.crowds = crowds
        if not self.masks.is_dir():
            raise DataError(f"{self.masks}: no such folder; give that of the panoptic PNG files by --masks")
        images, entries, categories = read_lists(annotations, ("images", "annotations", "categories"))
        self._images = by_id(images, annotations, "image")
        self._groups, self._lost = group_by_image(entries, self._images, annotations)
        self._categories = by_id(categories, annotations, "category")

    @staticmethod
    def add_options(parser: ArgumentParser) -> None:
        add = parser.add_argument
        add("--masks", type=Path, help="folder of the PNG files (default: --annotations without .json)")
        add("--kind", choices=KINDS, default="all", help="which categories (default: %(default)s)")
        add("--crowds", choices=CROWDS, default="drop", help="iscrowd segments (default: %(default)s)")

    def __len__(self) -> int:
        return len(self._images)

    def __iter__(self) -> Iterator[SourceImage | LeftOut]:
        yield from self._lost
        file = self.annotations
        for identity, image in self._images.items():
            find = partial(self._find, self._groups.get(identity, []))
            name, size = image_name(image, file), image_size(image, file)
            yield SourceImage(str(identity), name, size, f"{file}: image {identity}", find)

    def _find(self, annotations: list[dict[str, Any]], height: int, width: int) -> Iterator[Found | LeftOut]:
        for annotation in annotations:
            which = f"image {annotation['image_id']}"
            png = self.masks / field(annotation, "file_name", self.annotations, which)
            segments = field(annotation, "segments_info", self.annotations, which)
            try:
                ids = read_segment_ids(png, f"{self.annotations}: {which}")
                if ids.shape != (height, width):
                    raise DataError(f"{png}: is {ids.shape} (height, width), the image is {(height, width)}")
            except DataError as error:
                for _ in segments:
                    yield LeftOut("regions", "the image's PNG of segments cannot be used", str(error))
                continue
            for segment in segments:
                yield self._segment(segment, ids, f"{self.annotations}: {which}")
            unknown = set(np.unique(ids).tolist()) - {0} - {segment["id"] for segment in segments}
            for segment_id in sorted(unknown):
                where = f"{png}: segment {segment_id} is not in the segments_info of {which}"
                yield LeftOut("regions", "a colour that segments_info does not have", where)

    def _segment(self, segment: dict[str, Any], ids: np.ndarray, where: str) -> Found | LeftOut:
        where = f"{where}, segment {field(segment, 'id', self.annotations, where)}"
        category = self._categories.get(field(segment, "category_id", self.annotations, where))
        if category is None:
            reason = "its category is not in the file"
            return LeftOut("regions", reason, f"{where}: category {segment['category_id']}")
        kind = "things" if field(category, "isthing", self.annotations, f"category {category['id']}") else "stuff"
        if self.kind not in ("all", kind):
            return LeftOut("regions", f"{kind} (--kind {self.kind})", where)
        if segment.get("iscrowd") and self.crowds == "drop":
            return LeftOut("regions", "a crowd (--crowds drop)", where)
        name = str(field(category, "name", self.annotations, f"category {category['id']}"))
        return Found(name if kind == "things" else say_stuff(name), encode_mask(ids == segment["id"]), where)


def read_segment_ids(png: Path, where: str) -> np.ndarray:
    """int64 [H, W]: the segment of every pixel, 0 for none. DataError for a file that is not there or broken."""
    with open_image(png, where) as image:
        try:
            colours = np.asarray(image.convert("RGB"), dtype=np.int64)
        except UNREADABLE as error:
            raise unreadable(png, where, error) from error
    return colours @ np.array([1, 256, 256**2])


def say_stuff(name: str) -> str:
    """ "wall-other-merged" -> "wall", "floor-wood" -> "wood floor", "window-blind" -> "window blind"."""
    parts = [part for part in name.split("-") if part not in _PARTS_THAT_SAY_NOTHING]
    if len(parts) == 2 and parts[1] in _MATERIALS:
        parts.reverse()
    return " ".join(parts).replace("playingfield", "playing field")
