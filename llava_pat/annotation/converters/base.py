"""What a converter is: it reads one data set's files and says, image by image, which regions they have."""

from __future__ import annotations

from abc import ABC, abstractmethod
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from llava_pat.annotation.masks import Box, Rle


@dataclass(frozen=True)
class Found:
    """One region."""

    label: str
    """As the data set has it; the command cleans it (labels.clean_label)."""
    shape: Rle | Box
    """In pixels of the image as it is stored. A box may reach beyond the image."""
    where: str
    """File and record."""
    score: float | None = None


@dataclass(frozen=True)
class LeftOut:
    """A region or an image that is not converted."""

    unit: Literal["images", "regions", "records"]
    reason: str
    """A few words, the same for all of a kind: they are counted by it."""
    where: str
    """File, record and numbers."""


@dataclass(frozen=True)
class SourceImage:
    """One annotated image."""

    id: str
    name: str
    """Its path as the data set has it, with forward slashes; --prefix goes in front."""
    size: tuple[int, int] | None
    """(height, width) by the annotation; None where it does not say."""
    where: str
    find_regions: Callable[[int, int], Iterable[Found | LeftOut]]
    """(height, width) -> its regions. Called only for an image that is wanted, so it may decode masks."""


class Converter(ABC):
    """One data set. Its options are keywords of __init__ beside `annotations`, and flags of the command.

    Raises DataError, naming file and record, for a file that is not the official one's layout.
    """

    name: ClassVar[str]
    """What the command calls it."""
    title: ClassVar[str]
    about: ClassVar[str]
    """For --help: which files, what becomes a label."""
    annotations_help: ClassVar[str]
    prefix: ClassVar[str]
    """Where LLaVA's records have these images."""

    def __init__(self, annotations: Path) -> None:
        self.annotations = annotations

    @staticmethod  # noqa: B027  not every data set has some
    def add_options(parser: ArgumentParser) -> None:
        """Flags of this data set alone."""

    @abstractmethod
    def __len__(self) -> int:
        """How many images and left-out images `__iter__` gives, about."""

    @abstractmethod
    def __iter__(self) -> Iterator[SourceImage | LeftOut]:
        """Every image once."""
