"""Which folders of a feature cache a run may read: what they must have been made from, and whether there is room."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch import Tensor

from llava_pat.data.dataset import LlavaDataset
from llava_pat.data.feature_meta import FeatureAccount, FeatureMeta
from llava_pat.data.feature_store import META, FeatureStore
from llava_pat.data.image_batches import in_batches
from llava_pat.data.kept_folder import differences, free_bytes
from llava_pat.data.records import resolve_image
from llava_pat.models.fingerprint import used_tower_fingerprint
from llava_pat.training.arguments import PretrainArguments
from llava_pat.training.finetune_arguments import FinetuneArguments
from llava_pat.training.parts import Parts, compute_dtype
from llava_pat.types import DataError

_THREADS = 8  # look at image files, which hides a network disk's latency
_FILES_AT_ONCE = 4096


def account_of(parts: Parts, arguments: PretrainArguments | FinetuneArguments, features: Tensor) -> FeatureAccount:
    """How this run's features come from images. features: of any image, [1, N, Dv]."""
    model, geometry = parts.model, parts.train.geometry
    _, positions, width = features.shape
    numbers = json.loads(json.dumps(dataclasses.asdict(geometry)))  # as they come back from a file
    return FeatureAccount(
        tower=str(arguments.model.vision_tower),
        tower_sha256=used_tower_fingerprint(model.tower, model.select_layer),
        layer=model.tower.layer_index(model.select_layer),
        select_feature=model.select_feature,
        geometry={"kind": type(geometry).__name__, **numbers},
        patch_size=model.patch_size,
        positions=positions,
        width=width,
        precision=str(compute_dtype(arguments.training)).removeprefix("torch."),
        dtype=arguments.data.feature_cache_dtype,
    )


def open_stores(folder: Path, data_sets: Mapping[str, LlavaDataset], account: FeatureAccount) -> None:
    """Sees that every store is there, fits the run, and has room to be filled. On one rank."""
    fresh, needed = {}, 0
    for name, dataset in data_sets.items():
        names = dataset.image_names()
        if (folder / name / META).is_file():
            store = FeatureStore.open(folder / name)
            _refuse_other(store, account, names)
            there, todo = store.shards()
            _refuse_changed(store, there, dataset, names)
            store.remove_left_over()
            images = sum(len(store.rows_of(shard)) for shard in todo)
        else:
            images = len(names)
            fresh[name] = FeatureMeta.of(account, str(dataset.image_folder), names)
        takes = images * account.bytes_of_image
        needed += takes
        if images:
            print(
                f"feature cache {folder / name}: {images} images x {account.positions} x {account.width} values as "
                f"{account.dtype} are to be computed, {takes / 1e9:.3g} GB",
                flush=True,
            )
    free = free_bytes(folder)
    if free < needed:
        raise DataError(
            f"--feature_cache {folder}: features take {needed / 1e9:.3g} GB and the disk has {free / 1e9:.3g} GB free; "
            "take another disk, --feature_cache_dtype int8 (one byte a value), or leave the flag out"
        )
    for name, meta in fresh.items():
        FeatureStore.create(folder / name, meta, data_sets[name].image_names())


def _refuse_other(store: FeatureStore, account: FeatureAccount, names: Sequence[str]) -> None:
    """DataError when a folder's features are not of this tower, geometry, precision, dtype or data set."""
    way_out = "Delete it, or give another --feature_cache"
    shown = differences(store.meta.account.identity(), account.identity())
    if shown:
        raise DataError(f"{store.folder} holds features of something else ({shown}). {way_out}")
    missing = [name for name in names if name not in store]
    if missing:
        raise DataError(
            f"{store.folder} holds features of the {len(store.names)} images of {store.meta.image_folder}; of this "
            f"run's {len(names)} images {len(missing)} are not among them, such as {missing[0]!r}. {way_out}"
        )
    there, todo = store.shards()
    if todo and tuple(names) != store.names:
        raise DataError(
            f"{store.folder} is not finished ({len(there)} of {len(there) + len(todo)} shards) and is of "
            f"{len(store.names)} images, this run's are {len(names)}: finish it with the run that began it. {way_out}"
        )


def _refuse_changed(store: FeatureStore, shards: Sequence[int], dataset: LlavaDataset, names: Sequence[str]) -> None:
    """DataError when images are not the files that these shards' features were made from."""
    facts = store.facts(shards)

    def change(name: str) -> str:
        path = None if name in dataset.blank else resolve_image(dataset.image_folder, name)
        return facts[name].change(path)

    known, changed = [name for name in names if name in facts], {}
    with ThreadPoolExecutor(_THREADS) as threads:
        for some in in_batches(known, _FILES_AT_ONCE):
            found = zip(some, threads.map(change, some), strict=True)
            changed |= {name: difference for name, difference in found if difference}
    if changed:
        name, difference = next(iter(changed.items()))
        numbers = sorted({store.shard_of(other) for other in changed})
        shards_of_them = [store.shard_file(number).name for number in numbers[:3]] + ["..."] * (len(numbers) > 3)
        raise DataError(
            f"{store.folder}: {len(changed)} of {len(known)} images are not the files that its features were made "
            f"from, the first: {dataset.image_folder / name} ({difference}). Delete the folder, or the shards of these "
            f"images alone ({', '.join(shards_of_them)}), and start the run again"
        )
