"""From a converter's images to lines of a regions file; what is left out is counted by reason."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llava_pat import __version__
from llava_pat.annotation.converters.base import Converter, Found, LeftOut, SourceImage
from llava_pat.annotation.labels import clean_label
from llava_pat.annotation.masks import area_of, box_of, clip_box, pixels_of
from llava_pat.annotation.regions_file import region_entry
from llava_pat.annotation.stored_size import is_sideways, stored_size
from llava_pat.annotation.tally import Tally
from llava_pat.data.records import resolve_image
from llava_pat.types import DataError


@dataclass(frozen=True)
class Conversion:
    """One run of a converter: which images, where they lie, which regions are too small or too many."""

    source: Converter
    prefix: str
    """In front of the data set's own image names."""
    image_folder: Path | None = None
    """Without it no image is opened: sizes are the annotation's."""
    names: Collection[str] | None = None
    """The images that are wanted, as records spell them; None: all."""
    min_area: int = 1
    """Pixels of the original image."""
    max_regions: int | None = None
    """An image's largest are kept."""
    tally: Tally = field(default_factory=Tally)

    def lines(self) -> Iterator[dict[str, Any] | None]:
        """A line for every image of the source, None for one that is left out (tally says why).

        Raises DataError for files that are not what they should be, and for two images of one name.
        """
        origin = f"{self.source.name}: {self.source.annotations.name}"
        tools = {"llava_pat": __version__, "pycocotools": version("pycocotools")}
        seen: dict[str, str] = {}
        for image in self.source:
            if isinstance(image, LeftOut):
                self.tally.leave_out(image)
                if image.unit == "images":
                    yield None
                continue
            name = f"{self.prefix.rstrip('/')}/{image.name}" if self.prefix else image.name
            if name in seen:
                raise DataError(f"{image.where} and {seen[name]} are both {name!r}; a regions file has an image once")
            seen[name] = image.where
            size = self._check(image, name)
            regions = [] if isinstance(size, LeftOut) else self._regions(image, *size)
            if isinstance(size, LeftOut) or not regions:
                no_region = LeftOut("images", "no region is left", f"{image.where} ({name})")
                self.tally.leave_out(size if isinstance(size, LeftOut) else no_region)
                yield None
                continue
            self.tally.images += 1
            self.tally.labels.update(region["label"] for region in regions)
            head = {"id": image.id, "image": name, "width": size[1], "height": size[0]}
            yield head | {"regions": regions, "source": origin, "tools": tools}

    def _check(self, image: SourceImage, name: str) -> tuple[int, int] | LeftOut:
        """(height, width) of the image as it is stored, or why it cannot be used."""
        if self.names is not None and name not in self.names:
            return LeftOut("images", "not in the records", f"{image.where} ({name})")
        try:
            path = resolve_image(Path(".") if self.image_folder is None else self.image_folder, name)
        except DataError as error:
            return LeftOut("images", "its name leads out of the image folder", f"{image.where}: {error}")
        if self.image_folder is None:
            if image.size is None:
                raise DataError(f"{image.where}: does not say the image's size; give --image_folder")
            return image.size
        if not path.is_file():
            return LeftOut("images", "no such image file", f"{image.where}: {path}")
        try:
            stored = stored_size(path, image.where)
        except DataError as error:
            return LeftOut("images", "not an image that can be read", str(error))
        if image.size in (None, stored):
            return stored
        both = f"{image.where}: annotated at {image.size} (height, width), {path} is {stored}"
        if image.size == stored[::-1] and is_sideways(path, image.where):
            return LeftOut("images", "annotated upright, stored sideways (EXIF), as training reads it", both)
        return LeftOut("images", "of another size than annotated", both)

    def _regions(self, image: SourceImage, height: int, width: int) -> list[dict[str, Any]]:
        """Clean, of some size, each once, not too many; in the data set's order."""
        kept: dict[tuple, tuple[dict[str, Any], str]] = {}
        for found in image.find_regions(height, width):
            entry = found if isinstance(found, LeftOut) else self._entry(found, height, width)
            if isinstance(entry, LeftOut):
                self.tally.leave_out(entry)
                continue
            key = (entry["label"], str(entry.get("segmentation", entry["bbox"])))
            if key in kept:
                self.tally.leave_out(LeftOut("regions", "the same label and pixels as another", found.where))
            else:
                kept[key] = entry, found.where
        if self.max_regions is None or len(kept) <= self.max_regions:
            return [entry for entry, _ in kept.values()]
        by_area = sorted(kept.values(), key=lambda pair: -pair[0]["area"])
        for _, where in by_area[self.max_regions :]:
            self.tally.leave_out(LeftOut("regions", "smaller than --max_regions others of its image", where))
        wanted = {id(entry) for entry, _ in by_area[: self.max_regions]}
        return [entry for entry, _ in kept.values() if id(entry) in wanted]

    def _entry(self, found: Found, height: int, width: int) -> dict[str, Any] | LeftOut:
        label = clean_label(found.label)
        if not label:
            return LeftOut("regions", "an empty label", f"{found.where}: {found.label!r}")
        if isinstance(found.shape, dict):
            segmentation, box, area = found.shape, box_of(found.shape), area_of(found.shape)
        else:
            segmentation, box = None, clip_box(found.shape, height, width)
            area = pixels_of(box)
        if not area:
            return LeftOut("regions", "no pixel of the image is in it", f"{found.where}: {found.shape}")
        if area < self.min_area:
            return LeftOut("regions", "smaller than --min_area", f"{found.where}: {area} of {self.min_area} pixels")
        return region_entry(label, segmentation, box, area, found.score)
