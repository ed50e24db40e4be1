"""All images of a source, looked at once: counters, and a sample of images that are shown.

In memory at one time: counters, the names of all images, the captions if there are records, and a few blocks of lines.
Masks are decoded in other processes, one at a time.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from llava_pat.annotation.report.captions import NounCounts, NounFinder
from llava_pat.annotation.report.faults import INSIDE, LINES, WITH, WITHOUT, Faults
from llava_pat.annotation.report.lines import Reading
from llava_pat.annotation.report.measure import Grid, Line, Measures, measure_lines
from llava_pat.annotation.report.sample import Reservoir
from llava_pat.annotation.report.source import Source
from llava_pat.data.check.processes import stream_in_processes
from llava_pat.data.region_rows import count_rows

UNKNOWN = "no record has it"
NO_LINE = "no line in the regions file"
_BLOCK = 64  # images


@dataclass(frozen=True)
class SurveyOptions:
    """What is looked at, and how."""

    grid: Grid
    samples: int
    """Images that are shown."""
    seed: int
    max_images: int | None = None
    """Only the first lines: a quick look."""
    processes: int | None = None


@dataclass(frozen=True)
class Captions:
    """What the records say, by image."""

    of: Mapping[str, str]
    finder: NounFinder

    def nouns(self, images: Sequence[str]) -> list[list[str]]:
        """Of each image; an image that no record has has none."""
        return self.finder.find([self.of.get(image, "") for image in images])


@dataclass(frozen=True)
class Survey:
    """What was found. A quick look measures the first lines alone, and counts the others."""

    measures: Measures
    with_regions: int
    """Images; those that a quick look does not read are taken to be right."""
    without_regions: int | None
    """Images; None where nothing says which images there should be."""
    quick: bool
    """Not all lines were read."""
    sample: list[Line]
    faults: Faults
    unknown: int | None
    """Measured images that no record has; None without records."""
    nouns: NounCounts | None
    """Of measured images; None without records."""
    other_nouns: NounCounts | None
    """Of images without regions; None without records, and for a quick look."""

    @property
    def all_nouns(self) -> NounCounts | None:
        """Of all images whose captions were read."""
        if self.nouns is None or self.other_nouns is None:
            return self.nouns
        return self.nouns + self.other_nouns


def survey_source(source: Source, captions: Captions | None, options: SurveyOptions) -> Survey:
    """Reads everything once. DataError for what is no regions file at all; single bad lines are counted."""
    lines = count_rows(source.shards)
    most = lines if options.max_images is None else min(lines, options.max_images)
    reading = Reading(source.shards, most)
    measures, sample = Measures(options.grid.side**2), Reservoir[Line](options.samples, options.seed)
    nouns = None if captions is None else NounCounts()
    work = functools.partial(measure_lines, grid=options.grid, image_folder=source.image_folder)
    stream = stream_in_processes(work, reading.blocks(_BLOCK), -(-most // _BLOCK), options.processes)
    with contextlib.closing(stream), tqdm(total=most, desc="measuring", unit="image", disable=None) as bar:
        for block, found in stream:
            measures.merge(found)
            good = [line for line in block if line.regions.image not in found.refused]
            for line in good:
                sample.offer(line)
            if captions is not None and nouns is not None:
                _add_lines(good, captions, nouns, reading.faults)
            bar.update(len(block))
    reading.faults.merge(measures.faults)
    faults, quick = reading.faults, most < lines
    left_out = _left_out(source, faults)
    with_regions = lines - len(reading.bare) - faults.count(LINES) if quick else measures.images
    without: int | None = None
    if source.run is not None:
        without = len(left_out) + len(reading.bare)
    elif captions is not None and quick:
        without = max(0, len(captions.of) - with_regions)
    elif captions is not None:
        left_out = [image for image in captions.of if image not in reading.seen]
        without = len(left_out) + len(reading.bare)
        if left_out:
            faults.add(WITHOUT, NO_LINE, f"{source.records}: {left_out[0]!r}", left_out[0], len(left_out))
    return Survey(
        measures,
        with_regions,
        without,
        quick,
        sample.kept,
        faults,
        None if captions is None else faults.count(WITH, UNKNOWN),
        nouns,
        None if captions is None or quick else _count_nouns([*left_out, *reading.bare], captions),
    )


def _add_lines(lines: Sequence[Line], captions: Captions, nouns: NounCounts, faults: Faults) -> None:
    """The captions of images with regions."""
    for line, found in zip(lines, captions.nouns([line.regions.image for line in lines]), strict=True):
        entry = line.regions
        if entry.image in captions.of:
            nouns.add(found, [region.label for region in entry.regions], captions.finder)
        else:
            faults.add(WITH, UNKNOWN, entry.where, entry.image)


def _left_out(source: Source, faults: Faults) -> list[str]:
    """The images that a run left out, which are counted with their reasons."""
    images = []
    for tally in source.tallies:
        for left in tally.images:
            faults.add(WITHOUT, left.reason, left.where, left.image)
            images.append(left.image)
        for reason, count in tally.counts.items():
            faults.add(INSIDE, reason, str(tally.file), count=count)
    return images


def _count_nouns(images: Sequence[str], captions: Captions) -> NounCounts:
    """Of images without regions."""
    counts = NounCounts()
    known = [image for image in images if image in captions.of]
    for start in range(0, len(known), _BLOCK):
        for found in captions.nouns(known[start : start + _BLOCK]):
            counts.add(found, (), captions.finder)
    return counts
