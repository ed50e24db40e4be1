"""Which images go through the models together, and into which shard of the output their lines go.

Batches never reach over a shard's end: what a shard holds depends on its own images alone, so a shard that is done
again, by whichever engine, is the same. (A model may answer by the batch, whose images are padded to the largest.)
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from llava_pat.annotation.items import Item


@dataclass(frozen=True)
class Batch:
    """Images that go through the models together."""

    shard: int
    place: int
    """Among the shard's batches, from 0."""
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Plan:
    """All images, cut into shards and batches."""

    items: Sequence[Item]
    shard_size: int
    """Images; the last shard may have fewer."""
    batch_size: int

    @property
    def shards(self) -> int:
        """How many."""
        return math.ceil(len(self.items) / self.shard_size)

    def images_of(self, shard: int) -> Sequence[Item]:
        return self.items[shard * self.shard_size : (shard + 1) * self.shard_size]

    def batches_of(self, shard: int) -> list[Batch]:
        images = self.images_of(shard)
        return [
            Batch(shard, place, tuple(images[start : start + self.batch_size]))
            for place, start in enumerate(range(0, len(images), self.batch_size))
        ]

    def batches(self, done: Collection[int]) -> Iterator[Batch]:
        """Of every shard that is not done, in order."""
        for shard in range(self.shards):
            if shard not in done:
                yield from self.batches_of(shard)
