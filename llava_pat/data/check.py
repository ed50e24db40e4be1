"""The start-up pass over a data set: everything that would stop a run hours later stops it now."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tqdm import tqdm

from llava_pat.data.collate import expand_images
from llava_pat.data.images import check_image
from llava_pat.data.records import OnBad, Records, Skipped
from llava_pat.data.regions import build_patch_regions, label_tokens
from llava_pat.data.tokenize import check_round_trip
from llava_pat.types import IGNORE_INDEX, DataError, ImageRegions, Record

if TYPE_CHECKING:
    from llava_pat.data.dataset import LlavaDataset

_BLOCK = 2048  # records in flight: headers are read by threads, which hides a network disk's latency
_THREADS = 8
_BLOCKS_PER_PROCESS = 4  # fewer are done sooner than another process starts
_PROCESSES = 8
_SHOWN = 3


@dataclass(frozen=True)
class CheckReport:
    """What a data set holds. The last four numbers are counted over `region_images_examined` images."""

    records: int  # without those of `unusable`
    images: int
    text_only: int
    supervised_tokens: int
    longest: int  # positions of the longest sequence, images expanded, after truncation
    truncated: int  # sequences cut at model_max_length
    images_with_regions: int
    regions: int
    region_images_unused: int  # annotated images that no record uses
    region_images_examined: int
    regions_removed: int  # no patch is left under them after the crop
    labelled_patches: int
    multi_label_patches: int  # under two regions or more
    leading_answers: int  # conversations whose first message was an answer, which is dropped
    skipped: tuple[Skipped, ...]  # left out when the file was read
    unusable: tuple[Skipped, ...]  # found here; the index is the place in the data set (LlavaDataset.without)

    def __str__(self) -> str:
        lines = [
            f"{self.records} records ({self.text_only} text only), {self.images} images, "
            f"{self.supervised_tokens} supervised tokens, longest sequence {self.longest}, {self.truncated} truncated"
        ]
        if self.leading_answers:
            lines.append(f"{self.leading_answers} conversations began with an answer; it was dropped, as LLaVA does")
        left_out = self.skipped + self.unusable
        if left_out:
            lines.append(f"{len(left_out)} records are left out:")
            lines += [f"  {entry.reason}" for entry in left_out[:_SHOWN]]
            lines += [f"  and {len(left_out) - _SHOWN} more"] * (len(left_out) > _SHOWN)
        if self.images_with_regions:
            lines.append(
                f"{self.images_with_regions} images with {self.regions} regions; of {self.region_images_examined} "
                f"looked at closely: {self.regions_removed} regions removed by the crop, {self.labelled_patches} "
                f"labelled patches, {self.multi_label_patches} of them under several labels"
            )
        return "\n".join(lines)


@dataclass
class _Block:
    """What one stretch of the records holds."""

    records: int  # all of the stretch
    counts: Counter[str] = field(default_factory=Counter)
    longest: int = 0
    annotated: dict[str, None] = field(default_factory=dict)  # names of its images with regions, in order
    unusable: list[Skipped] = field(default_factory=list)


def check_dataset(
    dataset: LlavaDataset,
    num_patches: int,
    max_region_images: int = 20_000,
    progress: bool = True,
    on_bad: OnBad = "error",
) -> CheckReport:
    """Check every record of `dataset` against a tower of `num_patches` patches; DataError for the first bad one.

    All records: template fits tokenizer, tokens, something to learn, no image cut by truncation, image files exist and
    open, region sizes equal image sizes, labels have tokens. Coverage, the expensive part, is computed for at most
    `max_region_images` annotated images, evenly spaced, so that the report's counts do not cost a run's start.

    on_bad "skip": a record of which truncation leaves nothing to learn, or cuts an image, is no error but an entry of
    the report's `unusable`. It is for the caller to take those out, on every rank: `dataset.without`.
    """
    grid = dataset.geometry.size // dataset.patch_size
    if grid**2 != num_patches:
        raise DataError(
            f"the vision tower gives {num_patches} patches but images of {dataset.geometry.size} pixels in patches of "
            f"{dataset.patch_size} make {grid**2}; take the image processor that belongs to the tower"
        )
    if not len(dataset):
        raise DataError("the data set holds no records")
    check_round_trip(dataset.template, dataset.tokenizer)
    whole = _Block(records=0)
    with tqdm(total=len(dataset), desc="checking data", unit="record", disable=not progress) as bar:
        for block in _blocks(dataset, num_patches, on_bad):
            whole.records += block.records
            whole.counts += block.counts
            whole.longest = max(whole.longest, block.longest)
            whole.annotated |= block.annotated
            whole.unusable += block.unusable
            bar.update(block.records)
    if len(whole.unusable) == len(dataset):
        raise DataError(f"none of {len(dataset)} records can be used; the first: {whole.unusable[0].reason}")
    records = dataset.records
    return CheckReport(
        records=whole.records - len(whole.unusable),
        **{name: whole.counts[name] for name in ("images", "text_only", "supervised_tokens", "truncated")},
        longest=whole.longest,
        leading_answers=records.leading_answers if isinstance(records, Records) else 0,
        skipped=records.skipped if isinstance(records, Records) else (),
        unusable=tuple(whole.unusable),
        **_check_regions(dataset, list(whole.annotated), max_region_images, progress),
    )


def _blocks(dataset: LlavaDataset, num_patches: int, on_bad: OnBad) -> Iterator[_Block]:
    """All blocks in order, made by several processes where there are many: tokenising is most of the work."""
    starts = range(0, len(dataset), _BLOCK)
    processes = min(_PROCESSES, os.cpu_count() or 1, len(starts) // _BLOCKS_PER_PROCESS)
    if processes < 2 or "fork" not in multiprocessing.get_all_start_methods():
        for start in starts:
            yield _check_block(dataset, start, num_patches, on_bad)
        return
    # forked children see the data set where it is; pickling a million records would take longer than checking them
    with ProcessPoolExecutor(
        processes, multiprocessing.get_context("fork"), initializer=_adopt, initargs=(dataset, num_patches, on_bad)
    ) as pool:
        try:
            yield from pool.map(_check_adopted, starts)
        finally:
            pool.shutdown(cancel_futures=True)


_adopted: tuple[LlavaDataset, int, OnBad]  # in a child process: what it checks


def _adopt(*job) -> None:
    global _adopted
    _adopted = job


def _check_adopted(start: int) -> _Block:
    dataset, num_patches, on_bad = _adopted
    return _check_block(dataset, start, num_patches, on_bad)


def _check_block(dataset: LlavaDataset, start: int, num_patches: int, on_bad: OnBad) -> _Block:
    """Checks the records from `start` on, _BLOCK of them."""
    records = dataset.records[start : start + _BLOCK]
    block = _Block(len(records))
    named = [(record, name) for record in records for name in record.images]
    with ThreadPoolExecutor(_THREADS) as threads:
        sizes = threads.map(lambda pair: check_image(dataset.image_path(*pair), pair[0].where), named)
        for (record, name), size in zip(named, sizes, strict=True):
            if dataset.patch_words is not None:
                dataset.patch_words.check_image(name, dataset.image_path(record, name), record.where)
            annotated = dataset.regions.get(name) if dataset.regions is not None else None
            if annotated is not None:
                compare_sizes(record, annotated, size)
                block.annotated[name] = None
    for index, record in enumerate(records, start):
        reason = _count_tokens(dataset, record, num_patches, block)
        if reason is not None:
            if on_bad == "error":
                raise DataError(reason)
            block.unusable.append(Skipped(index, reason))
    return block


def compare_sizes(record: Record, annotated: ImageRegions, size: tuple[int, int]) -> None:
    """DataError when an annotation was made on an image of another size than `size` (height, width) on disk."""
    if (annotated.height, annotated.width) != size:
        raise DataError(
            f"{annotated.where}: its regions are for {annotated.height}x{annotated.width} (height x width) but the "
            f"image of {record.where} is {size[0]}x{size[1]}; annotate the file that is trained on"
        )


def _count_tokens(dataset: LlavaDataset, record: Record, num_patches: int, block: _Block) -> str | None:
    """Adds a record to the block's counts, or says what model_max_length makes of it."""
    encoded = dataset.encode(record)
    try:
        ids, labels, cut = expand_images(
            encoded.input_ids, encoded.labels, num_patches, dataset.model_max_length, record.where
        )
    except DataError as error:  # truncation cuts an image
        return str(error)
    supervised = sum(label != IGNORE_INDEX for label in labels)
    if not supervised:
        return f"{record.where}: nothing to learn, 0 of {len(labels)} positions are supervised" + (
            f" after truncation at model_max_length {dataset.model_max_length}" if cut else ""
        )
    block.counts["images"] += len(record.images)
    block.counts["text_only"] += not record.images
    block.counts["supervised_tokens"] += supervised
    block.counts["truncated"] += cut
    block.longest = max(block.longest, len(ids))
    return None


def _check_regions(dataset: LlavaDataset, matched: list[str], max_region_images: int, progress: bool) -> dict[str, int]:
    regions = dataset.regions
    if regions is not None and not matched:
        raise DataError(
            f"none of the {len(regions)} images of the regions file (such as {next(iter(regions), None)!r}) is in the "
            f"records (such as {_first_image(dataset)!r}); names must be written alike in both"
        )
    annotated = [regions[name] for name in matched] if regions is not None else []
    for label, where in {r.label: entry.where for entry in annotated for r in entry.regions}.items():
        label_tokens(label, dataset.tokenizer, where)
    step = max(1, -(-len(annotated) // max(1, max_region_images)))
    examined = annotated[::step]
    removed = labelled = several = 0
    for entry in tqdm(examined, desc="checking regions", unit="image", disable=not progress or not examined):
        coverage, _, gone = build_patch_regions(entry, dataset.geometry, dataset.patch_size, dataset.tokenizer)
        depth = (coverage > 0).sum(0)
        removed += gone
        labelled += int((depth > 0).sum())
        several += int((depth > 1).sum())
    return {
        "images_with_regions": len(annotated),
        "regions": sum(len(entry.regions) for entry in annotated),
        "region_images_unused": len(regions) - len(annotated) if regions is not None else 0,
        "region_images_examined": len(examined),
        "regions_removed": removed,
        "labelled_patches": labelled,
        "multi_label_patches": several,
    }


def _first_image(dataset: LlavaDataset) -> str | None:
    return next((name for record in dataset.records for name in record.images), None)
