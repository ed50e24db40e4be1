"""A sample of a stream of unknown length: everything has the same chance, and the same seed gives the same."""

from __future__ import annotations

import random
from typing import Generic, TypeVar

T = TypeVar("T")


class Reservoir(Generic[T]):
    """Vitter's algorithm R (ACM TOMS 11, 1985): `size` of what was offered, in that order."""

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._random, self._seen = size, random.Random(seed), 0
        self._kept: list[tuple[int, T]] = []

    def offer(self, item: T) -> None:
        """The next of the stream."""
        place = self._seen
        self._seen += 1
        if place < self._size:
            self._kept.append((place, item))
            return
        drawn = self._random.randrange(self._seen)
        if drawn < self._size:
            self._kept[drawn] = (place, item)

    @property
    def kept(self) -> list[T]:
        return [item for _, item in sorted(self._kept, key=lambda pair: pair[0])]
