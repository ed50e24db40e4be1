"""Patch-aligned annotations: a file of labelled regions -> share of every patch under every region.

One line per image, in COCO's conventions and original pixels (the segmentation or, without one, the box counts):

    {"id": "7", "image": "7.png", "width": 640, "height": 480, "regions": [
        {"label": "red circle", "segmentation": {"size": [480, 640], "counts": "..."}, "bbox": [10, 20, 30, 40]}]}
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llava_pat.data.geometry import Geometry
from llava_pat.data.images import MOST_PIXELS
from llava_pat.data.json_text import quoted
from llava_pat.data.region_rows import read_rows
from llava_pat.data.rle import mask_of_counts, mask_of_polygons
from llava_pat.data.tokenize import encode_words
from llava_pat.types import DataError, ImageRegions, Region

_LONGEST_LABEL = 10_000  # characters

Broken = list[tuple[str, int, DataError]]
"""(file, line, what is wrong with it) of the lines that hold no annotation."""


def load_regions(path: str | Path, broken: Broken | None = None) -> dict[str, ImageRegions]:
    """Read a regions file, line by line: image name -> its regions. DataError names file and line.

    path: JSONL, Parquet, or a folder of such shards (data/region_rows.py). Keys that are not known here may be there.
    Checked here: keys and types, sizes, empty labels, masks of another size than their image, an image on two lines.
    A check that wants all errors at once gives `broken`, which then takes every line that has one.
    """
    found: dict[str, ImageRegions] = {}
    for file, number, raw in read_rows(path, broken):
        try:
            entry = parse_regions(raw, file, number)
            twin = found.get(entry.image)
            if twin is not None:
                elsewhere = "" if twin.file == file else f" of {twin.file}"
                message = f"{entry.where}: the image is on line {twin.line}{elsewhere} as well; merge the two"
                raise DataError(message, "region_twice")
        except DataError as error:
            if broken is None:
                raise
            broken.append((file, number, error))
            continue
        found[entry.image] = entry
    if not found and not broken:
        raise DataError(f"{path}: holds no regions")
    return found


def to_mask(region: Region, height: int, width: int) -> np.ndarray:
    """A region -> uint8 [height, width], 1 where it is. Fractional boxes cover every pixel that they touch.

    Raises DataError for counts that pycocotools cannot read or that give another size.
    """
    segmentation = region.segmentation
    if segmentation is None:
        if region.bbox is None:
            raise DataError(f"region {region.label!r} has neither segmentation nor bbox")
        x, y, w, h = region.bbox
        mask = np.zeros((height, width), np.uint8)
        mask[_pixels(y, y + h, height), _pixels(x, x + w, width)] = 1
        return mask
    try:
        if isinstance(segmentation, Mapping):
            return mask_of_counts(segmentation["counts"], height, width)
        return mask_of_polygons(segmentation, height, width)
    except ValueError as error:
        raise DataError(f"region {quoted(region.label)}: its segmentation cannot be read: {error}") from error


def build_patch_regions(
    image_regions: ImageRegions,
    geometry: Geometry,
    patch_size: int,
    tokenizer: PreTrainedTokenizerBase,
    min_coverage: float = 0.0,
) -> tuple[Tensor, list[list[int]], int]:
    """One image's regions after the geometry of its pixels.

    Returns coverage float32 [R, N] (entries below `min_coverage` are 0), the labels' ids (R lists, as running text,
    no BOS), and how many regions were dropped because no patch is left under them. R may be 0.
    """
    patches = (geometry.size // patch_size) ** 2
    rows: list[Tensor] = []
    label_ids: list[list[int]] = []
    for region, _, row in placed_regions(image_regions, geometry, patch_size):
        if min_coverage > 0:
            row = torch.where(row >= min_coverage, row, 0.0)
        if bool(row.any()):
            rows.append(row)
            label_ids.append(label_tokens(region.label, tokenizer, image_regions.where))
    coverage = torch.stack(rows) if rows else torch.zeros(0, patches)
    return coverage, label_ids, len(image_regions.regions) - len(rows)


def placed_regions(
    image_regions: ImageRegions, geometry: Geometry, patch_size: int
) -> Iterator[tuple[Region, np.ndarray, Tensor]]:
    """Every region with its mask uint8 [height, width] and its coverage float32 [N]. DataError names the line."""
    for region in image_regions.regions:
        try:
            mask = to_mask(region, image_regions.height, image_regions.width)
        except DataError as error:
            raise DataError(f"{image_regions.where}: {error}", "bad_mask") from error
        yield region, mask, geometry.coverage(mask, patch_size)


def label_tokens(label: str, tokenizer: PreTrainedTokenizerBase, where: str) -> list[int]:
    """Ids of a label as it reads inside a sentence; DataError when the tokenizer has none for it."""
    ids = encode_words(label, tokenizer)
    if not ids or all(i == tokenizer.unk_token_id for i in ids):
        raise DataError(
            f"{where}: label {label!r} has no tokens in this tokenizer ({ids}); rename or drop it",
            "label_without_tokens",
        )
    return ids


def parse_regions(raw: Any, file: str, line: int) -> ImageRegions:
    """One parsed line -> its image's regions. DataError names file and line; masks are not decoded here."""
    where = f"{file}:{line}"
    if not isinstance(raw, dict):
        raise DataError(f"{where}: is a {type(raw).__name__}, not an object with image and regions", "bad_regions")
    missing = [key for key in ("id", "image", "width", "height", "regions") if key not in raw]
    if missing:
        raise DataError(f"{where}: lacks {', '.join(map(repr, missing))}; it has {quoted(sorted(raw))}", "bad_regions")
    if not isinstance(raw["image"], str) or not raw["image"]:
        raise DataError(f"{where}: 'image' is {quoted(raw['image'])}, not a file name", "bad_regions")
    where = f"{where} (image {quoted(raw['image'])})"
    for key in ("width", "height"):
        if not isinstance(raw[key], int) or isinstance(raw[key], bool) or raw[key] < 1:
            raise DataError(f"{where}: {key!r} is {quoted(raw[key])}, not a positive number of pixels", "bad_regions")
    if raw["width"] * raw["height"] > MOST_PIXELS:
        raise DataError(
            f"{where}: {quoted(raw['width'])} x {quoted(raw['height'])} pixels are more than an image may have, "
            f"{MOST_PIXELS}",
            "bad_regions",
        )
    if not isinstance(raw["regions"], list):
        raise DataError(f"{where}: 'regions' is a {type(raw['regions']).__name__}, not a list", "bad_regions")
    regions = [
        _region(entry, f"{where}: region {position}", raw["height"], raw["width"])
        for position, entry in enumerate(raw["regions"])
    ]
    return ImageRegions(str(raw["id"]), raw["image"], raw["width"], raw["height"], tuple(regions), file, line)


def _region(raw: Any, where: str, height: int, width: int) -> Region:
    if not isinstance(raw, dict) or not isinstance(raw.get("label"), str):
        raise DataError(f"{where}: lacks a 'label' text", "bad_regions")
    label = raw["label"]
    if len(label) > _LONGEST_LABEL:
        raise DataError(
            f"{where}: a label of {len(label)} characters, more than {_LONGEST_LABEL}: {quoted(label)}", "bad_regions"
        )
    if not label.strip():
        raise DataError(f"{where}: has an empty label; name it or drop it", "empty_label")
    segmentation, bbox = raw.get("segmentation"), raw.get("bbox")
    if not segmentation and bbox is None:
        raise DataError(f"{where} ({label!r}): has neither 'segmentation' nor 'bbox'", "bad_regions")
    if isinstance(segmentation, dict):
        if not isinstance(segmentation.get("size"), list) or not isinstance(segmentation.get("counts"), (str, list)):
            raise DataError(f"{where} ({label!r}): an RLE segmentation needs 'size' and 'counts'", "bad_mask")
        if segmentation["size"] != [height, width]:
            raise DataError(
                f"{where} ({label!r}): its mask is {quoted(segmentation['size'])} (height, width) but its image is "
                f"{[height, width]}; masks are in original pixels",
                "mask_size",
            )
    elif segmentation and not _polygons(segmentation):
        raise DataError(
            f"{where} ({label!r}): polygons are lists of at least 3 x, y pairs of finite numbers", "bad_regions"
        )
    if bbox is not None and not (isinstance(bbox, list) and len(bbox) == 4 and _finite(bbox) and min(bbox[2:]) >= 0):
        raise DataError(f"{where} ({label!r}): 'bbox' is {quoted(bbox)}, not [x, y, width, height]", "bad_regions")
    return Region(label, segmentation or None, tuple(map(float, bbox)) if bbox is not None else None)


def _polygons(segmentation: Any) -> bool:
    return isinstance(segmentation, list) and all(
        isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0 and _finite(part) for part in segmentation
    )


def _pixels(start: float, end: float, length: int) -> slice:
    """Those of an axis that a box touches. Clipped first: a sum of two finite numbers may be infinite."""
    return slice(math.floor(min(max(start, 0), length)), math.ceil(min(max(end, 0), length)))


def _finite(values: list[Any]) -> bool:
    return all(isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) <= sys.float_info.max for v in values)
