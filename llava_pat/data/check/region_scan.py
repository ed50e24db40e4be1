"""The pass over the annotations of the images that a data set uses: labels, masks, what the crop leaves."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from typing import TYPE_CHECKING

from tqdm import tqdm

from llava_pat.data.check.findings import Finding
from llava_pat.data.check.processes import in_processes
from llava_pat.data.regions import label_tokens, placed_regions
from llava_pat.types import DataError, ImageRegions

if TYPE_CHECKING:
    from llava_pat.data.dataset import LlavaDataset

_BLOCK = 256  # images


def check_regions(
    dataset: LlavaDataset,
    matched: list[str],
    max_images: int,
    progress: bool,
    processes: int | None,
    findings: list[Finding] | None,
) -> dict[str, int]:
    """CheckReport's numbers of regions. matched: the annotated images that records use.

    DataError for the first annotation that stops a run; with `findings` that takes it, and the odd ones.
    """
    regions = dataset.regions
    errors: list[tuple[ImageRegions | None, DataError]] = []
    if regions and not matched:
        errors.append((None, DataError(
            f"none of the {len(regions)} images of the regions file (such as {next(iter(regions), None)!r}) is in the "
            f"records (such as {_first_image(dataset)!r}); names must be written alike in both",
            "no_region_matches",
        )))  # fmt: skip
    annotated = [regions[name] for name in matched] if regions is not None else []
    errors += _label_errors(dataset, annotated)
    counts: Counter[str] = Counter()
    step = max(1, -(-len(annotated) // max(1, max_images)))
    examined = annotated[::step]
    if not errors or findings is not None:
        work = functools.partial(_examine, dataset, examined)
        quiet = not progress or not examined
        with (
            contextlib.closing(in_processes(work, range(0, len(examined), _BLOCK), processes)) as blocks,
            tqdm(total=len(examined), desc="checking regions", unit="image", disable=quiet) as bar,
        ):
            for found, numbers, wrong, odd in blocks:
                errors += wrong
                if findings is not None:
                    findings += [_finding(entry, error) for entry, error in odd]
                elif wrong:
                    break
                counts += numbers
                bar.update(found)
    if findings is not None:
        findings += [_finding(entry, error) for entry, error in errors]
        findings += _unused(dataset, set(matched))
    elif errors:
        raise errors[0][1]
    return {
        "images_with_regions": len(annotated),
        "regions": sum(len(entry.regions) for entry in annotated),
        "region_images_unused": len(regions) - len(annotated) if regions is not None else 0,
        "region_images_examined": len(examined),
        **{name: counts[name] for name in ("regions_removed", "labelled_patches", "multi_label_patches")},
    }


def _label_errors(dataset: LlavaDataset, annotated: list[ImageRegions]) -> list[tuple[ImageRegions, DataError]]:
    """Labels without tokens, each with the first image that has it."""
    errors = []
    first = {}
    for entry in annotated:
        for region in entry.regions:
            first.setdefault(region.label, entry)
    for label, entry in first.items() if dataset.tokenizer is not None else ():
        try:
            label_tokens(label, dataset.tokenizer, entry.where)
        except DataError as error:
            errors.append((entry, error))
    return errors


Found = list[tuple[ImageRegions, DataError]]


def _examine(dataset: LlavaDataset, entries: list[ImageRegions], start: int) -> tuple[int, Counter[str], Found, Found]:
    """_BLOCK annotations from `start` on: how many, what they hold, what is wrong, what is odd."""
    stretch = entries[start : start + _BLOCK]
    counts: Counter[str] = Counter()
    wrong, odd = [], []
    for entry in stretch:
        depth = 0
        try:
            for region, mask, row in placed_regions(entry, dataset.geometry, dataset.patch_size):
                if not mask.any():
                    odd.append((entry, _masked(entry, region.label, "no pixel; it is left out", "mask_empty")))
                elif mask.all():
                    odd.append((entry, _masked(entry, region.label, "the whole image", "mask_full")))
                covered = row > 0
                counts["regions_removed"] += not covered.any()
                depth = depth + covered.int()
        except DataError as error:
            wrong.append((entry, error))
        if entry.regions and not isinstance(depth, int):
            counts["labelled_patches"] += int((depth > 0).sum())
            counts["multi_label_patches"] += int((depth > 1).sum())
    return len(stretch), counts, wrong, odd


def _masked(entry: ImageRegions, label: str, what: str, kind: str) -> DataError:
    return DataError(f"{entry.where}: the mask of {label!r} is of {what}", kind)


def _unused(dataset: LlavaDataset, used: set[str]) -> list[Finding]:
    regions = dataset.regions or {}
    named = {name for record in dataset.records for name in record.images}
    return [
        _finding(entry, DataError(f"{entry.where}: no record has this image", "region_unused"))
        for name, entry in regions.items()
        if name not in used and name not in named
    ]


def _finding(entry: ImageRegions | None, error: DataError) -> Finding:
    if entry is None:
        return Finding(error.kind, str(error), "", 0)
    return Finding(error.kind, str(error), entry.file, entry.line, image=entry.image)


def _first_image(dataset: LlavaDataset) -> str | None:
    return next((name for record in dataset.records for name in record.images), None)
