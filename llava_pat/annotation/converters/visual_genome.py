"""Visual Genome (https://homes.cs.washington.edu/~ranjay/visualgenome/api.html): boxes with names, or with sentences.

objects.json               [{"image_id": 1, "objects": [{"object_id", "x", "y", "w", "h", "names": ["clock"]}]}]
region_descriptions.json   [{"id": 1, "regions": [{"region_id", "image_id", "phrase", "x", "y", "width", "height"}]}]
image_data.json            [{"image_id": 1, "url": ".../VG_100K_2/1.jpg", "width": 800, "height": 600}]
object_alias.txt           a line: names of one thing, separated by commas, the one to take first
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from llava_pat.annotation.converters.base import Converter, Found, LeftOut, SourceImage
from llava_pat.annotation.converters.coco_files import image_size, is_number
from llava_pat.annotation.labels import clean_label
from llava_pat.annotation.masks import Box
from llava_pat.data.json_files import field, read_json
from llava_pat.types import DataError


class VisualGenome(Converter):
    """Boxes only. Objects overlap and repeat: several people annotated one image."""

    name = "visual_genome"
    title = "Visual Genome"
    about = "The box of every object, labelled with each of its names; or of every region, with its sentence."
    annotations_help = "objects.json or region_descriptions.json"
    prefix = "vg"

    def __init__(self, annotations: Path, image_data: Path | None = None, alias: Path | None = None) -> None:
        super().__init__(annotations)
        self.image_data = annotations.with_name("image_data.json") if image_data is None else image_data
        if not self.image_data.is_file():
            raise DataError(
                f"{self.image_data}: no such file; it says folder and size of every image: --image_data FILE"
            )
        self._images = {
            field(image, "image_id", self.image_data, f"image {position}"): image
            for position, image in enumerate(_objects(self.image_data))
        }
        self._entries = _objects(annotations)
        self._alias = {} if alias is None else read_aliases(alias)

    @staticmethod
    def add_options(parser: ArgumentParser) -> None:
        add = parser.add_argument
        add("--image_data", type=Path, help="image_data.json (default: beside --annotations)")
        add(
            "--alias",
            type=Path,
            help="object_alias.txt: names of one thing become its first (default: names as they are)",
        )

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[SourceImage | LeftOut]:
        for position, entry in enumerate(self._entries):
            identity = entry["image_id"] if "image_id" in entry else field(entry, "id", self.annotations, position)
            where = f"{self.annotations}: image {identity}"
            image = self._images.get(identity)
            if image is None:
                yield LeftOut("images", "its image is not in the file", f"{where} is not in {self.image_data}")
                continue
            folder_and_name = field(image, "url", self.image_data, f"image {identity}").split("/")[-2:]
            size = image_size(image | {"id": identity}, self.image_data)
            yield SourceImage(
                str(identity), "/".join(folder_and_name), size, where, partial(self._find, entry, identity)
            )

    def _find(self, entry: dict[str, Any], identity: Any, height: int, width: int) -> Iterator[Found | LeftOut]:
        if "regions" in entry:
            for region in entry["regions"]:
                which = f"image {identity}, region {region.get('region_id')}"
                label = str(field(region, "phrase", self.annotations, which))
                yield Found(
                    label, self._box(region, ("x", "y", "width", "height"), which), f"{self.annotations}: {which}"
                )
            return
        for thing in field(entry, "objects", self.annotations, f"image {identity}"):
            which = f"image {identity}, object {thing.get('object_id')}"
            box = self._box(thing, ("x", "y", "w", "h"), which)
            for name in field(thing, "names", self.annotations, which):
                label = clean_label(str(name))
                yield Found(self._alias.get(label, label), box, f"{self.annotations}: {which}")

    def _box(self, thing: dict[str, Any], keys: tuple[str, ...], which: str) -> Box:
        box = tuple(field(thing, key, self.annotations, which) for key in keys)
        if not all(map(is_number, box)):
            raise DataError(f"{self.annotations}: {which} has the box {box}, not x, y, width, height in pixels")
        return box


def read_aliases(file: Path) -> dict[str, str]:
    """name -> the first name of its line, both clean. DataError if the file is not there."""
    if not file.is_file():
        raise DataError(f"{file}: no such file; object_alias.txt is expected")
    found: dict[str, str] = {}
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        names = [clean_label(name) for name in line.split(",")]
        for name in names:
            found.setdefault(name, names[0])
    return found


def _objects(file: Path) -> list[dict[str, Any]]:
    content = read_json(file)
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise DataError(f"{file}: a list of objects is expected, as in Visual Genome's files")
    return content
