"""RefCOCO, RefCOCO+, RefCOCOg (https://github.com/lichengunc/refer): sentences that mean one object of a COCO image.

    refs(unc).p      pickled list {"ref_id", "ann_id", "image_id", "category_id", "split",
                                   "sentences": [{"sent_id", "sent": "lady in black", "raw", "tokens"}]}
    instances.json   COCO's images, annotations (masks) and categories

The images are COCO's train2014. LLaVA's records have them under train2017, which holds the same files by number.
"""

from __future__ import annotations

import re
from argparse import ArgumentParser
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from llava_pat.annotation.converters.base import Converter, Found, LeftOut, SourceImage
from llava_pat.annotation.converters.coco_files import by_id, find_annotation, image_name, image_size, read_lists
from llava_pat.data.json_files import field
from llava_pat.data.refer_files import read_refs
from llava_pat.types import DataError

_FILE_OF_2014 = re.compile(r"^COCO_(train2014)_(\d{12}\.jpg)$")
ALL = "all"


class RefCoco(Converter):
    """An object that several sentences mean is a region under each of them."""

    name = "refcoco"
    title = "RefCOCO, RefCOCO+, RefCOCOg"
    about = "The mask of every object that is referred to, labelled with each of its sentences, or with its category."
    annotations_help = "refs(unc).p, refs(google).p, refs(umd).p, or the same as JSON"
    prefix = "coco"

    def __init__(
        self,
        annotations: Path,
        instances: Path | None = None,
        split: str = "train",
        label: str = "sentence",
        names: str = "2017",
    ) -> None:
        super().__init__(annotations)
        self.instances = annotations.with_name("instances.json") if instances is None else instances
        self.label = label
        self.names = names
        refs = read_refs(annotations)
        splits = {field(ref, "split", annotations, f"ref_id {ref.get('ref_id')}") for ref in refs}
        if split not in (ALL, *splits):
            raise DataError(
                f"{annotations}: no split {split!r}; it has {', '.join(sorted(splits))} (or: --split {ALL})"
            )
        images, entries, categories = read_lists(self.instances, ("images", "annotations", "categories"))
        self._images = by_id(images, self.instances, "image")
        self._annotations = by_id(entries, self.instances, "annotation")
        self._categories = by_id(categories, self.instances, "category")
        self._refs: dict[Any, list[dict[str, Any]]] = {}
        for ref in refs:
            if split in (ALL, ref["split"]):
                self._refs.setdefault(field(ref, "image_id", annotations, f"ref_id {ref.get('ref_id')}"), []).append(
                    ref
                )

    @staticmethod
    def add_options(parser: ArgumentParser) -> None:
        add = parser.add_argument
        add("--instances", type=Path, help="instances.json (default: beside --annotations)")
        add("--split", default="train", help="train, val, test, testA, testB, or all (default: %(default)s: the others "
            "are what models are tested on)")  # fmt: skip
        add("--label", choices=("sentence", "category"), default="sentence", help="default: %(default)s")
        add("--names", choices=("2017", "2014"), default="2017", help="2017: train2017/000000581857.jpg, as LLaVA's "
            "records; 2014: train2014/COCO_train2014_000000581857.jpg (default: %(default)s)")  # fmt: skip

    def __len__(self) -> int:
        return len(self._refs)

    def __iter__(self) -> Iterator[SourceImage | LeftOut]:
        for identity, refs in self._refs.items():
            where = f"{self.annotations}: image {identity}"
            image = self._images.get(identity)
            if image is None:
                where = f"{where} of ref_id {refs[0].get('ref_id')}, which {self.instances} does not have"
                yield LeftOut("images", "its image is not in the file", where)
                continue
            size = image_size(image, self.instances)
            yield SourceImage(str(identity), self._name(image), size, where, partial(self._find, refs))

    def _name(self, image: dict[str, Any]) -> str:
        name = image_name(image, self.instances)
        official = _FILE_OF_2014.match(name)
        if official is None:
            return name
        return f"train2017/{official[2]}" if self.names == "2017" else f"train2014/{name}"

    def _find(self, refs: list[dict[str, Any]], height: int, width: int) -> Iterator[Found | LeftOut]:
        for ref in refs:
            which = f"ref_id {field(ref, 'ref_id', self.annotations, '?')}"
            where = f"{self.annotations}: {which}"
            annotation = self._annotations.get(field(ref, "ann_id", self.annotations, which))
            if annotation is None:
                missing = f"{where}: annotation {ref['ann_id']} is not in {self.instances}"
                yield LeftOut("regions", "its annotation is not in the file", missing)
                continue
            for label in self._labels(ref, annotation, which):
                yield find_annotation(annotation, label, height, width, where)

    def _labels(self, ref: dict[str, Any], annotation: dict[str, Any], which: str) -> list[str]:
        if self.label == "sentence":
            return [
                str(field(s, "sent", self.annotations, which)) for s in field(ref, "sentences", self.annotations, which)
            ]
        identity = field(annotation, "category_id", self.instances, f"annotation {annotation['id']}")
        if identity not in self._categories:
            raise DataError(
                f"{self.instances}: annotation {annotation['id']} has category {identity}, which is not there"
            )
        return [str(field(self._categories[identity], "name", self.instances, f"category {identity}"))]
