"""Filling a feature cache: images without features go through the frozen tower, every rank making shards of its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from llava_pat.data.feature_dtypes import pack, relative_errors
from llava_pat.data.feature_store import FeatureStore
from llava_pat.data.file_facts import MISSING, FileFacts
from llava_pat.data.image_batches import Images, in_batches, read_batches
from llava_pat.data.kept_folder import free_bytes
from llava_pat.data.records import resolve_image
from llava_pat.types import DataError


class ImageFiles(Dataset):
    """(pixels [3, S, S], bytes, time of change, sha256) by place: an image, and the file that it was decoded from.

    blank: names in whose place there is an empty image and no file.
    """

    def __init__(self, images: Images, blank: Collection[str]) -> None:
        self.images, self.blank = images, blank

    def __getitem__(self, index: int) -> tuple[Tensor, int, int, str]:
        name = self.images.names[index]
        if name in self.blank:
            pixels, facts = self.images.geometry.blank(), MISSING
        else:
            pixels = self.images[index]  # first: what is wrong with a file is said there
            facts = FileFacts.of(resolve_image(self.images.folder, name))
        return pixels, facts.bytes, facts.mtime_ns, facts.sha256


def fill(
    store: FeatureStore,
    shards: Sequence[int],
    files: ImageFiles,
    tower: Callable[[Tensor], Tensor],
    batch_size: int,
    workers: int,
    progress: bool,
) -> None:
    """Makes these shards, one after the other.

    tower: pixels [I, 3, S, S] -> features [I, N, Dv]. DataError for an image that cannot be read, for features that
    cannot be stored, and for a full disk.
    """
    batches = {shard: in_batches(store.rows_of(shard), batch_size) for shard in shards}
    read = read_batches(files, [rows for shard in shards for rows in batches[shard]], workers)
    images = sum(len(store.rows_of(shard)) for shard in shards)
    with tqdm(total=images, desc=f"features -> {store.folder.name}", unit="image", disable=not progress) as bar:
        for shard in shards:
            packed, facts, errors = [], [], []
            for rows in batches[shard]:
                pixels, *columns = next(read)
                features = tower(pixels)
                packed.append(_pack(features, store, rows))
                errors.append(relative_errors(features, packed[-1]).flatten().cpu())
                packed[-1] = {key: tensor.cpu() for key, tensor in packed[-1].items()}
                facts += [FileFacts(int(size), int(time), digest) for size, time, digest in zip(*columns, strict=True)]
                bar.update(len(rows))
            whole = {key: torch.cat([part[key] for part in packed]) for key in packed[0]}
            try:
                store.write(shard, whole, facts, torch.cat(errors))
            except (OSError, SafetensorError) as error:
                raise DataError(
                    f"{store.shard_file(shard)} cannot be written ({error}); the disk has "
                    f"{free_bytes(store.folder) / 1e9:.1f} GB free. What is in {store.folder} is kept: make room and "
                    "start the run again, it goes on"
                ) from error


def _pack(features: Tensor, store: FeatureStore, rows: Sequence[int]) -> dict[str, Tensor]:
    try:
        return pack(features, store.meta.account.dtype)
    except ValueError as error:
        shown = ", ".join(repr(store.names[row]) for row in rows[:3])
        raise DataError(f"{store.folder}: of images {shown}{' ...' if len(rows) > 3 else ''}: {error}") from error
