"""COCO instances: instances_train2017.json and any file of its layout."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from llava_pat.annotation.converters.base import Converter, LeftOut, SourceImage
from llava_pat.annotation.converters.coco_files import (
    by_id,
    find_categories,
    group_by_image,
    image_name,
    image_size,
    read_lists,
)
from llava_pat.data.json_files import field

CROWDS = ("drop", "keep")


class CocoInstances(Converter):
    """A crowd (iscrowd 1) is a mask over many things of a category and what is between them."""

    name = "coco_instances"
    title = "COCO instances"
    about = "The mask of every instance, labelled with its category."
    annotations_help = "instances_train2017.json, or another file of that layout"
    prefix = "coco"

    def __init__(self, annotations: Path, crowds: str = "drop") -> None:
        super().__init__(annotations)
        self.crowds = crowds
        images, entries, categories = read_lists(annotations, ("images", "annotations", "categories"))
        self._images = by_id(images, annotations, "image")
        self._groups, self._lost = group_by_image(entries, self._images, annotations)
        named = by_id(categories, annotations, "category")
        self._labels = {identity: self.label(category) for identity, category in named.items()}

    @staticmethod
    def add_options(parser: ArgumentParser) -> None:
        parser.add_argument("--crowds", choices=CROWDS, default="drop", help="iscrowd regions (default: %(default)s)")

    def label(self, category: dict[str, Any]) -> str:
        """A category's words."""
        return str(field(category, "name", self.annotations, f"category {category['id']}"))

    def __len__(self) -> int:
        return len(self._images)

    def __iter__(self) -> Iterator[SourceImage | LeftOut]:
        yield from self._lost
        file = self.annotations
        for identity, image in self._images.items():
            find = partial(find_categories, self._groups.get(identity, ()), self._labels, self.crowds, file)
            name, size = image_name(image, file), image_size(image, file)
            yield SourceImage(str(identity), name, size, f"{file}: image {identity}", find)
