"""Flickr30k Entities (https://github.com/BryanPlummer/flickr30k_entities): phrases of captions, and their boxes.

    Sentences/36979.txt     five lines: [/EN#1/people A group of friends] playing [/EN#2/other cards] ...
    Annotations/36979.xml   <annotation><size><width>500</width><height>375</height></size>
                            <object><name>1</name><name>3</name><bndbox><xmin>1</xmin>...</bndbox></object>
                            <object><name>2</name><scene>1</scene><nobndbox>0</nobndbox></object></annotation>

Boxes count pixels from 1 and include their last one, as Pascal VOC's: the data set's own reader takes 1 from each
number. A phrase's number may have several boxes (three friends), and a box several numbers. Number 0 is nothing visual.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from llava_pat.annotation.converters.base import Converter, Found, LeftOut, SourceImage
from llava_pat.annotation.labels import clean_label
from llava_pat.annotation.masks import Box, encode_mask
from llava_pat.types import DataError

_PHRASE = re.compile(r"\[/EN#(\d+)(?:/\S*)? ([^\]]*)\]")
_NOT_VISUAL = "0"


@dataclass(frozen=True)
class Boxes:
    """One image's Annotations file."""

    size: tuple[int, int]
    """Height and width."""
    boxes: dict[str, list[Box]] = field(default_factory=dict)
    """Phrase number -> boxes, x and y from 0."""
    scenes: set[str] = field(default_factory=set)
    """Numbers of phrases about the whole image."""


class Flickr30kEntities(Converter):
    """Labels are phrases, as people wrote them."""

    name = "flickr30k_entities"
    title = "Flickr30k Entities"
    about = "The boxes of every phrase of the five captions, labelled with the phrase."
    annotations_help = "the folder that has Annotations/ and Sentences/"
    prefix = "flickr30k-images"

    def __init__(self, annotations: Path, several_boxes: str = "union", scenes: str = "drop") -> None:
        super().__init__(annotations)
        self.several_boxes = several_boxes
        self.scenes = scenes
        for name in ("Annotations", "Sentences"):
            if not (annotations / name).is_dir():
                raise DataError(f"{annotations / name}: no such folder; unpack annotations.zip, and give what it is in")
        self._files = sorted((annotations / "Annotations").glob("*.xml"), key=lambda file: (len(file.stem), file.stem))
        if not self._files:
            raise DataError(f"{annotations / 'Annotations'}: holds no .xml file; unpack annotations.zip there")

    @staticmethod
    def add_options(parser: ArgumentParser) -> None:
        add = parser.add_argument
        add("--several_boxes", choices=("union", "each"), default="union", help="a phrase with several boxes: one "
            "region over all of them, or a region each (default: %(default)s)")  # fmt: skip
        add("--scenes", choices=("drop", "keep"), default="drop", help="keep: a phrase about the whole scene is a "
            "region over the whole image (default: %(default)s)")  # fmt: skip

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[SourceImage | LeftOut]:
        for file in self._files:
            sentences = self.annotations / "Sentences" / f"{file.stem}.txt"
            try:
                boxes, phrases = read_boxes(file), read_phrases(sentences)
            except DataError as error:
                yield LeftOut("images", "its annotation files cannot be read", str(error))
                continue
            yield SourceImage(
                file.stem, f"{file.stem}.jpg", boxes.size, str(file), partial(self._find, boxes, phrases, file)
            )

    def _find(
        self, read: Boxes, phrases: list[tuple[str, str]], file: Path, height: int, width: int
    ) -> Iterator[Found | LeftOut]:
        for number, phrase in phrases:
            where = f"{file}: phrase {number} ({phrase!r})"
            boxes = read.boxes.get(number, [])
            if boxes and (len(boxes) == 1 or self.several_boxes == "each"):
                yield from (Found(phrase, box, where) for box in boxes)
            elif boxes:
                yield Found(phrase, encode_mask(_union(boxes, height, width)), where)
            elif number in read.scenes and self.scenes == "keep":
                yield Found(phrase, (0, 0, width, height), where)
            elif number in read.scenes:
                yield LeftOut("regions", "a phrase about the whole scene (--scenes drop)", where)
            else:
                not_visual = number == _NOT_VISUAL
                yield LeftOut("regions", f"a phrase {'that shows nothing' if not_visual else 'without a box'}", where)


def read_phrases(file: Path) -> list[tuple[str, str]]:
    """(number, phrase) of a Sentences file, each pair once, in order. DataError if it is not there or no text."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from error
    return list(dict.fromkeys((number, clean_label(words)) for number, words in _PHRASE.findall(text)))


def read_boxes(file: Path) -> Boxes:
    """An Annotations file. DataError if it is no XML of that layout."""
    try:
        root = ElementTree.parse(file).getroot()
        size = (_number(root, "size/height"), _number(root, "size/width"))
        if min(size) < 1:
            raise ValueError(f"the image is {size} (height, width)")
        read = Boxes(size)
        for thing in root.iter("object"):
            names = [name.text or "" for name in thing.findall("name")]
            if thing.find("bndbox") is not None:
                x0, y0, x1, y1 = (_number(thing, f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax"))
                for name in names:
                    read.boxes.setdefault(name, []).append((x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1))
            elif thing.findtext("scene") == "1":
                read.scenes.update(names)
    except (ElementTree.ParseError, OSError, ValueError) as error:
        raise DataError(
            f"{file}: not an annotation of Flickr30k Entities ({error}); unpack annotations.zip again"
        ) from error
    return read


def _number(element: ElementTree.Element, path: str) -> int:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"no <{path.replace('/', '><')}>")
    return int(text)


def _union(boxes: list[Box], height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    for x, y, w, h in boxes:
        mask[max(y, 0) : max(y + h, 0), max(x, 0) : max(x + w, 0)] = 1
    return mask
