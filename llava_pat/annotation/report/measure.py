"""Regions of some images -> counters. Masks are decoded one at a time, and nothing of them stays.

Letters: R regions of an image, N patches of an image after stage 1's geometry.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llava_pat.annotation.report.faults import LINES, WITH, Faults
from llava_pat.data.check.findings import KINDS
from llava_pat.data.geometry import Geometry
from llava_pat.data.records import resolve_image
from llava_pat.data.regions import parse_regions, placed_regions
from llava_pat.types import DataError, ImageRegions

NO_FILE = "no such image file"


@dataclass(frozen=True)
class Line:
    """A line of a regions file."""

    regions: ImageRegions
    scores: tuple[float | None, ...]
    """R; None for a region without one."""


def parse_line(raw: Any, file: str, number: int) -> Line:
    """A parsed line -> its regions with their scores. DataError names file and line."""
    parsed = parse_regions(raw, file, number)
    return Line(parsed, tuple(_score(region.get("score")) for region in raw["regions"]))


@dataclass(frozen=True)
class Grid:
    """How images become patches, and when one is labelled."""

    geometry: Geometry
    patch_size: int
    min_coverage: float
    """Share of a patch that a region must cover to label it."""

    @property
    def side(self) -> int:
        """Patches along one side; N is its square."""
        return self.geometry.size // self.patch_size


@dataclass
class Measures:
    """Counters over images; two of them can be added up. Grows by 8 bytes a region, and with the labels."""

    patches: int
    """N"""
    images: int = 0
    """With at least one region."""
    regions_per_image: Counter[int] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    """Label -> regions."""
    label_images: Counter[str] = field(default_factory=Counter)
    """Label -> images."""
    areas: array[float] = field(default_factory=lambda: array("f"))
    """Of every region, as a share of its image."""
    scores: array[float] = field(default_factory=lambda: array("f"))
    """Of the regions that have one."""
    without_mask: int = 0
    """Regions that are a box alone."""
    removed: int = 0
    """Regions that touch no patch: the crop took them."""
    touched: int = 0
    """Patches under some region, however little of them."""
    several: int = 0
    """Patches that are labelled by two different labels or more."""
    labelled: NDArray[np.int64] = field(init=False)
    """[N]: images in which this patch is labelled."""
    labelled_per_image: Counter[int] = field(default_factory=Counter)
    faults: Faults = field(default_factory=Faults)
    refused: set[str] = field(default_factory=set)
    """Images of which a mask cannot be read: in none of the counts above."""

    def __post_init__(self) -> None:
        self.labelled = np.zeros(self.patches, np.int64)

    def merge(self, later: Measures) -> None:
        """Adds what was measured further on in the file."""
        self.images += later.images
        self.regions_per_image.update(later.regions_per_image)  # += would look at every label each time
        self.labels.update(later.labels)
        self.label_images.update(later.label_images)
        self.areas.extend(later.areas)
        self.scores.extend(later.scores)
        self.without_mask += later.without_mask
        self.removed += later.removed
        self.touched += later.touched
        self.several += later.several
        self.labelled += later.labelled
        self.labelled_per_image.update(later.labelled_per_image)
        self.faults.merge(later.faults)
        self.refused |= later.refused

    def add(self, line: Line, grid: Grid) -> None:
        """One image with regions. DataError for a mask that cannot be read; nothing is counted then."""
        entry = line.regions
        areas: list[float] = []
        best: dict[str, NDArray[np.float32]] = {}  # label -> [N], the coverage by its best region
        removed = 0
        for region, mask, row in placed_regions(entry, grid.geometry, grid.patch_size):
            coverage = row.numpy()
            areas.append(int(mask.sum()) / (entry.height * entry.width))
            removed += not coverage.any()
            best[region.label] = np.maximum(best.get(region.label, 0), coverage)
        by_label = np.stack(list(best.values()))
        depth = ((by_label >= grid.min_coverage) & (by_label > 0)).sum(0)
        self.images += 1
        self.regions_per_image[len(entry.regions)] += 1
        self.labels.update(region.label for region in entry.regions)
        self.label_images.update(list(best))
        self.areas.extend(areas)
        self.scores.extend(score for score in line.scores if score is not None)
        self.without_mask += sum(region.segmentation is None for region in entry.regions)
        self.removed += removed
        self.touched += int((by_label > 0).any(0).sum())
        self.several += int((depth > 1).sum())
        self.labelled += depth > 0
        self.labelled_per_image[int((depth > 0).sum())] += 1


def measure_lines(lines: Sequence[Line], grid: Grid, image_folder: Path | None) -> Measures:
    """Images that have regions. Without an image folder no file is looked for."""
    measures = Measures(grid.side**2)
    for line in lines:
        entry = line.regions
        try:
            measures.add(line, grid)
        except DataError as error:
            measures.faults.add(LINES, KINDS[error.kind].meaning, str(error))
            measures.refused.add(entry.image)
            continue
        if image_folder is not None:
            _look_for(entry, image_folder, measures.faults)
    return measures


def _look_for(entry: ImageRegions, image_folder: Path, faults: Faults) -> None:
    try:
        path = resolve_image(image_folder, entry.image)
    except DataError as error:
        faults.add(WITH, KINDS[error.kind].meaning, f"{entry.where}: {error}", entry.image)
        return
    if not path.is_file():
        faults.add(WITH, NO_FILE, f"{entry.where}: {path}", entry.image)


def _score(value: Any) -> float | None:
    """Training does not look at scores, so neither is one that is no number an error."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None
