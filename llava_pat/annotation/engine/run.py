"""One annotation run: claimed or gone on with, all shards, a summary."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from llava_pat.annotation.config import AnnotationConfig, dump_config
from llava_pat.annotation.engine.claim import claimed
from llava_pat.annotation.engine.local import run_local
from llava_pat.annotation.engine.ray_data import RayOptions, import_ray, run_ray
from llava_pat.annotation.engine.shards import Format, ShardCollector, ShardFolder
from llava_pat.annotation.engine.summary import add_up, write_summary
from llava_pat.annotation.engine.work import Batch, Plan
from llava_pat.annotation.items import find_items
from llava_pat.annotation.pipeline import Annotated, Annotator
from llava_pat.annotation.tally import Tally
from llava_pat.data.hashes import file_sha256
from llava_pat.data.records import OnBad, load_records
from llava_pat.data.region_rows import import_pyarrow
from llava_pat.types import DataError


@dataclass(frozen=True)
class RunOptions:
    """What is annotated, where it goes, and by which engine."""

    records: Path
    """LLaVA JSON or JSONL."""
    image_folder: Path
    out: Path
    engine: Literal["local", "ray"] = "local"
    format: Format = "jsonl"
    shard_size: int = 1000
    """Images of a shard: what a killed run does again, at most, for every worker."""
    threads: int = 4
    """Of the local engine, beside the models."""
    ray: RayOptions = RayOptions()
    bad_records: OnBad = "error"
    limit: int | None = None
    """Only the first images."""
    overwrite: bool = False


def annotate(config: AnnotationConfig, options: RunOptions) -> Tally:
    """Writes options.out (engine/shards.py) and returns what became of the images.

    A run that was killed goes on with the shards that are not there. Raises DataError for records or settings that are
    wrong, for a folder that holds another run or is in use, and when no image has a region.
    """
    if not options.image_folder.is_dir():
        raise DataError(f"{options.image_folder}: no such folder; give that which the records' image paths lie in")
    if options.engine == "ray":
        import_ray()
    if options.format == "parquet":
        import_pyarrow(options.out, "written")
    records = load_records(options.records, options.bad_records)
    items = find_items(records)[: options.limit]
    if not items:
        raise DataError(f"{options.records}: none of its {len(records):,} records has an image")
    plan = Plan(items, options.shard_size, config.batch_size)
    folder = ShardFolder(options.out, options.format)
    with claimed(options.out, dump_config(config), _describe(options, len(items)), options.overwrite):
        done = folder.done(plan.shards)
        _work(config, options, plan, folder, done)
        tally = add_up(folder, plan.shards, records.skipped)
        write_summary(options.out, tally, len(items))
    if not tally.images:
        raise DataError(_nothing(tally, options, len(items)))
    return tally


def _work(config: AnnotationConfig, options: RunOptions, plan: Plan, folder: ShardFolder, done: set[int]) -> None:
    """Every shard that is not done."""
    finished = sum(len(plan.images_of(shard)) for shard in done)
    if finished == len(plan.items):
        return
    collector = ShardCollector(folder)
    batches_of = {shard: len(plan.batches_of(shard)) for shard in range(plan.shards)}
    with tqdm(total=len(plan.items), initial=finished, desc="annotating", unit="image", disable=None) as bar:
        for batch, answers in _answers(config, options, plan.batches(done)):
            collector.add(batch.shard, batch.place, answers, batches_of[batch.shard])
            bar.update(len(answers))


def _answers(
    config: AnnotationConfig, options: RunOptions, batches: Iterable[Batch]
) -> Iterator[tuple[Batch, list[Annotated]]]:
    if options.engine == "ray":
        return run_ray(config, options.image_folder, batches, options.ray)
    return run_local(Annotator(config), options.image_folder, batches, options.threads)


def _describe(options: RunOptions, images: int) -> dict[str, Any]:
    return {
        "records": str(options.records.resolve()),
        "records_sha256": file_sha256(options.records),
        "bad_records": options.bad_records,
        "image_folder": str(options.image_folder.resolve()),
        "images": images,
        "limit": options.limit,
        "shard_size": options.shard_size,
        "format": options.format,
    }


def _nothing(tally: Tally, options: RunOptions, images: int) -> str:
    text = f"{options.records}: none of its {images:,} images has a region"
    for key, count in tally.left_out.most_common(3):
        first = f" ({tally.first[key]})" if key in tally.first else ""
        text += f"; {count:,} {key[0]}: {key[1]}{first}"
    return text
