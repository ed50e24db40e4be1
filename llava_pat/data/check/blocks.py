"""One stretch of a data set: every image looked at once, every record's tokens counted, and what becomes of it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from llava_pat.data.check.findings import KINDS, Finding, OnMissing
from llava_pat.data.check.manifest import BLANK, SeenImages, record_digest
from llava_pat.data.check.region_sizes import compare_sizes
from llava_pat.data.collate import expand_images
from llava_pat.data.hashes import file_sha256
from llava_pat.data.images import UNREADABLE, Depth, ImageFacts, check_image, unreadable
from llava_pat.data.records import OnBad, Skipped, resolve_image
from llava_pat.types import IGNORE_INDEX, DataError, Record

if TYPE_CHECKING:
    from llava_pat.data.dataset import LlavaDataset

_THREADS = 8  # read headers, which hides a network disk's latency


@dataclass(frozen=True)
class Settings:
    """How closely a data set is looked at, and what becomes of what is wrong."""

    num_patches: int
    on_bad: OnBad
    missing: OnMissing
    depth: Depth
    hash_images: bool
    everything: bool  # all that is wrong, not what stops a run alone
    stretch: int  # records of a block
    began: SeenImages = SeenImages()  # images that the run began with: one that is lost now was lost under way
    remember: bool = False  # what is seen of images, for a later start


@dataclass
class Block:
    """What one stretch of the records holds."""

    records: int = 0  # all of the stretch
    images: int = 0  # that they name
    counts: Counter[str] = field(default_factory=Counter)
    longest: int = 0
    annotated: dict[str, None] = field(default_factory=dict)  # names of its images with regions, in order
    unusable: list[Skipped] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)  # image name -> why
    vanished: dict[str, None] = field(default_factory=dict)  # images that a run lost under way
    seen: dict[str, int] = field(default_factory=dict)  # image name -> bytes
    renamed: dict[str, str] = field(default_factory=dict)  # image name -> file
    lost_records: list[int] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)

    def add(self, other: Block) -> None:
        self.records += other.records
        self.images += other.images
        self.counts += other.counts
        self.longest = max(self.longest, other.longest)
        self.annotated |= other.annotated
        self.unusable += other.unusable
        self.lost = other.lost | self.lost  # the first reason stays
        self.vanished |= other.vanished
        self.seen |= other.seen
        self.renamed |= other.renamed
        self.lost_records += other.lost_records
        self.findings += other.findings
        self.digests += other.digests


def check_block(dataset: LlavaDataset, settings: Settings, start: int) -> Block:
    """Checks the records from `start` on, settings.stretch of them."""
    records = dataset.records[start : start + settings.stretch]
    block = Block(len(records), sum(len(record.images) for record in records))
    looks = _look_at_images(dataset, records, settings.depth)
    for index, record in enumerate(records, start):
        _check_record(dataset, settings, index, record, looks, block)
    if not settings.everything:  # the first that stops the run is enough
        block.findings = [entry for entry in block.findings if entry.stops(settings.on_bad, settings.missing)][:1]
    return block


def _look_at_images(
    dataset: LlavaDataset, records: Iterable[Record], depth: Depth
) -> dict[str, ImageFacts | DataError]:
    """Every image that the records name, looked at once; errors do not say whose it is."""

    def look(name: str) -> ImageFacts | DataError:
        try:
            facts = check_image(resolve_image(dataset.image_folder, name), depth)
        except DataError as error:
            return error
        try:
            dataset.geometry.refuse_shape(*facts.size)
        except UNREADABLE as error:
            return unreadable(facts.path, "", error)
        return facts

    names = list(dict.fromkeys(name for record in records for name in record.images))
    with ThreadPoolExecutor(_THREADS) as threads:
        return dict(zip(names, threads.map(look, names), strict=True))


def _check_record(
    dataset: LlavaDataset,
    settings: Settings,
    index: int,
    record: Record,
    looks: dict[str, ImageFacts | DataError],
    block: Block,
) -> None:
    """Adds one record to the block: what is wrong with it, and what it holds if it is trained on."""
    wrong = _image_errors(dataset, settings, record, looks, block)
    tokens = _count_tokens(dataset, settings.num_patches, record) if dataset.tokenizer is not None else Counter()
    if isinstance(tokens, DataError):
        wrong.append(_finding(record, tokens))
    lost = [entry for entry in wrong if KINDS[entry.kind].consequence == "image"]
    if lost and settings.missing == "skip":  # what else is wrong with the record does not matter then
        block.findings += lost
        block.lost_records.append(index)
        return
    block.findings += wrong
    if settings.missing == "blank":
        wrong = [entry for entry in wrong if entry not in lost]
    if wrong:
        block.unusable.append(Skipped(index, wrong[0].message, wrong[0].kind, record.line))
        return
    block.counts["images"] += len(record.images)
    block.counts["text_only"] += not record.images
    block.counts["supervised_tokens"] += tokens["supervised"]
    block.counts["truncated"] += tokens["cut"]
    block.longest = max(block.longest, tokens["length"])
    if tokens["cut"] and settings.everything:
        cut = DataError(f"{record.where}: is cut at model_max_length {dataset.model_max_length}", "too_long")
        block.findings.append(_finding(record, cut))
    block.digests.append(_digest(dataset, settings, record, looks, block))


def _image_errors(
    dataset: LlavaDataset,
    settings: Settings,
    record: Record,
    looks: dict[str, ImageFacts | DataError],
    block: Block,
) -> list[Finding]:
    """What is wrong with a record's images and the annotations of them; notes what is merely odd."""
    wrong = []
    for name in dict.fromkeys(record.images):
        look = looks[name]
        if isinstance(look, DataError):
            if KINDS[look.kind].consequence == "image" and name in settings.began:
                block.vanished[name] = None
                if dataset.regions is not None and name in dataset.regions:
                    block.annotated[name] = None
                continue
            error = DataError(f"{record.where}: {look}", look.kind)
            wrong.append(_finding(record, error, name))
            if KINDS[error.kind].consequence == "image":
                block.lost.setdefault(name, str(error))
            continue
        if _renamed(look, name):
            block.renamed[name] = _file_of(look, name)
        if settings.remember:
            block.seen[name] = look.bytes
        if dataset.patch_words is not None:
            dataset.patch_words.check_image(name, look.path, record.where)
        annotated = dataset.regions.get(name) if dataset.regions is not None else None
        if annotated is not None:
            block.annotated[name] = None
            try:
                compare_sizes(record, annotated, look.size)
            except DataError as error:
                at_line = {"file": annotated.file, "line": annotated.line}
                wrong.append(replace(_finding(record, error, name), **at_line))
        if settings.everything:
            block.findings += [_finding(record, oddity, name) for oddity in _oddities(record, name, look)]
    return wrong


def _renamed(look: ImageFacts, name: str) -> bool:
    return look.path.name != os.path.basename(name)


def _file_of(look: ImageFacts, name: str) -> str:
    return os.path.join(os.path.dirname(name), look.path.name)


def _oddities(record: Record, name: str, look: ImageFacts) -> list[DataError]:
    """What is accepted but worth a word."""
    here = f"{record.where}: image {look.path}"
    odd = {
        "other_extension": _renamed(look, name) and f"is taken for {name!r}, which is not there",
        "format_differs": look.format_differs and f"is a {look.format} file; harmless, the content counts",
        "exif_rotated": look.rotated
        and f"is rotated by EXIF; training takes it as stored, {look.size[0]}x{look.size[1]} (height x width)",
        "sixteen_bit": look.mode.startswith("I;16") and "is 16-bit grey: clipped at 255; save it with 8 bits",
    }
    return [DataError(f"{here} {words}", kind) for kind, words in odd.items() if words]


def _finding(record: Record, error: DataError, image: str | None = None) -> Finding:
    return Finding(error.kind, str(error), record.file, record.line, record.index, record.id, image)


def _count_tokens(dataset: LlavaDataset, num_patches: int, record: Record) -> Counter[str] | DataError:
    """Positions, supervised ones and whether it is cut; or what model_max_length makes of it."""
    try:
        encoded = dataset.encode(record)
    except DataError as error:
        return DataError(str(error), "template")
    try:
        ids, labels, cut = expand_images(
            encoded.input_ids, encoded.labels, num_patches, dataset.model_max_length, record.where
        )
    except DataError as error:
        return DataError(str(error), "image_cut")
    supervised = sum(label != IGNORE_INDEX for label in labels)
    if not supervised:
        return DataError(
            f"{record.where}: nothing to learn, 0 of {len(labels)} positions are supervised"
            + (f" after truncation at model_max_length {dataset.model_max_length}" if cut else ""),
            "nothing_to_learn",
        )
    return Counter(length=len(ids), supervised=supervised, cut=cut)


def _digest(
    dataset: LlavaDataset,
    settings: Settings,
    record: Record,
    looks: dict[str, ImageFacts | DataError],
    block: Block,
) -> bytes:
    images = []
    for name in record.images:
        look = looks[name]
        if name in block.vanished:
            file, size = settings.began.facts(name)
        elif isinstance(look, DataError):
            images.append((name, BLANK, None))
            continue
        else:
            file = _file_of(look, name)
            size = file_sha256(look.path) if settings.hash_images else look.bytes
        images.append((file, size, dataset.regions.get(name) if dataset.regions is not None else None))
    return record_digest(record, images)
