"""Images by name as batches of pixels that worker processes read, for a pass over all images of a data set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from llava_pat.data.geometry import Geometry
from llava_pat.data.images import UNREADABLE, open_image, unreadable
from llava_pat.data.records import resolve_image
from llava_pat.types import DataError


class Images(Dataset):
    """Pixels [3, S, S] by place in `names`; DataError names the image and its path."""

    def __init__(self, names: Sequence[str], folder: str | Path, geometry: Geometry) -> None:
        self.names, self.folder, self.geometry = names, Path(folder), geometry

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:
        name = self.names[index]
        path = resolve_image(self.folder, name)
        with open_image(path, f"image {name!r}") as image:
            try:
                return self.geometry.pixels(image)
            except UNREADABLE as error:
                raise unreadable(path, f"image {name!r}", error) from error


def read_batches(images: Dataset, batches: Iterable[Sequence[int]], workers: int) -> Iterator[Any]:
    """The items at these places, collated by torch's rules, read by `workers` processes.

    The first DataError of an item is raised here.
    """
    loader = DataLoader(
        _ErrorsAsValues(images),
        batch_sampler=list(batches),
        num_workers=workers,
        collate_fn=_collate,
        generator=torch.Generator().manual_seed(0),  # the random state of a run is not touched
    )
    for batch in loader:
        if isinstance(batch, DataError):
            raise batch
        yield batch


def in_batches(places: Sequence[int], size: int) -> list[Sequence[int]]:
    """`size` places at a time, the last fewer."""
    return [places[start : start + size] for start in range(0, len(places), size)]


class _ErrorsAsValues(Dataset):
    """Items whose errors are returned: raised in a worker, they come back as that worker's traceback."""

    def __init__(self, images: Dataset) -> None:
        self.images = images

    def __getitem__(self, index: int) -> Any:
        try:
            return self.images[index]
        except DataError as error:
            return error


def _collate(items: Sequence[Any]) -> Any:
    errors = [item for item in items if isinstance(item, DataError)]
    return errors[0] if errors else default_collate(list(items))
