"""`--feature_cache DIR`: the frozen tower's features are computed once, and read by every later run that they fit.

    DIR/train, DIR/held_out      one folder a data set (data/feature_store.py)

A run reads features only where the tower's weights, layer and settings, the image geometry, the precision and the image
files are its own. Captions, regions and objectives make no difference, so that runs which compare them share one cache.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava_pat.data.feature_store import FeatureStore
from llava_pat.data.image_batches import Images
from llava_pat.models.vlm import VisionLanguageModel
from llava_pat.training.agreement import differences
from llava_pat.training.arguments import PretrainArguments, TrainingArguments
from llava_pat.training.checkpoints import gathered
from llava_pat.training.feature_fill import ImageFiles, fill
from llava_pat.training.feature_folders import account_of, open_stores
from llava_pat.training.finetune_arguments import FinetuneArguments
from llava_pat.training.flags import ConfigError
from llava_pat.training.parts import Parts, compute_dtype
from llava_pat.training.ranks import from_all, from_first, wait_for_all
from llava_pat.types import DataError


class FrozenTower:
    """pixels [I, 3, S, S] -> features [I, N, Dv], in the precision and on the device of training."""

    def __init__(self, model: VisionLanguageModel, training: TrainingArguments) -> None:
        self.model, self.device, self.precision = model, training.device, compute_dtype(training)
        # accelerate has autocast around the forward of a run in half precision, but not under DeepSpeed
        self.autocast = self.precision != torch.float32 and not training.deepspeed

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        with torch.autocast(self.device.type, self.precision, enabled=self.autocast):
            return self.model.encode_images(pixels.to(self.device))


def with_feature_cache(
    parts: Parts, arguments: PretrainArguments | FinetuneArguments, main: bool
) -> tuple[Parts, dict[str, Any]]:
    """The parts with features in the place of pixels, and what metrics.json says of them. Called on every rank.

    Fills what is missing; prints what it takes before, and the error behind. ConfigError for a tower that trains,
    DataError for features of something else (what differs is named) and for a disk that is too small.
    """
    if parts.model.tower_is_trained:
        raise ConfigError("--feature_cache: the vision tower trains, so its features change; leave the flag out")
    started = time.perf_counter()
    folder, training = Path(arguments.data.feature_cache), arguments.training
    data_sets = {"train": parts.train} | ({"held_out": parts.held_out} if parts.held_out is not None else {})
    data_sets = {name: dataset for name, dataset in data_sets.items() if dataset.image_names()}
    with gathered(parts.model.tower):
        tower = FrozenTower(parts.model, training)
        if not any(hasattr(parameter, "ds_id") for parameter in parts.model.tower.parameters()):
            parts.model.tower.to(tower.device)
        of_one = tower(parts.train.geometry.blank().unsqueeze(0))
        if main:
            open_stores(folder, data_sets, account_of(parts, arguments, of_one))
        wait_for_all()
        stores = {name: FeatureStore.open(folder / name) for name in data_sets}
        _refuse_other_caches(stores)
        for name, store in stores.items():
            todo = from_first(store.shards()[1])
            dataset = data_sets[name]
            fill(
                store,
                todo[training.process_index :: training.world_size],
                ImageFiles(Images(store.names, dataset.image_folder, dataset.geometry), dataset.blank),
                tower,
                training.per_device_train_batch_size,
                training.dataloader_num_workers,
                progress=main and sys.stderr.isatty(),
            )
    wait_for_all()
    for store in stores.values():
        _refuse_unfinished(store)
    report = from_first(_report(stores, time.perf_counter() - started) if main else None)
    cached = {name: dataset.with_features(stores[name], of_one.dtype) for name, dataset in data_sets.items()}
    return parts._replace(**cached), report


def _refuse_other_caches(stores: dict[str, FeatureStore]) -> None:
    """ConfigError on all ranks when one has another folder of that name: a disk of its machine, say."""
    by_rank = from_all({store.folder.name: store.meta.sha256[:12] for store in stores.values()})
    problems = differences(by_rank)
    if problems:
        raise ConfigError(
            f"--feature_cache is not the same folder on all ranks: the features of {'; '.join(problems)}. It must be a "
            "folder that all machines share"
        )


def _refuse_unfinished(store: FeatureStore) -> None:
    missing = store.shards()[1]
    if missing:
        raise DataError(
            f"{store.folder}: {len(missing)} shards are not to be seen on this machine, such as "
            f"{store.shard_file(missing[0]).name}; --feature_cache must be a folder that all machines share"
        )


def _report(stores: dict[str, FeatureStore], seconds: float) -> dict[str, Any]:
    """What metrics.json holds of the cache; prints it."""
    if not stores:
        return {}
    errors, sizes = [store.errors() for store in stores.values()], []
    for store, (total, positions, largest) in zip(stores.values(), errors, strict=True):
        account = store.meta.account
        sizes.append(store.meta.images * account.bytes_of_image)
        print(
            f"feature cache {store.folder}: {store.meta.images} images as {account.dtype}, {sizes[-1] / 1e9:.3g} GB; "
            f"relative error of a patch {total / positions:.2g} on average, {largest:.2g} at most",
            flush=True,
        )
    totals, positions, largest = zip(*errors, strict=True)
    return {
        "feature_cache_dtype": account.dtype,
        "feature_cache_bytes": sum(sizes),
        "feature_cache_error_mean": sum(totals) / sum(positions),
        "feature_cache_error_max": max(largest),
        "feature_cache_seconds": seconds,
    }
