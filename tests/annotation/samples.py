"""What the tests of the converters share: images on disk, masks, the command run and read back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from llava_pat.annotation.convert import main
from llava_pat.data.regions import load_regions, to_mask
from llava_pat.types import ImageRegions

SIZE = (48, 64)
"""Height and width of the images, unless a test says otherwise."""


def save_image(file: Path, size: tuple[int, int] = SIZE, orientation: int | None = None) -> Path:
    """A JPEG or PNG by the name's ending, (height, width) as stored."""
    file.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.new("RGB", size[::-1], (90, 120, 200)).save(file, exif=exif)
    return file


def write_json(file: Path, content: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return file


def rle(mask: np.ndarray) -> dict:
    found = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(found["size"]), "counts": found["counts"].decode()}


def disc(size: tuple[int, int], x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[: size[0], : size[1]]
    return ((rows - y) ** 2 + (columns - x) ** 2 <= radius**2).astype(np.uint8)


def box_by_loop(mask: np.ndarray) -> list[int]:
    """x, y, width, height of a mask, pixel by pixel."""
    inside = [(x, y) for y in range(mask.shape[0]) for x in range(mask.shape[1]) if mask[y, x]]
    xs, ys = zip(*inside, strict=True)
    return [min(xs), min(ys), max(xs) - min(xs) + 1, max(ys) - min(ys) + 1]


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    """(exit status, stdout, the error's line)."""
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if line.startswith("error:")]
    assert len(errors) == (status != 0), printed.err
    return status, printed.out, "".join(errors)


def lines_of(file: Path) -> dict[str, dict]:
    """image name -> line of a JSONL file, as it is written."""
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {line["image"]: line for line in lines}


def labels_and_masks(file: Path, image: str) -> list[tuple[str, np.ndarray]]:
    """As stage 1 reads them."""
    entry: ImageRegions = load_regions(file)[image]
    return [(region.label, to_mask(region, entry.height, entry.width)) for region in entry.regions]
