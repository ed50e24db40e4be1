"""Open Images V4 to V7 (https://storage.googleapis.com/openimages/web/download_v7.html): boxes, or masks.

    oidv6-train-annotations-bbox.csv            ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,
                                                IsTruncated,IsGroupOf,IsDepiction,IsInside,...
    train-annotations-object-segmentation.csv   MaskPath,ImageID,LabelName,BoxID,BoxXMin,...,PredictedIoU,Clicks
    oidv7-class-descriptions-boxable.csv        /m/011k07,Tortoise    (V7 has a header: LabelName,DisplayName)

Coordinates are shares of the image's width and height. A mask is a PNG, inside where it is not 0, whose size may differ
from the image's. Boxes and masks belong to the image as it is stored: rotation is told elsewhere
(https://storage.googleapis.com/openimages/web/2018-05-17-rotation-information.html: "the image and boxes").
"""

from __future__ import annotations

import csv
from argparse import ArgumentParser
from array import array
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from llava_pat.annotation.converters.base import Converter, Found, LeftOut, SourceImage
from llava_pat.annotation.labels import drop_qualifier
from llava_pat.annotation.masks import encode_mask
from llava_pat.data.images import UNREADABLE, open_image, unreadable
from llava_pat.data.json_files import field
from llava_pat.types import DataError

KEEP = ("keep", "drop")


class OpenImages(Converter):
    """Sizes are not in these files, so the images must be there."""

    name = "open_images"
    title = "Open Images"
    about = (
        "Every box, or every mask (whichever file is given), labelled with the class's name. What it has in "
        "brackets goes: 'Jaguar (Animal)' is 'jaguar'. Needs --image_folder."
    )
    annotations_help = (
        "a file of boxes (...-annotations-bbox.csv) or of masks (...-annotations-object-segmentation.csv)"
    )
    prefix = ""

    def __init__(
        self,
        annotations: Path,
        classes: Path,
        masks: Path | None = None,
        groups: str = "drop",
        depictions: str = "keep",
    ) -> None:
        super().__init__(annotations)
        self.masks = masks
        self.groups = groups
        self.depictions = depictions
        self._classes = read_classes(classes)
        self._columns, self._places = index_rows(annotations)
        if "MaskPath" in self._columns and (masks is None or not masks.is_dir()):
            raise DataError(
                f"{annotations}: names masks, and {masks} is no folder; give that of the PNG files by --masks"
            )

    @staticmethod
    def add_options(parser: ArgumentParser) -> None:
        add = parser.add_argument
        add("--classes", type=Path, required=True, help="class-descriptions-boxable.csv: names of the classes")
        add("--masks", type=Path, help="folder of the masks' PNG files, or of folders of them named by an image's "
            "first letter (0, train-masks-0)")  # fmt: skip
        add("--groups", choices=KEEP, default="drop", help="boxes around more than five things, IsGroupOf (default: "
            "%(default)s)")  # fmt: skip
        add("--depictions", choices=KEEP, default="keep", help="drawings and figures of a thing, IsDepiction (default: "
            "%(default)s)")  # fmt: skip

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[SourceImage | LeftOut]:
        find = self._find_masks if "MaskPath" in self._columns else self._find_boxes
        with self.annotations.open("rb") as stream:
            for identity, places in self._places.items():
                rows = partial(self._rows, stream, places)
                where = f"{self.annotations}: image {identity}"
                yield SourceImage(identity, f"{identity}.jpg", None, where, partial(find, rows))

    def _rows(self, stream, places: array) -> Iterator[tuple[dict[str, str], str]]:
        for place in places:
            stream.seek(place)
            (values,) = csv.reader([stream.readline().decode("utf-8")])
            row = dict(zip(self._columns, values, strict=False))
            yield row, f"{self.annotations}: image {row['ImageID']}, byte {place}"

    def _find_boxes(self, rows, height: int, width: int) -> Iterator[Found | LeftOut]:
        for row, where in rows():
            label = self._classes.get(field(row, "LabelName", self.annotations, where))
            if row.get("IsGroupOf") == "1" and self.groups == "drop":
                yield LeftOut("regions", "a group (--groups drop)", where)
            elif row.get("IsDepiction") == "1" and self.depictions == "drop":
                yield LeftOut("regions", "a depiction (--depictions drop)", where)
            elif label is None:
                yield _unnamed(row, where)
            else:
                sides = [field(row, key, self.annotations, where) for key in ("XMin", "XMax", "YMin", "YMax")]
                try:
                    x0, x1, y0, y1 = map(float, sides)
                except ValueError as error:
                    raise DataError(f"{where}: XMin, XMax, YMin, YMax are {sides}, not numbers") from error
                yield Found(label, (x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height), where)

    def _find_masks(self, rows, height: int, width: int) -> Iterator[Found | LeftOut]:
        for row, where in rows():
            label = self._classes.get(field(row, "LabelName", self.annotations, where))
            if label is None:
                yield _unnamed(row, where)
                continue
            try:
                mask = read_mask(self._mask_file(row, where), height, width, where)
            except DataError as error:
                yield LeftOut("regions", "its mask cannot be read", str(error))
                continue
            score = row.get("PredictedIoU")
            yield Found(label, encode_mask(mask), where, float(score) if score else None)

    def _mask_file(self, row: dict[str, str], where: str) -> Path:
        name, letter = row["MaskPath"], row["ImageID"][:1]
        if Path(name).name != name:
            raise DataError(f"{where}: the mask {name!r} leads out of {self.masks}")
        folders = (self.masks, self.masks / letter.upper(), self.masks / letter, *self.masks.glob(f"*-masks-{letter}"))
        return next((folder / name for folder in folders if (folder / name).is_file()), self.masks / name)


def read_mask(file: Path, height: int, width: int, where: str) -> np.ndarray:
    """uint8 [H, W], 1 inside, resized to the image by nearest neighbour. DataError if it is not there or broken."""
    with open_image(file, where) as image:
        try:
            inside = Image.fromarray((np.asarray(image.convert("L")) > 0).astype(np.uint8))
        except UNREADABLE as error:
            raise unreadable(file, where, error) from error
    return np.asarray(inside.resize((width, height), Image.Resampling.NEAREST))


def read_classes(file: Path) -> dict[str, str]:
    """LabelName -> the name that people see. DataError for a file that is not there or has other columns."""
    if not file.is_file():
        raise DataError(f"{file}: no such file; give class-descriptions-boxable.csv by --classes")
    with file.open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.reader(stream) if row]
    if not rows or any(len(row) != 2 for row in rows):
        raise DataError(
            f"{file}: two columns are expected, such as /m/011k07,Tortoise; is it class-descriptions-boxable.csv?"
        )
    return {label: drop_qualifier(name) for label, name in rows if label != "LabelName"}


def index_rows(file: Path) -> tuple[list[str], dict[str, array]]:
    """The columns of a CSV file, and where the rows of each image begin, in bytes.

    14.6 million boxes do not fit as Python objects, and masks are not sorted by image.
    """
    if not file.is_file():
        raise DataError(f"{file}: no such file; give Open Images' annotations (CSV)")
    places: dict[str, array] = {}
    with file.open("rb") as stream:
        columns = stream.readline().decode("utf-8-sig", errors="replace").strip().split(",")
        missing = {"ImageID", "LabelName"} - set(columns)
        if missing or not {"XMin", "MaskPath"} & set(columns):
            raise DataError(
                f"{file}: its columns are {columns[:6]}; ImageID, LabelName and XMin or MaskPath are expected"
            )
        column = columns.index("ImageID")
        place = stream.tell()
        for number, line in enumerate(stream, start=2):
            parts = line.split(b",", column + 1)
            if len(parts) > column + 1:
                places.setdefault(parts[column].decode("utf-8", errors="replace"), array("Q")).append(place)
            elif line.strip():
                raise DataError(f"{file}:{number}: has {len(parts)} columns, not {len(columns)}; download it again")
            place += len(line)
    return columns, places


def _unnamed(row: dict[str, str], where: str) -> LeftOut:
    return LeftOut("regions", "its class has no name in --classes", f"{where}: {row['LabelName']}")
