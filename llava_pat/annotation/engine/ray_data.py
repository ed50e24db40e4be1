"""A cluster: Ray Data opens images and codes masks in tasks on CPUs, and runs the models in actors on GPUs.

(Where the actors have no GPU, Ray opens images in the actors.) A row of the data set is a batch, so what goes through a
model together is what the local engine puts together. Rows travel as bytes, our own objects pickled between processes
of one run; whoever asked writes the shards.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_pat.annotation.config import AnnotationConfig
from llava_pat.annotation.engine.work import Batch
from llava_pat.annotation.items import open_item
from llava_pat.annotation.pipeline import Annotated, Annotator, finish
from llava_pat.types import DataError

_COLUMN = "pickle"


@dataclass(frozen=True)
class RayOptions:
    """How a run spreads over a cluster."""

    address: str | None = None
    """None: a cluster of this machine alone, for this run; "auto" or host:port: one that is running."""
    workers: int | None = None
    """Actors, each with its own models; None: one a GPU, or one where there is none."""
    gpus_per_worker: float = 1.0
    """A share lets several actors use one GPU. Nothing is asked for where device is "cpu"."""


def run_ray(
    config: AnnotationConfig, image_folder: Path, batches: Iterable[Batch], options: RayOptions
) -> Iterator[tuple[Batch, list[Annotated]]]:
    """Every batch with its answers, in any order. DataError if Ray is not installed or has no GPU that is asked for."""
    ray = import_ray()
    rows = [{_COLUMN: pickle.dumps(batch)} for batch in batches]
    if not rows:
        return
    ray.init(address=options.address, logging_level="warning", log_to_driver=False)
    try:
        workers, gpus = _resources(ray, config, options)
        ray.data.DataContext.get_current().enable_progress_bars = False  # the command has one
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        actors = ray.data.ActorPoolStrategy(size=workers)
        done = (
            ray.data.from_items(rows, override_num_blocks=len(rows))
            .map(_open, fn_args=(str(image_folder.resolve()), config.max_pixels))
            .map(_Models, fn_constructor_args=(config,), compute=actors, num_gpus=gpus)
            .map(_finish, fn_args=(config,))
        )
        for row in done.iter_rows():
            yield pickle.loads(row[_COLUMN])
    finally:
        ray.shutdown()


def import_ray() -> Any:
    """The module, with ray.data, or a DataError with the command that installs it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise DataError("--engine ray needs Ray: pip install 'ray[data]', or take --engine local") from error
    return ray


class _Models:
    """An actor."""

    def __init__(self, config: AnnotationConfig) -> None:
        self._annotator = Annotator(config)

    def __call__(self, row: dict[str, bytes]) -> dict[str, bytes]:
        batch, opened = pickle.loads(row[_COLUMN])
        masked = self._annotator.infer(batch.items, opened)
        return {_COLUMN: pickle.dumps((batch, masked, self._annotator.tools))}


def _open(row: dict[str, bytes], image_folder: str, max_pixels: int) -> dict[str, bytes]:
    batch = pickle.loads(row[_COLUMN])
    opened = [open_item(item, Path(image_folder), max_pixels) for item in batch.items]
    return {_COLUMN: pickle.dumps((batch, opened))}


def _finish(row: dict[str, bytes], config: AnnotationConfig) -> dict[str, bytes]:
    batch, masked, tools = pickle.loads(row[_COLUMN])
    return {_COLUMN: pickle.dumps((batch, [finish(one, config.selection, tools) for one in masked]))}


def _resources(ray: Any, config: AnnotationConfig, options: RayOptions) -> tuple[int, float]:
    """(actors, GPUs of each)."""
    if config.device == "cpu":
        return options.workers or 1, 0.0
    if config.device != "cuda":
        raise DataError(f"device is {config.device!r}; with --engine ray it is cpu or cuda, Ray deals out the GPUs")
    there = ray.cluster_resources().get("GPU", 0)
    workers = int(there / options.gpus_per_worker) if options.workers is None else options.workers
    if not workers or workers * options.gpus_per_worker > there:
        raise DataError(
            f"device is {config.device!r}: {workers or 1} workers with {options.gpus_per_worker} GPUs each, but Ray's "
            f"cluster has {there:g} GPUs; lower --workers or --gpus_per_worker, or set device=cpu"
        )
    return workers, options.gpus_per_worker
