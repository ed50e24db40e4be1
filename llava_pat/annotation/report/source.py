"""What is reported on: the folder of an annotation run, finished or not, or any regions file.

The layout of a run's folder: llava_pat/annotation/engine/shards.py. A shard is finished where its regions are there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava_pat.annotation.engine.claim import RUN, SETTINGS
from llava_pat.annotation.engine.shards import LEFT_OUT, REGIONS
from llava_pat.annotation.engine.summary import SUMMARY
from llava_pat.annotation.items import find_items
from llava_pat.data.json_files import field as read_field
from llava_pat.data.json_files import read_json
from llava_pat.data.records import load_records
from llava_pat.data.region_rows import find_shards
from llava_pat.data.yaml_file import BadYaml, read_yaml_file
from llava_pat.types import DataError


@dataclass(frozen=True)
class LeftOutImage:
    """An image without a line."""

    image: str
    reason: str
    where: str


@dataclass(frozen=True)
class ShardTally:
    """What a shard's run left out."""

    file: Path
    images: tuple[LeftOutImage, ...]
    counts: Mapping[str, int]
    """Reason -> labels, boxes or regions of all its images."""


@dataclass(frozen=True)
class Source:
    """Regions, and what is known about where they come from."""

    path: Path
    shards: tuple[Path, ...]
    records: Path | None
    image_folder: Path | None
    run: Mapping[str, Any] | None = None
    """run.json; None: not a run's folder."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """annotation.yaml."""
    expected: int | None = None
    """Images of a run."""
    finished: bool | None = None
    """Of a run."""
    notes: tuple[str, ...] = ()
    """What could not be used, a sentence each."""

    @property
    def tallies(self) -> Iterator[ShardTally]:
        """Of a run's finished shards, in order."""
        for shard in self.shards if self.run is not None else ():
            yield _tally(self.path / LEFT_OUT / f"{shard.stem}.json")

    def captions(self) -> dict[str, str]:
        """Image, as the records spell it -> what they say about it; of a run, the images that it is about."""
        limit = None if self.run is None else self.run.get("limit")
        return {item.image: item.caption for item in find_items(load_records(self.records, "skip"))[:limit]}


def open_source(path: Path, records: Path | None = None, image_folder: Path | None = None) -> Source:
    """path: a run's folder, a regions file or a folder of its shards. The other two go before what run.json says.

    Raises DataError for files that are missing or not what they should be. Records and images that run.json names but
    that are not there, as on another machine, are a note.
    """
    if records is not None and not records.is_file():
        raise DataError(f"{records}: no such file; --records is the LLaVA JSON or JSONL that was annotated")
    if image_folder is not None and not image_folder.is_dir():
        raise DataError(f"{image_folder}: no such folder; --image_folder is what image names are relative to")
    if not (path / RUN).is_file():
        return Source(path, tuple(find_shards(path)), records, image_folder)
    run, settings, notes = read_json(path / RUN), _settings(path / SETTINGS), []
    if records is None:
        records = Path(read_field(run, "records", path / RUN, "top level"))
        if not records.is_file():
            notes.append(f"{records}, the run's records, is not here: nothing about captions. Give --records.")
            records = None
    if image_folder is None:
        image_folder = Path(read_field(run, "image_folder", path / RUN, "top level"))
        if not image_folder.is_dir():
            notes.append(f"{image_folder}, the run's image folder, is not here: no pictures. Give --image_folder.")
            image_folder = None
    regions = path / REGIONS
    if not regions.is_dir() or not any(not file.name.startswith(".") for file in regions.iterdir()):
        raise DataError(f"{path}: no shard of this run is finished yet; wait for the first {REGIONS}/part-...")
    shards, finished = tuple(find_shards(regions)), (path / SUMMARY).is_file()
    expected = int(read_field(run, "images", path / RUN, "top level"))
    return Source(path, shards, records, image_folder, run, settings, expected, finished, tuple(notes))


def _settings(path: Path) -> Mapping[str, Any]:
    try:
        content = read_yaml_file(path)
    except (OSError, BadYaml) as error:
        raise DataError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: holds a {type(content).__name__}, not a mapping of settings")
    return content


def _tally(file: Path) -> ShardTally:
    content = read_json(file)
    if not isinstance(content, dict):
        raise DataError(f"{file}: holds a {type(content).__name__}, not an object; annotate this shard again")
    images = tuple(
        LeftOutImage(*(str(read_field(image, key, file, position)) for key in ("image", "reason", "where")))
        for position, image in enumerate(read_field(content, "images", file, "top level"))
    )
    return ShardTally(file, images, read_field(content, "counts", file, "top level"))
