"""The start-up check of a run's data: once, on the first rank; all ranks leave out the same records."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from llava_pat.data.check import CheckReport
from llava_pat.data.check.findings import KINDS
from llava_pat.data.check.manifest import SeenImages
from llava_pat.data.dataset import LlavaDataset
from llava_pat.training.arguments import DataArguments
from llava_pat.training.flags import ConfigError
from llava_pat.training.parts import Parts
from llava_pat.training.ranks import from_first
from llava_pat.types import DataError

_SHOWN = 3


class _Found(NamedTuple):
    """What the first rank found in a data set."""

    left_out: tuple[int, ...]
    blank: tuple[str, ...]
    lost: tuple[str, ...]
    manifest: str
    may_lose: int
    problems: list[str]


@dataclass(frozen=True)
class CheckedData:
    """The data sets that are trained and measured on, and the manifest hash of each."""

    train: LlavaDataset
    held_out: LlavaDataset | None
    manifest: str
    held_out_manifest: str | None
    may_lose: int  # images that may go missing in the middle of the run: what --max_missing leaves
    lost: Mapping[str, tuple[str, ...]]  # by data set, images that are missing or broken; not those lost under way
    seen: SeenImages | None  # training images, for a later start; of the first rank, with --missing skip or blank


def check_data(parts: Parts, data: DataArguments, main: bool, began: SeenImages | None = None) -> CheckedData:
    """The data sets without what cannot be trained on; prints what they hold.

    began: for the first rank, the images that a run had when it began, which goes on now and may have lost some.

    Raises ConfigError for patch labels of another tower, DataError for the first bad record or image, or ConfigError
    when --bad_records skip or --missing skip or blank would leave out too many.
    """
    if parts.words is not None and main:
        parts.words.check_tower()
        print(parts.words, flush=True)
    may_vanish = data.missing != "error"
    train, found, seen = _check("training", parts.train, parts, data, main, began=began, remember=may_vanish)
    train.missing = data.missing  # not of the held-out data: measures of other images cannot be compared
    lost = {"training": found.lost}
    held_out = held_out_manifest = None
    if parts.held_out is not None:
        held_out, found_there, _ = _check("held-out", parts.held_out, parts, data, main)
        held_out_manifest, lost["held-out"] = found_there.manifest, found_there.lost
    return CheckedData(train, held_out, found.manifest, held_out_manifest, found.may_lose, lost, seen)


def _check(
    name: str, dataset: LlavaDataset, parts: Parts, data: DataArguments, main: bool, **memory: Any
) -> tuple[LlavaDataset, _Found, SeenImages | None]:
    found = seen = None
    if main:
        try:
            report = dataset.check(
                parts.model.num_patches,
                progress=sys.stderr.isatty(),
                on_bad=data.bad_records,
                missing=data.missing,
                **memory,
            )
        except DataError as error:
            if KINDS[error.kind].consequence != "image":
                raise
            raise DataError(f"{error}; or go on without it: --missing skip, or blank", error.kind) from error
        print(f"{name} data: {report}", flush=True)
        may_lose = int(_most_missing(report, data)) - len(report.lost)
        lost = tuple(entry.image for entry in report.lost[:_SHOWN])
        problems = list(over_caps(name, report, data))
        found = _Found(report.left_out, report.blank, lost, report.manifest, may_lose, problems)
        seen = report.seen
    found = from_first(found)
    if found.problems:
        raise ConfigError("\n".join(found.problems))
    checked = dataset.without(found.left_out, found.blank) if found.left_out or found.blank else dataset
    return checked, found, seen


def over_caps(name: str, report: CheckReport, data: DataArguments) -> Iterator[str]:
    """One message for each cap that a data set is above, with both numbers, the first files and the way out."""
    skipped, unusable = report.skipped, report.unusable
    total = report.records + len(report.lost_records) + len(unusable) + len(skipped)
    left_out = len(unusable) + len(skipped)
    if left_out > data.max_bad_records * total:
        yield (
            f"{name} data: {left_out} of {total} records cannot be trained on, more than --max_bad_records "
            f"{data.max_bad_records}; the first reasons are above. Mend the file, or raise the share"
        )
    lost = report.lost
    if len(lost) > _most_missing(report, data):
        first = ", ".join(entry.image for entry in lost[:_SHOWN])
        yield (
            f"{name} data: {len(lost)} of {report.named_images} images are missing or broken, more than --max_missing "
            f"{data.max_missing:g} allows: {first}{' ...' if len(lost) > _SHOWN else ''}. Fetch them again (python -m "
            "llava_pat.data.check --report FILE lists them all), or raise --max_missing"
        )


def _most_missing(report: CheckReport, data: DataArguments) -> float:
    return data.max_missing if data.max_missing >= 1 else data.max_missing * report.named_images
