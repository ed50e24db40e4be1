"""RefCOCO's files: which sentence means which box of which image.

    refs(unc).p, refs(umd).p   expressions and splits (data/refer_files.py)
    instances.json             COCO's images and annotations, boxes as x, y, width, height in pixels
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llava_pat.data.geometry import Box
from llava_pat.data.json_files import field, read_json
from llava_pat.data.refer_files import read_refs
from llava_pat.types import DataError


@dataclass(frozen=True)
class Expression:
    """One object of one image, with the sentences that mean it."""

    ref_id: int
    image: str
    """Its file name."""
    size: tuple[int, int]
    """Width and height of the image in pixels."""
    box: Box
    """x0, y0, x1, y1 in pixels."""
    sentences: tuple[tuple[int, str], ...]
    """(sent_id, text)."""


def read_expressions(refs_file: Path, instances_file: Path, split: str) -> list[Expression]:
    """All expressions of a split ("val", "testA", "testB", "test"), in file order.

    Raises:
        DataError: a file is missing or not what it should be, no ref is of this split, a ref's object is not there.
    """
    refs = read_refs(refs_file)
    chosen = [ref for ref in refs if field(ref, "split", refs_file, ref.get("ref_id")) == split]
    if not chosen:
        there = ", ".join(sorted({ref["split"] for ref in refs}))
        raise DataError(f"{refs_file}: no expression of the split {split!r} among {len(refs)}; it has {there}")
    instances = read_json(instances_file)
    for key in ("images", "annotations"):
        field(instances, key, instances_file, "top level")
    images = {image["id"]: image for image in instances["images"]}
    annotations = {annotation["id"]: annotation for annotation in instances["annotations"]}
    return [_expression(ref, images, annotations, refs_file, instances_file) for ref in chosen]


def _expression(ref: dict, images: dict, annotations: dict, refs_file: Path, instances_file: Path) -> Expression:
    which = f"ref_id {field(ref, 'ref_id', refs_file, '?')}"
    annotation = annotations.get(field(ref, "ann_id", refs_file, which))
    image = images.get(field(ref, "image_id", refs_file, which))
    if annotation is None or image is None:
        what = f"annotation {ref['ann_id']}" if annotation is None else f"image {ref['image_id']}"
        raise DataError(f"{refs_file}: {which} is about {what}, which {instances_file} does not have")
    x, y, width, height = field(annotation, "bbox", instances_file, annotation["id"])
    return Expression(
        ref_id=ref["ref_id"],
        # a ref's own file_name ends in the annotation's number: COCO_train2014_000000581857_16.jpg is no image
        image=field(image, "file_name", instances_file, image["id"]),
        size=(field(image, "width", instances_file, image["id"]), field(image, "height", instances_file, image["id"])),
        box=(x, y, x + width, y + height),
        sentences=tuple((s["sent_id"], s["sent"]) for s in field(ref, "sentences", refs_file, which)),
    )
