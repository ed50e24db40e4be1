"""The start-up pass over a data set: everything that would stop a run hours later stops it now."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from llava_pat.data.collate import expand_images
from llava_pat.data.regions import build_patch_regions, label_tokens
from llava_pat.data.tokenize import check_round_trip
from llava_pat.types import IGNORE_INDEX, DataError, ImageRegions, Record

if TYPE_CHECKING:
    from llava_pat.data.dataset import LlavaDataset

_BLOCK = 2048  # records in flight: headers are read by threads, which hides a network disk's latency
_THREADS = 8
_TAIL = 4096  # a whole JPEG has its end marker in its last bytes; trailing metadata is allowed this much


@dataclass(frozen=True)
class CheckReport:
    """What a data set holds. The last four are counted over `region_images_examined` images."""

    records: int
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

    def __str__(self) -> str:
        lines = [
            f"{self.records} records ({self.text_only} text only), {self.images} images, "
            f"{self.supervised_tokens} supervised tokens, longest sequence {self.longest}, {self.truncated} truncated"
        ]
        if self.images_with_regions:
            lines.append(
                f"{self.images_with_regions} images with {self.regions} regions; of {self.region_images_examined} "
                f"looked at closely: {self.regions_removed} regions removed by the crop, {self.labelled_patches} "
                f"labelled patches, {self.multi_label_patches} of them under several labels"
            )
        return "\n".join(lines)


def check_dataset(
    dataset: LlavaDataset, num_patches: int, max_region_images: int = 20_000, progress: bool = True
) -> CheckReport:
    """Check every record of `dataset` against a tower of `num_patches` patches; DataError for the first bad one.

    All records: template fits tokenizer, tokens, something to learn, no image cut by truncation, image files exist and
    open, region sizes equal image sizes, labels have tokens. Coverage, the expensive part, is computed for at most
    `max_region_images` annotated images, evenly spaced, so that the report's counts do not cost a run's start.
    """
    grid = dataset.geometry.size / dataset.patch_size
    if grid**2 != num_patches:
        raise DataError(
            f"the vision tower gives {num_patches} patches but images of {dataset.geometry.size} pixels in patches of "
            f"{dataset.patch_size} make {grid**2:g}; take the image processor that belongs to the tower"
        )
    if not len(dataset):
        raise DataError("the data set holds no records")
    check_round_trip(dataset.template, dataset.tokenizer)
    counts = dict.fromkeys(("images", "text_only", "supervised_tokens", "longest", "truncated"), 0)
    matched: dict[str, Record] = {}
    bar = tqdm(total=len(dataset), desc="checking data", unit="record", disable=not progress)
    with bar, ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(dataset), _BLOCK):
            block = dataset.records[start : start + _BLOCK]
            named = [(record, name) for record in block for name in record.images]
            sizes = pool.map(lambda pair: _image_size(dataset, *pair), named)
            for (record, name), size in zip(named, sizes, strict=True):
                annotated = dataset.regions.get(name) if dataset.regions is not None else None
                if annotated is not None:
                    compare_sizes(record, annotated, size)
                    matched[name] = record
            for record in block:
                _count_tokens(dataset, record, num_patches, counts)
                bar.update()
    return CheckReport(
        records=len(dataset), **counts, **_check_regions(dataset, matched, max_region_images, progress)
    )


def compare_sizes(record: Record, annotated: ImageRegions, size: tuple[int, int]) -> None:
    """DataError when an annotation was made on an image of another size than `size` (height, width) on disk."""
    if (annotated.height, annotated.width) != size:
        raise DataError(
            f"{annotated.where}: its regions are for {annotated.height}x{annotated.width} (height x width) but the "
            f"image of {record.where} is {size[0]}x{size[1]}; annotate the file that is trained on"
        )


def open_image(path: Path, where: str) -> Image.Image:
    """Image.open with errors that name the record and the path."""
    try:
        return Image.open(path)
    except FileNotFoundError as error:
        raise DataError(f"{where}: image {path} does not exist") from error
    except (OSError, Image.DecompressionBombError) as error:
        raise unreadable(path, where, error) from error


def unreadable(path: Path, where: str, error: Exception) -> DataError:
    """The error for a file that is there but is not a whole image."""
    reason = "not an image file" if isinstance(error, UnidentifiedImageError) else str(error)
    return DataError(f"{where}: image {path} cannot be read ({reason}; {path.stat().st_size} bytes); fetch it again")


def _image_size(dataset: LlavaDataset, record: Record, name: str) -> tuple[int, int]:
    """(height, width) from the header; the body is verified where that is cheap, decoded where it looks cut off."""
    path = dataset.image_path(record, name)
    with open_image(path, record.where) as image:
        size, kind = (image.height, image.width), image.format
        try:
            image.verify()
        except (OSError, SyntaxError) as error:  # PIL reports a broken PNG as a SyntaxError
            raise unreadable(path, record.where, error) from error
    if kind in ("JPEG", "MPO") and not _has_jpeg_end(path):
        with open_image(path, record.where) as image:
            try:
                image.load()
            except (OSError, SyntaxError) as error:
                raise unreadable(path, record.where, error) from error
    return size


def _has_jpeg_end(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        return b"\xff\xd9" in file.read()


def _count_tokens(dataset: LlavaDataset, record: Record, num_patches: int, counts: dict[str, int]) -> None:
    encoded = dataset.encode(record)
    ids, labels, cut = expand_images(
        encoded.input_ids, encoded.labels, num_patches, dataset.model_max_length, record.where
    )
    supervised = sum(label != IGNORE_INDEX for label in labels)
    if not supervised:
        raise DataError(
            f"{record.where}: nothing to learn, 0 of {len(labels)} positions are supervised"
            + (f" after truncation at model_max_length {dataset.model_max_length}" if cut else "")
        )
    counts["images"] += len(record.images)
    counts["text_only"] += not record.images
    counts["supervised_tokens"] += supervised
    counts["truncated"] += cut
    counts["longest"] = max(counts["longest"], len(ids))


def _check_regions(
    dataset: LlavaDataset, matched: dict[str, Record], max_region_images: int, progress: bool
) -> dict[str, int]:
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
