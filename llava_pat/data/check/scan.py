"""The pass over a data set, in stretches that processes share (blocks.py: one of them)."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING

from tqdm import tqdm

from llava_pat.data.check.blocks import Block, Settings, check_block
from llava_pat.data.check.findings import Finding, OnMissing
from llava_pat.data.check.manifest import SeenImages, manifest
from llava_pat.data.check.processes import in_processes
from llava_pat.data.check.region_scan import check_regions
from llava_pat.data.check.report import CheckReport, Lost
from llava_pat.data.images import Depth
from llava_pat.data.records import OnBad, Records
from llava_pat.data.tokenize import check_round_trip
from llava_pat.types import DataError

if TYPE_CHECKING:
    from llava_pat.data.dataset import LlavaDataset

_BLOCK = 512  # records of a stretch


def check_dataset(
    dataset: LlavaDataset,
    num_patches: int,
    max_region_images: int = 20_000,
    progress: bool = True,
    on_bad: OnBad = "error",
    missing: OnMissing = "error",
    depth: Depth | None = None,
    hash_images: bool = False,
    processes: int | None = None,
    findings: list[Finding] | None = None,
    began: SeenImages | None = None,
    remember: bool = False,
) -> CheckReport:
    """Check every record of `dataset` against a tower of `num_patches` patches; DataError for the first bad one.

    All records: template fits tokenizer, tokens, something to learn, no image cut by truncation, image files exist and
    open, region sizes equal image sizes, labels have tokens. Coverage, the expensive part, is computed for at most
    `max_region_images` annotated images, evenly spaced, so that the report's counts do not cost a run's start.

    on_bad "skip": a record of which truncation leaves nothing to learn, which cuts an image, or whose image lies
    outside the folder is no error but an entry of the report's `unusable`. missing "skip" or "blank": an image that is
    not there or cannot be read is no error but one of `lost`; its records are among `lost_records`, or it is among
    `blank`. The caller takes them out, on every rank: `dataset.without(report.left_out, report.blank)`.

    depth: how closely images are looked at. Default: "verify" where a bad one stops the run, "decode" where it is left
    out, since it can't be any more once training has begun. processes: at most so many (default: one a core, up to 8);
    the report is the same with any number.
    began: images that a run had when it began, which goes on now. One of these that is not there or cannot be read is
    among `vanished` and nothing else: the manifest takes what is known of it, and its records are kept, so that the
    order of samples is the run's. remember: the report has such `seen` images of this check.
    findings: takes everything that is wrong; nothing but what concerns all records is an error then, and the report
    counts what is left without the records that would stop a run. Without a tokenizer in `dataset`, tokens and the
    tokens of labels are not looked at.
    """
    grid = dataset.geometry.size // dataset.patch_size
    if grid**2 != num_patches:
        raise DataError(
            f"the vision tower gives {num_patches} patches but images of {dataset.geometry.size} pixels in patches of "
            f"{dataset.patch_size} make {grid**2}; take the image processor that belongs to the tower"
        )
    if not len(dataset):
        raise DataError("the data set holds no records")
    if dataset.tokenizer is not None:
        check_round_trip(dataset.template, dataset.tokenizer)
    depth = depth or ("verify" if missing == "error" else "decode")
    everything = findings is not None
    settings = Settings(
        num_patches, on_bad, missing, depth, hash_images, everything, _BLOCK, began or SeenImages(), remember
    )
    whole = _scan(dataset, settings, progress, processes)
    if findings is not None:
        findings += whole.findings
    elif len(whole.unusable) + len(whole.lost_records) == len(dataset):
        first = whole.unusable[0].reason if whole.unusable else next(iter(whole.lost.values()))
        raise DataError(f"none of {len(dataset)} records can be used; the first: {first}")
    records = dataset.records
    return CheckReport(
        records=whole.records - len(whole.unusable) - len(whole.lost_records),
        **{name: whole.counts[name] for name in ("images", "text_only", "supervised_tokens", "truncated")},
        longest=whole.longest,
        leading_answers=records.leading_answers if isinstance(records, Records) else 0,
        skipped=records.skipped if isinstance(records, Records) else (),
        unusable=tuple(whole.unusable),
        named_images=len({name for record in records for name in record.images}),
        renamed=len(whole.renamed),
        lost=tuple(Lost(name, reason) for name, reason in whole.lost.items()),
        lost_records=tuple(whole.lost_records),
        blank=tuple(whole.lost) if missing == "blank" else (),
        vanished=tuple(whole.vanished),
        seen=SeenImages(whole.seen, whole.renamed) if remember else None,
        manifest=manifest(whole.digests),
        **check_regions(dataset, list(whole.annotated), max_region_images, progress, processes, findings),
    )


def _scan(dataset: LlavaDataset, settings: Settings, progress: bool, processes: int | None) -> Block:
    whole = Block()
    images = sum(len(record.images) for record in dataset.records)
    work = functools.partial(check_block, dataset, settings)
    unit = "image" if images else "record"
    # closed at once where an error ends the loop: processes must not outlive it
    with (
        contextlib.closing(in_processes(work, range(0, len(dataset), _BLOCK), processes)) as blocks,
        tqdm(total=images or len(dataset), desc="checking data", unit=unit, disable=not progress) as bar,
    ):
        for block in blocks:
            if not settings.everything:
                for finding in block.findings:
                    raise DataError(finding.message, finding.kind)
            whole.add(block)
            bar.update(block.images if images else block.records)
    return whole
