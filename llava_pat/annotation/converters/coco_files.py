"""COCO's JSON (https://cocodataset.org/#format-data), shared by COCO, LVIS and RefCOCO.

{"images": [{"id": 9, "file_name": "000000000009.jpg", "width": 640, "height": 480,
             "coco_url": "http://images.cocodataset.org/train2017/000000000009.jpg"}],
 "annotations": [{"id": 1038967, "image_id": 9, "category_id": 51, "iscrowd": 0, "area": 120057.1,
                  "bbox": [x, y, width, height], "segmentation": [[x, y, x, y, ...]] or {"size", "counts"}}],
 "categories": [{"id": 51, "name": "bowl"}]}
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from llava_pat.annotation.converters.base import Found, LeftOut
from llava_pat.annotation.masks import encode_segmentation
from llava_pat.data.json_files import field, read_json
from llava_pat.types import DataError

_SPLIT_AND_NAME = re.compile(r"/((?:train|val|test|unlabeled)\d{4}/[^/]+)$")

Entry = dict[str, Any]


def is_number(value: Any) -> bool:
    """Whether JSON gave a finite number."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def read_lists(file: Path, keys: Sequence[str]) -> list[list[Entry]]:
    """These lists of objects of a JSON file. DataError if one is not there or not a list of objects."""
    content = read_json(file)
    if not isinstance(content, dict):
        raise DataError(f"{file}: is a {type(content).__name__}, not an object with {', '.join(keys)}")
    lists = [field(content, key, file, "top level") for key in keys]
    for key, entries in zip(keys, lists, strict=True):
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DataError(f"{file}: {key!r} is not a list of objects; is this the official file?")
    return lists


def by_id(entries: list[Entry], file: Path, what: str) -> dict[Any, Entry]:
    """id -> entry. DataError for two that share one."""
    found: dict[Any, Entry] = {}
    for position, entry in enumerate(entries):
        identity = field(entry, "id", file, f"{what} {position}")
        if identity in found:
            raise DataError(f"{file}: two {what} entries have the id {identity}; ids are unique in COCO's files")
        found[identity] = entry
    return found


def group_by_image(
    annotations: list[Entry], images: dict[Any, Entry], file: Path
) -> tuple[dict[Any, list[Entry]], list[LeftOut]]:
    """image id -> its annotations, and those of images that the file does not list."""
    groups: dict[Any, list[Entry]] = {}
    lost: list[LeftOut] = []
    for position, annotation in enumerate(annotations):
        image = field(annotation, "image_id", file, f"annotation {annotation.get('id', position)}")
        if image in images:
            groups.setdefault(image, []).append(annotation)
        else:
            where = f"{file}: annotation {annotation.get('id', position)} is about image {image}, which is not listed"
            lost.append(LeftOut("regions", "its image is not in the file", where))
    return groups, lost


def image_name(image: Entry, file: Path) -> str:
    """ "train2017/000000000009.jpg" from coco_url; file_name where that is another server's, or not there."""
    official = _SPLIT_AND_NAME.search(image.get("coco_url") or "")
    return official.group(1) if official else str(field(image, "file_name", file, f"image {image['id']}"))


def image_size(image: Entry, file: Path) -> tuple[int, int] | None:
    """(height, width); None where the file does not say."""
    if "height" not in image and "width" not in image:
        return None
    size = tuple(field(image, key, file, f"image {image['id']}") for key in ("height", "width"))
    if not all(isinstance(value, int) and value > 0 for value in size):
        raise DataError(f"{file}: image {image['id']} is {size[0]!r} x {size[1]!r} (height x width), not pixels")
    return size


def find_annotation(annotation: Entry, label: str, height: int, width: int, where: str) -> Found | LeftOut:
    """The region of one annotation: its mask or, without one, its box."""
    segmentation, box = annotation.get("segmentation"), annotation.get("bbox")
    if segmentation:
        try:
            return Found(label, encode_segmentation(segmentation, height, width), where)
        except DataError as error:
            return LeftOut("regions", "its mask cannot be read", f"{where}: {error}")
    if box is None:
        return LeftOut("regions", "neither mask nor box", f"{where} has no segmentation and no bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        raise DataError(f"{where}: 'bbox' is {box!r}, not [x, y, width, height]")
    return Found(label, tuple(box), where)


def find_categories(
    annotations: Iterable[Entry], labels: dict[Any, str], crowds: str, file: Path, height: int, width: int
) -> Iterable[Found | LeftOut]:
    """Annotations of one image as regions that their category labels. crowds: "keep" or "drop"."""
    for annotation in annotations:
        where = f"{file}: annotation {annotation.get('id', '?')}"
        category = field(annotation, "category_id", file, f"annotation {annotation.get('id', '?')}")
        if annotation.get("iscrowd") and crowds == "drop":
            yield LeftOut("regions", "a crowd (--crowds drop)", where)
        elif category not in labels:
            reason = "its category is not in the file"
            yield LeftOut("regions", reason, f"{where}: category {category} is not among {len(labels)} categories")
        else:
            yield find_annotation(annotation, labels[category], height, width, where)
